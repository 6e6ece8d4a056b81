"""One Newton-Schulz step: a matrix, its Gram matrix, a polynomial of that, the next matrix.

Keller Jordan's step, which :func:`gram`, :func:`polynomial` and :func:`apply` make in this order::

    A = X @ X.T
    B = b * A + c * A @ A
    X = a * X + B @ X

Two differences keep bfloat16 accurate. (1) Coefficients stay Python numbers and meet only float32: rounded to bfloat16
they would change the update by 3% to 6%. (2) B is centered by a multiple of the identity, which goes to ``a`` instead.
Rounding B is the largest error of a step and is proportional to B, so this removes a quarter of the error and more.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.precision import accumulation_dtype, blend, multiply, rounded

Number: TypeAlias = float | jax.Array

# Squared singular values stay below this from the second step on, in every schedule that ends near 1.
_LARGEST_SQUARE = 1.3


def gram(X: jax.Array) -> jax.Array:
    """``A``: the smaller of ``X X^T`` and ``X^T X``, accumulated in float32; rounded by the caller."""
    transposed = jnp.swapaxes(X, -1, -2)
    return multiply(X, transposed) if is_wide(X) else multiply(transposed, X)


def polynomial(coefficients: tuple[float, float, float], A: jax.Array) -> tuple[float, jax.Array]:
    """``(d, B)`` with ``a I + b A + c A^2 = d I + B``: ``d`` is exact, ``B`` is rounded to the dtype of ``A``.

    Args:
        coefficients: ``(a, b, c)``.
        A: ``(*batch, n, n)``, symmetric. It comes rounded and is the same in both of its terms: only then is a step a
            polynomial of one matrix.

    Returns:
        The number ``d`` and the matrices ``B``, ``(*batch, n, n)``.
    """
    a, b, c = coefficients
    middle = center(b, c)
    return a + middle, _centered(b, c or None, middle, A)


def polynomial_of_operands(coefficients: tuple[float, float, float], A: jax.Array) -> tuple[jax.Array, jax.Array]:
    """:func:`polynomial` whose numbers a TPU's compiler does not see: it compiles the products of all steps once.

    With constants the kernels of two steps are two, and each takes it one to three seconds. On other platforms the
    numbers become constants again.
    """
    a, b, c = coefficients
    middle = center(b, c)
    scalars = tuple(jnp.asarray(number, accumulation_dtype(A.dtype)) for number in (a + middle, b, c, middle))
    d, *others = jax.lax.platform_dependent(scalars, tpu=jax.lax.optimization_barrier, default=_unchanged)
    return d, _centered(others[0], others[1] if c else None, others[2], A)


def _unchanged(scalars: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return scalars


def _centered(b: Number, c: Number | None, middle: Number, A: jax.Array) -> jax.Array:
    wide = accumulation_dtype(A.dtype)
    square = jnp.zeros_like(A, wide) if c is None else c * multiply(A, A)
    identity = jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=wide), A.shape)
    return rounded(blend(b, A, square) - middle * identity, A.dtype)


def apply(d: Number, B: jax.Array, X: jax.Array) -> jax.Array:
    """``(d I + B) X``, or ``X (d I + B)`` for a tall ``X``, accumulated in float32; rounded by the caller."""
    # A tall matrix is multiplied as it lies: transposing it would cost a copy there and one back.
    return blend(d, X, multiply(B, X) if is_wide(X) else multiply(X, B))


def is_wide(X: jax.Array) -> bool:
    """Whether the smaller Gram matrix is ``X X^T``, so that polynomials of it multiply from the left."""
    return X.shape[-2] <= X.shape[-1]


def center(b: float, c: float) -> float:
    """The middle of the values of ``b s + c s^2`` for ``s`` in [0, 1.3]."""
    vertex = -b / (2 * c) if c else 0.0
    ends = [s for s in (0.0, vertex, _LARGEST_SQUARE) if 0 <= s <= _LARGEST_SQUARE]
    values = [b * s + c * s * s for s in ends]
    return (min(values) + max(values)) / 2
