"""A recorder's measurements on the host, as a ranking table, rows for metric writers, and histories for plots."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muon_optax._diagnostics.measure import MEASUREMENTS
from muon_optax._diagnostics.standing_out import NEVER_MISSING, Finding, findings_of, median
from muon_optax._layouts.columns import in_columns
from muon_optax._layouts.path_patterns import pattern, without_numbers

_HEADINGS = ("path", *(name.replace("_", " ") for name in MEASUREMENTS), "stands out because")
_REASONS = 2  # shown of a leaf; the first is the surest, and others often follow from it
_NUMBERS = range(1, len(MEASUREMENTS) + 1)


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
        found = ((self._findings()[index], self.paths[index]) for index in self._ranked())
        return [(path, own[0].measurement, own[0].why) for own, path in found]

    def table(self, every_row: bool = False) -> str:
        """The latest values in columns, with the leaves that stand out first.

        Args:
            every_row: Whether repeated layers that do not stand out have a row each. By default they share their
                median.
        """
        if not self.steps:
            return "Nothing has been measured yet."
        ranked, found = self._ranked(), self._findings()
        others = [index for index in range(len(self.paths)) if index not in ranked]
        groups = [[index] for index in others] if every_row else self._groups(others)
        rows = [self._cells([index], "; ".join(one.why for one in found[index][:_REASONS])) for index in ranked]
        rows += [self._cells(group, "") for group in groups]
        counted = f"{len(ranked)} of {len(self.paths)} leaves stand out" if ranked else "No leaf stands out"
        return "\n".join([*in_columns([_HEADINGS, *rows], _NUMBERS), f"Step {self.steps[-1]}. {counted}."])

    def __str__(self) -> str:
        """The table with repeated layers collapsed."""
        return self.table()

    def _findings(self) -> list[list[Finding]]:
        return findings_of(self.values, self.paths, self.matrices) if self.steps else []

    def _ranked(self) -> list[int]:
        found = self._findings()
        return sorted((index for index, own in enumerate(found) if own), key=lambda index: found[index][0])

    def _groups(self, indices: Sequence[int]) -> list[list[int]]:
        groups: dict[str, list[int]] = {}
        for index in indices:
            groups.setdefault(without_numbers(self.paths[index]), []).append(index)
        return list(groups.values())

    def _name(self, group: Sequence[int]) -> str:
        return pattern([self.paths[index] for index in group])

    def _cells(self, group: Sequence[int], why: str) -> tuple[str, ...]:
        numbers = (
            "-" if np.isnan(value) and name not in NEVER_MISSING else f"{value:.3g}"
            for name, value in zip(MEASUREMENTS, median(self.values[-1, list(group)]), strict=True)
        )
        return (self._name(group) + (f" x{len(group)}" if len(group) > 1 else ""), *numbers, why)
