"""The common code of the kernels: products of tiles block by block, their epilogue, and the call."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from muon_optax._orthogonalizers.tiling import MEMORY

# Which axes of two tiles are summed over: the last of the left with the first of the right, and so on.
PLAIN = ((1,), (0,))
RIGHT_TRANSPOSED = ((1,), (1,))
LEFT_TRANSPOSED = ((0,), (0,))
BOTH_TRANSPOSED = ((0,), (1,))

Contraction = tuple[tuple[int], tuple[int]]
Finish = Callable[[Any, Any], jax.Array]
Interpret = Any  # False, True or pltpu.InterpretParams


def add_product(
    sums: Any, left: Any, right: Any, contraction: Contraction, blocks: tuple[int, int], first: Any, lower: Any = False
) -> None:
    """``sums += left right`` in float32, by blocks of ``sums``; anew where ``first``; where ``lower``, the lower ones.

    Args:
        sums: A float32 tile.
        left: A tile.
        right: A tile.
        contraction: Which of their axes are summed over.
        blocks: The sides of a block of ``sums``.
        first: Whether ``sums`` holds nothing yet.
        lower: Whether blocks above the diagonal are left out.
    """
    (left_axis,), (right_axis,) = contraction
    exact = left.dtype == jnp.float32

    def one(row: Any, column: Any) -> None:
        product = jax.lax.dot_general(
            _panel(left, 1 - left_axis, row),
            _panel(right, 1 - right_axis, column),
            (contraction, ((), ())),
            precision=jax.lax.Precision.HIGHEST if exact else None,
            preferred_element_type=jnp.float32,
        )
        earlier = sums[row, column]
        sums[row, column] = jnp.where(first, 0.0, earlier) + product

    for_blocks(sums.shape, blocks, one, lower)


def _panel(tile: Any, axis: int, block: Any) -> jax.Array:
    return tile[block, :] if axis == 0 else tile[:, block]


def for_blocks(
    shape: tuple[int, ...], blocks: tuple[int, int], body: Callable[[Any, Any], None], lower: Any = False
) -> None:
    """``body(rows, columns)`` for each block of a tile, or each on and below the diagonal."""
    rows, columns = (size // block for size, block in zip(shape, blocks, strict=True))
    everything = isinstance(lower, bool) and not lower

    def one(number: jax.Array, carry: int) -> int:
        # `//` and `%` would ask which TPU is there.
        row, column = jax.lax.div(number, columns), jax.lax.rem(number, columns)

        @pl.when(True if everything else jnp.logical_or(jnp.logical_not(lower), row >= column))
        def _() -> None:
            body(_slice(row, blocks[0]), _slice(column, blocks[1]))

        return carry

    jax.lax.fori_loop(0, rows * columns, one, 0)


def _slice(number: Any, size: int) -> Any:
    return pl.ds(pl.multiple_of(number * size, size), size)


def write(outputs: Sequence[Any], blocks: tuple[int, int], finish: Finish) -> None:
    """Each block of the outputs, from ``finish(rows, columns)`` in float32."""

    def one(rows: Any, columns: Any) -> None:
        result = finish(rows, columns)
        for output in outputs:
            output[rows, columns] = result.astype(output.dtype)

    for_blocks(outputs[0].shape, blocks, one)


def write_mirrored(outputs: Sequence[Any], block: int, finish: Finish) -> None:
    """The same for a tile on the diagonal, of which only lower blocks are finished: the others mirror them.

    So whoever reads the tile finds it whole.
    """

    def one(rows: Any, columns: Any) -> None:
        result = finish(rows, columns)
        for output in outputs:
            output[rows, columns] = result.astype(output.dtype)

        @pl.when(rows.start > columns.start)
        def _() -> None:
            for output in outputs:
                output[columns, rows] = result.T.astype(output.dtype)

    for_blocks(outputs[0].shape, (block, block), one, lower=True)


def write_symmetric(outputs: Sequence[Any], block: int, diagonal: Any, finish: Finish) -> None:
    """A tile of a symmetric matrix, which may be known to lie on the diagonal or not."""
    if isinstance(diagonal, bool):
        write_mirrored(outputs, block, finish) if diagonal else write(outputs, (block, block), finish)
        return
    pl.when(jnp.logical_not(diagonal))(lambda: write(outputs, (block, block), finish))
    pl.when(diagonal)(lambda: write_mirrored(outputs, block, finish))


def lower_pairs(tiles: int) -> tuple[jax.Array, jax.Array]:
    """Row and column of each lower tile, row by row."""
    return _pairs((row, column) for row in range(tiles) for column in range(row + 1))


def all_pairs(tiles: int) -> tuple[jax.Array, jax.Array]:
    """Row and column of each tile, row by row."""
    return _pairs((row, column) for row in range(tiles) for column in range(tiles))


def _pairs(pairs: Iterable[tuple[int, int]]) -> tuple[jax.Array, jax.Array]:
    rows, columns = zip(*pairs, strict=True)
    return jnp.asarray(rows, jnp.int32), jnp.asarray(columns, jnp.int32)


def call(
    kernel: Callable[..., None],
    *,
    grid: tuple[int, ...],
    prefetched: Sequence[jax.Array],
    inputs: Sequence[tuple[jax.Array, pl.BlockSpec]],
    outputs: Sequence[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    sums: tuple[int, int],
    name: str,
    steps_overlap: bool,
    interpret: Interpret,
) -> tuple[jax.Array, ...]:
    """The kernel on a TPU; its grid's last axis is that of the sums."""
    arrays = [array for array, _ in inputs]
    if steps_overlap and not interpret:
        # XLA would keep some in vector memory, from where a step copies its tiles by instructions, 3% to 6% of its
        # time. From main memory they are fetched meanwhile. But where a kernel has one step or few, nothing is fetched
        # meanwhile, and those copies are faster.
        arrays = [pltpu.with_memory_space_constraint(array, pltpu.HBM) for array in arrays]
    results = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=grid,
            in_specs=[spec for _, spec in inputs],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=[pltpu.VMEM(sums, jnp.float32)],
        ),
        out_shape=[shape for shape, _ in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * (len(grid) - 1) + ("arbitrary",), vmem_limit_bytes=MEMORY
        ),
        interpret=interpret,
        name=name,
    )(*prefetched, *arrays)
    return tuple(results)


def like(array: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
    """The shape of a kernel's result, which varies over a mesh as ``array`` does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(array).manual_axis_type)
