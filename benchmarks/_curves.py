"""What the convergence benchmark's runs say: steps to a loss, mean and spread over seeds, the tables."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import NamedTuple

from _grid import Run
from _records import Record
from _report import Row


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


def target(groups: Sequence[Seeds], size: str, steps: int) -> float | None:
    """AdamW's final loss at its best settings, the mean of its seeds."""
    found = best([group for group in groups if group.run.steps == steps]).get((size, "adamw"))
    return found and found.final.mean


def reached(group: Seeds, loss: float) -> Spread | None:
    """Steps to ``loss``, if every seed reaches it."""
    found = [steps_to(one.curve, loss) for one in group.records]
    known = [steps for steps in found if steps is not None]
    return spread(known) if len(known) == len(found) else None


def settings(run: Run) -> Row:
    """The columns that say how a run was made."""
    apart = run.adamw_rate != run.rate
    return {"rate": f"{run.rate:g}", "AdamW's rate": f"{run.adamw_rate:g}" if apart else None} | {
        "decay": f"{run.decay:g}",
        "b2": f"{run.b2:g}",
    }


def comparison(groups: Sequence[Seeds], steps: int) -> list[Row]:
    """Each kind at its best settings and full length, against AdamW's final loss at that size."""
    rows = []
    for (size, kind), group in best([one for one in groups if one.run.steps == steps]).items():
        loss = target(groups, size, steps)
        needed = None if loss is None or kind == "adamw" else reached(group, loss)
        rows.append(
            {"table": f"{size}, {steps} steps, each at its best settings", "contender": kind}
            | settings(group.run)
            | {"seeds": group.final.count, "final loss": group.final.text(4)}
            | {"steps to AdamW's": needed and needed.text(0), "of AdamW's steps": needed and needed.mean / steps}
        )
    return sorted(rows, key=lambda row: (row["table"], row["final loss"]))


def schedules(groups: Sequence[Seeds], steps: int) -> list[Row]:
    """Whole schedules of other lengths: how many steps of its own reach the loss that AdamW ends with."""
    full = {group.run for group in groups if group.run.steps == steps}
    rows = []
    for group in groups:
        run = group.run
        loss = target(groups, run.size, steps)
        if loss is None or run.contender == "adamw" or run._replace(steps=steps) not in full:
            continue
        if not _has_shorter(groups, run):
            continue
        rows.append(
            {"table": f"{run.size}, whole schedules, AdamW's loss after {steps} steps is {loss:.4f}"}
            | {"contender": group.kind}
            | settings(run)
            | {"steps": run.steps, "of AdamW's steps": run.steps / steps, "seeds": group.final.count}
            | {"final loss": group.final.text(4), "less AdamW's": f"{group.final.mean - loss:+.4f}"}
        )
    return sorted(rows, key=lambda row: (row["table"], row["contender"], row["steps"]))


def _has_shorter(groups: Sequence[Seeds], run: Run) -> bool:
    """Whether the settings ran with several seeds on two or more lengths."""
    lengths = [
        group.run.steps
        for group in groups
        if group.final.count > 1 and group.run._replace(steps=run.steps, seed=run.seed) == run
    ]
    return len(lengths) > 1


def whole_schedule(groups: Sequence[Seeds], kind: str, size: str, steps: int) -> float | None:
    """The length of a whole schedule that ends at AdamW's loss, straight between the lengths that ran."""
    loss = target(groups, size, steps)
    rows = [group for group in groups if group.run.size == size and group.kind == kind and group.final.count > 1]
    if loss is None or not rows:
        return None
    lengths = {group.run.steps: group.final.mean for group in rows if _has_shorter(groups, group.run)}
    return steps_to(lengths, loss) if lengths and max(lengths.values()) > loss else None


def rates(groups: Sequence[Seeds], steps: int) -> list[Row]:
    """One row for each way of being run, a column for each rate: the brackets."""
    found: dict[tuple[str, ...], Row] = {}
    for group in groups:
        run = group.run
        if run.steps == steps:
            shown = settings(run) | {"rate": None}
            row = {"table": f"{run.size}, {steps} steps, by rate", "contender": group.kind} | shown
            del row["rate"]
            key = tuple(map(str, row.values()))
            found.setdefault(key, row)[f"{run.rate:g}"] = group.final.text(3)
    return [_ordered(row) for row in found.values()]


def _ordered(row: Row) -> Row:
    """The rates last, in their order."""
    numbers = sorted((name for name in row if name[0].isdigit()), key=float)
    return {name: row[name] for name in row if name not in numbers} | {name: row[name] for name in numbers}
