"""Checks of the updates before anything runs: gradients that can be trained, in the tree of ``params``."""

from typing import Any

import jax
import jax.numpy as jnp

from muon_optax._layouts.assigning.messages import is_trainable
from muon_optax._layouts.paths import HIDDEN, NamedLeaf, named_leaves, show
from muon_optax._transforms.checks.arguments import is_transform

_OF_STATES = ("optax", "muon_optax")  # packages whose named tuples are states, and no parameters


def refuse_untrainable(leaf: NamedLeaf, what: str) -> None:
    """Raises ValueError for integers and eight bits, in whose dtype most updates would be zero."""
    if not is_trainable(leaf):
        dtype = "float0" if leaf.dtype == jax.dtypes.float0 else leaf.dtype
        raise ValueError(
            f"{what} has dtype {dtype}, and only floating and complex arrays of 16 bits or more can be trained: leave "
            "it out of what the optimizer sees (equinox.filter, flax.nnx's wrt, optax.masked), or train a copy of it "
            "in bfloat16 or float32."
        )


def refuse_nothing(params: Any) -> None:
    """Raises TypeError for ``None``, which JAX reads as a tree without leaves: the optimizer would train nothing."""
    if params is None:
        raise TypeError(
            "params is None, so there is nothing to train: call optimizer.init(params) with the model's parameters. A "
            "model that has none is an empty tree, such as {}."
        )


def refuse_exchanged(updates: Any, state: Any, params: Any) -> None:
    """Raises TypeError for a state where updates or parameters belong, and for shapes in place of arrays."""
    order = "call optimizer.update(gradients, state, params)."
    for name, tree in (("gradients", updates), ("params", params)):
        if _is_state(tree):
            raise TypeError(f"The {name} are the state of an optimizer ({type(tree).__name__}): {order}")
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree)):
            raise TypeError(
                f"The {name} are shapes without numbers (jax.ShapeDtypeStruct): give arrays, or call update inside "
                "jax.eval_shape."
            )
    if is_transform(state):
        raise TypeError(f"The state is an optimizer: {order} The first state is optimizer.init(params).")


def _is_state(tree: Any) -> bool:
    # A chain's state is a tuple of others. `optax.MaskedNode`, which a tree may be, has no fields.
    nodes = tree if type(tree) is tuple else (tree,)
    return any(
        isinstance(node, tuple) and getattr(node, "_fields", ()) and type(node).__module__.split(".")[0] in _OF_STATES
        for node in nodes
    )


def params_with_gradients(updates: Any, leaves: list[NamedLeaf], params: Any) -> Any:
    """``params`` with ``None`` wherever ``updates``, whose leaves are given, has it.

    Raises:
        ValueError: If a gradient and its parameter differ in path or shape, or one is complex and the other real.
    """
    if jax.tree.structure(updates) == jax.tree.structure(params):
        known = [leaf._replace(value=value) for leaf, value in zip(leaves, jax.tree.leaves(params), strict=True)]
        absent = []
    else:
        absent = [leaf.path for leaf in named_leaves(_none_marked(updates)) if leaf.value is HIDDEN]
        known = [
            leaf
            for leaf in named_leaves(params)
            if not any(leaf.path == path or leaf.path.startswith(f"{path}/") for path in absent)
        ]
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    refuse_other_tree(shapes, {leaf.path: leaf.shape for leaf in known}, "params")
    _refuse_other_field(leaves, known)
    if not absent:
        return params
    return jax.tree.map(
        lambda gradient, value: None if gradient is None else value, updates, params, is_leaf=lambda leaf: leaf is None
    )


def _none_marked(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: HIDDEN if leaf is None else leaf, tree, is_leaf=lambda leaf: leaf is None)


def _refuse_other_field(updates: list[NamedLeaf], params: list[NamedLeaf]) -> None:
    dtypes = {leaf.path: leaf.dtype for leaf in params}
    for leaf in updates:
        both = (leaf.dtype, dtypes[leaf.path])
        if len({jnp.issubdtype(dtype, jnp.complexfloating) for dtype in both}) > 1:
            raise ValueError(
                f"{show(leaf.path)} has a gradient of dtype {both[0]} and is a parameter of dtype {both[1]}: take the "
                "real part of the one, or make the other complex."
            )


def refuse_other_tree(updates: dict[str, Any], expected: dict[str, Any], source: str) -> None:
    """Raises ValueError with the first path whose shape in the updates is not the expected one."""
    differing = sorted(path for path in updates.keys() | expected.keys() if updates.get(path) != expected.get(path))
    if differing:
        path, missing = differing[0], "none (missing)"
        raise ValueError(
            f"The updates are not the tree of {source}: {show(path)} has shape {updates.get(path, missing)} in the "
            f"updates and {expected.get(path, missing)} in {source} ({len(differing)} such paths). Pass gradients of "
            "the parameters that `init` saw, filtered alike (equinox.filter, flax.nnx's wrt), or call `init` again for "
            "the changed model."
        )
