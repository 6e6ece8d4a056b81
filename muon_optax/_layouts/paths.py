"""Leaf paths: the tree path joined by slashes, the same at ``init`` and at ``update``."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from numbers import Number
from typing import Any, NamedTuple

import jax
import numpy as np


class NamedLeaf(NamedTuple):
    """A leaf with its path and, where it lies in an Equinox or Haliax layer, that layer."""

    path: str
    value: Any
    owner: Any
    field: str = ""  # the owner's field that holds the leaf
    classes: tuple[str, ...] = ()  # the Equinox modules around the leaf, outermost first
    axes: Any = ()  # the named axes of Haliax, or their names

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape; Python numbers have none."""
        # Asked often: NumPy takes several times as long to find the attribute.
        return tuple(self.value.shape if hasattr(self.value, "shape") else np.shape(self.value))

    @property
    def dtype(self) -> Any:
        """Data type; Python numbers get the one JAX would give them. Raises TypeError for anything but an array."""
        # A string is not asked: JAX would take "float32" for the name of a type.
        if hasattr(self.value, "dtype") or isinstance(self.value, Number):
            with suppress(TypeError):
                return jax.dtypes.result_type(self.value)
        kind = type(self.value).__name__
        raise TypeError(
            f"{show(self.path)} is {brief(self.value, 40)} of type {kind}, not an array of numbers: give the "
            "optimizer arrays only, for example equinox.filter(model, equinox.is_inexact_array)."
        )


@cache
def _is_flax_box(kind: type) -> bool:
    # nnx.Variable at `init` and its bare array at `update`, linen's partitioning metadata: a box adds a
    # trailing "value" to some of an optimizer's paths and not to others, so it counts as the leaf it holds.
    boxes = ("Variable", "AxisMetadata")
    return any(base.__module__.startswith("flax.") and base.__name__ in boxes for base in kind.__mro__)


@cache
def _is_layer(kind: type) -> bool:
    return any(base.__module__.startswith(("equinox.nn", "haliax.nn")) for base in kind.__mro__)


@cache
def _is_equinox_module(kind: type) -> bool:
    return any(base.__module__.startswith("equinox.") and base.__name__ == "Module" for base in kind.__mro__)


@cache
def _is_named_array(kind: type) -> bool:
    return any(base.__module__.startswith("haliax.") and base.__name__ == "NamedArray" for base in kind.__mro__)


@cache
def _is_flat_state(kind: type) -> bool:
    return kind.__module__.startswith("flax.") and kind.__name__ == "FlatState"


@cache
def _starts_scope(kind: type) -> bool:
    kinds = (_is_flax_box, _is_layer, _is_equinox_module, _is_named_array, _is_flat_state)
    return any(is_kind(kind) for is_kind in kinds)


def _component(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return _written(getattr(key, attribute))
    return _written(key)


def _written(key: Any) -> str:
    # A tuple as a key is a path of its own, as flatten_dict makes them.
    return "/".join(map(str, key)) if isinstance(key, tuple) else str(key)


class _Place(NamedTuple):
    """Where a node lies: its path, the layer that holds it and how deep that is, the modules and axes around it."""

    names: tuple[str, ...] = ()
    owner: Any = None
    depth: int = 0
    classes: tuple[str, ...] = ()
    axes: Any = ()

    def inside(self, node: Any) -> "_Place":
        """The place of what ``node`` holds."""
        kind, place = type(node), self
        if _is_layer(kind):
            place = place._replace(owner=node, depth=len(self.names))
        if _is_equinox_module(kind):
            place = place._replace(classes=(*self.classes, kind.__name__))
        if not _is_named_array(kind):
            return place
        # Later Haliax makes `axes` from the array's shape, which a hidden array has not; earlier has no `axis_names`.
        return place._replace(axes=node.axis_names if hasattr(node, "axis_names") else node.axes)


def _walk(node: Any, place: _Place) -> Iterator[NamedLeaf]:
    # Flattening stops at boxes and layers, which a plain flatten would dissolve: their types say what a
    # leaf called "weight" means.
    in_box, place = _is_flax_box(type(node)), place.inside(node)
    if _is_flat_state(type(node)):  # to JAX its children have numbers, to NNX paths
        for path, child in node:
            yield from _walk(child, place._replace(names=(*place.names, _written(path))))
        return
    children, _ = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda child: child is not node and _starts_scope(type(child))
    )
    for keys, child in children:
        names = place.names if in_box else (*place.names, *map(_component, keys))
        if child is not node and _starts_scope(type(child)):
            yield from _walk(child, place._replace(names=names))
        else:
            field = names[place.depth] if len(names) > place.depth else ""
            yield NamedLeaf("/".join(names), child, place.owner, field, place.classes, place.axes)


def has_hidden(tree: Any) -> bool:
    """Whether ``optax.masked`` hides leaves of ``tree``."""
    return any(map(is_hidden, jax.tree.leaves(tree, is_leaf=is_hidden)))


def hidden_paths(tree: Any) -> frozenset[str]:
    """The paths of the leaves that ``optax.masked`` hides."""
    if not has_hidden(tree):
        return frozenset()
    return frozenset(leaf.path for leaf in named_leaves(unhide(tree)) if leaf.value is HIDDEN)


def named_leaves(tree: Any) -> list[NamedLeaf]:
    """The leaves of ``tree``, in the order of ``jax.tree.leaves``, with their paths."""
    return list(_walk(tree, _Place()))


def brief(value: Any, most: int = 80) -> str:
    """A short form of a value for an error, since a whole tree of arrays would hide the message."""
    text = getattr(value, "__name__", None) if callable(value) else None
    text = " ".join((text or repr(value)).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def parameter_of(path: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The parameter that a leaf of an optimizer's state belongs to: of its shape, with a path that ends the leaf's."""
    parts = path.split("/")
    # The longest ending first: ".../trace/block/w" belongs to "block/w" and not to "w".
    endings = ("/".join(parts[start:]) for start in range(len(parts) + 1))
    return next((ending for ending in endings if shapes.get(ending) == shape), None)


def show(path: str) -> str:
    """``path`` as an error message quotes it."""
    return repr(path) if path else "the array itself (the tree is one leaf)"


def is_hidden(node: Any) -> bool:
    """Whether ``node`` stands where ``optax.masked`` hides a leaf."""
    return type(node).__name__ == "MaskedNode" and type(node).__module__.startswith("optax.")


HIDDEN = object()


def unhide(tree: Any) -> Any:
    """``tree`` with ``HIDDEN`` for every leaf that is hidden: then it has a path."""
    return jax.tree.map(lambda node: HIDDEN if is_hidden(node) else node, tree, is_leaf=is_hidden)
