"""Pictures of recordings. Needs Matplotlib."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from muon_optax._diagnostics.recording import Recording
from muon_optax._layouts.paths import brief

# Measurements that differ by factors; the others are shares, cosines and errors, on a linear scale.
_BY_FACTORS = (
    "gradient_rms",
    "weight_rms",
    "growth",
    "spectral_norm",
    "update_rms",
    "relative_update",
    "update_size",
)
# What a measurement is relative to, where its name does not say so.
_LABELS = {
    "growth": "growth (weight RMS / at the start)",
    "update_size": "update size (measured / predicted)",
    "relative_update": "relative update (RMS / weight RMS)",
    "idle": "idle (share of outputs without gradient)",
    "momentum_cosine": "momentum cosine (with the gradient)",
    "stable_rank": "stable rank (share of the full rank)",
}
_MISSING = "0.85"  # the gray of what was not measured, not finite or, on a scale of factors, zero


def heat_map(recording: Recording, measurement: str, *, grouped: bool = False, axes: Axes | None = None) -> Axes:
    """Draws one measurement of a recording, a row for each leaf and a column for each step measured.

    Args:
        recording: From :func:`muon_optax.diagnostics.recorded`.
        measurement: One of ``Recording.names``. Leaves that have none are left out.
        grouped: Whether repeated layers share a row, their median.
        axes: Where to draw; ``None`` for a figure of its own, as high as its rows need.

    Returns:
        The axes; ``axes.figure.savefig("growth.png")`` writes the picture. What is not finite is gray, and so is zero
        where colors stand for factors.

    Raises:
        TypeError: For anything but a recording.
        ValueError: For another name, if nothing has been measured yet, and if no leaf has this measurement.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> from muon_optax.plots import heat_map
        >>> optimizer = mo.diagnostics.record(mo.muon(0.02))
        >>> params = {"kernel": jnp.eye(4)}
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> heat_map(mo.diagnostics.recorded(state), "growth").get_title()
        'growth, by leaf'
    """
    if not isinstance(recording, Recording):
        raise TypeError(
            f"recording={brief(type(recording))} is not a Recording: give what muon_optax.diagnostics.recorded(state) "
            "returns."
        )
    steps, paths, values = recording.history(measurement, grouped)
    shown = [index for index, row in enumerate(values) if not np.isnan(row).all()]
    if not shown:
        if steps:
            raise ValueError(f"measurement={measurement!r} has no value: no leaf of this optimizer has one.")
        raise ValueError(f"measurement={measurement!r} has no value yet: update the optimizer, and read its new state.")
    rows = np.asarray(values[shown], float)
    factors = measurement in _BY_FACTORS
    drawn = np.ma.masked_where(~np.isfinite(rows) | ((rows <= 0) & factors), rows)
    if axes is None:
        axes = Figure(figsize=(8, 1.5 + 0.2 * len(shown)), layout="constrained").subplots()
    norm, colors = _norm(drawn) if factors else None, colormaps["viridis"].with_extremes(bad=_MISSING)
    image = axes.imshow(drawn, aspect="auto", interpolation="nearest", norm=norm, cmap=colors)
    axes.set_yticks(range(len(shown)), [paths[index] for index in shown], fontsize="small")
    ticks = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), 8)).round().astype(int))
    axes.set_xticks(ticks, [str(steps[tick]) for tick in ticks])
    axes.set(xlabel="step", title=f"{measurement.replace('_', ' ')}, by {'repeated layer' if grouped else 'leaf'}")
    figure: Any = axes.figure
    bar = figure.colorbar(image, ax=axes, label=_LABELS.get(measurement, measurement.replace("_", " ")))
    if norm is not None:  # plain numbers: within one decade Matplotlib writes 9.4 x 10^-1
        values = np.geomspace(drawn.min(), drawn.max(), 5)
        bar.set_ticks(values.tolist(), labels=[f"{value:.3g}" for value in values])
        bar.ax.minorticks_off()
    return axes


def _norm(drawn: np.ma.MaskedArray) -> LogNorm | None:
    # A single value gives no scale of factors, so Matplotlib finds a range around it.
    least, most = drawn.min(), drawn.max()
    return LogNorm(least, most) if least is not np.ma.masked and least < most else None
