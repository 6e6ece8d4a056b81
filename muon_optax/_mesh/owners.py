"""The choice of owners, the devices that orthogonalize the matrices."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from muon_optax._mesh.dims import Sizes
from muon_optax._mesh.kinds import Kind, Matrix

Owned: TypeAlias = tuple[tuple[Matrix | None, ...], ...]  # by owner, in the order of the mesh; None stands for zeros


def give_away(
    matrices: Mapping[Kind, Sequence[Matrix]], weights: Mapping[Kind, float], sizes: Sizes
) -> dict[Kind, Owned]:
    """Gives every matrix an owner, with no device having more than an even share of the weights and one matrix.

    Pools of few mesh axes come first, and within a pool the kinds with the heaviest matrices. In each round every owner
    gets one matrix, the owner with the least weight first. A round continues from kind to kind. ``weights`` has the
    weight of one matrix of every kind. A plan weighs by FLOPs, but nothing here depends on that.
    """
    load, owned = np.zeros(tuple(sizes.values())), {}
    # Matrices that stay among few devices choose first. The others even out what those leave.
    for pool in sorted({kind.pool: None for kind in matrices}, key=len):
        before = load.max(axis=tuple(at for at, axis in enumerate(sizes) if axis not in pool), keepdims=True)
        own, idlest = before.flatten(), []
        for kind in sorted((kind for kind in matrices if kind.pool == pool), key=lambda kind: -weights[kind]):
            numbers = np.zeros(own.size, int)
            for _ in matrices[kind]:
                # Rounding errors don't count, and equals keep the order of the mesh: that makes stacks regular.
                idlest = idlest or np.argsort(own.round(6), kind="stable").tolist()
                numbers[idlest[0]] += 1
                own[idlest.pop(0)] += weights[kind]
            # Only the number of matrices per owner affects cost, so the assignment within a kind is free.
            # Neighbors go to one owner, because neighbors among scanned layers are one slice.
            ends = np.cumsum(numbers)
            owned[kind] = tuple(tuple(matrices[kind][end - n : end]) for end, n in zip(ends, numbers, strict=True))
        load = load + (own.reshape(before.shape) - before)
    return owned


def flops_by_device(owned: Mapping[Kind, Owned], flops: Mapping[Kind, float], sizes: Sizes) -> np.ndarray:
    """The FLOPs of each device, from the FLOPs of one matrix of every kind. Zeros are not counted."""
    total = np.zeros(tuple(sizes.values()))
    for kind, owners in owned.items():
        numbers = [sum(matrix is not None for matrix in own) for own in owners]
        total = total + flops[kind] * by_device(numbers, kind.pool, sizes)
    return total


def by_device(values: Sequence[int] | np.ndarray, pool: Sequence[str], sizes: Sizes) -> np.ndarray:
    """Spreads one number for each owner over all devices. Devices along axes outside the pool get the same number."""
    shape = [size if axis in pool else 1 for axis, size in sizes.items()]
    return np.broadcast_to(np.reshape(values, shape), tuple(sizes.values()))
