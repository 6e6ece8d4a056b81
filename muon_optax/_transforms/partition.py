"""The label-based partition: matrices to one transform, everything else to another."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assign import Layouts, assign_layouts, handing_on, labels_of, resolve
from muon_optax._layouts.paths import HIDDEN, NamedLeaf, named_leaves, show, unhide
from muon_optax._mesh.shardings import laid_out_like, typed_sharding

_LABELS = ("muon", "adamw")


def partition_by_layout(
    matrices: optax.GradientTransformation, others: optax.GradientTransformation, layouts: Layouts = None
) -> optax.GradientTransformationExtraArgs:
    """Applies ``matrices`` to the parameters that have a layout and ``others`` to the rest.

    It is ``optax.partition`` with the labels of :func:`muon_optax.label_params`. The layouts are resolved on the whole
    tree, where siblings can be asked, and handed to the parts in ``matrices`` (:func:`muon_optax.orthogonalize`,
    :func:`muon_optax.scale_by_shape`, ...), which need no ``layouts`` of their own. State and updates keep the dtypes
    of their first step: updates those of the gradients, states those of ``init``.

    Args:
        matrices: For leaves with a layout, usually an ``optax.chain`` that holds :func:`muon_optax.orthogonalize`.
        others: For all other leaves, usually ``optax.adamw``.
        layouts: As in :func:`muon_optax.assign_layouts`.

    Returns:
        A transform with the state of ``optax.partition``, whose labels are ``"muon"`` and ``"adamw"``.

    Raises:
        ValueError: At ``init``, for layouts that :func:`muon_optax.assign_layouts` refuses, and for leaves that can't
            be trained (integers, booleans, keys, floats of eight bits and fewer); at ``update``, for such gradients,
            if the tree of the updates is not the one of ``init`` or of ``params``, or if the state is another
            optimizer's. Messages name the path.
        TypeError: At ``init``, for a leaf that is no array.

    Warns:
        UserWarning: At ``init``, as :func:`muon_optax.assign_layouts`.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo, optax
        >>> matrices = optax.chain(mo.orthogonalize(mo.polar_factor()), optax.scale(-0.1))
        >>> optimizer = mo.partition_by_layout(matrices, optax.sgd(0.5))
        >>> gradient = {"kernel": jnp.array([[0.0, 3.0], [2.0, 0.0]]), "bias": jnp.array([1.0, 2.0])}
        >>> updates, _ = optimizer.update(gradient, optimizer.init(gradient))
        >>> updates["bias"].tolist(), updates["kernel"].round(4).tolist()
        ([-0.5, -1.0], [[-0.0, -0.1], [-0.1, -0.0]])
    """

    def partition(tree: Any, resolved: dict[str, Any]) -> optax.GradientTransformationExtraArgs:
        # A function, not the labels themselves: a tree that is an Equinox module is callable, and would be called.
        labels = labels_of(tree, resolved)
        return optax.partition({"muon": matrices, "adamw": others}, lambda _: labels)

    def init(params: optax.Params) -> optax.OptState:
        for leaf in named_leaves(params):
            _refuse_untrainable(leaf, show(leaf.path))
        resolved = assign_layouts(params, layouts)
        with handing_on(resolved):
            state = partition(params, resolved).init(params)
        # Moments of a weakly typed leaf, such as a Python float, would be so too, and step 2 would be traced anew.
        return _like_before(state, state)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        leaves = named_leaves(updates)
        shapes = {leaf.path: leaf.shape for leaf in leaves}
        _refuse_other_optimizer(state)
        for leaf in leaves:
            _refuse_untrainable(leaf, f"The gradient of {show(leaf.path)}")
        if params is not None:
            known = named_leaves(params)
            _refuse_other_tree(shapes, {leaf.path: leaf.shape for leaf in known}, "params")
            _refuse_other_field(leaves, known)
        resolved, _ = resolve(updates, leaves, layouts)
        for label in _LABELS:
            labelled = {path: shapes[path] for path in shapes if (resolved[path] is None) == (label == "adamw")}
            _refuse_other_state(labelled, state.inner_states[label])
        branches = partition(updates, resolved)
        try:
            # Optax multiplies Python floats by integer counters, which a user's strict promotion would refuse.
            with handing_on(resolved), jax.numpy_dtype_promotion("standard"):
                results, new_state = branches.update(updates, state, params, **extra_args)
                return _like_before(results, updates), _like_before(new_state, state)
        except Exception as error:
            _refuse_other_branches(state, lambda: branches.init(updates), error)
            raise

    return optax.GradientTransformationExtraArgs(init, update)


def _refuse_untrainable(leaf: NamedLeaf, what: str) -> None:
    # Updates come back in the gradient's dtype: in integers and in eight bits most of them would be zero.
    if not jnp.issubdtype(leaf.dtype, jnp.inexact) or jnp.finfo(leaf.dtype).bits < 16:
        dtype = "float0" if leaf.dtype == jax.dtypes.float0 else leaf.dtype
        raise ValueError(
            f"{what} has dtype {dtype}, and only floating and complex arrays of 16 bits or more can be trained: leave "
            "it out of what the optimizer sees (equinox.filter, flax.nnx's wrt, optax.masked), or train a copy of it "
            "in bfloat16 or float32."
        )


def _refuse_other_field(updates: list[NamedLeaf], params: list[NamedLeaf]) -> None:
    """Raises ValueError for a complex gradient of a real parameter, and for the reverse."""
    dtypes = {leaf.path: leaf.dtype for leaf in params}
    for leaf in updates:
        both = (leaf.dtype, dtypes[leaf.path])
        if len({jnp.issubdtype(dtype, jnp.complexfloating) for dtype in both}) > 1:
            raise ValueError(
                f"{show(leaf.path)} has a gradient of dtype {both[0]} and is a parameter of dtype {both[1]}: take the "
                "real part of the one, or make the other complex."
            )


def _refuse_other_optimizer(state: Any) -> None:
    branches = getattr(state, "inner_states", None)
    if not isinstance(branches, Mapping) or branches.keys() != set(_LABELS):
        given = type(state).__name__ if branches is None else f"one with the branches {sorted(branches)}"
        raise ValueError(
            "The state must be the optax.PartitionState that this optimizer's `init` returns, with the branches "
            f"'adamw' and 'muon'; got {given}. The state of another optimizer does not fit, and a checkpoint has to be "
            "restored into the structure of `optimizer.init(params)`."
        )


def _refuse_other_branches(state: Any, init: Callable[[], Any], error: Exception) -> None:
    """Raises ValueError if ``error`` comes from a state that other transforms made."""
    expected = jax.eval_shape(init)
    for label in _LABELS:
        given, wanted = state.inner_states[label], expected.inner_states[label]
        if jax.tree.structure(given) != jax.tree.structure(wanted):
            raise ValueError(
                f"The state was made by another optimizer: its branch {label!r} holds {_kinds(given)}, where `init` "
                f"makes {_kinds(wanted)}. Call `init` again, or go on with the optimizer that made it."
            ) from error


def _kinds(state: Any) -> str:
    """The types of a chain's states."""
    inner = getattr(state, "inner_state", state)
    parts = inner if type(inner) is tuple else (inner,)
    return ", ".join(type(part).__name__ for part in parts)


