"""The kernel of the Gram matrix: lower tiles of ``X X^T``, or of ``X^T X`` for a tall ``X``."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from muon_optax._orthogonalizers.kernels import tiles
from muon_optax._orthogonalizers.tiling import Tiling


@partial(jax.jit, static_argnames=("dtypes", "wide", "short", "long", "interpret"))
def gram(
    X: jax.Array,
    dtypes: Sequence[jax.typing.DTypeLike],
    *,
    wide: bool,
    short: Tiling,
    long: Tiling,
    interpret: tiles.Interpret = False,
) -> tuple[jax.Array, ...]:
    """As :func:`reference.gram`; tiles above the diagonal are not written."""
    tile = (short.tile, long.tile) if wide else (long.tile, short.tile)
    rows, columns = tiles.lower_pairs(short.tiles)

    def panel(side: int) -> pl.BlockSpec:
        def index(batch: Any, pair: Any, k: Any, *prefetched: Any) -> tuple[Any, ...]:
            own = prefetched[side][pair]
            return (batch, own, k) if wide else (batch, k, own)

        return pl.BlockSpec((None, *tile), index)

    def lower(b: Any, p: Any, k: Any, rows: Any, columns: Any) -> tuple[Any, ...]:
        del k
        return b, rows[p], columns[p]

    out = pl.BlockSpec((None, short.tile, short.tile), lower)
    return tiles.call(
        partial(_kernel, wide=wide, short=short, steps=long.tiles),
        grid=(len(X), len(rows), long.tiles),
        prefetched=(rows, columns),
        inputs=[(X, panel(0)), (X, panel(1))],
        outputs=[(tiles.like(X, (len(X), short.size, short.size), dtype), out) for dtype in dtypes],
        sums=(short.tile, short.tile),
        name="gram_wide" if wide else "gram_tall",
        steps_overlap=short.tiles > 1,
        interpret=interpret,
    )


def _kernel(
    rows: Any,
    columns: Any,
    left: Any,
    right: Any,
    *outputs_and_sums: Any,
    wide: bool,
    short: Tiling,
    steps: int,
) -> None:
    *outputs, sums = outputs_and_sums
    pair, k = pl.program_id(1), pl.program_id(2)
    square = (short.block, short.block)
    # A single tile is known to lie on the diagonal when the kernel is compiled, and needs no other branch.
    diagonal = True if short.tiles == 1 else rows[pair] == columns[pair]
    add = partial(tiles.add_product, sums, left, right, first=k == 0)
    if wide or short.tiles == 1:
        add(tiles.RIGHT_TRANSPOSED if wide else tiles.LEFT_TRANSPOSED, blocks=square, lower=diagonal)
    else:
        # A left factor that is read transposed takes the matrix units longer: off the diagonal it serves twice as many
        # columns.
        off = partial(add, tiles.LEFT_TRANSPOSED, blocks=(short.block, short.wide_block))
        pl.when(jnp.logical_not(diagonal))(off)
        pl.when(diagonal)(partial(add, tiles.LEFT_TRANSPOSED, blocks=square, lower=True))

    @pl.when(k == steps - 1)
    def _() -> None:
        tiles.write_symmetric(outputs, short.block, diagonal, lambda own_rows, own_columns: sums[own_rows, own_columns])
