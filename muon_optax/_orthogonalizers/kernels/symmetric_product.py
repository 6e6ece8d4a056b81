"""The kernel of the product of two symmetric matrices that commute: lower tiles, from lower tiles."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from muon_optax._orthogonalizers.kernels import tiles
from muon_optax._orthogonalizers.tiling import Tiling


@partial(jax.jit, static_argnames=("dtypes", "short", "whole", "interpret"))
def symmetric_product(
    P: jax.Array,
    Q: jax.Array,
    terms: Sequence[jax.Array],
    scalars: jax.Array,
    dtypes: Sequence[jax.typing.DTypeLike],
    *,
    short: Tiling,
    whole: bool = False,
    interpret: tiles.Interpret = False,
) -> tuple[jax.Array, ...]:
    """As :func:`reference.symmetric_product`; no tile above the diagonal is read, and if ``whole`` all are written."""
    rows, columns = tiles.all_pairs(short.tiles) if whole else tiles.lower_pairs(short.tiles)
    tile = (None, short.tile, short.tile)

    def stored(side: int) -> pl.BlockSpec:
        """The tile at (row or column of the pair, k), or the one that mirrors it."""

        def index(batch: Any, pair: Any, k: Any, *prefetched: Any) -> tuple[Any, ...]:
            place = prefetched[side][pair]
            return batch, jnp.maximum(place, k), jnp.minimum(place, k)

        return pl.BlockSpec(tile, index)

    def lower(b: Any, p: Any, k: Any, rows: Any, columns: Any, scalars: Any) -> tuple[Any, ...]:
        del k, scalars
        return b, jnp.maximum(rows[p], columns[p]), jnp.minimum(rows[p], columns[p])

    def own(b: Any, p: Any, k: Any, rows: Any, columns: Any, scalars: Any) -> tuple[Any, ...]:
        del k, scalars
        return b, rows[p], columns[p]

    return tiles.call(
        partial(_kernel, terms=len(terms), block=short.block, steps=short.tiles, whole=whole),
        grid=(len(P), len(rows), short.tiles),
        prefetched=(rows, columns, scalars),
        inputs=[(P, stored(0)), (Q, stored(1)), *((term, pl.BlockSpec(tile, lower)) for term in terms)],
        outputs=[(tiles.like(P, P.shape, dtype), pl.BlockSpec(tile, own)) for dtype in dtypes],
        sums=(short.tile, short.tile),
        name="symmetric_product",
        interpret=interpret,
    )


def _kernel(
    rows: Any,
    columns: Any,
    scalars: Any,
    P: Any,
    Q: Any,
    *others: Any,
    terms: int,
    block: int,
    steps: int,
    whole: bool,
) -> None:
    own_terms, outputs, sums = others[:terms], others[terms:-1], others[-1]
    batch, pair, k = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    i, j = rows[pair], columns[pair]
    # The product of matrices that commute but for their rounding is not quite symmetric: whole, it is made as it is.
    mirrored = False if whole else i == j
    add = partial(tiles.add_product, sums, P, Q, blocks=(block, block), first=k == 0, lower=mirrored)
    # P[i, k] is stored where k <= i, and Q[k, j] where j <= k: else the tile that is there is to be read transposed.
    # On the diagonal tiles are whole.
    pl.when(jnp.logical_and(k <= i, k <= j))(partial(add, tiles.RIGHT_TRANSPOSED))
    pl.when(jnp.logical_and(k <= i, j < k))(partial(add, tiles.PLAIN))
    pl.when(jnp.logical_and(i < k, j < k))(partial(add, tiles.LEFT_TRANSPOSED))
    if whole:
        pl.when(jnp.logical_and(i < k, k <= j))(partial(add, tiles.BOTH_TRANSPOSED))

    @pl.when(k == steps - 1)
    def _() -> None:
        def finish(own_rows: Any, own_columns: Any, total: jax.Array, diagonal: Any) -> None:
            result = scalars[batch, 0] * total
            for index, term in enumerate(own_terms):
                own = term[own_rows, own_columns]
                if whole:
                    own = jnp.where(i < j, term[own_columns, own_rows].T, own)
                result += scalars[batch, 2 + index] * own.astype(jnp.float32)
            identity = jnp.where(jnp.logical_and(i == j, diagonal), scalars[batch, 1], 0.0)
            row, column = (jax.lax.broadcasted_iota(jnp.int32, (block, block), axis) for axis in (0, 1))
            result += jnp.where(row == column, identity, 0.0)
            for output in outputs:
                output[own_rows, own_columns] = result.astype(output.dtype)

        tiles.write_symmetric(sums, block, mirrored, finish)
