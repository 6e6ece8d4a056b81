"""Hyperball: update and weight on the sphere of each matrix's initial norm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from muon_optax._layouts.assigning.handed_on import matrices_of
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, show
from muon_optax._orthogonalizers.precision import accumulation_dtype
from muon_optax._transforms.checks.arguments import check_rate
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


class ScaleByHyperballState(NamedTuple):
    """The step, an int32 scalar, and the radii, a tree like the parameters with one number for each matrix."""

    step: jax.Array
    radii: Any


def scale_by_hyperball(
    learning_rate: optax.ScalarOrSchedule, *, layouts: Layouts = None
) -> optax.GradientTransformation:
    """Steps along spheres, on which each matrix keeps its initial Frobenius norm. After an orthogonalizer it is MuonH.

    For a matrix ``W`` of initial norm ``R`` and its update ``O``: ``W <- R normalize(W - learning_rate R
    normalize(O))``, with ``normalize(X) = X / ||X||``. It comes last: in the place of
    :func:`muon_optax.scale_by_shape`, of weight decay, which has nothing to do on a sphere, and of
    ``optax.scale_by_learning_rate``. After ``optax.scale_by_adam`` it makes Marin's optimizer for the head.

    When to choose it: to have no weight decay to tune, and a learning rate that is an angle. The evidence is good: the
    largest published Muon run in JAX (Marin, 535B parameters) trains with it. Reported gains go from none to 30%.

    Args:
        learning_rate: The relative size of a step, about its angle: a number >= 0, a scalar array or a schedule. Where
            AdamW's learning rate and decay are known, ``sqrt(learning_rate * decay)`` is a start.
        layouts: As in :func:`muon_optax.orthogonalize`. Every matrix of a stack, a split or a head has its own radius.

    Returns:
        A transform with a ``ScaleByHyperballState``. The radii are float32 (float64 for float64) arrays of the
        parameter's shape with size 1 on all but batch axes; for a split those of its blocks one after another,
        ``(count,)``. ``update`` needs ``params``; its updates are added to them as they are.

    Raises:
        ValueError: At construction, for a learning rate out of range; at ``init``, for a zero matrix, which lies on no
            sphere, and as :func:`muon_optax.orthogonalize`; at ``update``, without ``params``. Paths are named. A
            compiled ``init`` can't look at values: there a zero matrix gets NaN updates.

    References:
        Kaiyue Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization",
        https://arxiv.org/abs/2606.16899, 2026.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo, optax
        >>> transform = mo.scale_by_hyperball(0.1)
        >>> params, updates = {"w": 3 * jnp.eye(2)}, {"w": jnp.ones((2, 2))}
        >>> updates, _ = transform.update(updates, transform.init(params), params)
        >>> moved = optax.apply_updates(params, updates)
        >>> bool(jnp.allclose(jnp.linalg.norm(moved["w"]), jnp.linalg.norm(params["w"])))
        True
    """
    check_rate("learning_rate", learning_rate)
    return scale_by_hyperball_of(lambda _: learning_rate, layouts=layouts)


def scale_by_hyperball_of(
    rate_at: Callable[[str], optax.ScalarOrSchedule], *, layouts: Layouts = None
) -> optax.GradientTransformation:
    """:func:`scale_by_hyperball` with the learning rate of each path, checked before."""

    def init(params: optax.Params) -> ScaleByHyperballState:
        radii = [_radii(leaf, layout) for leaf, layout in matrices_of(params, layouts)]
        return ScaleByHyperballState(jnp.zeros([], jnp.int32), jax.tree.unflatten(jax.tree.structure(params), radii))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByHyperballState]:
        if params is None:
            raise ValueError("scale_by_hyperball needs the parameters: call update(updates, state, params).")
        found = zip(matrices_of(updates, layouts), jax.tree.leaves(params), jax.tree.leaves(state.radii), strict=True)
        moves = []
        for (leaf, layout), W, radii in found:
            rate = rate_at(leaf.path)
            rate = rate(state.step) if callable(rate) else rate
            moves.append(_move(jnp.asarray(leaf.value), layout, W, radii, rate))
        new_state = ScaleByHyperballState(jnp.asarray(optax.safe_increment(state.step)), state.radii)
        return jax.tree.unflatten(jax.tree.structure(updates), moves), new_state

    return optax.GradientTransformation(init, update)


def _radii(leaf: NamedLeaf, layout: Layout) -> jax.Array:
    array = jnp.asarray(leaf.value)
    blocks = split_blocks(array.astype(accumulation_dtype(array.dtype)), layout)
    radii = join_statistics([frobenius_norm(block, layout) for block in blocks])
    if array.size and not isinstance(radii, Tracer) and bool(jnp.any(radii == 0)):
        raise ValueError(
            f"{show(leaf.path)} of shape {leaf.shape} and layout {str(layout)!r} holds a matrix of zeros, which has no "
            "norm to keep: initialize it with small random numbers, or send it to another optimizer with "
            f"layouts={{{leaf.path!r}: None}} in muon_optax.partition_by_layout."
        )
    return radii


def _move(update: jax.Array, layout: Layout, weight: jax.Array, radii: jax.Array, rate: Any) -> jax.Array:
    dtype = radii.dtype
    blocks = split_blocks(update.astype(dtype), layout), split_blocks(weight.astype(dtype), layout)
    shapes = [reduced(block.shape, axes_of(layout, "io")) for block in blocks[0]]
    moves = []
    for direction, W, R in zip(*blocks, split_statistics(radii, shapes), strict=True):
        stepped = W - rate * R * (direction / nonzero(frobenius_norm(direction, layout)))
        # Not guarded: a zero matrix would stay zero forever, and NaN is noticed. The radius of the first step and not
        # of the last corrects what rounding takes.
        moves.append((R * (stepped / frobenius_norm(stepped, layout)) - W).astype(update.dtype))
    return join_blocks(moves, layout, update)
