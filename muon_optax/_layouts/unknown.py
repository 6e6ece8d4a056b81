"""The warnings about arrays that no rule knows: grouped, with a layout that fits, at the user's own line."""

import fnmatch
import inspect
import warnings
from collections.abc import Sequence

import jax.numpy as jnp

from muon_optax._layouts.paths import NamedLeaf, show
from muon_optax._layouts.repeated import pattern, without_numbers

# A warning from within these blames whoever called them.
_LIBRARIES = {"muon_optax", "jax", "jaxlib", "optax", "flax", "equinox", "haiku", "contextlib", "functools"}
_LISTED = 12  # groups that a warning names


class MuonWarning(UserWarning):
    """What muon_optax warns of; ``warnings.simplefilter("error", muon_optax.MuonWarning)`` makes it an error."""


def is_trainable(leaf: NamedLeaf) -> bool:
    """Whether updates in the leaf's dtype can be anything but zero: not in integers, nor in eight bits."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact)) and jnp.finfo(leaf.dtype).bits >= 16


def warn_unknown(unknown: Sequence[NamedLeaf], leaves: Sequence[NamedLeaf]) -> None:
    """Names the ``unknown`` among ``leaves`` in one warning, with a layout for the first of them."""
    # What can't be trained is refused by `init`, and a warning that AdamW trains it would contradict that.
    groups = _groups([leaf for leaf in unknown if is_trainable(leaf)])
    if groups:
        warnings.warn(
            "No rule knows which axes of these arrays are inputs and outputs, so AdamW trains them: "
            f"{_listed(groups)}. Give their layout, for example layouts={{{_remedy(groups[0], leaves)}}}, or None to "
            "leave them to AdamW.",
            MuonWarning,
            stacklevel=_level_of_user(),
        )


def warn_without_matrices(leaves: Sequence[NamedLeaf]) -> None:
    """Says that no leaf has a layout, and why that may be."""
    listed = _listed(_groups(leaves))
    warnings.warn(
        f"No parameter is seen as a matrix, so Muon trains nothing: {listed}. Raveled parameters "
        "(optax.flatten, jax.flatten_util.ravel_pytree) have lost their shapes: give the optimizer the tree itself. "
        "Where matrices are there, name their layout in layouts.",
        MuonWarning,
        stacklevel=_level_of_user(),
    )


def _level_of_user() -> int:
    """The ``stacklevel``, seen from this function's caller, of the nearest line outside the libraries."""
    here = inspect.currentframe()
    frame, level = here.f_back if here else None, 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level


def _groups(leaves: Sequence[NamedLeaf]) -> list[list[NamedLeaf]]:
    """Leaves of one shape and dtype whose paths differ in nothing but numbers."""
    groups: dict[tuple, list[NamedLeaf]] = {}
    for leaf in leaves:
        groups.setdefault((without_numbers(leaf.path), leaf.shape, str(leaf.dtype)), []).append(leaf)
    return list(groups.values())


def _paths(group: Sequence[NamedLeaf]) -> list[str]:
    return [leaf.path for leaf in group]


def _listed(groups: Sequence[Sequence[NamedLeaf]]) -> str:
    shown = []
    for group in groups[:_LISTED]:
        times = f" x{len(group)}" if len(group) > 1 else ""
        shown.append(f"{show(pattern(_paths(group)))}{times} {group[0].dtype}{list(group[0].shape)}")
    more = len(groups) - _LISTED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _remedy(group: Sequence[NamedLeaf], leaves: Sequence[NamedLeaf]) -> str:
    first = group[0]
    chosen = first.path
    if len(group) > 1:
        wide = pattern(_paths(group), "*")
        # A star also spans slashes: the glob may reach an array of other axes, where the layout would not fit.
        reached = {len(leaf.shape) for leaf in leaves if fnmatch.fnmatchcase(leaf.path, wide)}
        chosen = wide if reached == {len(first.shape)} else first.path
    axes = len(first.shape)
    fits = axes > 1 and jnp.issubdtype(first.dtype, jnp.floating)
    return f"{chosen!r}: {'b' * (axes - 2) + 'io' if fits else None!r}"
