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
        name="symmetric_product_whole" if whole else "symmetric_product",
        steps_overlap=short.tiles > 1,
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
    # The product of matrices that commute but for their rounding is not quite symmetric: whole, it is made as it is. A
    # single tile is known to lie on the diagonal when the kernel is compiled, and needs no other branch.
    mirrored = not whole and (steps == 1 or i == j)
    add = partial(tiles.add_product, sums, P, Q, blocks=(block, block), first=k == 0, lower=mirrored)
    if steps == 1:
        add(tiles.PLAIN)
    else:
        # P[i, k] is stored where k <= i, and Q[k, j] where j <= k: else the tile that is there is to be read
        # transposed. On the diagonal tiles are whole.
        pl.when(jnp.logical_and(k <= i, k <= j))(partial(add, tiles.RIGHT_TRANSPOSED))
        pl.when(jnp.logical_and(k <= i, j < k))(partial(add, tiles.PLAIN))
        pl.when(jnp.logical_and(i < k, j < k))(partial(add, tiles.LEFT_TRANSPOSED))
        if whole:
            pl.when(jnp.logical_and(i < k, k <= j))(partial(add, tiles.BOTH_TRANSPOSED))

    @pl.when(k == steps - 1)
    def _() -> None:
        def finish(own_rows: Any, own_columns: Any) -> jax.Array:
            result = scalars[batch, 0] * sums[own_rows, own_columns]
            for index, term in enumerate(own_terms):
                own = term[own_rows, own_columns]
                if whole:
                    own = jnp.where(i < j, term[own_columns, own_rows].T, own)
                result += scalars[batch, 2 + index] * own.astype(jnp.float32)
            row, column = (jax.lax.broadcasted_iota(jnp.int32, (block, block), axis) for axis in (0, 1))
            below = (i - j) * sums.shape[0] + own_rows.start - own_columns.start
            return result + jnp.where(row + below == column, scalars[batch, 1], 0.0)

        tiles.write_symmetric(outputs, block, mirrored, finish)
