"""The decision on every leaf: what the user's globs or function say, else the rules; and what is refused."""

from collections import Counter
from collections.abc import Callable, Mapping, Set
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._layouts.assigning.dimension_numbers import DimensionTree, is_dimension_tree, layouts_of_dimensions
from muon_optax._layouts.assigning.globs import matching, refuse_unmatched
from muon_optax._layouts.assigning.rules import decide
from muon_optax._layouts.decision import Decision, layouts_in
from muon_optax._layouts.functions import check_function
from muon_optax._layouts.layout import Layout, as_layout
from muon_optax._layouts.paths import NamedLeaf, brief, hidden_paths, show

LayoutMap: TypeAlias = Mapping[str, Layout | None]
LayoutsByPath: TypeAlias = Mapping[str, Layout | str | None]
Layouts: TypeAlias = LayoutsByPath | DimensionTree | Callable[[Any], LayoutsByPath | DimensionTree] | None
"""How parameters are read as matrices: path globs with letters such as ``"io"``, a :class:`Layout` or ``None``; a tree
of ``optax.contrib.MuonDimensionNumbers``; a function from parameters to one of the two; ``None`` for the rules."""


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
    # A model's containers may be callable, so a tree is recognized first.
    replaced = layouts is not None and (is_dimension_tree(layouts) or callable(layouts))
    globs: LayoutsByPath = {}
    if replaced:
        base = _in_place_of_rules(layouts, tree, leaves)
    else:
        globs = _checked_globs(layouts)
        if known is None:
            base = decide(leaves, hidden_paths(tree))
        else:
            base = {path: Decision(layout, "given") for path, layout in known.items()}
    overrides = _match(globs, tree, leaves)
    if len({leaf.path for leaf in leaves}) < len(leaves):
        guessed = set() if replaced else base.keys() - overrides.keys()
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


def _checked_globs(layouts: Any) -> LayoutsByPath:
    if layouts is None:
        return {}
    if isinstance(layouts, Mapping):
        _refuse_entries(layouts)
        return layouts
    raise TypeError(
        f"layouts={brief(layouts)} is not allowed: give a mapping from path globs to layouts, such as "
        "{'*/query/kernel': 'ibo'}, a tree of optax.contrib.MuonDimensionNumbers, or a function from parameters to one "
        "of the two."
    )


def _in_place_of_rules(layouts: Any, tree: Any, leaves: list[NamedLeaf]) -> dict[str, Decision]:
    """The layouts of a tree or a function, which must cover every leaf."""
    if not is_dimension_tree(layouts) and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(layouts)):
        raise TypeError(
            f"layouts={brief(type(layouts))} holds arrays: give path globs or a function, as in layouts="
            "{'*/query/kernel': 'ibo'}. Those of a Flax model are muon_optax.flax.layouts_of(model)."
        )
    given = layouts
    if not is_dimension_tree(layouts):
        check_function("layouts", layouts, "params", "Give path globs, or a function from parameters to layouts.")
        given = layouts(tree)
    if is_dimension_tree(given):
        given = layouts_of_dimensions(given, leaves)
    if not isinstance(given, Mapping):
        raise TypeError(f"The layouts function must return a mapping from path to layout; got {type(given).__name__}.")
    refuse_unmatched(set(given) - {leaf.path for leaf in leaves}, tree, leaves)
    return {path: Decision(as_layout(layout), "given") for path, layout in given.items()}


def _overruled(decision: Decision | None, layout: Layout | None) -> Decision:
    """The user's layout; where the rules say the same on strong evidence, that is worth more in a table."""
    if decision is not None and decision.strength == "strong" and decision.layout == layout:
        return decision
    return Decision(layout, "given")


def _refuse_entries(layouts: Mapping[Any, Any]) -> None:
    """Refuses a value that is not a layout, as when parameters and layouts are exchanged."""
    for path, layout in layouts.items():
        if not isinstance(path, str) or not (layout is None or isinstance(layout, str | Layout)):
            raise TypeError(
                f"layouts has {path!r}: {brief(layout)}, and needs path globs with a string such as 'io', a Layout or "
                "None. Parameters come first, layouts second."
            )


def _match(globs: Mapping[str, Layout | str | None], tree: Any, leaves: list[NamedLeaf]) -> dict[str, Layout | None]:
    """The override of each leaf: its exact path, or else the first glob that matches."""
    found = matching(globs, [leaf.path for leaf in leaves])
    refuse_unmatched(set(globs).difference(*found.values()), tree, leaves)
    layouts = {glob: as_layout(layout) for glob, layout in globs.items()}
    return {path: layouts[matched[0]] for path, matched in found.items()}


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
