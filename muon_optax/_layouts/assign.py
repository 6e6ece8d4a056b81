"""From rules and overrides to the layout of every leaf, and from layouts to labels."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._layouts.decision import Decision, layouts_in
from muon_optax._layouts.layout import Layout, as_layout
from muon_optax._layouts.paths import HIDDEN, NamedLeaf, has_hidden, hidden_paths, named_leaves, show
from muon_optax._layouts.rules import decide
from muon_optax._layouts.unknown import refuse_uncertain, warn_unknown

LayoutMap: TypeAlias = Mapping[str, Layout | None]
Layouts: TypeAlias = Mapping[str, Layout | str | None] | Callable[[Any], Mapping[str, Layout | str | None]] | None


def assign_layouts(params: Any, layouts: Layouts = None, *, strict: bool = False) -> dict[str, Layout | None]:
    """The layout of every leaf of ``params``: overrides first, then the default rules.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``.
        layouts: ``None`` for the default rules; a mapping from path glob to layout (a string, a :class:`Layout`, or
            ``None`` for "not a matrix"), where ``*`` also matches slashes: a leaf's exact path counts first, then the
            globs in order, then the default rules; or a function that replaces the rules: called with ``params``, it
            returns the layout of every path.
        strict: Whether to refuse what weak evidence decides, or none: for long runs. ``functools.partial(
            muon_optax.assign_layouts, layouts={...}, strict=True)`` can be given as ``layouts``.

    Returns:
        A mapping from each leaf's path, in the order of the leaves, to its :class:`Layout`, or ``None`` where the leaf
        goes to AdamW.

    Raises:
        ValueError: If a glob matches no path, a layout does not fit a leaf's shape, or a leaf with a layout is complex
            or integer; the message names the path. In a part of a model globs may also match what is out of sight: the
            path of a ``None``, or anything where ``optax.masked`` hides leaves. With ``strict``, also if weak evidence
            or none decides on a leaf.
        TypeError: If ``layouts`` is neither a mapping nor a function that returns one.

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


def resolve(
    tree: Any, leaves: list[NamedLeaf], layouts: Layouts, known: LayoutMap | None = None
) -> tuple[dict[str, Layout | None], list[NamedLeaf]]:
    """The layout of every leaf, and the leaves of several axes that neither a rule nor an override knows.

    ``known`` stands in for the default rules where the whole tree was seen before.
    """
    decisions = decisions_on(tree, leaves, layouts, known)
    return layouts_in(decisions), [leaf for leaf in leaves if decisions[leaf.path].unknown]


def decisions_on(
    tree: Any, leaves: list[NamedLeaf], layouts: Layouts, known: LayoutMap | None = None
) -> dict[str, Decision]:
    """The decision on every leaf: as ``layouts`` says, else by the rules, or as ``known`` from the whole tree."""
    if not (layouts is None or callable(layouts) or isinstance(layouts, Mapping)):
        raise TypeError(
            f"layouts={layouts!r} is not allowed: give a mapping from path globs to layouts, such as "
            "{'*/query/kernel': 'ibo'}, or a function from parameters to such a mapping."
        )
    if callable(layouts):
        base, globs = _by_function(layouts, tree, leaves), {}
    elif known is not None:
        base, globs = {path: Decision(layout, "given") for path, layout in known.items()}, layouts or {}
    else:
        base, globs = decide(leaves, hidden_paths(tree)), layouts or {}
    overrides = _match(globs, tree, leaves)
    if len({leaf.path for leaf in leaves}) < len(leaves):
        guessed = set() if callable(layouts) else base.keys() - overrides.keys()
        _refuse_shared_paths(leaves, layouts_in(base) | overrides, guessed)
    resolved = {}
    for leaf in leaves:
        path = leaf.path
        if path not in overrides and path not in base:
            raise ValueError(
                f"No layout for {show(path)}: the layouts function must name every path; use None for AdamW."
            )
        resolved[path] = base[path] if path not in overrides else _overruled(base.get(path), overrides[path])
        _refuse_misfit(leaf, resolved[path].layout)
    return resolved


def _by_function(layouts: Callable[[Any], Any], tree: Any, leaves: list[NamedLeaf]) -> dict[str, Decision]:
    given = layouts(tree)
    if not isinstance(given, Mapping):
        raise TypeError(f"The layouts function must return a mapping from path to layout; got {type(given).__name__}.")
    _refuse_unmatched(set(given) - {leaf.path for leaf in leaves}, tree, leaves)
    return {path: Decision(as_layout(layout), "given") for path, layout in given.items()}


def _overruled(decision: Decision | None, layout: Layout | None) -> Decision:
    """The user's layout; where the rules say the same on strong evidence, that is worth more in a table."""
    if decision is not None and decision.strength == "strong" and decision.layout == layout:
        return decision
    return Decision(layout, "given")


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
    if has_hidden(tree):
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
