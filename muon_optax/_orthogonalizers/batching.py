"""The batching of matrices. Small ones of one shape run as one batch, large ones one by one."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction


class _Limits(NamedTuple):
    """The limits for batches of matrices on a platform. Sizes are numbers of elements."""

    matrix: int  # Larger matrices run one by one.
    batch: int  # A batch has no more: the intermediate results of all its matrices are in memory at once.
    batches: int  # Up to this number are written out. More are looped over, to keep the program small.
    written_out: int  # The same limit for matrices that run one by one.


# Set from `benchmarks/update/grouping.py`.
# For a TPU v5e its compiler's cycles, a batch over one by one: 0.19 for 32 matrices of 64 x 64, 0.45 of 256 x 256, 0.75
# for 24 of 512 x 512, 0.86 for 12 of 768 x 768, but 0.98 for 16 and 1.17 for 24 of 1024 x 1024, with 114 MB of memory
# in place of 5, and 1.25 for 8 of 1024 x 4096: copies cost more than products gain. A loop has the same copies: 1.12
# for 24 of 1024 x 1024, 1.28 and 1.2 GB for 24 of 1024 x 4096. A kernel that is written out again is compiled once.
# On a CPU a product of 128 x 128 has all the cores to itself, and small batches stay in the cache. Without bfloat16
# instructions one by one is 1.2 to 1.5 times as fast from 64 x 64 on, but 32 to 128 matrices compile 1.5 to 3 times
# as long: there batches are for the compiler.
# GPUs, the default: on an H100 (`benchmarks/accelerators/gpu.py`) small kernels wait for each other. Against one by
# one, 32 matrices of 256 x 256 take 0.13 in a batch, 24 of 768 x 768 0.31 in two, 12 of 768 x 3072 0.60 in batches of 3
# and 0.51 in two. 2048 x 2048 takes as long either way. A loop over batches is slower than the batches written out, and
# holds the whole stack and its results: 0.67 and 406 MB for 12 of 768 x 3072, where 142 MB are enough.
_LIMITS = {
    "cpu": _Limits(matrix=2**14, batch=2**16, batches=1, written_out=16),
    "tpu": _Limits(matrix=3 * 2**18, batch=2**23, batches=1, written_out=64),
    "default": _Limits(matrix=2**22, batch=2**24, batches=16, written_out=16),
}


def map_matrices(function: MatrixFunction, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """``function`` of every array ``(*batch, rows, cols)``, with arrays of one shape run together where that is faster.

    Args:
        function: Treats each matrix of a batch on its own.
        arrays: A stack ``(*batch, rows, cols)`` is passed as it is, since its leading axis may be sharded.

    Returns:
        The results in the order of ``arrays``, the same up to rounding however they were run.
    """
    function = _traced_once(function)
    # Arrays stack if their abstract values agree: shape, dtype and, on a mesh of explicit axes, the sharding.
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for position, array in enumerate(arrays):
        groups[jax.typeof(array) if array.ndim == 2 else position].append(position)
    results: dict[int, jax.Array] = {}
    for members in groups.values():
        group = [arrays[position] for position in members]
        results.update(zip(members, _run(function, group), strict=True))
    return [results[position] for position in range(len(arrays))]


def map_stacks(function: MatrixFunction, stacks: Sequence[jax.Array]) -> list[jax.Array]:
    """``function`` of every matrix of stacks ``(matrices, rows, cols)`` that one device holds.

    Args:
        function: Treats each matrix of a batch on its own.
        stacks: Stacks of one matrix run together with others of its shape. Longer stacks run in parts of the fastest
            size.

    Returns:
        The results in the order of ``stacks``.
    """
    function = _traced_once(function)
    single = [position for position, stack in enumerate(stacks) if len(stack) == 1]
    alone = map_matrices(function, [stacks[position][0] for position in single])
    results = {position: matrix[None] for position, matrix in zip(single, alone, strict=True)}
    return [
        results[position] if position in results else _run_stack(function, stack)
        for position, stack in enumerate(stacks)
    ]


def _traced_once(function: MatrixFunction) -> MatrixFunction:
    # JAX keeps what jit has traced: matrices of one shape and dtype share a trace and one function in the program, in
    # all branches for platforms and in every later trace of the step. XLA inlines it, so the results are the same.
    return jax.jit(function)


def _run(function: MatrixFunction, group: list[jax.Array]) -> Sequence[jax.Array]:
    def run(way: _Way, *matrices: jax.Array) -> list[jax.Array]:
        if not way.written_out:
            return list(_in_batches(function, jnp.stack(matrices), way.together))
        if way.together == 1:
            return [function(matrix) for matrix in matrices]
        return [result for batch in _batches(matrices, way.together) for result in function(jnp.stack(batch))]

    return _on_each_platform(run, _ways(len(group), group[0].size), *group)


def _run_stack(function: MatrixFunction, stack: jax.Array) -> jax.Array:
    # Nothing is written out: matrices that lie in a stack are copied out of it and back in a loop or without one, and
    # each that is written out takes the TPU's compiler a second or more.
    def run(way: _Way, stack: jax.Array) -> jax.Array:
        return _in_batches(function, stack, way.together)

    return _on_each_platform(run, _ways(len(stack), math.prod(stack.shape[1:])), stack)


def _in_batches(function: MatrixFunction, stack: jax.Array, count: int) -> jax.Array:
    if len(stack) <= count:
        return function(stack)
    # A loop over batches, of which only a smaller last one is written out besides.
    return jax.lax.map(function, stack, batch_size=_evenly(len(stack), count) if count > 1 else None)


def _batches(matrices: Sequence[jax.Array], count: int) -> list[Sequence[jax.Array]]:
    size = _evenly(len(matrices), count)
    return [matrices[first : first + size] for first in range(0, len(matrices), size)]


def _evenly(matrices: int, count: int) -> int:
    """The size of batches of at most ``count`` that are nearly of one size."""
    return math.ceil(matrices / math.ceil(matrices / count))


class _Way(NamedTuple):
    together: int  # Matrices of a batch, at most.
    written_out: bool  # Without a loop.


def _way(limits: _Limits, matrices: int, size: int) -> _Way:
    together = max(1, min(matrices, limits.batch // max(size, 1))) if size <= limits.matrix else 1
    allowed = limits.written_out if together == 1 else limits.batches
    return _Way(together, math.ceil(matrices / together) <= allowed)


def _ways(matrices: int, size: int) -> dict[str, _Way]:
    return {platform: _way(limits, matrices, size) for platform, limits in _LIMITS.items()}


def _on_each_platform(run: Callable[..., Any], chosen: dict[str, _Way], *operands: jax.Array) -> Any:
    """``run(way, *operands)`` with the platform's way."""
    default = chosen["default"]
    others = {platform: partial(run, way) for platform, way in chosen.items() if way != default}
    if not others:
        return run(default, *operands)
    return jax.lax.platform_dependent(*operands, **others, default=partial(run, default))
