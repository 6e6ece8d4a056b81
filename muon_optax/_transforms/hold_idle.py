"""The wrapper that freezes parameters with a gradient of exactly zero, and their state."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.paths import NamedLeaf, brief, named_leaves, parameter_of
from muon_optax._transforms.checks.arguments import check_transform


def hold_idle(
    inner: optax.GradientTransformation, *, per_row: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """Holds every parameter still at the steps where its gradient is exactly zero: no step, no decay, no momentum.

    To an optimizer a gradient of zero is a gradient. Decay shrinks the parameter, momentum moves it on, and Muon brings
    the rest of a momentum to full size. Under this transform a parameter with a gradient of zeros gets an update of
    zeros, and its state in ``inner`` (momentum, moments, codes, statistics) stays as it is, to the bit. Counters go on.
    ``jax.lax.stop_gradient`` around a part of a model therefore freezes it, and its training goes on from there when
    the gradient comes back.

    :func:`muon_optax.hold_idle_matrices` holds the matrices of a stack one by one, does nothing for other parameters,
    and lets momentum fade.

    Args:
        inner: Any transform of the whole tree, such as :func:`muon_optax.muon` or ``optax.adamw``.
        per_row: Path globs of parameters that are held index by index of their first axis: tables, of which a batch
            uses few rows, and stacks of experts. An array in the state of ``inner`` with as many rows is held by rows,
            any other only while the whole parameter is idle.

    Returns:
        A transform with the state of ``inner``.

    Raises:
        ValueError: At ``init``, for a glob that matches no parameter with axes.
        TypeError: If ``per_row`` is a string or not a sequence, or if ``inner`` is not a transform.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> optimizer = mo.hold_idle(mo.muon(0.1), per_row=["embedding"])
        >>> params = {"embedding": jnp.ones((3, 2)), "kernel": jnp.eye(2)}
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> gradients = {"embedding": jnp.array([[1.0, 1.0], [0, 0], [0, 0]]), "kernel": jnp.zeros((2, 2))}
        >>> updates, _ = optimizer.update(gradients, state, params)
        >>> (updates["embedding"] != 0).any(axis=1).tolist(), bool((updates["kernel"] == 0).all())
        ([True, False, False], True)
    """
    check_transform("inner", inner)
    if (
        isinstance(per_row, str)
        or not isinstance(per_row, Sequence)
        or not all(isinstance(glob, str) for glob in per_row)
    ):
        raise TypeError(
            f"per_row={brief(per_row)} is not allowed: use a sequence of path globs, such as ['*/embedding']."
        )
    extended = optax.with_extra_args_support(inner)

    def init(params: optax.Params) -> optax.OptState:
        paths = [leaf.path for leaf in named_leaves(params) if leaf.shape]
        for glob in per_row:
            if not fnmatch.filter(paths, glob):
                raise ValueError(f"per_row has {glob!r}, which matches no parameter with axes: see assign_layouts.")
        return extended.init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        leaves = named_leaves(updates)
        idle = {leaf.path: _idle(leaf, per_row) for leaf in leaves}
        results, after = extended.update(updates, state, params, **extra_args)
        held = [
            _where(idle[leaf.path], jnp.zeros_like(result), result)
            for leaf, result in zip(leaves, jax.tree.leaves(results), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(results), held), _held_state(state, after, leaves, idle)

    return optax.GradientTransformationExtraArgs(init, update)


def _idle(leaf: NamedLeaf, per_row: Sequence[str]) -> jax.Array:
    """Whether the gradient is zero: one boolean, or one for each row."""
    rows = leaf.shape and any(fnmatch.fnmatchcase(leaf.path, glob) for glob in per_row)
    return jnp.all(jnp.asarray(leaf.value) == 0, axis=tuple(range(1, len(leaf.shape))) if rows else None)


def _held_state(before: Any, after: Any, leaves: list[NamedLeaf], idle: Mapping[str, jax.Array]) -> Any:
    """``after``, but for what belongs to idle parameters."""
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    earlier = {leaf.path: leaf.value for leaf in named_leaves(before)}

    def hold(leaf: NamedLeaf) -> Any:
        # A state may get counters in its first step, which it did not have before.
        if leaf.path not in earlier or (not leaf.shape and jnp.issubdtype(leaf.dtype, jnp.integer)):
            return leaf.value
        # By path, whatever the shape: a statistic of a parameter is smaller than that.
        path = parameter_of(leaf.path, leaf.shape, shapes)
        if path is None:
            path = parameter_of(leaf.path, (), dict.fromkeys(shapes, ()))
        return leaf.value if path is None else _where(idle[path], earlier[leaf.path], leaf.value)

    return jax.tree.unflatten(jax.tree.structure(after), list(map(hold, named_leaves(after))))


def _where(idle: jax.Array, held: Any, moved: Any) -> jax.Array:
    if idle.ndim and jnp.shape(moved)[:1] != idle.shape:
        idle = jnp.all(idle)
    return jnp.where(idle.reshape(idle.shape + (1,) * (jnp.ndim(moved) - idle.ndim)), held, moved)
