"""The label-based partition: matrices to one transform, everything else to another."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._assign_layouts import Layouts, assign_layouts, handing_on, labels_of, resolve
from muon_optax._paths import HIDDEN, named_leaves, show, unhide


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
        ValueError: At ``init``, for layouts that :func:`muon_optax.assign_layouts` refuses; at ``update``, if the tree
            of the updates is not the one of ``init`` or of ``params``. Messages name the path.

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
        resolved = assign_layouts(params, layouts)
        with handing_on(resolved):
            return partition(params, resolved).init(params)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        leaves = named_leaves(updates)
        shapes = {leaf.path: leaf.shape for leaf in leaves}
        if params is not None:
            _refuse_other_tree(shapes, {leaf.path: leaf.shape for leaf in named_leaves(params)}, "params")
        resolved, _ = resolve(updates, leaves, layouts)
        for label in ("muon", "adamw"):
            labelled = {path: shapes[path] for path in shapes if (resolved[path] is None) == (label == "adamw")}
            _refuse_other_state(labelled, state.inner_states[label])
        with handing_on(resolved):
            results, new_state = partition(updates, resolved).update(updates, state, params, **extra_args)
        return _cast_like(results, updates), _cast_like(new_state, state)

    return optax.GradientTransformationExtraArgs(init, update)


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


def _cast_like(tree: Any, reference: Any) -> Any:
    """``tree`` in the dtypes of ``reference``: a gradient of another dtype must not change a state for good."""
    return jax.tree.map(lambda value, like: jnp.asarray(value, jax.dtypes.result_type(like)), tree, reference)
