"""Momentum that follows a schedule, such as a warm-up."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.messages import warn_user
from muon_optax._transforms.checks.arguments import check_flag, check_momentum_dtype, check_number, check_schedule


class ScheduledTraceState(NamedTuple):
    """The step, int32 scalar, and the momentum, a tree like the parameters."""

    step: jax.Array
    trace: Any


def scheduled_trace(
    decay: optax.ScalarOrSchedule, nesterov: bool = False, momentum_dtype: jax.typing.DTypeLike | None = None
) -> optax.GradientTransformation:
    """Momentum like ``optax.trace`` that counts its steps, with a number or a schedule as its decay.

    ``m <- decay(step) m + g``; the update is ``m``, or ``g + decay(step) m`` with Nesterov, where ``step`` counts from
    zero. :func:`muon_optax.muon` uses it for numbers and for schedules, so one may replace the other in a run, which
    goes on at its step. With a number, updates and momentum are those of ``optax.trace`` bit for bit.

    ========================== ===================================================================================
    run                        momentum
    ========================== ===================================================================================
    modded-nanogpt             0.85 to 0.95 over the first 300 steps, back to 0.85 over the last 50
    nanochat                   0.85 to 0.97 over 400 steps, to 0.90 while the learning rate falls
    ========================== ===================================================================================

    When to choose a schedule: for short runs. Early gradients change fast, and a short memory forgets them sooner. The
    evidence is fair: record speed runs at 0.1B parameters keep it, and no large run has published it.

    Both runs above keep an average, as :func:`muon_optax.nesterov_ema` does. While the decay changes the two weigh old
    gradients differently, by a few percent; at a constant decay they give the same update.

    Args:
        decay: A number in [0, 1), or a schedule: from the step, an int32 scalar, to such a number, such as
            ``optax.linear_schedule(0.85, 0.95, 300)``.
        nesterov: As in ``optax.trace``.
        momentum_dtype: The dtype in which momentum is stored; ``None`` for each parameter's own.

    Returns:
        A transform with a ``ScheduledTraceState``. Updates have the dtypes that ``optax.trace`` gives them for a plain
        number: a float32 decay is not rounded to bfloat16, nor does it widen them.

    Warns:
        MuonWarning: At ``update``, if the state keeps its momentum in another dtype than ``momentum_dtype``.

    Raises:
        ValueError: For a number that is not in [0, 1), at construction; for a schedule that gives one at step 0, at
            ``init``.
        TypeError: For what is not a number, likewise.

    References:
        Keller Jordan et al., "modded-nanogpt", https://github.com/KellerJordan/modded-nanogpt, 2026.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> transform = mo.scheduled_trace(lambda step: 0.25 * step)
        >>> state = transform.init({"w": jnp.ones(2)})
        >>> for _ in range(3):
        ...     updates, state = transform.update({"w": jnp.ones(2)}, state)
        >>> updates["w"].tolist()
        [1.625, 1.625]
    """
    check_momentum_dtype(momentum_dtype)
    check_flag("nesterov", nesterov)
    check_schedule("decay", decay)
    if not callable(decay):
        check_number("decay", decay, "use a number in [0, 1), such as 0.95, or a schedule", 0.0, 1.0)

    def init(params: optax.Params) -> ScheduledTraceState:
        count = jnp.zeros([], jnp.int32)
        if callable(decay):
            check_number("decay(0)", decay(count), "a schedule must give numbers in [0, 1)", 0.0, 1.0)
        return ScheduledTraceState(count, jax.tree.map(lambda leaf: jnp.zeros_like(leaf, momentum_dtype), params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScheduledTraceState]:
        _warn_of_kept_dtype(state.trace, momentum_dtype)
        before = optax.TraceState(state.trace)
        number = decay(state.step) if callable(decay) else decay
        moved, after = optax.trace(number, nesterov, momentum_dtype).update(updates, before, params)
        if callable(decay):
            # A schedule's decay is a float32 array, which widens what a Python number would leave in bfloat16.
            moved = jax.tree.map(lambda u, g, m: u.astype(jnp.result_type(g, m)), moved, updates, state.trace)
        kept = jax.tree.map(lambda m, old: m.astype(old.dtype), after, before)
        return moved, ScheduledTraceState(jnp.asarray(optax.safe_increment(state.step)), kept.trace)

    return optax.GradientTransformation(init, update)


def _warn_of_kept_dtype(trace: Any, momentum_dtype: jax.typing.DTypeLike | None) -> None:
    """Says that a state from before ``momentum_dtype`` was set goes on in its own dtype."""
    if momentum_dtype is None:
        return
    kept = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(trace)} - {str(jnp.dtype(momentum_dtype))})
    if kept:
        warn_user(
            f"momentum_dtype={jnp.dtype(momentum_dtype)} has no effect on this state: its momentum is "
            f"{' and '.join(kept)}, and goes on so. muon_optax.carry_over(state, optimizer.init(params)) converts it."
        )
