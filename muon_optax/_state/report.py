"""The report on an earlier state: what was carried over, begun afresh and dropped, by path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from muon_optax._layouts.columns import in_columns
from muon_optax._layouts.path_patterns import natural_order, pattern, without_numbers

# "setting": an array that says what the optimizer does, where the fresh state's holds.
Outcome = Literal["carried", "afresh", "dropped", "setting"]
_HEADINGS = ("outcome", "path", "shape", "what", "why")


@dataclass(frozen=True)
class CarryRow:
    """One array, or one that two states have in common, of a :class:`CarryReport`."""

    outcome: Outcome
    path: str  # of the parameter in the fresh state, or in the earlier one if it was dropped; empty for other values
    shape: tuple[int, ...]
    what: str
    why: str
    earlier: tuple[int, ...] = ()  # which of `jax.tree.leaves(earlier)`
    fresh: tuple[int, ...] = ()  # which of `jax.tree.leaves(fresh)`


@dataclass(frozen=True)
class CarryReport:
    """The report of :func:`muon_optax.carry_over` on what went over and what was lost. ``print`` it, or read its rows.

    Args:
        rows: Each leaf of the earlier state and of the fresh one is in exactly one of them: ``outcome`` ("carried",
            "afresh", "dropped" or "setting"), ``path``, ``shape``, ``what``, ``why``, and the numbers of the leaves.
    """

    rows: tuple[CarryRow, ...]

    @property
    def carried(self) -> tuple[CarryRow, ...]:
        """Rows of state that goes on as it was, or in another way or dtype."""
        return self._with("carried")

    @property
    def afresh(self) -> tuple[CarryRow, ...]:
        """Rows of state that begins as ``init`` made it."""
        return self._with("afresh")

    @property
    def dropped(self) -> tuple[CarryRow, ...]:
        """Rows of the earlier state that have no place."""
        return self._with("dropped")

    def _with(self, outcome: Outcome) -> tuple[CarryRow, ...]:
        return tuple(row for row in self.rows if row.outcome == outcome)

    def table(self, every_row: bool = False) -> str:
        """The rows in columns, and their totals.

        Args:
            every_row: Whether equal parameters of repeated layers have a row each. By default they share one.
        """
        groups: dict[tuple, list[CarryRow]] = {}
        for row in sorted(self.rows, key=lambda row: (_ORDER.index(row.outcome), natural_order(row.path))):
            path, why = (text if every_row else without_numbers(text) for text in (row.path, row.why))
            groups.setdefault((row.outcome, path, row.shape, row.what, why), []).append(row)
        texts = in_columns([_HEADINGS, *map(_cells, groups.values())])
        counts = ", ".join(f"{len(self._with(outcome))} {outcome}" for outcome in _ORDER[:3])
        return "\n".join([*texts, f"{counts}."])

    def __str__(self) -> str:
        """The table with repeated layers collapsed."""
        return self.table()


_ORDER: tuple[Outcome, ...] = ("dropped", "afresh", "carried", "setting")


def _cells(group: Sequence[CarryRow]) -> tuple[str, ...]:
    first = group[0]
    path = pattern([row.path for row in group]) + (f" x{len(group)}" if len(group) > 1 else "")
    return (first.outcome, path or "-", str(list(first.shape)), first.what, first.why)
