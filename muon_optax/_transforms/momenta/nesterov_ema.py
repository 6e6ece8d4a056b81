"""Momentum as an exponential moving average: the state of PyTorch's Muon and of Optax's."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._orthogonalizers.precision import accumulation_dtype
from muon_optax._transforms.checks.arguments import check_flag, check_momentum_dtype, check_number, check_schedule


def nesterov_ema(
    decay: optax.ScalarOrSchedule, *, debias: bool = False, momentum_dtype: jax.typing.DTypeLike | None = None
) -> optax.GradientTransformation:
    """Momentum as an average of gradients, with Nesterov: ``optax.ema`` as other Muons use it.

    ``m <- decay m + (1 - decay) g``; the update is ``decay m + (1 - decay) g``. It is ``1 - decay`` times what
    ``optax.trace(decay, nesterov=True)`` keeps and gives, so after an orthogonalizer the two differ in rounding only.
    Without Nesterov momentum use ``optax.ema(decay, debias=False)``.

    ========================================= ========================================================================
    to continue a run of                      write
    ========================================= ========================================================================
    ``torch.optim.Muon``                      ``muon(..., momentum=nesterov_ema(0.95))``
    Keller Jordan's Muon                      the same
    ``optax.contrib.muon``                    ``muon(..., momentum=nesterov_ema(0.95, debias=True))``
    ``optax.contrib.muon``, nesterov=False    ``muon(..., momentum=optax.ema(0.95))``
    ========================================= ========================================================================

    When to choose it: to keep a state that another library reads or wrote, or to repeat a run whose decay changes,
    since an average weighs the gradients of a warm-up by ``1 - decay``. No difference in loss is on record.

    Args:
        decay: In [0, 1), a scalar array, or a schedule.
        debias: Whether to divide by ``1 - decay^step`` as ``optax.contrib.muon`` does: ``m`` by that of the next step
            and ``g`` by that of this one. Not with a schedule.
        momentum_dtype: The dtype in which the average is stored; ``None`` for each parameter's own.

    Returns:
        A transform with an ``optax.EmaState`` of the step, int32 scalar, and the average, a tree like the parameters.
        Updates keep their shape and dtype.

    Raises:
        ValueError: At construction, for a decay out of range, or ``debias`` with a schedule.

    References:
        Keller Jordan, "Muon: An optimizer for hidden layers in neural networks",
        https://kellerjordan.github.io/posts/muon/, 2024.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> transform = mo.nesterov_ema(0.5)
        >>> gradient = {"w": jnp.array([4.0])}
        >>> updates, state = transform.update(gradient, transform.init(gradient))
        >>> updates["w"].tolist(), state.ema["w"].tolist()
        ([3.0], [2.0])
    """
    check_momentum_dtype(momentum_dtype)
    check_flag("debias", debias)
    if not callable(decay):
        check_number("decay", decay, "use a number in [0, 1), such as 0.95, or a schedule", 0.0, 1.0)
    check_schedule("decay", decay)
    if callable(decay) and debias:
        raise ValueError("debias=True is not allowed with a schedule: the average's bias is decay^step of one decay.")

    def init(params: optax.Params) -> optax.EmaState:
        return optax.EmaState(
            jnp.zeros([], jnp.int32),
            jax.tree.map(lambda leaf: jnp.zeros_like(leaf, momentum_dtype), params),
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmaState]:
        del params
        beta = decay(state.count) if callable(decay) else decay
        count = jnp.asarray(optax.safe_increment(state.count))
        averages = jax.tree.map(lambda g, m: _mixed(_wide(m), _wide(g), beta), updates, state.ema)
        if debias:
            now, later = 1 - beta**count, 1 - beta ** (count + 1)
            moved = jax.tree.map(lambda g, m: _mixed(m / later, _wide(g) / now, beta), updates, averages)
        else:
            moved = jax.tree.map(lambda g, m: _mixed(m, _wide(g), beta), updates, averages)
        moved = jax.tree.map(lambda u, g: u.astype(jnp.result_type(g)), moved, updates)
        return moved, optax.EmaState(count, jax.tree.map(lambda m, kept: m.astype(kept.dtype), averages, state.ema))

    return optax.GradientTransformation(init, update)


def _wide(array: Any) -> jax.Array:
    # In bfloat16 a decay of 0.95 would be 0.949, and 0.998 would be 1.
    return jnp.asarray(array, accumulation_dtype(jnp.result_type(array)))


def _mixed(average: jax.Array, gradient: jax.Array, decay: Any) -> jax.Array:
    return decay * average + (1 - decay) * gradient
