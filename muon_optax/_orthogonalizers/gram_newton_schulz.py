"""Gram Newton-Schulz: the same iteration on the small Gram matrix, for matrices much longer on one side."""

from itertools import pairwise

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.precision import accumulation_dtype, blend, multiply, rounded
from muon_optax._orthogonalizers.restarts import restart_steps
from muon_optax._orthogonalizers.start import Start
from muon_optax._orthogonalizers.step import apply, gram, is_wide, polynomial


def gram_newton_schulz(begin: Start, coefficients: Coefficients) -> jax.Array:
    """Applies ``p(X) = a X + b (X X^T) X + c (X X^T)^2 X`` once for each ``(a, b, c)``.

    With ``R = X X^T`` every step is a polynomial in ``R``: ``Z = a I + b R + c R^2`` takes ``X`` to ``Z X`` and ``R``
    to ``Z R Z``. So only ``Q``, the product of the ``Z``, is kept, and ``X`` becomes ``Q X`` at the end and at
    restarts: the long side is multiplied twice and not ten times.

    Args:
        begin: The normalized matrices ``(*batch, rows, cols)``; their dtype is the dtype of products.
        coefficients: ``(a, b, c)`` per step.

    Returns:
        ``(*batch, rows, cols)`` as accumulated, in float32 (float64 for float64).

    References:
        Dao AI Lab, "Gram Newton-Schulz", https://github.com/Dao-AILab/gram-newton-schulz, 2026.
    """
    X, R, norm = begin
    restarts = (*restart_steps(coefficients, X.dtype), len(coefficients))
    Y = apply(*_factor(X, R, coefficients[: restarts[0]]), X) / norm
    for first, end in pairwise(restarts):
        X = rounded(Y, X.dtype)
        Y = apply(*_factor(X, gram(X), coefficients[first:end]), X)
    return Y


def _factor(X: jax.Array, R: jax.Array, coefficients: Coefficients) -> tuple[float, jax.Array]:
    """``q`` and ``Q``, ``(*batch, n, n)``: these steps take ``X`` to ``q X + Q X``, and only ``Q`` is rounded.

    ``R`` is the Gram matrix of ``X`` as accumulated; products have the dtype of ``X``.
    """
    q, Q = 1.0, jnp.zeros_like(R, X.dtype)
    for index, step in enumerate(coefficients):
        A = rounded(R, X.dtype)
        d, B = polynomial(step, A)
        # (d I + B) (q I + Q), without its multiple of the identity.
        Q = B if index == 0 else rounded(d * _widen(Q) + q * _widen(B) + _beside(X, B, Q), X.dtype)
        q = d * q
        if index + 1 < len(coefficients):
            a, _, c = step
            half = blend(d, A, multiply(B, A))
            if c:
                # What rounding took off R matters among its small eigenvalues, where Z is a I. A cubic Z, which takes
                # the largest almost to 0, is too far from a I there.
                half += a * (R - _widen(A))
            R = d * half + multiply(half.astype(X.dtype), B)
    return q, Q


def _beside(X: jax.Array, B: jax.Array, Q: jax.Array) -> jax.Array:
    """The product of a later factor ``B`` and the earlier ones ``Q``, with the earlier ones next to ``X``."""
    # The factors commute until they are rounded, and then only this order is safe. Each was made for the Gram matrix of
    # what the earlier ones leave. In the other order it meets X first, where it may be large in directions that the
    # earlier ones have made large already: bfloat16 then diverges on linear spectra.
    return multiply(B, Q) if is_wide(X) else multiply(Q, B)


def _widen(matrices: jax.Array) -> jax.Array:
    return matrices.astype(accumulation_dtype(matrices.dtype))


def gram_products(coefficients: Coefficients, aspect: float, dtype: jax.typing.DTypeLike) -> float:
    """Multiplications over n^3 that :func:`gram_newton_schulz` does for matrices of ``n`` by ``aspect * n``."""
    steps = len(coefficients)
    segments = 1 + len(restart_steps(coefficients, dtype))
    squares = sum(c != 0 for _, _, c in coefficients)
    # Each segment: R and Q X; each step after a segment's first: one product for Q, and two for R before it.
    return 2 * aspect * segments + squares + 3 * (steps - segments)
