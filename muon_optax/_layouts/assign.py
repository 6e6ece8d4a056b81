"""From rules and overrides to the layout of every leaf, and from layouts to labels."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._layouts.layout import Layout, as_layout
from muon_optax._layouts.paths import HIDDEN, NamedLeaf, is_hidden, named_leaves, show
from muon_optax._layouts.rules import guess_layouts
from muon_optax._layouts.unknown import warn_unknown

LayoutMap: TypeAlias = Mapping[str, Layout | None]
Layouts: TypeAlias = Mapping[str, Layout | str | None] | Callable[[Any], Mapping[str, Layout | str | None]] | None


def assign_layouts(params: Any, layouts: Layouts = None) -> dict[str, Layout | None]:
    """The layout of every leaf of ``params``: overrides first, then the default rules.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``.
        layouts: ``None`` for the default rules; a mapping from path glob to layout (a string, a :class:`Layout`, or
            ``None`` for "not a matrix"), where ``*`` also matches slashes: a leaf's exact path counts first, then the
            globs in order, then the default rules; or a function that replaces the rules: called with ``params``, it
            returns the layout of every path.

    Returns:
        A mapping from each leaf's path, in the order of the leaves, to its :class:`Layout`, or ``None`` where the leaf
        goes to AdamW.

    Raises:
        ValueError: If a glob matches no path, a layout does not fit a leaf's shape, or a leaf with a layout is complex
            or integer; the message names the path. In a part of a model globs may also match what is out of sight: the
            path of a ``None``, or anything where ``optax.masked`` hides leaves.
        TypeError: If ``layouts`` is neither a mapping nor a function that returns one.

    Warns:
        UserWarning: Once, with the paths of the arrays that no rule knows: some of three or more axes, and those of two
            or more that are no real floats. They go to AdamW.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"up": jnp.ones((8, 32)), "router": jnp.ones((8, 4))}
        >>> {path: str(layout) for path, layout in mo.assign_layouts(params, {"router": None}).items()}
        {'router': 'None', 'up': 'io'}
    """
    leaves = named_leaves(params)
    resolved, unknown = resolve(params, leaves, layouts)
    warn_unknown(unknown, leaves)
    return resolved


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


def resolve(
    tree: Any, leaves: list[NamedLeaf], layouts: Layouts, known: LayoutMap | None = None
) -> tuple[dict[str, Layout | None], list[NamedLeaf]]:
    """The layout of every leaf, and the leaves of several axes that neither a rule nor an override knows.

    ``known`` stands in for the default rules where the whole tree was seen before.
    """
    if not (layouts is None or callable(layouts) or isinstance(layouts, Mapping)):
        raise TypeError(
            f"layouts={layouts!r} is not allowed: give a mapping from path globs to layouts, such as "
            "{'*/query/kernel': 'ibo'}, or a function from parameters to such a mapping."
        )
    if callable(layouts):
        given, globs = layouts(tree), {}
        if not isinstance(given, Mapping):
            raise TypeError(
                f"The layouts function must return a mapping from path to layout; got {type(given).__name__}."
            )
        base, unknown = {path: as_layout(layout) for path, layout in given.items()}, []
        _refuse_unmatched(set(base) - {leaf.path for leaf in leaves}, tree, leaves)
    elif known is not None:
        base, unknown, globs = dict(known), [], layouts or {}
    else:
        base, unknown = guess_layouts(leaves)
        globs = layouts or {}
    overrides = _match(globs, tree, leaves)
    if len({leaf.path for leaf in leaves}) < len(leaves):
        guessed = set() if callable(layouts) else base.keys() - overrides.keys()
        _refuse_shared_paths(leaves, base | overrides, guessed)
    resolved = {}
    for leaf in leaves:
        if leaf.path not in overrides and leaf.path not in base:
            raise ValueError(
                f"No layout for {show(leaf.path)}: the layouts function must name every path; use None for AdamW."
            )
        resolved[leaf.path] = overrides[leaf.path] if leaf.path in overrides else base[leaf.path]
        _refuse_misfit(leaf, resolved[leaf.path])
    return resolved, [leaf for leaf in unknown if leaf.path not in overrides]


def _match(globs: Mapping[str, Layout | str | None], tree: Any, leaves: list[NamedLeaf]) -> dict[str, Layout | None]:
    """The override of each leaf: its exact path, or else the first glob that matches."""
    paths = {leaf.path for leaf in leaves}
    # A mapping of exact paths, such as default_layouts returns, costs one look-up each: only the rest are patterns.
    overrides = {glob: as_layout(layout) for glob, layout in globs.items() if glob in paths}
    unmatched = set()
    for glob in [glob for glob in globs if glob not in overrides]:
        matched = [path for path in paths if fnmatch.fnmatchcase(path, glob)]
        unmatched.update(() if matched else (glob,))
        for path in matched:
            overrides.setdefault(path, as_layout(globs[glob]))
    _refuse_unmatched(unmatched, tree, leaves)
    return overrides


def _refuse_unmatched(unmatched: set[str], tree: Any, leaves: list[NamedLeaf]) -> None:
    unmatched = _not_out_of_sight(unmatched, tree) if unmatched else unmatched
    if unmatched:
        # Of a layouts function that was called with a step count, the one path is that of the count.
        hinted = unmatched == {""}
        paths = sorted(leaf.path for leaf in leaves)
        listed = ", ".join(map(repr, paths[:20])) + (f" and {len(paths) - 20} more" if len(paths) > 20 else "")
        raise ValueError(
            f"layouts names {', '.join(map(repr, sorted(unmatched)))}, which matches no parameter. The paths are: "
            f"{listed}."
            + (" optax.inject_hyperparams calls a function as a schedule: name 'layouts' in static_args." * hinted)
        )


def _not_out_of_sight(unmatched: set[str], tree: Any) -> set[str]:
    """The globs that match nothing, even if ``tree`` is a part: layouts of a whole model name leaves it lacks."""
    if any(map(is_hidden, jax.tree.leaves(tree, is_leaf=is_hidden))):
        # A hidden node may stand for a whole subtree, whose paths are not known.
        return set()
    marked = jax.tree.map(lambda leaf: HIDDEN if leaf is None else leaf, tree, is_leaf=lambda leaf: leaf is None)
    absent = [leaf.path for leaf in named_leaves(marked) if leaf.value is HIDDEN]
    return {
        glob
        for glob in unmatched
        if not any(fnmatch.fnmatchcase(path, glob) or glob.startswith(f"{path}/") for path in absent)
    }


def _refuse_misfit(leaf: NamedLeaf, layout: Layout | None) -> None:
    if layout is None:
        return
    mismatch = layout.mismatch(leaf.shape)
    if mismatch is not None:
        raise ValueError(f"{show(leaf.path)}: {mismatch}.")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(
            f"{show(leaf.path)} has dtype {leaf.dtype}, and only real floating parameters can be orthogonalized: give "
            "it the layout None, or leave it out of the optimizer's parameters."
        )


def _refuse_shared_paths(leaves: list[NamedLeaf], layouts: LayoutMap, guessed: Set[str]) -> None:
    """Refuses a path of several leaves, unless none of them can be a matrix.

    ``layouts`` holds one entry for all of them: a rule's guess is about only one, a user's ``None`` about all.
    """
    times = Counter(leaf.path for leaf in leaves)
    for leaf in leaves:
        may_be_matrix = layouts.get(leaf.path) is not None or (leaf.path in guessed and len(leaf.shape) > 1)
        if times[leaf.path] > 1 and may_be_matrix:
            raise ValueError(
                f"Two parameters have the path {show(leaf.path)}: rename one, and each has a layout of its own."
            )


class _HandedOn(NamedTuple):
    """The layouts of the whole tree, and what parts of it have been seen as: pairs of a structure and its matrices."""

    layouts: LayoutMap
    seen: list[tuple[Any, list[tuple[NamedLeaf, Layout]]]]


_handed_on: ContextVar[_HandedOn | None] = ContextVar("layouts resolved on the whole tree", default=None)


@contextmanager
def handing_on(resolved: LayoutMap) -> Iterator[None]:
    """Tells the parts that run within about the layouts of the whole tree, of which they see a part.

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
    # Behind a mask of somebody else's the siblings that tell layouts apart are out of sight.
    if _handed_on.get() is not None or not any(map(is_hidden, jax.tree.leaves(params, is_leaf=is_hidden))):
        matrices_of(params, layouts)


def _need_layout(leaf: NamedLeaf, layout: Layout | None) -> Layout:
    if layout is None:
        raise ValueError(
            f"{show(leaf.path)} of shape {leaf.shape} has no layout, and this transform takes only "
            "matrices. Send such parameters elsewhere with muon_optax.partition_by_layout(matrices, others), or give a "
            f"layout: layouts={{{leaf.path!r}: 'io'}}."
        )
    return layout
