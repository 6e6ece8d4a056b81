"""A recorder's measurements on the host, as a ranking table, rows for metric writers, and histories for plots."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from muon_optax._diagnostics.measure import MEASUREMENTS
from muon_optax._diagnostics.standing_out import NEVER_MISSING, Finding, findings_of, median
from muon_optax._diagnostics.wide_table import in_parts
from muon_optax._layouts.columns import in_columns, in_html
from muon_optax._layouts.path_patterns import pattern, without_numbers
from muon_optax._transforms.checks.arguments import check_flag

_HEADINGS = ("path", *(name.replace("_", " ") for name in MEASUREMENTS))
_WHY = "stands out because"
_REASONS = 2  # shown of a leaf; the first is the surest, and others often follow from it


@dataclass(frozen=True, eq=False)
class Recording:
    """The measurements of :func:`record`, as :func:`recorded` returns them. ``print`` it, or read its values.

    The table begins with the leaves that stand out, the surest first:

    1. a gradient, a parameter or an update that is not finite;
    2. a leaf whose whole gradient is zero;
    3. a matrix whose update is larger than 1.5 times its predicted size or than a tenth of the matrix, or whose
       gradient turns against its momentum: a cosine below -0.15 in the median of three measurements;
    4. a matrix whose value is further than five robust standard deviations (median and median absolute deviation, at
       least 20%) from that of its peers: the same matrix of repeated layers where there are five, else all matrices.

    Args:
        steps: The steps of the measurements, oldest first.
        paths: The paths of the leaves, in natural order.
        matrices: Which of the leaves have a layout.
        values: ``(measurements in time, leaves, names)`` float32, the names in the order of ``Recording.names``.
    """

    steps: tuple[int, ...]
    paths: tuple[str, ...]
    matrices: tuple[bool, ...]
    values: np.ndarray

    names = MEASUREMENTS

    def last(self, measurement: str, grouped: bool = False) -> dict[str, float]:
        """The latest values of one measurement by path; what a leaf does not have is left out.

        Args:
            measurement: One of ``Recording.names``.
            grouped: Whether repeated layers share an entry, their median, under a path such as ``layers/{0..25}/up``.
        """
        steps, paths, values = self.history(measurement, grouped)
        if not steps:
            return {}
        return {path: float(value) for path, value in zip(paths, values[:, -1], strict=True) if not np.isnan(value)}

    def history(self, measurement: str, grouped: bool = False) -> tuple[tuple[int, ...], tuple[str, ...], np.ndarray]:
        """Steps, paths and values ``(leaves, steps)`` of one measurement, as a heat map draws them.

        Args:
            measurement: One of ``Recording.names``.
            grouped: As in :meth:`last`.

        Raises:
            ValueError: For another name.
        """
        if measurement not in MEASUREMENTS:
            raise ValueError(
                f"measurement={measurement!r} is not recorded: use one of {', '.join(map(repr, MEASUREMENTS))}."
            )
        check_flag("grouped", grouped)
        values = self.values[:, :, MEASUREMENTS.index(measurement)].T
        if not grouped:
            return self.steps, self.paths, values
        groups = self._groups(range(len(self.paths)))
        medians = [median(values[group]) for group in groups]
        return self.steps, tuple(map(self._name, groups)), np.array(medians).reshape(len(groups), len(self.steps))

    def scalars(self, grouped: bool = False) -> dict[str, float]:
        """All latest values as ``{"growth/decoder/up/kernel": 1.2}``, for metric writers.

        Args:
            grouped: As in :meth:`last`; a model of many layers then has few series.
        """
        return {f"{name}/{path}": value for name in MEASUREMENTS for path, value in self.last(name, grouped).items()}

    def standing_out(self) -> list[tuple[str, str, str]]:
        """Path, measurement and reason of each leaf that stands out at the latest measurement, ranked as the table."""
        found = ((self._found[index][0], self.paths[index]) for index in self._ranked())
        return [(path, first.measurement, first.why) for first, path in found]

    def table(self, every_row: bool = False) -> str:
        """The leaves that stand out with the reasons, and below the latest values in columns, in the same order.

        Paths of up to 35 characters give lines of at most 100: what would be wider goes on in a part below.

        Args:
            every_row: Whether repeated layers that do not stand out have a row each. By default they share their
                median.
        """
        if not self.steps:
            return "Nothing has been measured yet."
        ranked = self._ranked()
        reasons = [
            (self.paths[index] if number == 0 else "", why)
            for index in ranked
            for number, why in enumerate(self._reasons(index))
        ]
        first = [*in_columns([("path", _WHY), *reasons]), ""] if ranked else []
        values = in_parts([_HEADINGS, *map(self._cells, self._shown(ranked, every_row))])
        return "\n".join([*first, *values, self._counted(ranked)])

    def __str__(self) -> str:
        """The table with repeated layers collapsed."""
        return self.table()

    def _repr_html_(self) -> str:
        """The same for notebooks, in one part."""
        if not self.steps:
            return f"<p>{self.table()}</p>"
        ranked = self._ranked()
        shown = self._shown(ranked, every_row=False)
        whys = [*("; ".join(self._reasons(index)) for index in ranked), *[""] * (len(shown) - len(ranked))]
        rows = [(*self._cells(group), why) for group, why in zip(shown, whys, strict=True)]
        return in_html([(*_HEADINGS, _WHY), *rows], [self._counted(ranked)])

    def _counted(self, ranked: Sequence[int]) -> str:
        counted = f"{len(ranked)} of {len(self.paths)} leaves stand out" if ranked else "No leaf stands out"
        return f"Step {self.steps[-1]}. {counted}."

    def _reasons(self, index: int) -> list[str]:
        return [one.why for one in self._found[index][:_REASONS]]

    def _shown(self, ranked: Sequence[int], every_row: bool) -> list[list[int]]:
        """The leaves of each row."""
        others = [index for index in range(len(self.paths)) if index not in ranked]
        return [*([index] for index in ranked), *([[index] for index in others] if every_row else self._groups(others))]

    @cached_property
    def _found(self) -> list[list[Finding]]:
        return findings_of(self.values, self.paths, self.matrices) if self.steps else []

    def _ranked(self) -> list[int]:
        found = self._found
        return sorted((index for index, own in enumerate(found) if own), key=lambda index: found[index][0])

    def _groups(self, indices: Sequence[int]) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for index in indices:
            groups.setdefault(without_numbers(self.paths[index]), []).append(index)
        return list(groups.values())

    def _name(self, group: Sequence[int]) -> str:
        return pattern([self.paths[index] for index in group])

    def _cells(self, group: Sequence[int]) -> tuple[str, ...]:
        numbers = (
            "-" if np.isnan(value) and name not in NEVER_MISSING else f"{value:.3g}"
            for name, value in zip(MEASUREMENTS, median(self.values[-1, list(group)]), strict=True)
        )
        return (self._name(group) + (f" x{len(group)}" if len(group) > 1 else ""), *numbers)
