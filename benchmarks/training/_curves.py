"""What the convergence benchmark's runs say: steps to a loss, mean and spread over seeds, the best settings."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import NamedTuple

from benchmarks.training._grid import Run
from benchmarks.training._records import Record


class Spread(NamedTuple):
    """Mean and range of a figure over seeds."""

    mean: float
    least: float
    most: float
    count: int

    def text(self, digits: int) -> str:
        """As the tables show it."""
        if self.count == 1:
            return f"{self.mean:.{digits}f}"
        return f"{self.mean:.{digits}f} ({self.least:.{digits}f} to {self.most:.{digits}f})"


class Seeds(NamedTuple):
    """The records of one setting and length, a seed each."""

    run: Run  # the first of them
    records: list[Record]

    @property
    def kind(self) -> str:
        """The contender, and whether AdamW's leaves have a rate of their own."""
        separate = self.run.adamw_rate != self.run.rate
        return f"{self.run.contender}, AdamW apart" if separate else self.run.contender

    @property
    def final(self) -> Spread:
        """Of the validation losses at the end."""
        return spread([one.final for one in self.records])


def spread(values: Sequence[float]) -> Spread:
    """Mean, least and most."""
    return Spread(mean(values), min(values), max(values), len(values))


def steps_to(curve: Mapping[int, float], loss: float) -> float | None:
    """The first step at which the curve, straight between its points, reaches ``loss``; None if it never does."""
    points = sorted(curve.items())
    if points[0][1] <= loss:
        return float(points[0][0])
    for (before, high), (after, low) in pairwise(points):
        if low <= loss:
            return before + (after - before) * (high - loss) / (high - low)
    return None


def by_settings(records: Mapping[Run, Record]) -> list[Seeds]:
    """The records that differ by their seed alone, together."""
    found: dict[Run, list[Record]] = {}
    for run in sorted(records):
        found.setdefault(run._replace(seed=-1), []).append(records[run])
    return [Seeds(group[0].run, group) for group in found.values()]


def best(groups: Sequence[Seeds]) -> dict[tuple[str, str], Seeds]:
    """For each size and kind its settings with the most seeds, and of those the ones with the lowest mean loss."""
    found: dict[tuple[str, str], Seeds] = {}
    for group in groups:
        key = group.run.size, group.kind
        if key not in found or _rank(group) < _rank(found[key]):
            found[key] = group
    return found


def _rank(group: Seeds) -> tuple[int, float]:
    return -group.final.count, group.final.mean


def target(groups: Sequence[Seeds], size: str, steps: int, baseline: str = "adamw") -> float | None:
    """AdamW's final loss at its best settings, or another baseline's, the mean of its seeds."""
    found = best([group for group in groups if group.run.steps == steps]).get((size, baseline))
    return found and found.final.mean


def reached(group: Seeds, loss: float) -> Spread | None:
    """Steps to ``loss``, if every seed reaches it."""
    found = [steps_to(one.curve, loss) for one in group.records]
    known = [steps for steps in found if steps is not None]
    return spread(known) if len(known) == len(found) else None


def lengths(groups: Sequence[Seeds], run: Run) -> list[Seeds]:
    """The settings of a run on every length that ran with several seeds, the shortest first."""
    found = [group for group in groups if group.run._replace(steps=run.steps, seed=run.seed) == run]
    return sorted((group for group in found if group.final.count > 1), key=lambda group: group.run.steps)


def whole_schedule(groups: Sequence[Seeds], run: Run, loss: float) -> float | None:
    """The length of a whole schedule that ends at ``loss``, straight between the lengths that ran."""
    finals = {group.run.steps: group.final.mean for group in lengths(groups, run)}
    # Where the shortest is below the loss already, where between zero and it they met is not known.
    return steps_to(finals, loss) if finals and finals[min(finals)] > loss else None
