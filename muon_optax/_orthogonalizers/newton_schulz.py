"""Newton-Schulz: an odd polynomial, applied to a matrix step by step, takes its singular values toward 1."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.checks import as_matrices, is_floating, refuse_array
from muon_optax._orthogonalizers.coefficients import KELLER, Coefficients, check_coefficients
from muon_optax._orthogonalizers.gram_newton_schulz import gram_newton_schulz, gram_products
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction, Orthogonalizer
from muon_optax._orthogonalizers.precision import rounded
from muon_optax._orthogonalizers.start import Norm, Start, start
from muon_optax._orthogonalizers.step import apply, gram, polynomial, polynomial_of_operands
from muon_optax._orthogonalizers.tiling import Iteration, cheaper_method, direct_cost, gram_cost

Method = Literal["auto", "direct", "gram"]
Products = Literal["xla", "symmetric"]


def direct_newton_schulz(begin: Start, coefficients: Coefficients) -> jax.Array:
    """Applies ``p(X) = a X + b (X X^T) X + c (X X^T)^2 X`` once for each ``(a, b, c)``.

    Args:
        begin: The normalized matrices ``(*batch, rows, cols)``; their dtype is the dtype of products.
        coefficients: ``(a, b, c)`` per step.

    Returns:
        ``(*batch, rows, cols)`` as accumulated, in float32 (float64 for float64).
    """
    X, A, norm = begin
    Y = jnp.zeros_like(X)
    # Equal steps are equal programs as they are.
    evaluate = polynomial_of_operands if len(set(coefficients)) > 1 else polynomial
    for index, step in enumerate(coefficients):
        if index > 0:
            X = rounded(Y, X.dtype)
            A = gram(X)
        Y = apply(*evaluate(step, rounded(A, X.dtype)), X)
        if index == 0:
            Y = Y / norm
    return Y


def direct_products(coefficients: Coefficients, aspect: float) -> float:
    """Multiplications over n^3 that :func:`direct_newton_schulz` does for matrices of ``n`` by ``aspect * n``."""
    return sum(2 * aspect + (c != 0) for _, _, c in coefficients)


def choose_method(coefficients: Coefficients, short: int, long: int, dtype: jax.typing.DTypeLike) -> Iteration:
    """Gram where it saves at least 14% of the multiplications for matrices of sides ``short`` and ``long``.

    So it takes Llama's MLP, about 2.7 times as long as wide. There it saves 16% to 26% of the time on a CPU and, from
    768 on, 13% to 15% of a TPU's cycles. On an H100 it saves 5% at 1024 x 4096. Small matrices multiply in no time.
    """
    aspect = long / short
    saves = gram_products(coefficients, aspect, dtype) < 0.86 * direct_products(coefficients, aspect)
    return "gram" if saves and short >= 256 else "direct"


def newton_schulz(
    coefficients: Coefficients = KELLER,
    *,
    dtype: jax.typing.DTypeLike = jnp.bfloat16,
    method: Method = "auto",
    norm: Norm = "frobenius",
    products: Products = "xla",
) -> Orthogonalizer:
    """Makes an orthogonalizer that sends all singular values of a matrix toward 1 by a few matrix products.

    Each matrix is divided by its norm, and ``X <- a X + b (X X^T) X + c (X X^T)^2 X`` is applied once for
    each ``(a, b, c)``, with the smaller of ``X X^T`` and ``X^T X``. With Keller's coefficients the singular values end
    in about [0.68, 1.13], close enough for training. :func:`muon_optax.polar_factor` is exact and slow.

    Args:
        coefficients: One ``(a, b, c)`` per step. Default ``KELLER``, five steps, the most used; ``polar_express(5)``
            comes closer to orthogonal at the same cost.
        dtype: The dtype in which matrices are multiplied. bfloat16 is enough for training and fastest; float32 is
            multiplied in full precision on every backend. Sums are always float32, and coefficients are never rounded.
            A CPU not known to have bfloat16 instructions multiplies the same numbers as float32, which is faster there.
        method: ``"direct"`` multiplies the matrix itself in every step; ``"gram"`` works on the smaller
            Gram matrix and gives the same up to rounding; ``"auto"`` takes the one with fewer
            multiplications for each shape: Gram from about 2.6 times as long as wide on, if not small.
        norm: The norm that divides the matrix first. ``"frobenius"``, the usual one, exceeds the largest singular value
            by up to the root of the rank. ``"schatten4"``, the fourth root of the sum of fourth powers of the singular
            values, exceeds it by less and costs nothing. With it, ``polar_express(4, 4e-3)`` comes as close to
            orthogonal in four steps as ``KELLER`` in five. ``"aol"`` divides each row (or column) of the shorter side
            by a number of its own, as ``preconditioning="aol"`` of ``optax.contrib.muon`` does. Singular values start
            larger still, at most 1, but they are those of another matrix, and so is the result. It takes one more pass
            over the matrix.
        products: ``"xla"`` leaves them to XLA. ``"symmetric"``, on a TPU, multiplies only one of two blocks that mirror
            each other, about 0.7 of the work, by kernels in bfloat16 or float32. A matrix that fits vector memory (1024
            x 4096 in bfloat16 does) is held by one kernel through all steps. The kernels are compiled and
            simulated, but have not yet run on a TPU, so the default stays XLA's. Other platforms, and arrays that
            XLA may shard by itself, get XLA's products. The kernels run inside ``shard_map`` (as a mesh plan does),
            where JAX sees one device, and under ``jax.set_mesh`` of a mesh of one. No gradients flow.

    Returns:
        A function ``(*batch, rows, cols) -> same shape and dtype`` of real floating matrices. The result does not
        depend on the scale of its input; zero gives zero; a matrix with a NaN or an infinity becomes NaN and no other
        does. Singular values end within :func:`muon_optax.coefficient_range`, up to rounding. It carries its ``dtype``
        and a method ``flops(rows, cols)``, by which :func:`muon_optax.plan` plans a mesh.

    Raises:
        TypeError: If a matrix is passed in place of coefficients; the function returned raises it for complex numbers
            and integers, and ValueError for fewer than two axes.
        ValueError: If the coefficients are empty, no triples, not finite, or make some singular value in (0, 1] diverge
            or change its sign; if ``dtype`` is not a floating type of at least 16 bits, or none that ``products``
            multiplies; if ``method``, ``norm`` or ``products`` is unknown.

    References:
        Keller Jordan, "Muon: An optimizer for hidden layers in neural networks",
        https://kellerjordan.github.io/posts/muon/, 2024.
        Thibaut Boissin et al., "Turbo-Muon: Accelerating Orthogonality-Based Optimization with Pre-Conditioning",
        https://arxiv.org/abs/2512.04632, 2025: ``norm="aol"``.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> orthogonalizer = mo.newton_schulz(mo.polar_express(8), dtype=jnp.float32)
        >>> O = orthogonalizer(jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]))
        >>> bool(jnp.allclose(O @ O.T, jnp.eye(2), atol=1e-5))
        True
    """
    refuse_array(coefficients)
    coefficients = check_coefficients(coefficients)
    dtype = _checked_dtype(dtype)
    for name, value, choices in (("method", method, Method), ("norm", norm, Norm), ("products", products, Products)):
        if value not in get_args(choices):
            raise ValueError(f"{name}={value!r} is not allowed: use one of {', '.join(map(repr, get_args(choices)))}.")
    if products == "symmetric" and dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(
            f'products="symmetric" does not multiply in dtype={dtype.name}: use jnp.bfloat16 or jnp.float32, or '
            'products="xla".'
        )
    if products == "symmetric" and norm == "aol":
        raise ValueError('products="symmetric" does not rescale rows: use another norm than "aol", or products="xla".')

    return _shared(coefficients, dtype, method, norm, products)


@dataclass(frozen=True)
class NewtonSchulz:
    """An orthogonalizer that says what it costs and in which dtype it multiplies, for those that plan its work."""

    coefficients: Coefficients
    dtype: jnp.dtype
    method: Method
    norm: Norm
    products: Products

    def __call__(self, matrices: jax.Array) -> jax.Array:
        """Orthogonalizes ``(*batch, rows, cols)``."""
        matrices = as_matrices(matrices)
        if matrices.size == 0:
            return matrices
        if self.products == "xla":
            return self._by_xla(matrices)
        short, long = sorted(matrices.shape[-2:])
        method = self._chosen(short, long, cheaper_method)
        return _by_kernels(self.coefficients, self.dtype, method, self.norm, self._by_xla, matrices)

    def _by_xla(self, matrices: jax.Array) -> jax.Array:
        short, long = sorted(matrices.shape[-2:])
        gram = self._chosen(short, long, choose_method) == "gram"
        iterate = gram_newton_schulz if gram else direct_newton_schulz
        return iterate(start(matrices, self.dtype, self.norm), self.coefficients).astype(matrices.dtype)

    def flops(self, rows: int, cols: int) -> float:
        """Multiplications and additions of the products for one matrix."""
        short, long = sorted((rows, cols))
        if self.products == "symmetric":
            cost = gram_cost if self._chosen(short, long, cheaper_method) == "gram" else direct_cost
            return 2 * cost(self.coefficients, short, long, self.dtype)
        products = (
            gram_products(self.coefficients, long / short, self.dtype)
            if self._chosen(short, long, choose_method) == "gram"
            else direct_products(self.coefficients, long / short)
        )
        return 2 * products * short**3

    def _chosen(self, short: int, long: int, choose: Callable[..., Iteration]) -> Iteration:
        return choose(self.coefficients, short, long, self.dtype) if self.method == "auto" else self.method


@lru_cache
def _shared(
    coefficients: Coefficients, dtype: jnp.dtype, method: Method, norm: Norm, products: Products
) -> NewtonSchulz:
    # One object for equal settings: JAX traces a shape once for all optimizers of a process, as in a sweep.
    return NewtonSchulz(coefficients, dtype, method, norm, products)


def _by_kernels(
    coefficients: Coefficients,
    dtype: jnp.dtype,
    method: Iteration,
    norm: Norm,
    otherwise: MatrixFunction,
    matrices: jax.Array,
) -> jax.Array:
    # The one import inside a function: Pallas takes longer to import than all of this package, and few use it.
    from muon_optax._orthogonalizers.kernels.on_a_tpu import on_a_tpu

    return on_a_tpu(coefficients, dtype, method, norm, otherwise, matrices)


def _checked_dtype(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    if not is_floating(dtype) or jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"dtype={dtype!r} is not allowed: multiply in a floating type of 16 bits or more, such as jnp.bfloat16 "
            "(fast) or jnp.float32 (accurate)."
        )
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(f"dtype={dtype!r} needs 64-bit mode: set jax.config.update('jax_enable_x64', True).")
    return jnp.dtype(dtype)
