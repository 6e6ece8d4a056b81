"""Gram Newton-Schulz: the same polynomial iteration on the small matrix X X^T, for matrices much wider than tall."""

from itertools import pairwise

import jax
import jax.numpy as jnp

from muon_optax._coefficients import Coefficients
from muon_optax._precision import accumulation_dtype, blend, multiply, transpose


def restart_steps(steps: int, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """The steps (counted from 0) before which the Gram matrix is formed again from X.

    Between restarts ``R`` drifts away from the Gram matrix of ``Q X``, and the iteration amplifies the drift. Float32
    bears all the steps of a usual schedule; with the 8 bits of bfloat16 two steps are all it bears.
    """
    if jnp.finfo(dtype).bits < 32:
        return tuple(range(2, steps, 2))
    return tuple(range(8, steps, 8))


def gram_newton_schulz(matrices: jax.Array, coefficients: Coefficients) -> jax.Array:
    """The iteration of ``direct_newton_schulz``, with the long matrix multiplied once at the start and once at the end.

    With ``R = X X^T`` every step is a polynomial in ``R``: ``Z = a I + b R + c R^2`` takes ``X`` to ``Z X`` and ``R``
    to ``Z R Z``. So only ``Q``, the product of the ``Z``, is kept, and ``X`` becomes ``Q X`` at the end and at
    restarts.

    Args:
        matrices: ``(*batch, rows, cols)`` with ``rows <= cols`` and norms at most 1; its dtype is the dtype of
            products.
        coefficients: ``(a, b, c)`` per step.

    Returns:
        ``(*batch, rows, cols)`` in the same dtype.

    References:
        Dao AI Lab, "Gram Newton-Schulz", https://github.com/Dao-AILab/gram-newton-schulz, 2026.
    """
    dtype = matrices.dtype
    restarts = restart_steps(len(coefficients), dtype)
    edges = (0, *restarts, len(coefficients))
    for start, end in pairwise(edges):
        factor = _segment(matrices, coefficients[start:end])
        matrices = multiply(factor, matrices).astype(dtype)
    return matrices


def _segment(matrices: jax.Array, coefficients: Coefficients) -> jax.Array:
    """``Q`` after the steps of one segment, ``(*batch, rows, rows)``."""
    gram = multiply(matrices, transpose(matrices)).astype(matrices.dtype)
    factor = jnp.eye(matrices.shape[-2], dtype=matrices.dtype)
    for step, (a, b, c) in enumerate(coefficients):
        # Z = a I + B is never formed: B is small and may be rounded, the large a is multiplied in float32.
        residual = blend(
            b, gram, c * multiply(gram, gram) if c else jnp.zeros_like(gram, accumulation_dtype(gram.dtype))
        )
        first = step == 0
        factor = blend(
            a,
            factor,
            residual.astype(accumulation_dtype(gram.dtype)) if first else multiply(residual, factor),
        )
        if step + 1 < len(coefficients):
            half = blend(a, gram, multiply(residual, gram))
            gram = blend(a, half, multiply(half, residual))
    return factor


def gram_products(coefficients: Coefficients, aspect: float, dtype: jax.typing.DTypeLike) -> float:
    """Multiplications over rows^3 that :func:`gram_newton_schulz` does for matrices of ``aspect`` = cols / rows."""
    steps = len(coefficients)
    segments = 1 + len(restart_steps(steps, dtype))
    squares = sum(c != 0 for _, _, c in coefficients)
    # Each segment: X X^T and Q X; each step after a segment's first: one product for Q, and two for R before it.
    return 2 * aspect * segments + squares + 3 * (steps - segments)
