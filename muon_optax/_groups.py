"""Which matrices run together: small ones of one shape as one batch, large ones one by one."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Orthogonalizer = Callable[[jax.Array], jax.Array]

# Elements of a matrix up to which a batch is faster than its matrices one by one, measured with the TPU compiler.
# On a TPU v5e 32 matrices of 64 x 64 take 0.15, of 256 x 256 0.38 and 16 of 1024 x 1024 0.92 of the cycles, but 8 of
# 1024 x 4096 take 1.22: copying them costs more than their products gain.
_BATCHED = 2**20
# Elements of a batch: the intermediate results of all its matrices are in memory at once. Six matrices of 1024 x 1024 a
# batch need 0.57 of optax.contrib.muon's memory for 4 layers, eight need 1.03, at the same number of cycles.
_BATCH = 6 * 2**20
# On a CPU a product of this size has all the cores to itself, and a batch of larger ones leaves the cache.
_BATCHED_ON_CPU = 2**14
# So many large matrices of a shape are written out one by one; more are looped over, to keep the program small.
_WRITTEN_OUT = 16


def map_matrices(function: Orthogonalizer, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """``function`` of every array ``(*batch, rows, cols)``, with arrays of one shape run together where that is faster.

    Args:
        function: Treats each matrix of a batch on its own.
        arrays: A stack ``(*batch, rows, cols)`` is passed as it is, since its leading axis may be sharded.

    Returns:
        The results in the order of ``arrays``, the same up to rounding however they were run.
    """
    # The abstract value holds shape, dtype and, on a mesh of explicit axes, the sharding: all that must agree to stack.
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for position, array in enumerate(arrays):
        groups[jax.typeof(array) if array.ndim == 2 else position].append(position)
    results: dict[int, jax.Array] = {}
    for members in groups.values():
        group = [arrays[position] for position in members]
        results.update(zip(members, _run(function, group), strict=True))
    return [results[position] for position in range(len(arrays))]


def map_stacks(function: Orthogonalizer, stacks: Sequence[jax.Array]) -> list[jax.Array]:
    """``function`` of every matrix of stacks ``(matrices, rows, cols)`` that one device holds.

    Args:
        function: Treats each matrix of a batch on its own.
        stacks: Stacks of one matrix run together with others of its shape, longer ones so many matrices at a time as is
            fastest.

    Returns:
        The results in the order of ``stacks``.
    """
    single = [position for position, stack in enumerate(stacks) if len(stack) == 1]
    alone = map_matrices(function, [stacks[position][0] for position in single])
    results = {position: matrix[None] for position, matrix in zip(single, alone, strict=True)}
    return [
        results[position] if position in results else _run_stack(function, stack)
        for position, stack in enumerate(stacks)
    ]


def _run_stack(function: Orthogonalizer, stack: jax.Array) -> jax.Array:
    matrices, size = len(stack), math.prod(stack.shape[1:])

    def batched(stack: jax.Array) -> jax.Array:
        count = max(1, _BATCH // size)
        return function(stack) if matrices <= count else jax.lax.map(function, stack, batch_size=count)

    def in_turn(stack: jax.Array) -> jax.Array:
        if matrices <= _WRITTEN_OUT:
            return jnp.stack([function(matrix) for matrix in stack])
        return jax.lax.map(function, stack)

    if matrices == 0 or size <= _BATCHED_ON_CPU:
        return batched(stack)
    return in_turn(stack) if size > _BATCHED else jax.lax.platform_dependent(stack, cpu=in_turn, default=batched)


def _run(function: Orthogonalizer, group: list[jax.Array]) -> Sequence[jax.Array]:
    def batched(*matrices: jax.Array) -> list[jax.Array]:
        count = max(1, _BATCH // matrices[0].size)
        batches = [matrices[first : first + count] for first in range(0, len(matrices), count)]
        return [result for batch in batches for result in function(jnp.stack(batch))]

    def in_turn(*matrices: jax.Array) -> list[jax.Array]:
        if len(matrices) <= _WRITTEN_OUT:
            return [function(matrix) for matrix in matrices]
        return list(jax.lax.map(function, jnp.stack(matrices)))

    if len(group) == 1 or group[0].size > _BATCHED:
        return in_turn(*group)
    if group[0].size <= _BATCHED_ON_CPU:
        return batched(*group)
    return jax.lax.platform_dependent(*group, cpu=in_turn, default=batched)
