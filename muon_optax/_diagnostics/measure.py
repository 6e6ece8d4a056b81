"""The measurements of one leaf, before the optimizer takes a step and after it."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from muon_optax._diagnostics.leaves import planned
from muon_optax._diagnostics.orthogonality import error_of_matrices
from muon_optax._diagnostics.sizes import root_mean_square
from muon_optax._layouts.layout import Layout
from muon_optax._orthogonalizers.precision import accumulation_dtype

# In the order of a recording's columns. Their meaning and unit: `muon_optax.diagnostics.record`.
BEFORE = ("gradient_rms", "idle", "momentum_cosine", "weight_rms", "growth", "spectral_norm", "stable_rank")
AFTER = ("update_rms", "relative_update", "update_size", "orthogonality_error")
MEASUREMENTS = (*BEFORE, *AFTER)

# Products with the matrix and its transpose. From a random vector, once, and then from the last one: weights move by
# less than a percent a step, and the vector follows.
_FIRST_ITERATIONS, _ITERATIONS = 24, 3


class Leaf(NamedTuple):
    """The static properties of a leaf."""

    path: str
    layout: Layout | None
    shape: tuple[int, ...]
    predicted: float  # the update's root mean square at a learning rate of 1; NaN if it is not orthogonalized

    @property
    def batch(self) -> tuple[int, ...]:
        """The axes of the leaf that count its matrices."""
        return self.layout.matrix_shapes(self.shape)[0][:-2] if self.layout else ()

    @property
    def outputs(self) -> int:
        """The number of values from which the power iterations of its matrices go on."""
        return math.prod(self.batch) * self.layout.fan_out(self.shape) if self.layout else 0


def before_step(
    leaf: Leaf, first: jax.Array, initial: jax.Array, vectors: jax.Array, *arrays: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The values of ``BEFORE``, float32, and the vectors of the power iteration.

    Args:
        leaf: The leaf's static properties.
        first: Whether nothing has been measured yet.
        initial: The parameter's root mean square when the recorder began.
        vectors: The vectors of the last measurement, flat; empty for a leaf without a layout.
        *arrays: The gradient, the parameter and, where there is one, the momentum.
    """
    if leaf.layout is None:
        return planned(_without_matrices, initial, *arrays), vectors
    return planned(partial(_with_matrices, leaf, leaf.layout), first, initial, vectors, *arrays)


def after_step(leaf: Leaf, learning_rate: jax.typing.ArrayLike, weight_rms: jax.Array, update: jax.Array) -> jax.Array:
    """The values of ``AFTER``, float32."""
    size = planned(root_mean_square, update).astype(jnp.float32)
    missing = jnp.full((), jnp.nan, jnp.float32)
    if leaf.layout is None or math.isnan(leaf.predicted):
        return jnp.stack([size, _over(size, weight_rms), missing, missing])
    error = planned(partial(error_of_matrices, leaf.layout), update)
    predicted = learning_rate * leaf.predicted
    return jnp.stack([size, _over(size, weight_rms), size / predicted, error.astype(jnp.float32)])


def _without_matrices(initial: jax.Array, *arrays: jax.Array) -> jax.Array:
    missing = jnp.full((), jnp.nan, jnp.float32)
    return jnp.stack([*_sizes(None, initial, *arrays), missing, missing])


def _with_matrices(
    leaf: Leaf, layout: Layout, first: jax.Array, initial: jax.Array, vectors: jax.Array, *arrays: jax.Array
) -> tuple[jax.Array, jax.Array]:
    begin = vectors.reshape((*leaf.batch, layout.fan_out(leaf.shape)))
    norm, rank, after = _spectrum(layout, arrays[1], begin, jnp.where(first, _FIRST_ITERATIONS, _ITERATIONS))
    return jnp.stack([*_sizes(layout, initial, *arrays), norm, rank]), after.reshape(-1)


def _sizes(
    layout: Layout | None, initial: jax.Array, gradient: jax.Array, param: jax.Array, momentum: jax.Array | None = None
) -> list[jax.Array]:
    size = root_mean_square(param).astype(jnp.float32)
    cosine = jnp.full((), jnp.nan, jnp.float32) if momentum is None else _cosine(gradient, momentum)
    return [root_mean_square(gradient).astype(jnp.float32), _idle(layout, gradient), cosine, size, _over(size, initial)]


