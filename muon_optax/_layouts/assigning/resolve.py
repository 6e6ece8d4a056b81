"""The decision on every leaf: what the user's globs or function say, else the rules; and what is refused."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Mapping, Set
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._layouts.assigning.rules import decide
from muon_optax._layouts.decision import Decision, layouts_in
from muon_optax._layouts.layout import Layout, as_layout
from muon_optax._layouts.paths import HIDDEN, NamedLeaf, brief, has_hidden, hidden_paths, named_leaves, show

LayoutMap: TypeAlias = Mapping[str, Layout | None]
Layouts: TypeAlias = Mapping[str, Layout | str | None] | Callable[[Any], Mapping[str, Layout | str | None]] | None


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
            f"layouts={brief(layouts)} is not allowed: give a mapping from path globs to layouts, such as "
            "{'*/query/kernel': 'ibo'}, or a function from parameters to such a mapping."
        )
    if isinstance(layouts, Mapping):
        _refuse_entries(layouts)
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


def _refuse_entries(layouts: Mapping[Any, Any]) -> None:
    """Refuses what is no layout, as when parameters and layouts are exchanged."""
    for path, layout in layouts.items():
        if not isinstance(path, str) or not (layout is None or isinstance(layout, str | Layout)):
            raise TypeError(
                f"layouts has {path!r}: {brief(layout)}, and needs path globs with a string such as 'io', a Layout or "
                "None. Parameters come first, layouts second."
            )


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
            + (
                " optax.inject_hyperparams calls a function as a schedule: name 'layouts' in static_args."
                if hinted
                else " If those are parameters that a filter leaves out (flax.nnx's wrt, equinox.filter), give the "
                "layouts of what is trained alone: layouts_of(model, wrt=...), or those whose path is in "
                "assign_layouts(params)."
            )
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
