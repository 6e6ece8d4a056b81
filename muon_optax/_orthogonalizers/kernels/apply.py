"""The kernel that multiplies a matrix by a symmetric one, of which only lower tiles are read."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from muon_optax._orthogonalizers.kernels import tiles
from muon_optax._orthogonalizers.tiling import Tiling


@partial(jax.jit, static_argnames=("dtype", "wide", "short", "long", "whole", "interpret"))
def apply(
    B: jax.Array,
    X: jax.Array,
    scalars: jax.Array,
    dtype: jax.typing.DTypeLike,
    *,
    wide: bool,
    short: Tiling,
    long: Tiling,
    whole: bool = False,
    interpret: tiles.Interpret = False,
) -> jax.Array:
    """As :func:`reference.apply`; of ``B`` no tile above the diagonal is read, unless it is ``whole``."""
    tile = (short.tile, long.tile) if wide else (long.tile, short.tile)
    # For a wide matrix a tile of B that is read transposed stands on the left, which takes the matrix units longer.
    blocks = (short.block, long.wide_block) if wide else (long.block, short.block)

    def factor(b: Any, i: Any, j: Any, k: Any, scalars: Any) -> tuple[Any, ...]:
        del j, scalars
        if whole:
            return (b, i, k) if wide else (b, k, i)
        return b, jnp.maximum(i, k), jnp.minimum(i, k)

    def summed(b: Any, i: Any, j: Any, k: Any, scalars: Any) -> tuple[Any, ...]:
        del i, scalars
        return (b, k, j) if wide else (b, j, k)

    def own(b: Any, i: Any, j: Any, k: Any, scalars: Any) -> tuple[Any, ...]:
        del k, scalars
        return (b, i, j) if wide else (b, j, i)

    (result,) = tiles.call(
        partial(_kernel, wide=wide, whole=whole, alone=short.tiles == 1, blocks=blocks),
        grid=(len(X), short.tiles, long.tiles, short.tiles),
        prefetched=(scalars,),
        inputs=[
            (B, pl.BlockSpec((None, short.tile, short.tile), factor)),
            (X, pl.BlockSpec((None, *tile), summed)),
            (X, pl.BlockSpec((None, *tile), own)),
        ],
        outputs=[(tiles.like(X, X.shape, dtype), pl.BlockSpec((None, *tile), own))],
        sums=tile,
        name=("apply_wide" if wide else "apply_tall") + ("_whole" if whole else ""),
        steps_overlap=short.tiles > 1,
        interpret=interpret,
    )
    return result


def _kernel(
    scalars: Any,
    B: Any,
    summed: Any,
    own: Any,
    output: Any,
    sums: Any,
    *,
    wide: bool,
    whole: bool,
    alone: bool,
    blocks: tuple[int, int],
) -> None:
    batch, i, k = pl.program_id(0), pl.program_id(1), pl.program_id(3)
    add = partial(tiles.add_product, sums, *((B, summed) if wide else (summed, B)), blocks=blocks, first=k == 0)
    if whole or alone:
        add(tiles.PLAIN)
    else:
        # B[i, k] is stored where k <= i. For a tall matrix it is B[k, i].
        pl.when(k <= i)(partial(add, tiles.PLAIN if wide else tiles.RIGHT_TRANSPOSED))
        pl.when(i < k)(partial(add, tiles.LEFT_TRANSPOSED if wide else tiles.PLAIN))

    @pl.when(k == pl.num_programs(3) - 1)
    def _() -> None:
        def finish(rows: Any, columns: Any) -> jax.Array:
            scale, d = scalars[batch, 0], scalars[batch, 1]
            return scale * sums[rows, columns] + d * own[rows, columns].astype(jnp.float32)

        tiles.write([output], blocks, finish)
