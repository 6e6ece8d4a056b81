"""The three products in plain JAX, what the kernels compute: of symmetric matrices only lower blocks are read."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.precision import multiply
from muon_optax._orthogonalizers.step import gram as whole_gram
from muon_optax._orthogonalizers.step import is_wide


def gram(X: jax.Array, dtypes: Sequence[jax.typing.DTypeLike]) -> tuple[jax.Array, ...]:
    """The smaller of ``X X^T`` and ``X^T X``, in each of ``dtypes``."""
    return tuple(whole_gram(X).astype(dtype) for dtype in dtypes)


def symmetric_product(
    P: jax.Array,
    Q: jax.Array,
    terms: Sequence[jax.Array],
    scalars: jax.Array,
    dtypes: Sequence[jax.typing.DTypeLike],
    whole: bool = False,
) -> tuple[jax.Array, ...]:
    """``s P Q + t I + sum(u_k T_k)`` of symmetric matrices that commute, in each of ``dtypes``.

    Args:
        P: ``(batch, n, n)``.
        Q: Likewise.
        terms: The ``T_k``, likewise, in any floating dtype.
        scalars: ``(batch, 2 + terms)`` float32: ``s``, ``t``, and one ``u`` for each term.
        dtypes: The dtypes of the results.
        whole: Whether the result is the product as it is; else it is symmetric, its lower triangle the product's.
    """
    scale, identity, *weights = (scalars[:, index, None, None] for index in range(scalars.shape[1]))
    result = scale * multiply(mirrored(P), mirrored(Q)) + identity * jnp.eye(P.shape[-1])
    for weight, term in zip(weights, terms, strict=True):
        result += weight * mirrored(term).astype(jnp.float32)
    return tuple((result if whole else mirrored(result)).astype(dtype) for dtype in dtypes)


def apply(
    B: jax.Array, X: jax.Array, scalars: jax.Array, dtype: jax.typing.DTypeLike, whole: bool = False
) -> jax.Array:
    """``s B X + d X``, or ``s X B + d X`` for a tall ``X``; ``scalars`` are ``(batch, 2)``: ``s`` and ``d``.

    ``B`` is symmetric, and its lower triangle is read, or it is ``whole``.
    """
    scale, own = (scalars[:, index, None, None] for index in range(2))
    B = B if whole else mirrored(B)
    product = multiply(B, X) if is_wide(X) else multiply(X, B)
    return (scale * product + own * X.astype(product.dtype)).astype(dtype)


def mirrored(lower: jax.Array) -> jax.Array:
    """The symmetric matrix with this lower triangle."""
    below = jnp.tril(jnp.ones(lower.shape[-2:], bool))
    return jnp.where(below, lower, jnp.swapaxes(lower, -1, -2))
