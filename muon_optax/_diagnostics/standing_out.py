"""Which leaves stand out: what can't be right comes first, then what is far from its peers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from muon_optax._layouts.path_patterns import without_numbers


class Limit(NamedTuple):
    """A value above which a measurement is wrong by itself, whatever the other leaves have."""

    highest: float
    says: str  # with the value for {}


# Exact Newton-Schulz ranges end below 1.3, and weight decay adds its part. Of a weight that moves by more than a
# quarter of its size in a step nothing is left after a few: our runs at their best rate stay below 0.1.
LIMITS = {
    "update_size": Limit(1.5, "the update is {:.3g} times as large as predicted"),
    "relative_update": Limit(0.25, "a step moves it by {:.3g} of its size"),
}
_NONFINITE = ("gradient_rms", "weight_rms", "update_rms")


class Scale(NamedTuple):
    """How a measurement is compared with the same one of the leaf's peers."""

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


def findings_of(
    measured: Mapping[str, np.ndarray], paths: Sequence[str], matrices: Sequence[bool]
) -> list[list[Finding]]:
    """The findings on every leaf, the worst first.

    Args:
        measured: The values of each measurement, ``(leaves,)``.
        paths: Of the leaves.
        matrices: Which of them have a layout.
    """
    found: list[list[Finding]] = [[] for _ in paths]
    for index, own in enumerate(found):
        own += _wrong({name: float(values[index]) for name, values in measured.items()}, matrices[index])
    for peers in _peers(paths, matrices):
        for name, scale in _COMPARED.items():
            for index, finding in _far(name, scale, measured[name], peers):
                found[index].append(finding)
    return [sorted(own) for own in found]


def _wrong(values: Mapping[str, float], matrix: bool) -> list[Finding]:
    found = [
        Finding((0, 0.0), name, f"{name} is {values[name]}") for name in _NONFINITE if not np.isfinite(values[name])
    ]
    if values["idle"] == 1:
        found.append(Finding((1, 0.0), "idle", "it gets no gradient"))
    # What began at zero, such as a bias or an adapter, may double in a step.
    for name, limit in LIMITS.items() if matrix and np.isfinite(values["growth"]) else ():
        if values[name] > limit.highest:
            found.append(Finding((2, -values[name] / limit.highest), name, limit.says.format(values[name])))
    return found


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
