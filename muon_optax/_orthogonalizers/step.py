"""One step's polynomial ``a I + b A + c A^2``, with the part that is rounded made as small as it can be."""

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.precision import accumulation_dtype, blend, multiply

# Squared singular values stay below this from the second step on, in every schedule that ends near 1.
_LARGEST_SQUARE = 1.3


def split_step(step: tuple[float, float, float], A: jax.Array) -> tuple[float, jax.Array]:
    """``(d, B)`` with ``a I + b A + c A^2 = d I + B``: ``d`` is exact, ``B`` is rounded to the dtype of ``A``.

    Rounding ``B`` is the largest error of a step, and it is proportional to ``B``. So ``B`` is centered on zero by a
    multiple of the identity, which takes a quarter and more off the error of five steps in bfloat16.

    Args:
        step: The coefficients ``(a, b, c)``.
        A: ``(*batch, n, n)``, symmetric. It comes rounded and is the same in both of its terms: only then is a step a
            polynomial of one matrix.

    Returns:
        The number ``d`` and the matrices ``B``, ``(*batch, n, n)``.
    """
    a, b, c = step
    center = _center(b, c)
    wide = accumulation_dtype(A.dtype)
    square = c * multiply(A, A) if c else jnp.zeros_like(A, wide)
    identity = jnp.broadcast_to(jnp.eye(A.shape[-1], dtype=wide), A.shape)
    B = blend(b, A, square) - center * identity
    return a + center, B.astype(A.dtype)


def _center(b: float, c: float) -> float:
    """The middle of the values of ``b s + c s^2`` for ``s`` in [0, 1.3]."""
    vertex = -b / (2 * c) if c else 0.0
    ends = [s for s in (0.0, vertex, _LARGEST_SQUARE) if 0 <= s <= _LARGEST_SQUARE]
    values = [b * s + c * s * s for s in ends]
    return (min(values) + max(values)) / 2
