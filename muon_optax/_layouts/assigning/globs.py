"""Path globs of a mapping from them to anything: which one acts on a path, and what is refused on the whole tree."""

import fnmatch
from collections.abc import Iterable
from typing import Any

import jax

from muon_optax._layouts.paths import HIDDEN, NamedLeaf, has_hidden, named_leaves

_CALLED_AS_SCHEDULE = " optax.inject_hyperparams calls a function as a schedule: name 'layouts' in static_args."
_FILTERED = (
    " If those are parameters that a filter leaves out (flax.nnx's wrt, equinox.filter), give the layouts of what is "
    "trained alone: layouts_of(model, wrt=...), or those whose path is in assign_layouts(params)."
)


def matching(globs: Iterable[str], paths: Iterable[str]) -> dict[str, list[str]]:
    """The globs that match each path, beginning with the one that acts: the exact path, or else the first in order."""
    paths = dict.fromkeys(paths)
    # A mapping of exact paths, such as default_layouts returns, costs one look-up each: only the rest are patterns.
    exact = [glob for glob in globs if glob in paths]
    found: dict[str, list[str]] = {path: [path] for path in exact}
    for glob in [glob for glob in globs if glob not in paths]:
        for path in paths:
            if fnmatch.fnmatchcase(path, glob):
                found.setdefault(path, []).append(glob)
    return found


def refuse_unmatched(unmatched: set[str], tree: Any, leaves: list[NamedLeaf], argument: str = "layouts") -> None:
    """Raises ValueError for globs of ``argument`` that match no leaf of ``tree``, and name nothing out of sight."""
    unmatched = not_out_of_sight(unmatched, tree) if unmatched else unmatched
    if unmatched:
        # Of a layouts function that was called with a step count, the one path is that of the count.
        hinted = unmatched == {""}
        paths = sorted(leaf.path for leaf in leaves)
        listed = ", ".join(map(repr, paths[:20])) + (f" and {len(paths) - 20} more" if len(paths) > 20 else "")
        raise ValueError(
            f"{argument} names {', '.join(map(repr, sorted(unmatched)))}, which matches no parameter. The paths are: "
            f"{listed}." + (_CALLED_AS_SCHEDULE if hinted else _FILTERED if argument == "layouts" else "")
        )


def not_out_of_sight(globs: set[str], tree: Any) -> set[str]:
    """Those of ``globs`` that can't name what is out of sight, where ``tree`` is a part of a model."""
    if has_hidden(tree):
        # A hidden node may stand for a whole subtree, whose paths are not known.
        return set()
    marked = jax.tree.map(lambda leaf: HIDDEN if leaf is None else leaf, tree, is_leaf=lambda leaf: leaf is None)
    absent = [leaf.path for leaf in named_leaves(marked) if leaf.value is HIDDEN]
    return {
        glob
        for glob in globs
        if not any(fnmatch.fnmatchcase(path, glob) or glob.startswith(f"{path}/") for path in absent)
    }
