"""Newton-Schulz: an odd polynomial, applied to a matrix step by step, takes its singular values toward 1."""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from muon_optax._coefficients import KELLER, Coefficients, check_coefficients
from muon_optax._gram_newton_schulz import gram_newton_schulz, gram_products
from muon_optax._precision import blend, multiply, normalize, transpose

Method = Literal["auto", "direct", "gram"]


def direct_newton_schulz(matrices: jax.Array, coefficients: Coefficients) -> jax.Array:
    """``X <- a X + (b A + c A^2) X`` with ``A = X X^T``, once for each ``(a, b, c)``.

    Args:
        matrices: ``(*batch, rows, cols)`` with ``rows <= cols`` and norms at most 1; its dtype is the dtype of
            products.
        coefficients: ``(a, b, c)`` per step.

    Returns:
        ``(*batch, rows, cols)`` in the same dtype.
    """
    X = matrices
    for a, b, c in coefficients:
        # A is rounded once and used rounded in both of its terms: only then is the step a polynomial of one matrix.
        A = multiply(X, transpose(X)).astype(X.dtype)
        if c == 0:
            X = blend(a, X, b * multiply(A, X))
        else:
            B = blend(b, A, c * multiply(A, A))
            X = blend(a, X, multiply(B, X))
    return X


def direct_products(coefficients: Coefficients, aspect: float) -> float:
    """Multiplications over rows^3 that :func:`direct_newton_schulz` does for matrices of ``aspect`` = cols / rows."""
    return sum(2 * aspect + (c != 0) for _, _, c in coefficients)


def choose_method(coefficients: Coefficients, aspect: float, dtype: jax.typing.DTypeLike) -> Method:
    """Gram where it saves at least 15% of the multiplications for matrices of ``aspect`` = cols / rows >= 1.

    Its products are smaller and rounded more often, so a lesser saving on paper is none in time and costs accuracy.
    """
    gram, direct = gram_products(coefficients, aspect, dtype), direct_products(coefficients, aspect)
    return "gram" if gram < 0.85 * direct else "direct"


def newton_schulz(
    coefficients: Coefficients = KELLER,
    *,
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
    method: Method = "auto",
) -> Callable[[jax.Array], jax.Array]:
    """An orthogonalizer: a few matrix products send all singular values of a matrix toward 1.

    Each matrix is divided by its Frobenius norm, and ``X <- a X + b (X X^T) X + c (X X^T)^2 X`` is applied once for
    each ``(a, b, c)``, on the orientation with ``rows <= cols``. With Keller's coefficients the singular values end in
    about [0.68, 1.13]: near enough, as final losses show. It is the choice for training;
    :func:`muon_optax.polar_factor` is exact and slow.

    Args:
        coefficients: One ``(a, b, c)`` per step, as many as there are. Default ``KELLER``, five steps, the most used;
            ``polar_express(5)`` comes closer to orthogonal at the same cost.
        dtype: Of the products. bfloat16 is enough for training and fastest; float32 is multiplied in full float32
            precision on every backend. Sums are in float32 always, and coefficients are never rounded.
        method: ``"direct"`` multiplies the matrix itself in every step; ``"gram"`` works on the smaller
            ``rows x rows`` Gram matrix and gives the same up to rounding; ``"auto"`` takes the one with fewer
            multiplications for each shape, which is Gram for matrices about three times as wide as tall.

    Returns:
        A function ``(*batch, rows, cols) -> same shape and dtype``. The result does not depend on the scale of its
        input; zero gives zero; a matrix with a NaN or an infinity becomes NaN and no other does.

    Raises:
        ValueError: If the coefficients are empty, no triples, not finite, or make some singular value in (0, 1] diverge
            or change its sign; if ``dtype`` is no floating type of at least 16 bits; if ``method`` is unknown.

    References:
        Keller Jordan, "Muon: An optimizer for hidden layers in neural networks",
        https://kellerjordan.github.io/posts/muon/, 2024.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> orthogonalizer = mo.newton_schulz(mo.polar_express(8), dtype=jnp.float32)
        >>> O = orthogonalizer(jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]))
        >>> bool(jnp.allclose(O @ O.T, jnp.eye(2), atol=1e-5))
        True
    """
    coefficients = check_coefficients(coefficients)
    _check_dtype(dtype)
    if method not in get_args(Method):
        raise ValueError(f"method={method!r} is not allowed: use one of {', '.join(map(repr, get_args(Method)))}.")

    def orthogonalizer(matrices: jax.Array) -> jax.Array:
        if matrices.size == 0:
            return matrices
        tall = matrices.shape[-2] > matrices.shape[-1]
        X = normalize(transpose(matrices) if tall else matrices, dtype)
        rows, cols = X.shape[-2:]
        chosen = choose_method(coefficients, cols / rows, dtype) if method == "auto" else method
        X = (gram_newton_schulz if chosen == "gram" else direct_newton_schulz)(X, coefficients)
        return (transpose(X) if tall else X).astype(matrices.dtype)

    return orthogonalizer


def _check_dtype(dtype: jax.typing.DTypeLike) -> None:
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"dtype={dtype!r} is not allowed: multiply in a floating type of 16 bits or more, such as jnp.bfloat16 "
            "(fast) or jnp.float32 (accurate)."
        )
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(f"dtype={dtype!r} needs 64-bit mode: set jax.config.update('jax_enable_x64', True).")
