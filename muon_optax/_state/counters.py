"""The counters of a fresh state, at the step of an earlier run."""

from collections.abc import Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from muon_optax._state.kept_arrays import Kept
from muon_optax._state.places import placed

# States whose counter is read by a schedule. Others beside moments correct the bias of these.
_SCHEDULED = ("ScheduledTraceState", "ScaleByHyperballState")


class FreshCounter(NamedTuple):
    """A counter of the fresh state, and where it goes on."""

    kept: Kept
    value: Any
    why_afresh: str  # why it stays where `init` put it; empty if it goes on


def counters_of(
    earlier: Sequence[Kept], fresh: Sequence[Kept], carried: Set[int], step: int | None
) -> list[FreshCounter]:
    """Each counter of ``fresh`` with its value.

    Args:
        earlier: The entries of the earlier state.
        fresh: The entries of the fresh state.
        carried: The numbers of the fresh leaves that were carried.
        step: The number of steps that the run has taken; ``None`` reads it from the earlier state.
    """
    counters = [kept for kept in earlier if kept.counts]
    found = []
    for kept in (kept for kept in fresh if kept.counts):
        beside = [one for one in fresh if one.node == kept.node and not one.counts]
        moments = beside and not kept.node.wraps and kept.node.kind not in _SCHEDULED
        value = _value(kept, counters, bool(moments)) if step is None else step
        if moments and not any(carried & {*one.numbers} for one in beside):
            # With all moments at zero the correction of their bias is that of a first step.
            found.append(FreshCounter(kept, kept.values[0], "none of its moments was carried"))
        elif value is None:
            found.append(FreshCounter(kept, kept.values[0], "the earlier state counts no steps: pass step="))
        else:
            # Each counter is an array of its own: a step may donate the whole state.
            found.append(FreshCounter(kept, placed(np.asarray(value, kept.values[0].dtype), kept.values[0]), ""))
    return found


def run_step(counters: Sequence[Kept]) -> int | None:
    """The steps that a run has taken, by the largest count, since a part that skips steps stays behind."""
    # A wrapper may count calls, of which several make a step.
    inner = [kept for kept in counters if not kept.node.wraps] or counters
    return max((int(kept.values[0]) for kept in inner), default=None)


def _value(kept: Kept, counters: Sequence[Kept], moments: bool) -> int | None:
    alike = [one for one in counters if (one.node.kind, one.field) == (kept.node.kind, kept.field)]
    same = [one for one in alike if one.node.labels == kept.node.labels]
    return run_step(same or (alike if moments or kept.node.wraps else []) or counters)