def _refuse_other_state(updates: dict[str, Any], state: Any) -> None:
    """Raises ValueError unless the momenta in ``state`` have the paths and shapes of ``updates``."""
    for remembered in _momenta(state):
        known = named_leaves(unhide(remembered))
        # What a branch masks for itself has no momentum to compare.
        hidden = {leaf.path for leaf in known if leaf.value is HIDDEN}
        expected = {leaf.path: leaf.shape for leaf in known if leaf.value is not HIDDEN}
        _refuse_other_tree({path: updates[path] for path in updates.keys() - hidden}, expected, "init")


def _momenta(state: Any) -> Iterator[Any]:
    kinds = (optax.TraceState, optax.ScaleByAdamState)
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(node, kinds):
            yield node.trace if isinstance(node, optax.TraceState) else node.mu


def _refuse_other_tree(updates: dict[str, Any], expected: dict[str, Any], source: str) -> None:
    differing = sorted(path for path in updates.keys() | expected.keys() if updates.get(path) != expected.get(path))
    if differing:
        path, missing = differing[0], "none (missing)"
        raise ValueError(
            f"The updates are not the tree of {source}: {show(path)} has shape {updates.get(path, missing)} in the "
            f"updates and {expected.get(path, missing)} in {source} ({len(differing)} such paths). Pass "
            "gradients of the parameters that `init` saw, or call `init` again for the changed model."
        )


def _like_before(tree: Any, before: Any) -> Any:
    """``tree`` in the dtypes of ``before`` and, where types say how arrays lie, lying as that did.

    A gradient of another dtype must not change a state for good, nor AdamW's spread moments (ZeRO-1) a parameter.
    """
    return jax.tree.map(_alike, tree, before)


def _alike(value: Any, before: Any) -> jax.Array:
    array = jnp.asarray(value, jax.dtypes.result_type(before))
    if typed_sharding(array) is None or typed_sharding(jnp.asarray(before)) is None:
        return array
    return laid_out_like(array, jnp.asarray(before))
