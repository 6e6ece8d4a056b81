"""The dtype policy: scale exactly, multiply in the dtype that was asked for, accumulate in float32, round once."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

# Smaller products take microseconds either way, and widening them makes programs longer to trace and compile.
_WIDENED_FROM = 64


def accumulation_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype of sums of products of ``dtype``: float32, or float64 where that was asked for."""
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix products, accumulated and returned in float32 (float64 for float64)."""
    worth_widening = left.dtype == jnp.bfloat16 and max(left.shape[-2:]) >= _WIDENED_FROM
    if worth_widening and not cpu_multiplies_bfloat16():
        return _multiply_widened_on_cpu(left, right)
    return _multiply(left, right)


def _multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    # TPUs and TF32 GPUs multiply float32 in fewer bits by default. Products of 16-bit numbers are exact in float32
    # anyway, and asking for more costs a TPU up to a third on small ones.
    exact = jnp.finfo(left.dtype).bits > 16
    return jnp.matmul(
        left,
        right,
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=accumulation_dtype(left.dtype),
    )


@jax.jit
def _multiply_widened_on_cpu(left: jax.Array, right: jax.Array) -> jax.Array:
    # XLA emulates bfloat16 on a CPU without it, 1.7 to 3 times as slowly as it multiplies float32. The products are
    # those of the same rounded numbers. The jit lets products of one shape share a trace.
    def widened(left: jax.Array, right: jax.Array) -> jax.Array:
        return _multiply(left.astype(jnp.float32), right.astype(jnp.float32))

    return jax.lax.platform_dependent(left, right, cpu=widened, default=_multiply)


@cache
def cpu_multiplies_bfloat16() -> bool:
    """Whether this machine's CPU is known to have instructions for it.

    Among the instruction sets that NumPy distinguishes, only that of Sapphire Rapids is sure to hold them.
    """
    extensions = np.show_config(mode="dicts").get("SIMD Extensions", {})
    return "AVX512_SPR" in extensions.get("found", ())


def blend(scale: float | jax.Array, matrices: jax.Array, product: jax.Array) -> jax.Array:
    """``scale * matrices + product`` in the dtype of ``product``, for the caller to round."""
    # JAX would round the Python number to bfloat16 before multiplying (3.4445 becomes 3.4375, an error of 3 to 6% in
    # the update), so the bfloat16 factor is widened first.
    return scale * matrices.astype(product.dtype) + product


@partial(jax.jit, static_argnums=1)
def rounded(matrices: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """``matrices`` in ``dtype``, for those who multiply them and widen them again.

    XLA for GPUs would also keep what was rounded, in float32, for those who widen it: on an H100 that costs up to 16%
    of an orthogonalization's time and doubles its memory. On a TPU the barrier would cost 5% to 9% of the cycles.
    """
    if matrices.dtype == dtype:
        return matrices
    return jax.lax.platform_dependent(
        matrices.astype(dtype), cpu=_unchanged, tpu=_unchanged, default=jax.lax.optimization_barrier
    )


def _unchanged(matrices: jax.Array) -> jax.Array:
    return matrices


def near_one(matrices: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Each matrix times a power of two that brings its largest entry near 1, in ``dtype``.

    Exact but for the rounding to ``dtype``: a gradient times 2^k gives the same result bit for bit. An added
    epsilon would drown small gradients, and a sum of squares of large ones overflows.

    Args:
        matrices: ``(*batch, rows, cols)``, not empty, any floating dtype.
        dtype: The dtype of the result.

    Returns:
        ``(*batch, rows, cols)``; the largest entry of each matrix is in [1, 2]. Zero stays zero and NaN stays NaN.
    """
    working = jnp.float64 if jnp.float64 in (dtype, matrices.dtype) else jnp.float32
    matrices = matrices.astype(working)
    if working == jnp.float64:
        largest = jnp.max(jnp.abs(matrices), axis=(-2, -1), keepdims=True)
        return (matrices / jnp.where(largest == 0, 1, largest)).astype(dtype)
    if dtype == jnp.bfloat16:
        # bfloat16 has float32's range, so rounding may come first; then XLA writes the rounded matrix while it updates
        # the momentum and reads half the bytes from there on (6% of all cycles of an update on a TPU v5e).
        matrices = matrices.astype(dtype).astype(working)
    return scaled_by_power_of_two(matrices, *power_of_two(matrices)).astype(dtype)


def power_of_two(matrices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What :func:`scaled_by_power_of_two` needs to know of each matrix, from its largest entry."""
    largest = jnp.max(_bits(matrices) & 0x7FFFFFFF, axis=(-2, -1), keepdims=True)
    tiny = largest < (32 << 23)
    exponent = _bits(_lifted(largest, tiny)) >> 23
    # 254 - exponent is the exponent of the reciprocal. It exists as a normal number up to 253; infinity and NaN have
    # 255.
    return tiny, _number((254 - jnp.clip(exponent, 1, 253)) << 23)


def scaled_by_power_of_two(matrices: jax.Array, tiny: jax.Array, reciprocal: jax.Array) -> jax.Array:
    """``matrices`` in float32, times 2^100 where ``tiny``, times ``reciprocal``."""
    # On the bits, because XLA flushes subnormal numbers to zero on CPU and TPU. Matrices below 2^-95 are lifted by
    # 2^100 first: then their power of two is a normal number too.
    bits = _bits(matrices)
    magnitude = bits & 0x7FFFFFFF
    # The sign is put back as a bit, too: jnp.copysign compares, and a TPU would write the result of that to memory.
    return _number(_bits(_lifted(magnitude, tiny) * reciprocal) | (bits ^ magnitude))


def _lifted(magnitude: jax.Array, tiny: jax.Array) -> jax.Array:
    """The float32 numbers whose bits are ``magnitude``, times 2^100 where ``tiny``."""
    # 100 is added to the exponent. A subnormal number, which has no leading one, gets 2^-27 for one, and comes out as
    # 2^-27 and half of what it should be; for all others twice the number less 2^-26 is the larger of the two. Short,
    # because XLA repeats it inside each product that reads the matrix, and the TPU's compiler then takes long over it.
    numbers = _number(magnitude + jnp.where(tiny, 100 << 23, 0))
    return jnp.minimum(numbers, 2 * numbers - jnp.where(tiny, 2.0**-26, 0.0))


def _bits(numbers: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(numbers, jnp.int32)


def _number(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)
