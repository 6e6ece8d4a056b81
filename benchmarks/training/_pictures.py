"""The convergence benchmark's pictures."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.shared import palette
from benchmarks.training._curves import Seeds, best, target

APART = "muon, AdamW apart"  # AdamW's leaves at a rate of their own
COLORS = {"adamw": palette.COLORS["adamw"], "muon": palette.COLORS["muon"], APART: "tab:orange"}
SCALES = {"muon": "moonlight", "muon, keller scale": "keller", "muon, mup scale": "mup", "muon, naive scale": "naive"}


def draw_curves(groups: Sequence[Seeds], sizes: Sequence[str], steps: int, path: Path) -> None:
    """Validation loss by step, a panel a size: the mean over seeds, their range shaded."""
    figure = Figure(figsize=(8 * len(sizes), 5), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False)[0]
    for axes, size in zip(panels, sorted(sizes, key=_order), strict=True):
        _draw_curves(axes, groups, size, steps)
    _save(figure, path)


def _draw_curves(axes: Axes, groups: Sequence[Seeds], size: str, steps: int) -> None:
    found = best([group for group in groups if group.run.steps == steps])
    lowest = []
    for kind, color in COLORS.items():
        if (group := found.get((size, kind))) is None:
            continue
        points = [one.curve for one in group.records]
        at = sorted(set.intersection(*map(set, points)))
        losses = np.array([[curve[step] for step in at] for curve in points])
        rate = f"{group.run.rate:g}" + (f" and {group.run.adamw_rate:g}" if "apart" in kind else "")
        label = f"{_title(kind)}, rate {rate}: {group.final.text(3)}, {group.final.count} seeds"
        axes.plot(at, losses.mean(0), ".-", color=color, label=label)
        axes.fill_between(at, losses.min(0), losses.max(0), color=color, alpha=0.2)
        lowest.append(group.final.mean)
    if (loss := target(groups, size, steps)) is not None:
        axes.axhline(loss, color=COLORS["adamw"], linestyle=":", linewidth=1)
    title, unit = _words(size)
    if unit == "image":
        axes.set_yscale("log")  # falls by two orders of magnitude, where text's loss halves and halves again
    elif lowest:
        axes.set_ylim(0.95 * min(lowest), 2 * max(lowest))
    axes.set(xlabel="step", ylabel=f"validation loss (nats per {unit})", title=f"{title}, {steps} steps")
    axes.legend(fontsize=9)


def draw_rates(groups: Sequence[Seeds], sizes: Sequence[str], steps: int, short: int, path: Path) -> None:
    """Final loss by learning rate, a panel a size: the short runs thin, those of full length bold."""
    figure = Figure(figsize=(4.5 * len(sizes), 4), layout="constrained")
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axes, size in zip(panels, sorted(sizes, key=_order), strict=True):
        for kind, color in COLORS.items():
            for length, width in ((short, 1), (steps, 2.5)):
                points = _lowest_by_rate(groups, size, kind, length)
                label = f"{_title(kind)}, {length} steps" if points and axes is panels[0] else None
                axes.plot(list(points), list(points.values()), ".-", color=color, linewidth=width, label=label)
        axes.set(xscale="log", xlabel="learning rate", title=_words(size)[0])
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)  # beside the panels, whose points it would hide
    panels[0].set_ylabel(f"final validation loss (nats per {_words(sizes[0])[1]})")
    figure.suptitle("Seed 0, best of the other settings at each rate", fontsize=10)
    _save(figure, path)


def draw_widths(groups: Sequence[Seeds], sizes: Sequence[str], short: int, path: Path) -> None:
    """Final loss of short runs by the matrices' rate, a panel a scale, a line a width; AdamW's leaves at one rate."""
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    panels = figure.subplots(1, len(SCALES), sharey=True)
    for axes, (contender, scale) in zip(panels, SCALES.items(), strict=True):
        for size, color in zip(sorted(sizes, key=_order), palette.SEQUENCE, strict=False):
            chosen = [one for one in groups if one.run.contender == contender and one.run.adamw_rate == 3e-3]
            points = _lowest_by_rate(chosen, size, None, short)
            axes.plot(list(points), list(points.values()), ".-", color=color, label=_words(size)[0])
        axes.set(xscale="log", xlabel="learning rate of the matrices", title=scale)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("final validation loss (nats per byte)")
    figure.suptitle(f"{short} steps, seed 0", fontsize=10)
    _save(figure, path)


def _lowest_by_rate(groups: Sequence[Seeds], size: str, kind: str | None, steps: int) -> dict[float, float]:
    """At each rate the first seed's loss, the lowest over the other settings: all points then have one seed."""
    found: dict[float, float] = {}
    for group in groups:
        run, loss = group.run, group.records[0].final
        if run.size == size and run.steps == steps and kind in (None, group.kind) and isfinite(loss):
            found[run.rate] = min(loss, found.get(run.rate, loss))
    return dict(sorted(found.items()))


def _words(size: str) -> tuple[str, str]:
    """A size's title, and what its loss is a mean over."""
    return (size, "image") if size.startswith("digits") else (f"{size} parameters", "byte")


def _order(size: str) -> float:
    """Millions of parameters; other names as they come."""
    return float(size.removesuffix("M")) if size.endswith("M") else 0.0


def _title(kind: str) -> str:
    if kind == APART:
        return "Muon, another rate for AdamW's leaves"
    return kind.replace("adamw", "AdamW").replace("muon", "Muon")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
