"""The rows of a report: why an array was changed, begins afresh or was dropped."""

from collections.abc import Iterator, Sequence, Set

import jax.numpy as jnp

from muon_optax._state.convert import whole_shape
from muon_optax._state.counters import FreshCounter, run_step
from muon_optax._state.kept_arrays import Kept
from muon_optax._state.report import CarryRow


def how(earlier: Kept, fresh: Kept) -> str:
    """The changes of an array on the way."""
    changes = [f"was {earlier.origin}"] if earlier.origin != fresh.path else []
    if earlier.what != fresh.what:
        changes.append(f"from the {earlier.what}")
    ways = [kept.way if kept.way != "codes" else _codes(kept) for kept in (earlier, fresh)]
    dtypes = [jnp.result_type(kept.values[0]) for kept in (earlier, fresh)]
    if ways[0] != ways[1]:
        changes.append(f"{ways[0] or 'as it was'} to {ways[1]}")
    elif dtypes[0] != dtypes[1]:
        changes.append(f"{dtypes[0]} to {dtypes[1]}")
    return ", ".join(changes)


def _codes(kept: Kept) -> str:
    return f"{8 if jnp.result_type(kept.values[0]) == jnp.int8 else 4} bits"


def counter_rows(earlier: Sequence[Kept], counters: Sequence[FreshCounter]) -> Iterator[CarryRow]:
    """One row for all counters that go on, and one for each that does not."""
    earlier_counters = [kept for kept in earlier if kept.counts]
    numbers = tuple(number for kept in earlier_counters for number in kept.numbers)
    on = [one for one in counters if not one.why_afresh]
    if on:
        values = sorted({int(one.value) for one in on})
        why = f"all at {values[0]}" if len(values) == 1 else f"at {', '.join(map(str, values))}"
        yield CarryRow("carried", "", (), "steps", why, numbers, tuple(one.kept.numbers[0] for one in on))
    elif earlier_counters:
        yield CarryRow("dropped", "", (), "steps", f"{run_step(earlier_counters)}: nothing counts them now", numbers)
    for one in (one for one in counters if one.why_afresh):
        yield CarryRow("afresh", "", (), one.kept.what, one.why_afresh, (), one.kept.numbers)


def setting_rows(earlier: Sequence[Kept], fresh: Sequence[Kept]) -> Iterator[CarryRow]:
    """What says how an optimizer steps, of both states."""
    for kept in (kept for kept in earlier if kept.is_setting):
        yield CarryRow("setting", kept.path, kept.shape, kept.what, "the earlier optimizer's", kept.numbers)
    for kept in (kept for kept in fresh if kept.is_setting):
        yield CarryRow("setting", kept.path, kept.shape, kept.what, "the fresh state's holds", (), kept.numbers)


def lost_rows(
    rows: Sequence[CarryRow], earlier: Sequence[Kept], fresh: Sequence[Kept], resized: Set[str]
) -> Iterator[CarryRow]:
    """Rows for the rest of both states. ``resized`` are the parameters whose size has changed."""
    sides = [[kept for kept in side if not (kept.counts or kept.is_setting)] for side in (earlier, fresh)]
    taken = {number for row in rows for number in row.earlier}, {number for row in rows for number in row.fresh}
    for kept in (kept for kept in sides[1] if kept.numbers[0] not in taken[1]):
        why = _why(kept, sides[0], "earlier", resized)
        yield CarryRow("afresh", kept.path, kept.shape, kept.what, why, (), kept.numbers)
    for kept in (kept for kept in sides[0] if kept.numbers[0] not in taken[0]):
        why = _why(kept, sides[1], "fresh", resized)
        yield CarryRow("dropped", kept.path, kept.shape, kept.what, why, kept.numbers)


def _why(kept: Kept, others: Sequence[Kept], side: str, resized: Set[str]) -> str:
    """Why ``kept`` of one state has no place in the other: ``others``, of the state that ``side`` names."""
    own = [one for one in others if one.path == kept.path]
    alike = [one for one in own if one.what == kept.what and whole_shape(one) != whole_shape(kept)]
    if alike:
        return f"of shape {alike[0].shape} in the {side} state"
    if kept.path in resized:
        return "the parameter's size has changed"
    return f"the {side} state keeps {', '.join(dict.fromkeys(one.what for one in own)) or 'nothing of it'}"
