"""Owners: which device orthogonalizes which matrix."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from muon_optax._mesh.dims import Sizes
from muon_optax._mesh.kinds import Kind, Matrix

Owned: TypeAlias = tuple[tuple[Matrix | None, ...], ...]  # by owner, in the order of the mesh; None stands for zeros


def give_away(
    matrices: Mapping[Kind, Sequence[Matrix]], costs: Mapping[Kind, float], sizes: Sizes
) -> tuple[dict[Kind, Owned], np.ndarray]:
    """Gives every matrix an owner, with no device having more than its share and one matrix.

    Kinds are given away in the order of their cost, the costliest first. In each round every device gets one matrix,
    the idlest device first; a round goes on from kind to kind.

    Returns:
        Of every kind its owners' matrices, and for all devices of the mesh what theirs cost.
    """
    load, owned = np.zeros(tuple(sizes.values())), {}
    # Matrices that stay among few devices choose first. The others even out what those leave.
    for pool in sorted({kind.pool: None for kind in matrices}, key=len):
        before = load.max(axis=tuple(at for at, axis in enumerate(sizes) if axis not in pool), keepdims=True)
        own, idlest = before.flatten(), []
        for kind in sorted((kind for kind in matrices if kind.pool == pool), key=lambda kind: -costs[kind]):
            numbers = np.zeros(own.size, int)
            for _ in matrices[kind]:
                # Rounding errors don't count, and equals keep the order of the mesh: that makes stacks regular.
                idlest = idlest or np.argsort(own.round(6), kind="stable").tolist()
                numbers[idlest[0]] += 1
                own[idlest.pop(0)] += costs[kind]
            # Only how many matrices an owner has affects the cost, so which ones is free within a kind.
            # Neighbors go to one owner: of scanned layers they are one slice.
            ends = np.cumsum(numbers)
            owned[kind] = tuple(tuple(matrices[kind][end - n : end]) for end, n in zip(ends, numbers, strict=True))
        load = load + (own.reshape(before.shape) - before)
    return owned, load


def by_device(values: Sequence[int] | np.ndarray, pool: Sequence[str], sizes: Sizes) -> np.ndarray:
    """One number for each device of the mesh, from one for each owner: along axes outside the pool they are alike."""
    shape = [size if axis in pool else 1 for axis, size in sizes.items()]
    return np.broadcast_to(np.reshape(values, shape), tuple(sizes.values()))
