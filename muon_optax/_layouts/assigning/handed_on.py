"""Layouts of the whole tree for the parts that see some of it: Optax's partition hides siblings."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

from muon_optax._layouts.assigning.resolve import LayoutMap, Layouts, resolve
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, has_hidden, named_leaves, show


class _HandedOn(NamedTuple):
    """The layouts of the whole tree, and what parts of it have been seen as: pairs of a structure and its matrices."""

    layouts: LayoutMap
    seen: list[tuple[Any, list[tuple[NamedLeaf, Layout]]]]


_handed_on: ContextVar[_HandedOn | None] = ContextVar("layouts resolved on the whole tree", default=None)


@contextmanager
def handing_on(resolved: LayoutMap) -> Iterator[None]:
    """Gives the parts that run within the layouts of the whole tree, of which they see only a part.

    A context and not an argument: ``init`` of an Optax transform takes none, and wrappers drop those of ``update``. The
    layouts are static, so it holds while a step is traced, which is when they are asked for.
    """
    token = _handed_on.set(_HandedOn(resolved, []))
    try:
        yield
    finally:
        _handed_on.reset(token)


def resolve_quietly(tree: Any, layouts: Layouts) -> list[tuple[NamedLeaf, Layout | None]]:
    """Each leaf with its layout, or ``None``, without the warning that ``init`` gives."""
    leaves, handed = named_leaves(tree), _handed_on.get()
    if handed is not None and layouts is None:
        return [(leaf, handed.layouts[leaf.path]) for leaf in leaves]
    resolved, _ = resolve(tree, leaves, layouts, None if handed is None else handed.layouts)
    return [(leaf, resolved[leaf.path]) for leaf in leaves]


def matrices_of(tree: Any, layouts: Layouts) -> list[tuple[NamedLeaf, Layout]]:
    """Each leaf with its layout, for a transform that takes nothing but matrices.

    Raises:
        ValueError: If a leaf has no layout, naming it and ``partition_by_layout``.
    """
    handed, structure = _handed_on.get(), jax.tree.structure(tree)
    # The parts of a chain see one tree after another of the same structure, whose paths need no second walk.
    if handed is not None and layouts is None:
        for known, matrices in handed.seen:
            if known == structure:
                values = jax.tree.leaves(tree)
                return [
                    (leaf._replace(value=value), layout) for (leaf, layout), value in zip(matrices, values, strict=True)
                ]
    found = [(leaf, _need_layout(leaf, layout)) for leaf, layout in resolve_quietly(tree, layouts)]
    if handed is not None and layouts is None:
        # Without the arrays: those of an inner trace must not outlive it.
        handed.seen.append((structure, [(leaf._replace(value=None), layout) for leaf, layout in found]))
    return found


def check_matrices(params: Any, layouts: Layouts) -> None:
    """Refuses at ``init`` what :func:`matrices_of` would refuse at ``update``."""
    # Behind a mask of somebody else's, the siblings that decide between layouts are out of sight.
    if _handed_on.get() is not None or not has_hidden(params):
        matrices_of(params, layouts)


def _need_layout(leaf: NamedLeaf, layout: Layout | None) -> Layout:
    if layout is None:
        raise ValueError(
            f"{show(leaf.path)} of shape {leaf.shape} has no layout, and this transform takes only "
            "matrices. Send such parameters elsewhere with muon_optax.partition_by_layout(matrices, others), or say in "
            f"layouts={{{leaf.path!r}: ...}} how it is a matrix: a letter for each axis, i input, o output, b batch."
        )
    return layout
