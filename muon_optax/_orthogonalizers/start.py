"""How an iteration starts: the first Gram matrix, and the norm that is read off it."""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.precision import near_one
from muon_optax._orthogonalizers.step import gram


def _squared_frobenius(product: jax.Array) -> jax.Array:
    return jnp.trace(product, axis1=-2, axis2=-1)


def _squared_schatten4(product: jax.Array) -> jax.Array:
    # The sum of sigma^4 is at least the largest sigma^4 and at most the square of the sum of sigma^2: the norm never
    # undershoots the spectral norm and is never looser than Frobenius's.
    return jnp.sqrt(jnp.sum(product * product, axis=(-2, -1)))


Norm: TypeAlias = Literal["frobenius", "schatten4"]
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
    """
    X = near_one(matrices, dtype)
    product = gram(X)
    square = _SQUARED_NORMS[norm](product)[..., None, None]
    square = jnp.where(square == 0, 1, square)
    return Start(X, product / square, jnp.sqrt(square))
