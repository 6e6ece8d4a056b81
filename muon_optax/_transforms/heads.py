"""The heads among AdamW's parameters, from path globs that must match something."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import Any

import jax

from muon_optax._layouts.assigning.handed_on import resolve_quietly
from muon_optax._layouts.paths import HIDDEN, brief, named_leaves, unhide

USUAL = ("*head/kernel", "*head/weight", "*head/w")


def head_labels(globs: Sequence[str] | None) -> Callable[[Any], Any]:
    """From parameters to the labels ``"head"`` and ``"adam"``; ``None`` for the usual heads, where there are any.

    Raises:
        ValueError: By the function, for a glob that matches no array of two or more axes among those it is given.
        TypeError: For anything but a sequence of strings.
    """
    if globs is not None and (
        isinstance(globs, str)
        or not isinstance(globs, Collection)
        or isinstance(globs, Mapping)
        or not all(isinstance(glob, str) for glob in globs)
    ):
        raise TypeError(
            f"heads={brief(globs)} is not allowed: give a sequence of path globs, such as ('*head/kernel',)."
        )

    def labels(params: Any) -> Any:
        leaves = named_leaves(params)
        arrays = [leaf.path for leaf in leaves if len(leaf.shape) > 1]
        for glob in globs or ():
            if not any(fnmatchcase(path, glob) for path in arrays):
                _refuse_unmatched(glob, params, arrays)
        heads = {
            path for path in arrays if any(fnmatchcase(path, glob) for glob in (USUAL if globs is None else globs))
        }
        return jax.tree.unflatten(
            jax.tree.structure(params), ["head" if leaf.path in heads else "adam" for leaf in leaves]
        )

    return labels


def _refuse_unmatched(glob: str, params: Any, arrays: list[str]) -> None:
    """Refuses a glob that matches none of ``arrays``, unless what it names may be out of sight."""
    marked = jax.tree.map(
        lambda leaf: HIDDEN if leaf is None else leaf, unhide(params), is_leaf=lambda leaf: leaf is None
    )
    unseen = [leaf.path for leaf in named_leaves(marked) if leaf.value is HIDDEN]
    matrices = [path for path in unseen if _is_matrix(path)]
    named = [path for path in matrices if fnmatchcase(path, glob)]
    if named:
        raise ValueError(
            f"heads names {glob!r}, and Muon trains {named[0]!r}: layouts={{{named[0]!r}: None}} leaves it to the "
            "head's optimizer."
        )
    # A node that somebody else hides may stand for a whole subtree, whose paths are not known.
    if len(matrices) == len(unseen):
        raise ValueError(
            f"heads names {glob!r}, which matches no parameter of two or more axes that Muon does not train. Those "
            f"are: {', '.join(map(repr, sorted(arrays)[:20])) or 'none'}."
        )


def _is_matrix(path: str) -> bool:
    """Whether the whole tree has a matrix of this path; what is masked away around the optimizer is not in it."""
    with suppress(KeyError):
        return resolve_quietly({path: HIDDEN}, None)[0][1] is not None
    return False