def _over(size: jax.Array, whole: jax.Array) -> jax.Array:
    """A ratio that is NaN over zero, since a bias or an adapter that began at zero has grown from nothing."""
    return size / jnp.where(whole == 0, jnp.nan, whole)


def _idle(layout: Layout | None, gradient: jax.Array) -> jax.Array:
    """The share of outputs, of rows of other arrays, or of numbers of a vector, whose gradient is exactly zero."""
    kept = [axis for axis, letter in enumerate(layout.axes) if letter != "i"] if layout else [0][: gradient.ndim]
    summed = tuple(axis for axis in range(gradient.ndim) if axis not in kept)
    zero = jnp.all(gradient == 0, axis=summed)
    return jnp.mean(zero, dtype=jnp.float32) if zero.size else jnp.zeros((), jnp.float32)


def _cosine(gradient: jax.Array, momentum: jax.Array) -> jax.Array:
    """NaN if one of the two is zero, as the momentum is before the first step."""
    one, other = _unit(gradient), _unit(momentum)
    products = jnp.real(jnp.sum(one * jnp.conj(other)))
    return (products / (jnp.linalg.norm(one) * jnp.linalg.norm(other))).astype(jnp.float32)


def _unit(array: jax.Array) -> jax.Array:
    """A flat ``array`` over its root mean square, so its squares neither overflow nor underflow."""
    real = accumulation_dtype(jnp.abs(array).dtype)
    wide = array.astype(jnp.result_type(real, array.dtype)).reshape(-1)
    return wide / root_mean_square(wide)


def _spectrum(
    layout: Layout, param: jax.Array, vector: jax.Array, iterations: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest spectral norm, the mean stable rank over the shorter side, and the vectors, of a leaf's matrices."""
    if param.size == 0:
        return jnp.zeros(()), jnp.full((), jnp.nan), vector
    unit = root_mean_square(param).astype(jnp.float32)
    # So scaled, squares neither overflow nor underflow.
    matrices = layout.to_matrices(param.astype(jnp.float32) / jnp.where(unit == 0, 1, unit))
    edges = np.cumsum([block.shape[-1] for block in matrices])[:-1].tolist()
    norms, ranks, vectors = zip(
        *(
            _largest(block, start, iterations)
            for block, start in zip(matrices, jnp.split(vector, edges, -1), strict=True)
        ),
        strict=True,
    )
    norm, rank = jnp.stack([jnp.max(one) for one in norms]), jnp.concatenate([one.reshape(-1) for one in ranks])
    return unit * jnp.max(norm), jnp.nanmean(rank), jnp.concatenate(vectors, axis=-1)


def _largest(matrices: jax.Array, vector: jax.Array, iterations: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The largest singular value of each matrix, its stable rank over its shorter side, and its right vector."""

    def iterate(_: int, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        left = _normalized(_times(matrices, now[0]))
        right = _times(jnp.swapaxes(matrices, -1, -2), left)
        return _normalized(right), jnp.linalg.norm(right, axis=-1)

    begin = _normalized(vector), jnp.zeros(matrices.shape[:-2], jnp.float32)
    after, norm = jax.lax.fori_loop(0, iterations, iterate, begin)
    squares = jnp.sum(matrices * matrices, axis=(-2, -1))
    rank = squares / jnp.square(norm) / min(matrices.shape[-2:])
    # A matrix that is zero or not finite has no direction: the iteration goes on with the last vector afterwards.
    usable = jnp.isfinite(norm) & (norm > 0)
    return norm, rank, jnp.where(usable[..., None], after, vector)


def _times(matrices: jax.Array, vector: jax.Array) -> jax.Array:
    return jnp.matmul(matrices, vector[..., None], precision=jax.lax.Precision.HIGHEST)[..., 0]


def _normalized(vector: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(vector, axis=-1, keepdims=True)
    return vector / jnp.where(length == 0, math.inf, length)
