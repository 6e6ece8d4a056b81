"""The search for leaves that stand out. Impossible values come first, then values far from their peers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from muon_optax._diagnostics.measure import MEASUREMENTS
from muon_optax._layouts.path_patterns import without_numbers


class Limit(NamedTuple):
    """A value beyond which a matrix's measurement is wrong by itself, whatever the other leaves have."""

    end: float  # the highest value allowed, or the lowest if it is negative
    says: str  # with the value for {}


# Exact Newton-Schulz ranges end below 1.3, and weight decay adds its part. The other two show a rate that is too high:
# in tests/diagnostics/test_recording.py good rates stay below 0.05 and above -0.05, rates ten times as high do not.
LIMITS = {
    "update_size": Limit(1.5, "the update is {:.3g} times as large as predicted"),
    "relative_update": Limit(0.1, "a step moves it by {:.3g} of its size"),
    "momentum_cosine": Limit(-0.15, "the gradient turns against the momentum, with a cosine of {:.3g}"),
}
_RECENT = 3  # measurements whose median cosine counts: one batch may turn against others
NEVER_MISSING = ("gradient_rms", "weight_rms", "update_rms")  # in the order of cause and effect


class Scale(NamedTuple):
    """The comparison of a measurement with the same one of the leaf's peers."""

    logarithmic: bool
    least_spread: float  # Where peers agree closely, a small difference is still a small one.


# Measurements whose value does not depend on a matrix's shape. In logarithms 0.2 is a factor of 1.2.
_COMPARED = {
    "update_size": Scale(True, 0.2),
    "growth": Scale(True, 0.2),
    "stable_rank": Scale(True, 0.2),
    "orthogonality_error": Scale(True, 0.2),
    "gradient_rms": Scale(True, 0.4),
    "momentum_cosine": Scale(False, 0.1),
    "idle": Scale(False, 0.1),
}
_FAR = 5.0  # robust standard deviations
_FEWEST_PEERS = 5  # of a repeated layer; with fewer a leaf is compared with all matrices
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


class Finding(NamedTuple):
    """Why a leaf stands out; findings sort by how surely something is wrong, then by how much."""

    rank: tuple[int, float]  # the smaller the worse
    measurement: str
    why: str


def findings_of(values: np.ndarray, paths: Sequence[str], matrices: Sequence[bool]) -> list[list[Finding]]:
    """The findings on every leaf at the latest measurement, the worst first.

    Args:
        values: ``(measurements in time, leaves, names)``, at least one measurement.
        paths: The paths of the leaves.
        matrices: Which of them have a layout.
    """
    measured = {name: values[-1, :, column] for column, name in enumerate(MEASUREMENTS)}
    cosines = median(values[-_RECENT:, :, MEASUREMENTS.index("momentum_cosine")])
    found: list[list[Finding]] = [[] for _ in paths]
    for index, own in enumerate(found):
        latest = {name: float(column[index]) for name, column in measured.items()}
        own += _surely_wrong(latest)
        if matrices[index]:
            own += _beyond_limits(latest | {"momentum_cosine": float(cosines[index])})
    for peers in _peers(paths, matrices):
        for name, scale in _COMPARED.items():
            for index, finding in _far(name, scale, measured[name], peers):
                found[index].append(finding)
    return [sorted(own) for own in found]


def median(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is there; NaN only where nothing is."""
    missing = np.isnan(values).all(axis=0)
    return np.where(missing, np.nan, np.nanmedian(np.where(missing, 0.0, values), axis=0))


def _surely_wrong(values: Mapping[str, float]) -> list[Finding]:
    found = [
        Finding((0, order), name, f"{name} is {values[name]}")
        for order, name in enumerate(NEVER_MISSING)
        if not np.isfinite(values[name])
    ]
    return [*found, Finding((1, 0.0), "idle", "it gets no gradient")] if values["idle"] == 1 else found


def _beyond_limits(values: Mapping[str, float]) -> list[Finding]:
    if np.isnan(values["growth"]):
        return []  # What began at zero, such as an adapter, may double in a step.
    return [
        Finding((2, -values[name] / limit.end), name, limit.says.format(values[name]))
        for name, limit in LIMITS.items()
        if values[name] / limit.end > 1
    ]


def _peers(paths: Sequence[str], matrices: Sequence[bool]) -> list[list[int]]:
    """Leaves that are compared: the same matrix of repeated layers where there are enough, else all matrices."""
    groups: dict[str, list[int]] = {}
    for index, path in enumerate(paths):
        if matrices[index]:
            groups.setdefault(without_numbers(path), []).append(index)
    repeated = [group for group in groups.values() if len(group) >= _FEWEST_PEERS]
    others = [index for group in groups.values() if len(group) < _FEWEST_PEERS for index in group]
    return [*repeated, others]


def _far(name: str, scale: Scale, values: np.ndarray, peers: Sequence[int]) -> list[tuple[int, Finding]]:
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log(values[list(peers)]) if scale.logarithmic else values[list(peers)]
    known = np.isfinite(scaled)
    if np.sum(known) < _FEWEST_PEERS:
        return []
    middle = np.median(scaled[known])
    spread = max(_MAD_TO_DEVIATION * float(np.median(np.abs(scaled[known] - middle))), scale.least_spread)
    found = []
    for index, value, usable in zip(peers, (scaled - middle) / spread, known, strict=True):
        if usable and abs(value) > _FAR:
            typical = np.exp(middle) if scale.logarithmic else middle
            why = f"{name} is {values[index]:.3g}, that of its peers {typical:.3g}"
            found.append((index, Finding((3, -abs(float(value))), name, why)))
    return found
