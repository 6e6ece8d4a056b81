"""The layouts of a tree, and the labels they give: what a user calls."""

from typing import Any

import jax

from muon_optax._layouts.assigning.messages import refuse_uncertain, warn_unknown
from muon_optax._layouts.assigning.resolve import LayoutMap, Layouts, decisions_on, resolve
from muon_optax._layouts.decision import layouts_in
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, named_leaves


def assign_layouts(params: Any, layouts: Layouts = None, *, strict: bool = False) -> dict[str, Layout | None]:
    """The layout of every leaf of ``params``, by ``layouts`` first and then by the default rules.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``.
        layouts: ``None`` for the default rules; a mapping from path glob to layout (a string, a :class:`Layout`, or
            ``None`` for "not a matrix"), where ``*`` also matches slashes: a leaf's exact path counts first, then the
            globs in order, then the default rules; or a function that replaces the rules: called with ``params``, it
            returns the layout of every path. A tree of ``optax.contrib.MuonDimensionNumbers`` and ``None`` like the
            parameters, given or returned, replaces the rules too and must say something of every leaf.
        strict: Whether to refuse what weak evidence decides, or none: for long runs. ``functools.partial(
            muon_optax.assign_layouts, layouts={...}, strict=True)`` can be given as ``layouts``.

    Returns:
        A mapping from each leaf's path, in the order of the leaves, to its :class:`Layout`, or ``None`` where the leaf
        goes to AdamW.

    Raises:
        ValueError: If a glob matches no path, a layout does not fit a leaf's shape, dimension numbers say what letters
            can't, or a leaf with a layout is complex or integer; the message names the path. In a part of a model globs
            may also match what is out of sight: the path of a ``None``, or anything where ``optax.masked`` hides
            leaves. With ``strict``, also if weak evidence or none decides on a leaf.
        TypeError: If ``layouts`` is neither a mapping, nor a tree of dimension numbers, nor a function that returns one
            of the two.

    Warns:
        MuonWarning: Once, with the paths of the arrays that no rule knows: some of two or more axes, and complex ones.
            They go to AdamW.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"up": jnp.ones((8, 32)), "router": jnp.ones((8, 4))}
        >>> {path: str(layout) for path, layout in mo.assign_layouts(params, {"router": None}).items()}
        {'router': 'None', 'up': 'io'}
    """
    leaves = named_leaves(params)
    decisions = decisions_on(params, leaves, layouts)
    if strict:
        refuse_uncertain(decisions, leaves)
    warn_unknown([leaf for leaf in leaves if decisions[leaf.path].unknown], leaves)
    return layouts_in(decisions)


def label_params(params: Any, layouts: Layouts = None) -> Any:
    """``"muon"`` for every leaf with a layout and ``"adamw"`` for every other, as a tree like ``params``.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``.
        layouts: As in :func:`assign_layouts`.

    Returns:
        A tree of the structure of ``params`` whose leaves are the labels, for ``optax.partition``.

    Raises:
        ValueError: As in :func:`assign_layouts`.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> mo.label_params({"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}})
        {'dense': {'bias': 'adamw', 'kernel': 'muon'}}
    """
    leaves = named_leaves(params)
    resolved, unknown = resolve(params, leaves, layouts)
    warn_unknown(unknown, leaves)
    return labels_of(params, leaves, resolved)


def labels_of(tree: Any, leaves: list[NamedLeaf], resolved: LayoutMap) -> Any:
    """The tree of labels that belongs to the resolved layouts of the ``leaves`` of ``tree``."""
    labels = ["adamw" if resolved[leaf.path] is None else "muon" for leaf in leaves]
    return jax.tree.unflatten(jax.tree.structure(tree), labels)
