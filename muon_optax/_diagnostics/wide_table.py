"""A table of many measurements in parts below each other, no wider than a page."""

from collections.abc import Sequence

from muon_optax._diagnostics.measure import AFTER, BEFORE
from muon_optax._layouts.columns import in_columns

_WIDTH = 100
_OF_GRADIENTS = 3  # of BEFORE; the others are of weights
# Columns that stay together: those of gradients, weights and updates.
_GROUPS = (
    range(1, 1 + _OF_GRADIENTS),
    range(1 + _OF_GRADIENTS, 1 + len(BEFORE)),
    range(1 + len(BEFORE), 1 + len(BEFORE) + len(AFTER)),
)


def in_parts(lines: Sequence[Sequence[str]]) -> list[str]:
    """One text a line. The first column, of paths, begins every part.

    Args:
        lines: The headings, a path and the names of all measurements, and cells below them.
    """
    parts: list[list[str]] = []
    columns: list[int] = []
    for group in _GROUPS:
        wider = _part(lines, [*columns, *group])
        if columns and max(map(len, wider)) <= _WIDTH:
            columns, parts[-1] = [*columns, *group], wider
        else:
            columns = [*group]
            parts.append(_part(lines, columns))
    return [text for number, part in enumerate(parts) for text in ([""] if number else []) + part]


def _part(lines: Sequence[Sequence[str]], columns: Sequence[int]) -> list[str]:
    above, below = zip(*(_stacked(lines[0][column]) for column in (0, *columns)), strict=True)
    cells = [tuple(line[column] for column in (0, *columns)) for line in lines[1:]]
    return in_columns([above, below, *cells], range(1, 1 + len(columns)), headings=2)


def _stacked(heading: str) -> tuple[str, str]:
    """A heading of two words as two lines."""
    above, _, below = heading.rpartition(" ")
    return above, below
