"""Newton-Schulz by the kernels: matrices padded to whole tiles, normalized, iterated on, and cut again."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.kernels import iteration, tiles
from muon_optax._orthogonalizers.kernels.apply import apply
from muon_optax._orthogonalizers.kernels.gram import gram
from muon_optax._orthogonalizers.kernels.resident import resident_newton_schulz
from muon_optax._orthogonalizers.kernels.symmetric_product import symmetric_product
from muon_optax._orthogonalizers.precision import near_one
from muon_optax._orthogonalizers.start import Norm
from muon_optax._orthogonalizers.step import is_wide
from muon_optax._orthogonalizers.tiling import Iteration, Resident, Tiling, resident, tiling


class Tilings(NamedTuple):
    """Both sides of a matrix in tiles."""

    short: Tiling
    long: Tiling


def symmetric_newton_schulz(
    matrices: jax.Array,
    coefficients: Coefficients,
    *,
    dtype: jax.typing.DTypeLike,
    method: Iteration,
    norm: Norm,
    held: Tilings | Resident | None = None,
    interpret: tiles.Interpret = False,
) -> jax.Array:
    """Newton-Schulz of ``(*batch, rows, cols)`` on one TPU.

    Args:
        matrices: ``(*batch, rows, cols)`` in any real floating dtype, not empty.
        coefficients: ``(a, b, c)`` per step.
        dtype: The dtype of the products, bfloat16 or float32.
        method: ``"direct"`` or ``"gram"``.
        norm: As in :func:`muon_optax.newton_schulz`.
        held: How kernels hold a matrix: in tiles, or one kernel all of it; by default all of it if it fits.
        interpret: Whether the kernels run as JAX operations, on any device.

    Returns:
        ``(*batch, rows, cols)`` in the dtype of ``matrices``.
    """

    # A kernel knows batches as an axis of its grid, so vmap has nothing to do but lengthen that.
    @jax.custom_batching.custom_vmap
    def iterate(matrices: jax.Array) -> jax.Array:
        *_, rows, cols = matrices.shape
        flat = matrices.reshape(-1, rows, cols)
        way = held or resident(rows, cols, dtype, method) or tilings_of(rows, cols)
        if isinstance(way, Resident):
            result = resident_newton_schulz(flat, coefficients, dtype, method, norm, way, interpret)
        else:
            result = _iterated(flat, coefficients, dtype, method, norm, way, interpret)
        return result.reshape(matrices.shape)

    @iterate.def_vmap
    def _(size: int, batched: list[bool], matrices: jax.Array) -> tuple[jax.Array, bool]:
        del size
        return iterate(matrices), batched[0]

    return iterate(matrices)


def tilings_of(rows: int, cols: int) -> Tilings:
    """The tiles of a matrix."""
    return Tilings(tiling(min(rows, cols)), tiling(max(rows, cols)))


def _iterated(
    matrices: jax.Array,
    coefficients: Coefficients,
    dtype: jax.typing.DTypeLike,
    method: Iteration,
    norm: Norm,
    tilings: Tilings,
    interpret: tiles.Interpret,
) -> jax.Array:
    wide = is_wide(matrices)
    products = iteration.Products(
        partial(gram, wide=wide, **tilings._asdict(), interpret=interpret),
        partial(symmetric_product, short=tilings.short, interpret=interpret),
        partial(apply, wide=wide, **tilings._asdict(), interpret=interpret),
    )
    _, rows, cols = matrices.shape
    sides = tilings if wide else tilings[::-1]
    # Zeros beyond the edges stay zeros and add nothing to a sum: the result is exact.
    widths = [(0, 0), *((0, side.size - size) for side, size in zip(sides, (rows, cols), strict=True))]
    X = jnp.pad(near_one(matrices, dtype), widths)
    begin = _start(products, X, norm, tilings.short, method == "gram")
    iterate = iteration.gram if method == "gram" else iteration.direct
    out = matrices.dtype if matrices.dtype == jnp.bfloat16 else jnp.float32
    return iterate(products, begin, coefficients, out)[:, :rows, :cols].astype(matrices.dtype)


def _start(products: iteration.Products, X: jax.Array, norm: Norm, short: Tiling, exact: bool) -> iteration.Begin:
    """As :func:`start`, but the norm stays apart: it goes into the scalars of the first step."""
    dtypes = iteration.gram_dtypes(X.dtype) if exact or norm == "schatten4" else (X.dtype,)
    grams = products.gram(X, dtypes)
    measure = _sum_of_squares if norm == "schatten4" else _trace
    square = measure(grams[0], short.tile)
    square = jnp.sqrt(square) if norm == "schatten4" else square
    square = jnp.where(square == 0, 1, square)
    return iteration.Begin(X, grams if exact else grams[-1:], square)


def _trace(lower: jax.Array, tile: int) -> jax.Array:
    """The trace of a symmetric matrix, from its tiles on the diagonal."""
    # Rounded to bfloat16 it is off by 2^-9 at most, as are the products. The sum of squares of X takes a pass over X.
    tiles_of = (lower[:, place : place + tile, place : place + tile] for place in range(0, lower.shape[-1], tile))
    return sum((jnp.trace(own.astype(jnp.float32), axis1=-2, axis2=-1) for own in tiles_of), jnp.float32(0))


def _sum_of_squares(lower: jax.Array, tile: int) -> jax.Array:
    """The squared norm of a symmetric matrix, from its lower tiles. Those below the diagonal count twice."""
    row, column = (jax.lax.broadcasted_iota(jnp.int32, lower.shape[-2:], axis) // tile for axis in (0, 1))
    # What lies above the diagonal was never written and may be NaN, which a product with zero would keep.
    square = jnp.where(row < column, 0, jnp.square(lower))
    return jnp.sum(jnp.where(row > column, 2 * square, square), axis=(-2, -1))
