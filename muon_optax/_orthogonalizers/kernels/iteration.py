"""Newton-Schulz, direct and Gram, written in products of symmetric matrices: no elementwise pass lies between them."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.restarts import restart_steps
from muon_optax._orthogonalizers.step import center, is_wide


class Products(NamedTuple):
    """The three products, as ``reference.py`` has them."""

    gram: Callable[..., tuple[jax.Array, ...]]
    symmetric_product: Callable[..., tuple[jax.Array, ...]]
    apply: Callable[..., jax.Array]


class Begin(NamedTuple):
    """Matrices, their Gram matrices, and the norm that they are still to be divided by."""

    X: jax.Array  # (batch, rows, cols), in the dtype of products.
    grams: tuple[jax.Array, ...]  # (batch, n, n), of X: as accumulated if that was asked for, and in the dtype of X.
    square: jax.Array  # (batch,) float32, the square of the norm.


def direct(products: Products, begin: Begin, coefficients: Coefficients, dtype: jax.typing.DTypeLike) -> jax.Array:
    """As :func:`direct_newton_schulz`; the result is in ``dtype``."""
    X, (*_, A), square = begin
    inverse = 1 / square
    for index, step in enumerate(coefficients):
        if index > 0:
            (A,) = products.gram(X, (X.dtype,))
        d, B = _polynomial(products, step, A, inverse)
        X = _applied(products, d, B, X, inverse, dtype if index + 1 == len(coefficients) else X.dtype)
        inverse = jnp.ones_like(square)
    return X


def gram(products: Products, begin: Begin, coefficients: Coefficients, dtype: jax.typing.DTypeLike) -> jax.Array:
    """As :func:`gram_newton_schulz`; the result is in ``dtype``."""
    X, grams, square = begin
    inverse = 1 / square
    bounds = (0, *restart_steps(coefficients, X.dtype), len(coefficients))
    for first, end in pairwise(bounds):
        if first > 0:
            grams = products.gram(X, gram_dtypes(X.dtype))
        q, Q = _factor(products, X, grams, coefficients[first:end], inverse)
        whole = end - first > 1 and is_rounded(X.dtype)
        X = _applied(products, q, Q, X, inverse, dtype if end == bounds[-1] else X.dtype, whole)
        inverse = jnp.ones_like(square)
    return X


def is_rounded(dtype: jax.typing.DTypeLike) -> bool:
    """Whether products of ``dtype`` have fewer bits than their sums."""
    return jnp.finfo(dtype).bits < 32


def gram_dtypes(dtype: jax.typing.DTypeLike) -> tuple[jax.typing.DTypeLike, ...]:
    """In which dtypes the Gram method needs Gram matrices: as accumulated, and as multiplied."""
    return (jnp.float32, dtype) if is_rounded(dtype) else (dtype,)


def _applied(
    products: Products,
    d: float,
    B: jax.Array,
    X: jax.Array,
    inverse: jax.Array,
    dtype: jax.typing.DTypeLike,
    whole: bool = False,
) -> jax.Array:
    # The norm goes into the scalars of the first product: no pass over a matrix divides by it.
    root = jnp.sqrt(inverse)
    return products.apply(B, X, _scalars(root, d * root), dtype, whole=whole)


def _factor(
    products: Products,
    X: jax.Array,
    grams: Sequence[jax.Array],
    coefficients: Coefficients,
    inverse: jax.Array,
) -> tuple[float, jax.Array]:
    """``q`` and ``Q``: these steps take ``X``, over its norm, to ``q X + Q X``."""
    # Factors that commute until they are rounded are safe in one order only (see gram_newton_schulz), so a rounded
    # product of two is made whole: the mirror image of its lower half has the other order, and diverges. The restarts
    # of 16 bits leave no product of three.
    rounded = is_rounded(X.dtype)
    *R, A = grams
    one, zero = jnp.ones_like(inverse), jnp.zeros_like(inverse)
    q, Q = 1.0, A
    for index, step in enumerate(coefficients):
        a, _, c = step
        d, B = _polynomial(products, step, A, inverse)
        if index == 0:
            Q = B
        else:
            pair, weights = ((B, Q) if is_wide(X) else (Q, B)), _scalars(one, zero, d * one, q * one)
            (Q,) = products.symmetric_product(*pair, (Q, B), weights, (X.dtype,), whole=rounded)
        q = d * q
        if index + 1 < len(coefficients):
            # What rounding took off R is added back, as there.
            kept = rounded and c != 0
            terms = (A, *R) if kept else (A,)
            weights = ((d - a) * inverse, a * inverse) if kept else (d * inverse,)
            halves = products.symmetric_product(B, A, terms, _scalars(inverse, zero, *weights), gram_dtypes(X.dtype))
            *R, A = products.symmetric_product(
                halves[-1], B, halves[:1], _scalars(one, zero, d * one), gram_dtypes(X.dtype)
            )
            inverse = one
    return q, Q


def _polynomial(products: Products, step: Sequence[float], A: jax.Array, inverse: jax.Array) -> tuple[float, jax.Array]:
    """``d`` and ``B`` with ``a I + b S + c S^2 = d I + B`` for ``S = A`` times ``inverse``."""
    a, b, c = step
    middle = center(b, c)
    if c:
        scalars = _scalars(c * inverse**2, -middle * jnp.ones_like(inverse), b * inverse)
        (B,) = products.symmetric_product(A, A, (A,), scalars, (A.dtype,))
    else:
        scaled = (b * inverse)[:, None, None] * A.astype(jnp.float32)
        B = (scaled - middle * jnp.eye(A.shape[-1])).astype(A.dtype)
    return a + middle, B


def _scalars(*each: jax.Array) -> jax.Array:
    return jnp.stack([jnp.asarray(one, jnp.float32) for one in each], axis=-1)
