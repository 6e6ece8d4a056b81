"""The dtype policy: normalize and accumulate in float32, multiply in the dtype that was asked for."""

import jax
import jax.numpy as jnp


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of sums of products of ``dtype``: float32, or float64 where that was asked for."""
    return jnp.promote_types(dtype, jnp.float32)


def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix products, accumulated and returned in float32 (float64 for float64)."""
    # HIGHEST, because TPUs and TF32 GPUs multiply float32 in fewer bits by default. It changes nothing in bfloat16.
    return jnp.matmul(
        left,
        right,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulation_dtype(left.dtype),
    )


def blend(scale: float, matrices: jax.Array, product: jax.Array) -> jax.Array:
    """``scale * matrices + product``, formed in the dtype of ``product`` and rounded once to that of ``matrices``."""
    # JAX would round the Python number to bfloat16 before multiplying (3.4445 becomes 3.4375, an error of 3 to 6% in
    # the update), so the bfloat16 factor is widened first.
    return (scale * matrices.astype(product.dtype) + product).astype(matrices.dtype)


def transpose(matrices: jax.Array) -> jax.Array:
    """The transpose of each matrix."""
    return jnp.swapaxes(matrices, -1, -2)


def _largest(matrices: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(matrices), axis=(-2, -1), keepdims=True)


def _in_safe_range(matrices: jax.Array) -> jax.Array:
    """Float32 matrices, each times 1 or 2^-100 or 2^100, so that no sum of squares overflows or underflows."""
    # Powers of two are exact: a gradient times 2^k gives the same result bit for bit, which a division by the largest
    # entry would not. XLA flushes subnormal numbers to zero on CPU and TPU, so these are read from their bits: the
    # mantissa of one counts units of 2^-149.
    bits = jax.lax.bitcast_convert_type(matrices, jnp.int32)
    is_subnormal = (bits & 0x7F800000) == 0
    mantissa = (bits & 0x007FFFFF).astype(jnp.float32) * 2.0**-49
    lifted = jnp.where(is_subnormal, jnp.where(bits < 0, -mantissa, mantissa), matrices * 2.0**100)
    largest = _largest(matrices)
    # NaN compares False with both bounds and stays.
    return jnp.where(largest > 2.0**50, matrices * 2.0**-100, jnp.where(largest < 2.0**-50, lifted, matrices))


def _in_safe_range_float64(matrices: jax.Array) -> jax.Array:
    largest = _largest(matrices)
    return matrices / jnp.where(largest == 0, 1, largest)


def normalize(matrices: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Each matrix divided by its Frobenius norm, in ``dtype``.

    No epsilon: the result does not depend on the scale of the input. A zero matrix stays zero. One with a NaN or an
    infinity becomes all NaN, and only that one.

    Args:
        matrices: ``(*batch, rows, cols)``, not empty, any floating dtype.
        dtype: Of the result.

    Returns:
        ``(*batch, rows, cols)`` with Frobenius norms 1 (or 0), in ``dtype``.
    """
    working = jnp.promote_types(accumulation_dtype(dtype), matrices.dtype)
    scaler = _in_safe_range_float64 if working == jnp.float64 else _in_safe_range
    matrices = scaler(matrices.astype(working))
    norm = jnp.sqrt(jnp.sum(matrices * matrices, axis=(-2, -1), keepdims=True))
    # Only an exact zero is replaced: a NaN norm must reach every entry.
    return (matrices / jnp.where(norm == 0, 1, norm)).astype(dtype)
