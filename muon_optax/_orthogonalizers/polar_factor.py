"""The exact polar factor, by singular value decomposition: the oracle for every iteration, and a slow choice."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.checks import as_matrices
from muon_optax._orthogonalizers.precision import accumulation_dtype, multiply, near_one


def polar_factor(*misplaced: Any) -> Callable[[jax.Array], jax.Array]:
    """An orthogonalizer that sets all singular values to exactly 1.

    ``U S V^T -> U V^T`` by a singular value decomposition in float32 (float64 for float64 input). Directions without a
    singular value (below ``max(rows, cols) * eps`` of the largest) stay zero, and zero gives zero. For
    tests, for small models and to see what a better iteration could bring; tens to hundreds of times slower than
    :func:`muon_optax.newton_schulz` on an accelerator.

    Args:
        *misplaced: None are taken; a matrix is refused with the right call.

    Returns:
        A function ``(*batch, rows, cols) -> same shape and dtype`` of real floating matrices, which does not depend on
        the scale of its input.

    Raises:
        TypeError: If anything is passed.

    References:
        Nicholas J. Higham, "Functions of Matrices: Theory and Computation", SIAM, chapter 8, 2008.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> O = mo.polar_factor()(jnp.array([[2.0, 0.0], [0.0, -5.0]]))
        >>> bool(jnp.allclose(O, jnp.array([[1.0, 0.0], [0.0, -1.0]]), atol=1e-6))
        True
    """
    if misplaced:
        raise TypeError(
            "polar_factor makes an orthogonalizer and takes no arguments. Call the function that it returns: "
            "polar_factor()(matrix)."
        )
    return _PolarFactor()


class _PolarFactor:
    """The orthogonalizer, with the attributes that a plan asks for; ``None``: matrices travel in their own dtype."""

    dtype = None

    def __call__(self, matrices: jax.Array) -> jax.Array:
        """Orthogonalizes ``(*batch, rows, cols)``."""
        matrices = as_matrices(matrices)
        if matrices.size == 0:
            return matrices
        working = accumulation_dtype(matrices.dtype)
        U, S, Vh = jnp.linalg.svd(near_one(matrices, working), full_matrices=False)
        # A zero singular value has no direction: U and Vh hold arbitrary ones there.
        present = max(matrices.shape[-2:]) * jnp.finfo(working).eps * S[..., :1] < S
        return multiply(U * present[..., None, :].astype(working), Vh).astype(matrices.dtype)

    def flops(self, rows: int, cols: int) -> float:
        """Multiplications and additions for one matrix, by the usual estimate for a decomposition by way of QR."""
        short, long = sorted((rows, cols))
        return 6.0 * long * short**2 + 20.0 * short**3
