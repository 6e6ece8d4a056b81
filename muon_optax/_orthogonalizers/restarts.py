"""Where Gram Newton-Schulz starts again from the matrix itself: a bound on the growth of its rounding errors."""

from functools import lru_cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np

from muon_optax._orthogonalizers.coefficients import Coefficients, coefficient_range
from muon_optax._orthogonalizers.step import center

# Singular values may end this much above the exact range.
_TOLERANCE = 1.15
# The norm of a rounding error as a share of the unit roundoff times what is rounded. It would be 1 if all entries were
# rounded against us. In 30,000 random matrices of 4 to 32 rows the errors seen fit 0.18; this leaves a factor of two.
_SHARE_OF_UNIT_ROUNDOFF = 0.375
_POINTS = 1000  # of the grid of singular values; polynomials of degree 25 vary slowly on it


@lru_cache(maxsize=256)
def restart_steps(coefficients: Coefficients, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """The steps (counted from 0) before which the Gram matrix is formed again from X.

    Segments of two steps in 16 bits, and of five in more. The earliest is cut in single steps until
    :func:`largest_value` stays within 15% of the exact range: errors grow most in the first steps, whose ``a`` is
    large. With a restart before every step the method is the direct one in other words, and needs no bound.
    """
    steps = len(coefficients)
    restarts = _usual_restarts(coefficients, dtype)
    limit = _TOLERANCE * coefficient_range(coefficients, 0.0)[1]
    # Written so that a bound that overflows to NaN is not taken for a small one.
    while len(restarts) < steps - 1 and not largest_value(coefficients, restarts, dtype) <= limit:
        segments = pairwise((0, *restarts, steps))
        first, end = next((first, end) for first, end in segments if end - first > 1)
        restarts = tuple(sorted({*restarts, *range(first + 1, end)}))
    return restarts


def _usual_restarts(coefficients: Coefficients, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    steps = len(coefficients)
    if jnp.finfo(dtype).bits >= 32:
        return tuple(range(5, steps, 5))
    # One step of an odd number stays alone: the third, since the first and last pairs drift least, R being small at
    # first and its factors small at last; of cubic steps the first, which takes the largest eigenvalues almost to 0.
    alone = 2 if any(c for _, _, c in coefficients) else 0
    return tuple(step for step in range(1, steps) if step % 2 == (steps % 2 and step > alone))


def largest_value(coefficients: Coefficients, restarts: tuple[int, ...], dtype: jax.typing.DTypeLike) -> float:
    """A bound on the singular values that Gram Newton-Schulz ends with, rounding errors included.

    Within a segment ``R`` differs from the Gram matrix of ``Q X`` by a drift ``D``. A step with factor ``z`` takes it
    to ``z D z`` and adds what rounding ``R`` and ``z`` leaves. The next step multiplies a singular value ``x`` by
    ``z(x^2 + D)``. At the segment's end ``X`` meets ``Q`` with its own rounding. The largest value reached is where the
    next segment's interval ends: what lands above the interval that a schedule is made for, later steps blow up.

    Args:
        coefficients: ``(a, b, c)`` per step.
        restarts: The steps that begin a segment, but for the first.
        dtype: The dtype of the products.

    Returns:
        The bound, ``inf`` if it overflows. The start is a matrix of norm 1.
    """
    roundoff = _SHARE_OF_UNIT_ROUNDOFF * float(jnp.finfo(dtype).eps) / 2
    top = 1.0
    with np.errstate(over="ignore", invalid="ignore"):
        for first, end in pairwise((0, *restarts, len(coefficients))):
            top = _after_segment(coefficients[first:end], top, roundoff)
    return top if np.isfinite(top) else float("inf")


def _after_segment(coefficients: Coefficients, top: float, roundoff: float) -> float:
    start = np.linspace(0.0, top, _POINTS + 1)[1:]
    x, excess, q, drift = start, np.zeros(_POINTS), 1.0, 0.0
    for a, b, c in coefficients:
        s, d = x * x, a + center(b, c)
        z, low, high = (a + b * t + c * t * t for t in (s, s - drift, s + drift))
        excess = x * (np.maximum(np.abs(low), np.abs(high)) - np.abs(z))
        # What rounding takes off R goes through a alone, which the residual term of the method keeps; a cubic has none.
        through = np.abs(z * (z - a)) if c else z * z
        rounded = s.max() * through.max() + 2 * np.abs(z - d).max() * np.abs(s * z).max()
        drift = np.max(z * z) * drift + roundoff * rounded
        x, q = x * z, q * d
    return float(np.max(np.abs(x) + np.maximum(excess, 0) + roundoff * np.abs(x / start - q).max() * start))
