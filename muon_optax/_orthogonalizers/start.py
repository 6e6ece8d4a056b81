"""The start of an iteration: the first Gram matrix, and the norm from it that brings singular values to 1 or less."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.precision import near_one, rounded
from muon_optax._orthogonalizers.step import gram, is_wide


def _squared_frobenius(product: jax.Array) -> jax.Array:
    return jnp.trace(product, axis1=-2, axis2=-1)


def _squared_schatten4(product: jax.Array) -> jax.Array:
    # The sum of sigma^4 is at least the largest sigma^4 and at most the square of the sum of sigma^2: the norm never
    # undershoots the spectral norm and is never looser than Frobenius's.
    return jnp.sqrt(jnp.sum(product * product, axis=(-2, -1)))


Norm: TypeAlias = Literal["frobenius", "schatten4", "aol"]
_SQUARED_NORMS = {"frobenius": _squared_frobenius, "schatten4": _squared_schatten4}


class Start(NamedTuple):
    """A matrix to orthogonalize, ``X / norm``, and its Gram matrix."""

    X: jax.Array  # (*batch, rows, cols), largest entry near 1, in the dtype of products.
    gram: jax.Array  # (*batch, n, n) with n = min(rows, cols): of X / norm, float32 as accumulated.
    norm: jax.Array  # (*batch, 1, 1), float32: not below the largest singular value of X.


def start(matrices: jax.Array, dtype: jax.typing.DTypeLike, norm: Norm) -> Start:
    """Normalizes by a norm that is read off the first Gram matrix ``G``, which is needed anyway.

    The first step divides its result by the norm, so neither the norm nor the division takes a pass over the matrix. A
    zero matrix has norm 1 here. One with a NaN or an infinity has norm NaN, which reaches all its entries and no other
    matrix.

    ``"aol"`` divides each row of a wide matrix, and each column of a tall one, by a number of its own. That takes a
    pass over the matrix, and what is orthogonalized is another matrix, of norm 1.
    """
    X = near_one(matrices, dtype)
    product = gram(X)
    if norm == "aol":
        return _almost_orthogonal(X, product)
    square = _SQUARED_NORMS[norm](product)[..., None, None]
    square = jnp.where(square == 0, 1, square)
    return Start(X, product / square, jnp.sqrt(square))


def _almost_orthogonal(X: jax.Array, product: jax.Array) -> Start:
    # For any v and w = factors v, w^T G w <= sum |G_ij| (w_i^2 + w_j^2) / 2 = v^T v: no singular value is above 1.
    squares = jnp.sum(jnp.abs(product), axis=-1, keepdims=True)
    # (*batch, n, 1). A row of zeros stays.
    factors = 1 / jnp.sqrt(jnp.where(squares == 0, 1, squares))
    across = jnp.swapaxes(factors, -1, -2)
    scaled = rounded(X * (factors if is_wide(X) else across), X.dtype)
    return Start(scaled, product * factors * across, jnp.ones_like(factors[..., :1, :]))
