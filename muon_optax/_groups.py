"""Which matrices run together: small ones of one shape as one batch, large ones one by one."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Orthogonalizer = Callable[[jax.Array], jax.Array]


class _Limits(NamedTuple):
    """Numbers of elements."""

    matrix: int  # Larger matrices run one by one.
    batch: int  # A batch has no more: the intermediate results of all its matrices are in memory at once.


# Set from `benchmarks/grouping.py`. For a TPU its compiler's cycles, in a batch over one by one: 0.15 for 32 matrices
# of 64 x 64 and 0.38 of 256 x 256, but 1.0 for 16 of 1024 x 1024, which as a batch need six times the memory and two
# thirds more time to compile, and 1.22 for 8 of 1024 x 4096: copying them costs more than their products gain. On a
# CPU a product of 128 x 128 has all the cores to itself, and small batches stay in the cache: 128 of 64 x 64 take 0.8
# of the time in batches of 16. GPUs, the default, are not measured.
_LIMITS = {
    "cpu": _Limits(2**14, 2**16),
    "tpu": _Limits(2**18, 6 * 2**20),
    "default": _Limits(2**20, 6 * 2**20),
}
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


def _run(function: Orthogonalizer, group: list[jax.Array]) -> Sequence[jax.Array]:
    def in_batches(count: int, *matrices: jax.Array) -> list[jax.Array]:
        if count == 1 and len(matrices) <= _WRITTEN_OUT:
            return [function(matrix) for matrix in matrices]
        return list(_run_batches(function, jnp.stack(matrices), count))

    return _on_each_platform(in_batches, len(group), group[0].size, *group)


def _run_stack(function: Orthogonalizer, stack: jax.Array) -> jax.Array:
    def in_batches(count: int, stack: jax.Array) -> jax.Array:
        if count == 1 and 1 < len(stack) <= _WRITTEN_OUT:
            return jnp.stack([function(matrix) for matrix in stack])
        return _run_batches(function, stack, count)

    return _on_each_platform(in_batches, len(stack), math.prod(stack.shape[1:]), stack)


def _run_batches(function: Orthogonalizer, stack: jax.Array, count: int) -> jax.Array:
    if len(stack) <= count:
        return function(stack)
    # A loop over batches of nearly one size, of which only a smaller last one is written out besides.
    batches = math.ceil(len(stack) / count)
    return jax.lax.map(function, stack, batch_size=math.ceil(len(stack) / batches) if count > 1 else None)


def _on_each_platform(run: Callable[..., Any], matrices: int, size: int, *operands: jax.Array) -> Any:
    """``run(count, *operands)`` with as many of the matrices a batch as the platform's limits say."""
    counts = {
        platform: max(1, min(matrices, limits.batch // max(size, 1))) if size <= limits.matrix else 1
        for platform, limits in _LIMITS.items()
    }
    ways = {count: partial(run, count) for count in counts.values()}
    if len(ways) == 1:
        return run(counts["default"], *operands)
    return jax.lax.platform_dependent(*operands, **{platform: ways[count] for platform, count in counts.items()})
