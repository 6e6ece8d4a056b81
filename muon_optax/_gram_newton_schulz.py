"""Gram Newton-Schulz: the same iteration on the small Gram matrix, for matrices much longer on one side."""

from itertools import pairwise

import jax
import jax.numpy as jnp

from muon_optax._coefficients import Coefficients
from muon_optax._precision import accumulation_dtype, blend, multiply
from muon_optax._start import Start, apply, gram
from muon_optax._step import split_step


def restart_steps(steps: int, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """The steps (counted from 0) before which the Gram matrix is formed again from X.

    Between restarts ``R`` drifts away from the Gram matrix of ``Q X``, and the iteration amplifies the drift. Float32
    bears all the steps of a usual schedule; with the 8 bits of bfloat16 two steps are all it bears.
    """
    interval = 2 if jnp.finfo(dtype).bits < 32 else 8
    return tuple(range(interval, steps, interval))


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
    dtype, steps = X.dtype, len(coefficients)
    restarts = (*restart_steps(steps, dtype), steps)
    Y = apply(_factor(R, coefficients[: restarts[0]]), X) / norm
    for first, end in pairwise(restarts):
        X = Y.astype(dtype)
        Y = apply(_factor(gram(X).astype(dtype), coefficients[first:end]), X)
    return Y


def _factor(R: jax.Array, coefficients: Coefficients) -> jax.Array:
    """``Q``, ``(*batch, n, n)``, after steps that begin with ``Q = I``."""
    dtype = R.dtype
    Q = jnp.broadcast_to(jnp.eye(R.shape[-1], dtype=dtype), R.shape)
    for index, step in enumerate(coefficients):
        d, B = split_step(step, R)
        Q = blend(d, Q, multiply(B, Q) if index else B.astype(accumulation_dtype(dtype))).astype(dtype)
        if index + 1 < len(coefficients):
            half = blend(d, R, multiply(B, R)).astype(dtype)
            R = blend(d, half, multiply(half, B)).astype(dtype)
    return Q


def gram_products(coefficients: Coefficients, aspect: float, dtype: jax.typing.DTypeLike) -> float:
    """Multiplications over n^3 that :func:`gram_newton_schulz` does for matrices of ``n`` by ``aspect * n``."""
    steps = len(coefficients)
    segments = 1 + len(restart_steps(steps, dtype))
    squares = sum(c != 0 for _, _, c in coefficients)
    # Each segment: R and Q X; each step after a segment's first: one product for Q, and two for R before it.
    return 2 * aspect * segments + squares + 3 * (steps - segments)
