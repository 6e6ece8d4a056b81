"""NorMuon: each neuron's orthogonalized update divided by its own running size."""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.handed_on import matrices_of
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._orthogonalizers.precision import accumulation_dtype
from muon_optax._transforms.checks.arguments import check_number
from muon_optax._transforms.tools.blocks import (
    axes_of,
    frobenius_norm,
    join_blocks,
    join_statistics,
    nonzero,
    reduced,
    split_blocks,
    split_statistics,
)

Axis = Literal["output", "longer"]
_SMALLEST = 1e-10  # of a second moment that is divided by; every implementation has this


class ScaleByNorMuonState(NamedTuple):
    """The second moments of NorMuon, a tree like the parameters, as :func:`muon_optax.scale_by_normuon` says."""

    moments: Any


def scale_by_normuon(
    b2: jax.typing.ArrayLike = 0.95, *, axis: Axis = "output", layouts: Layouts = None
) -> optax.GradientTransformation:
    """Divides each neuron's part of an orthogonalized update by its running root mean square, and restores the norm.

    For a matrix ``O`` of the updates: ``v <- b2 v + (1 - b2) mean(O^2)``; ``O' = O / sqrt(max(v, 1e-10))``;
    the update is ``O' ||O|| / ||O'||``. Put it between the orthogonalizer and :func:`muon_optax.scale_by_shape`, whose
    every variant stays right, since the norm is what it was. The paper fixes the update's RMS at 0.2 instead:
    ``scale_by_shape("moonlight")`` does that.

    ============ ===================================== ====================================== =======================
    axis         the mean runs over                    numbers kept of a ``fan_in x fan_out`` used by
    ============ ===================================== ====================================== =======================
    ``"output"`` the inputs                            ``fan_out``                            the paper, dion
    ``"longer"`` the shorter axis; inputs if both are  ``max(fan_in, fan_out)``               modded-nanogpt, nanochat
                 equal
    ============ ===================================== ====================================== =======================

    When to choose it: the evidence is good for a small gain over Muon, at almost no memory.

    Args:
        b2: Decay of the second moments, in [0, 1). Default 0.95, the paper's; the speed runs use 0.9 with ``"longer"``.
        axis: Which neurons have a second moment: outputs, or those along the longer axis of each matrix.
        layouts: As in :func:`muon_optax.orthogonalize`.

    Returns:
        A transform with a ``ScaleByNorMuonState``. For each parameter one float32 array (float64 for float64) of the
        parameter's shape with size 1 on the axes of the mean, so ``(1, fan_out)`` for ``"io"``. For a split,
        the numbers of its blocks one after another, ``(count,)``. Updates keep their shape and dtype.

    Raises:
        ValueError: At construction, for ``b2`` out of range or another axis; at ``init``, if a leaf has no layout or
            one that does not fit (its path is named).

    References:
        Zichong Li et al., "NorMuon: Making Muon more efficient and scalable", https://arxiv.org/abs/2510.05491, 2025.
        Keller Jordan et al., "modded-nanogpt", https://github.com/KellerJordan/modded-nanogpt, 2025 ("longer").

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> transform = mo.scale_by_normuon()
        >>> orthogonal = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
        >>> updates, state = transform.update(orthogonal, transform.init(orthogonal))
        >>> updates["w"].round(3).tolist(), state.moments["w"].shape
        ([[3.536, 0.0], [0.0, 3.536]], (1, 2))
    """
    check_number("b2", b2, "use a number in [0, 1), such as 0.95", 0.0, 1.0)
    if axis not in ("output", "longer"):
        raise ValueError(f"axis={axis!r} is not allowed: use 'output' (the paper) or 'longer' (the speed runs).")

    def init(params: optax.Params) -> ScaleByNorMuonState:
        moments = [_zeros(jnp.asarray(leaf.value), layout, axis) for leaf, layout in matrices_of(params, layouts)]
        return ScaleByNorMuonState(jax.tree.unflatten(jax.tree.structure(params), moments))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByNorMuonState]:
        del params
        found = zip(matrices_of(updates, layouts), jax.tree.leaves(state.moments), strict=True)
        results = [_normalized(jnp.asarray(leaf.value), layout, axis, v, b2) for (leaf, layout), v in found]
        structure = jax.tree.structure(updates)
        scaled, moments = ([pair[item] for pair in results] for item in (0, 1))
        return jax.tree.unflatten(structure, scaled), ScaleByNorMuonState(jax.tree.unflatten(structure, moments))

    return optax.GradientTransformation(init, update)


def _zeros(array: jax.Array, layout: Layout, axis: Axis) -> jax.Array:
    means = [_mean_square(block, layout, axis) for block in split_blocks(array, layout)]
    # Like the means and not of their shape: on a mesh with Explicit axes a state must lie from the start as it will.
    return jnp.zeros_like(join_statistics(means))


def _normalized(
    array: jax.Array, layout: Layout, axis: Axis, moments: jax.Array, b2: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    blocks = split_blocks(array.astype(accumulation_dtype(array.dtype)), layout)
    shapes = [reduced(block.shape, _averaged(block.shape, layout, axis)) for block in blocks]
    scaled, kept = [], []
    for orthogonal, v in zip(blocks, split_statistics(moments, shapes), strict=True):
        v = (b2 * v + (1 - b2) * _mean_square(orthogonal, layout, axis)).astype(moments.dtype)
        normalized = orthogonal / jnp.sqrt(jnp.maximum(v, _SMALLEST))
        restored = frobenius_norm(orthogonal, layout) / nonzero(frobenius_norm(normalized, layout))
        scaled.append((normalized * restored).astype(array.dtype))
        kept.append(v)
    return join_blocks(scaled, layout, array), join_statistics(kept)


def _averaged(shape: tuple[int, ...], layout: Layout, axis: Axis) -> tuple[int, ...]:
    inputs, outputs = axes_of(layout, "i"), axes_of(layout, "o")
    fan_in, fan_out = (math.prod(shape[position] for position in axes) for axes in (inputs, outputs))
    return outputs if axis == "longer" and fan_in > fan_out else inputs


@partial(jax.jit, static_argnames=("layout", "axis"))  # as frobenius_norm
def _mean_square(block: jax.Array, layout: Layout, axis: Axis) -> jax.Array:
    axes = _averaged(block.shape, layout, axis)
    count = max(1, math.prod(block.shape[position] for position in axes))  # an empty matrix has no mean
    squares = block.astype(accumulation_dtype(block.dtype)) ** 2
    return jnp.sum(squares, axis=axes, keepdims=True) / count
