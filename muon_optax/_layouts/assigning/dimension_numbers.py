"""Trees of ``optax.contrib.MuonDimensionNumbers``, like the parameters, read as layouts."""

import operator
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, is_hidden, named_leaves, show

# Of MuonDimensionNumbers and None: in the parameters' containers, or in plain ones of the same paths.
DimensionTree: TypeAlias = Mapping[str, Any] | list[Any] | tuple[Any, ...]

_FIELDS = ("reduction_axis", "output_axis")
# What MaxText's classes may say of how an array lies on a mesh, which no layout says either.
_OF_THE_MESH = ("sharding",)
_LETTERS = (str, Layout)


class _Entry:
    """A tree's entry at a path, wrapped as a leaf, since JAX would dissolve dimension numbers and drop ``None``."""

    def __init__(self, said: Any) -> None:
        self.said = said


def is_dimension_tree(given: Any) -> bool:
    """Whether ``given`` holds dimension numbers, or is a nested tree of nothing but ``None``."""
    if given is None:
        return False
    if isinstance(given, Mapping) and all(layout is None or isinstance(layout, _LETTERS) for layout in given.values()):
        return False
    ends = jax.tree.leaves(given, is_leaf=_is_end)
    return any(map(_is_dimensions, ends)) or (bool(ends) and all(end is None or is_hidden(end) for end in ends))


def layouts_of_dimensions(tree: Any, leaves: list[NamedLeaf]) -> dict[str, Layout | None]:
    """The layout of every leaf, and ``None`` for each path where there is no leaf for the tree's dimension numbers.

    As in Optax, dimension numbers at an inner node of the parameters hold for all leaves below.

    Raises:
        ValueError: For a leaf of which the tree says nothing, and for numbers that no letters say; paths are named.
        TypeError: For what is neither dimension numbers nor ``None``.
    """
    entries = _entries(tree)
    layouts: dict[str, Layout | None] = {}
    used = set()
    for leaf in leaves:
        place = next((place for place in _from_leaf_to_root(leaf.path) if place in entries), None)
        if place is None:
            raise ValueError(
                f"The tree of MuonDimensionNumbers says nothing of {show(leaf.path)}: it must name every parameter. "
                "Write None for what is no matrix. To leave parameters to the rules, give letters by path instead, as "
                "in layouts={'up/kernel': 'io'}."
            )
        used.add(place)
        layouts[leaf.path] = None if entries[place] is None else _layout(entries[place], leaf)
    return layouts | {place: None for place, said in entries.items() if said is not None and place not in used}


def _is_dimensions(node: Any) -> bool:
    # By fields: MaxText has classes of its own (ShardedMuonDimensionNumbers), and this folder does without Optax.
    return set(_FIELDS).issubset(getattr(node, "_fields", ()))


def _is_end(node: Any) -> bool:
    return node is None or _is_dimensions(node) or is_hidden(node) or isinstance(node, Layout)


def _entries(tree: Any) -> dict[str, Any]:
    marked = jax.tree.map(lambda node: node if is_hidden(node) else _Entry(node), tree, is_leaf=_is_end)
    entries = {leaf.path: leaf.value.said for leaf in named_leaves(marked)}
    for path, said in entries.items():
        if said is not None and not _is_dimensions(said):
            raise TypeError(
                f"layouts says {said!r} at {show(path)}, beside MuonDimensionNumbers: a tree of them holds nothing "
                "else but None. A mapping from path glob to letters is another way to say layouts: use one of the two."
            )
    return entries


def _from_leaf_to_root(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts), 0, -1)] + [""]


def _layout(numbers: Any, leaf: NamedLeaf) -> Layout:
    """The letters that say what ``numbers`` do.

    The order of axes is not said: it orders rows and columns, which an orthogonalizer and a scale don't ask for.
    """
    rank = len(leaf.shape)
    beyond = {name: getattr(numbers, name) for name in numbers._fields if name not in (*_FIELDS, *_OF_THE_MESH)}
    said = {name: value for name, value in beyond.items() if value is not None}
    if said:
        listed = ", ".join(f"{name}={value!r}" for name, value in said.items())
        raise _refusal(numbers, leaf, f"{listed} is more than a letter for each axis says")
    inputs, outputs = (_axes(getattr(numbers, name), numbers, leaf) for name in _FIELDS)
    if not inputs or not outputs:
        raise _refusal(numbers, leaf, "a matrix has at least one reduction axis and one output axis")
    if len({*inputs, *outputs}) < len(inputs) + len(outputs):
        raise _refusal(numbers, leaf, "an axis is named twice")
    return Layout("".join("i" if axis in inputs else "o" if axis in outputs else "b" for axis in range(rank)))


def _axes(axes: Any, numbers: Any, leaf: NamedLeaf) -> list[int]:
    rank = len(leaf.shape)
    try:
        found = [operator.index(axis) for axis in (axes if hasattr(axes, "__iter__") else (axes,))]
    except TypeError:
        raise _refusal(numbers, leaf, f"{axes!r} is neither an axis nor several") from None
    for axis in found:
        # Optax takes what is out of range modulo the number of axes: a mistake would pass.
        if not -rank <= axis < rank:
            raise _refusal(numbers, leaf, f"there is no axis {axis} among {rank}")
    return [axis % rank for axis in found]


def _refusal(numbers: Any, leaf: NamedLeaf, reason: str) -> ValueError:
    return ValueError(
        f"{show(leaf.path)} of shape {leaf.shape} can't be seen as {numbers!r} says: {reason}. Name each axis once as "
        "reduction or output, the rest is a batch; or write None, and AdamW trains it."
    )
