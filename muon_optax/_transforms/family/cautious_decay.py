"""Cautious weight decay: weights decay where the step goes the same way."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._transforms.checks.arguments import check_number, check_schedule
from muon_optax._transforms.decay_mask import as_mask_function


def add_cautious_decayed_weights(
    weight_decay: optax.ScalarOrSchedule, mask: Any | Callable[[optax.Params], Any] | None = None
) -> optax.GradientTransformation:
    """Adds ``weight_decay W`` to the updates, where update and weight have the same sign.

    For an entry ``u`` of the updates, before the learning rate's minus, and its weight ``w``:
    ``u + weight_decay w`` if ``u w >= 0``, else ``u``. There the step already shrinks the weight; elsewhere a decay
    would work against it. It takes the place of ``optax.add_decayed_weights``, also in AdamW's branch: it asks for no
    layout.

    To couple the decay to the learning rate, pass a schedule: ``optax.cosine_decay_schedule(0.1, steps)`` takes it to
    zero, and ``lambda step: 1.2 * learning_rate(step)`` makes it fall with the square of the learning rate,
    which multiplies it once more.

    When to choose it: the evidence is good (a paper over several optimizers, the defaults of dion, modded-nanogpt and
    nanochat). It decays about half of the weights at a time, so a decay tuned without it may be raised.

    Args:
        weight_decay: A number >= 0, a scalar array, or a schedule.
        mask: A tree of booleans like the parameters, or a function from parameters to one: decay where ``True``.

    Returns:
        A transform with an empty state, or a step counter (int32 scalar) where ``weight_decay`` is a schedule.
        ``update`` needs ``params``. Updates keep their shape and dtype.

    Raises:
        ValueError: At construction, for a decay that is negative or not finite; at ``update``, without ``params``.

    References:
        Lizhang Chen et al., "Cautious Weight Decay", https://arxiv.org/abs/2510.12402, 2025.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> transform = mo.add_cautious_decayed_weights(0.5)
        >>> params, updates = {"w": jnp.array([2.0, 2.0])}, {"w": jnp.array([1.0, -1.0])}
        >>> transform.update(updates, transform.init(params), params)[0]["w"].tolist()
        [2.0, -1.0]
    """
    check_schedule("weight_decay", weight_decay)
    if not callable(weight_decay):
        check_number("weight_decay", weight_decay, "use a finite number >= 0, such as 0.1", 0.0)

    def init(params: optax.Params) -> optax.OptState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32)) if callable(weight_decay) else optax.EmptyState()

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError("add_cautious_decayed_weights needs the parameters: call update(updates, state, params).")
        decay = weight_decay
        if callable(decay):
            decay = decay(state.count)
            state = optax.ScaleByScheduleState(optax.safe_increment(state.count))
        return jax.tree.map(lambda u, w: _decayed(jnp.asarray(u), w, decay), updates, params), state

    transform = optax.GradientTransformation(init, update)
    return transform if mask is None else optax.masked(transform, as_mask_function(mask))


def _decayed(update: jax.Array, weight: jax.Array, decay: Any) -> jax.Array:
    # Signs and not the product, which underflows for small updates.
    agree = jnp.sign(update) * jnp.sign(weight).astype(update.dtype) >= 0
    return jnp.where(agree, update + decay * weight, update).astype(update.dtype)
