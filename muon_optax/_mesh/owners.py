"""Owners: which device orthogonalizes how many matrices of each kind."""

from collections.abc import Mapping

import numpy as np

from muon_optax._mesh.kinds import Kind
from muon_optax._mesh.shardings import Sizes


def share_out(
    numbers: Mapping[Kind, int], costs: Mapping[Kind, float], sizes: Sizes
) -> tuple[dict[Kind, np.ndarray], np.ndarray]:
    """Gives every matrix an owner, so that no device has more than its share and one matrix.

    The costliest kinds are given away first, to every device one before any gets a second, the idlest first.

    Args:
        numbers: How many matrices there are of each kind.
        costs: Of one matrix of each kind.
        sizes: Devices along each mesh axis.

    Returns:
        For each kind how many matrices each owner has, in the order of the mesh; and for all devices of the mesh what
        their matrices cost.
    """
    load = np.zeros(tuple(sizes.values()))
    owned = {}
    # Matrices that stay among few devices choose first. The others even out what those leave.
    for pool in sorted({kind.pool: None for kind in numbers}, key=len):
        outside = tuple(position for position, axis in enumerate(sizes) if axis not in pool)
        before = load.max(axis=outside, keepdims=True)
        own = before.flatten()
        idlest: list[int] = []
        for kind in sorted((kind for kind in numbers if kind.pool == pool), key=lambda kind: -costs[kind]):
            owned[kind] = np.zeros(own.size, int)
            for _ in range(numbers[kind]):
                # Differences by rounding don't count, and equals keep the order of the mesh: stacks look alike then.
                idlest = idlest or np.argsort(own.round(6), kind="stable").tolist()
                owner = idlest.pop(0)
                owned[kind][owner] += 1
                own[owner] += costs[kind]
        load = load + (own.reshape(before.shape) - before)
    return owned, load
