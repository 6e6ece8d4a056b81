"""The convergence benchmark's tables: rows from records alone, the figures that the pages quote."""

from collections.abc import Sequence

from benchmarks.shared.report import Row
from benchmarks.training._curves import Seeds, best, lengths, reached, target, whole_schedule
from benchmarks.training._grid import BASELINES, Run


def settings(run: Run) -> Row:
    """The columns that say how a run was made."""
    apart = run.adamw_rate != run.rate
    rates = {"rate": f"{run.rate:g}", "AdamW's rate": f"{run.adamw_rate:g}" if apart else None}
    return rates | {"decay": f"{run.decay:g}", "b2": f"{run.b2:g}"}


def against(loss: float | None, group: Seeds, groups: Sequence[Seeds]) -> Row:
    """How many steps it took to AdamW's final loss: along the curve, and by whole schedules of other lengths."""
    steps = group.run.steps
    along = None if loss is None else reached(group, loss)
    whole = None if loss is None else whole_schedule(groups, group.run, loss)
    return {
        "seeds": group.final.count,
        "final loss": group.final.text(4),
        "steps to AdamW's loss": along and along.text(0),
        "part of its steps": along and f"{along.mean / steps:.2f}",
        "by whole schedules": whole and f"{whole / steps:.2f}",
    }


def comparison(groups: Sequence[Seeds], steps: int) -> list[Row]:
    """Each kind at its best settings and full length, against AdamW's final loss, and its best with less momentum."""
    full = [group for group in groups if group.run.steps == steps]
    rows = []
    for (size, kind), group in sorted(best(full).items(), key=lambda item: (item[0][0], item[1].final.mean)):
        heading = {"table": f"{size}, {steps} steps, each at its best settings", "contender": kind}
        rows.append(heading | settings(group.run) | against(target(full, size, steps), group, groups))
        harder = [loss for name in BASELINES if (loss := target(full, size, steps, name)) is not None]
        if harder:
            along = reached(group, min(harder))
            rows[-1]["part, AdamW with less momentum"] = along and f"{along.mean / steps:.2f}"
    return rows


def reused(groups: Sequence[Seeds], steps: int) -> list[Row]:
    """Muon with AdamW's best rate, decay and b2 as they are, at every size."""
    full = [group for group in groups if group.run.steps == steps]
    rows = []
    for (size, kind), baseline in sorted(best(full).items()):
        same = baseline.run._replace(contender="muon")
        for group in full:
            if kind == "adamw" and group.run == same:
                heading = {"table": f"AdamW's best settings reused by Muon, {steps} steps", "size": size}
                rows.append(heading | settings(same) | against(baseline.final.mean, group, groups))
    return rows


def schedules(groups: Sequence[Seeds], steps: int) -> list[Row]:
    """Whole schedules of other lengths than AdamW's, with its final loss for comparison."""
    rows = []
    for (size, kind), chosen in sorted(best([one for one in groups if one.run.steps == steps]).items()):
        found, loss = lengths(groups, chosen.run), target(groups, size, steps)
        if kind == "adamw" or loss is None or len(found) < 2:
            continue
        heading = {"table": f"{size}, whole schedules; AdamW ends at {loss:.4f} after {steps} steps", "contender": kind}
        for group in found:
            measured = {"final loss": group.final.text(4), "above AdamW's": f"{group.final.mean - loss:+.4f}"}
            parts = {"steps": group.run.steps, "part of AdamW's": f"{group.run.steps / steps:.2f}"}
            rows.append(heading | settings(chosen.run) | parts | {"seeds": group.final.count} | measured)
    return rows


def rates(groups: Sequence[Seeds], steps: int) -> list[Row]:
    """A row for each contender and its other settings, a column for each rate, the first seed's final loss."""
    chosen = [group for group in groups if group.run.steps == steps]
    # Every row names every rate of its size: columns stand in the order in which a table meets them.
    tried: dict[str, set[float]] = {}
    for group in chosen:
        tried.setdefault(group.run.size, set()).add(group.run.rate)
    found: dict[tuple[str, ...], Row] = {}
    for group in chosen:
        row = {"table": f"{group.run.size}, {steps} steps, final loss by rate", "contender": group.kind}
        row |= {name: value for name, value in settings(group.run).items() if name != "rate"}
        key = tuple(map(str, row.values()))
        row |= {f"{rate:g}": None for rate in sorted(tried[group.run.size])}
        found.setdefault(key, row)[f"{group.run.rate:g}"] = f"{group.records[0].final:.3f}"
    return [found[key] for key in sorted(found)]
