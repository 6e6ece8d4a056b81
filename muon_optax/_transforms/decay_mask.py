"""Which parameters decay: the default of the AdamW branch, and masks that a user gives."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax

from muon_optax._layouts.paths import named_leaves, unhide
from muon_optax._layouts.rules import is_bias_or_norm

MaskFunction: TypeAlias = Callable[[Any], Any]


def decay_mask(params: Any) -> Any:
    """``True`` for every leaf of two or more axes that is no bias and no norm, as a tree like ``params``."""
    # Leaves hidden by a partition still have a path, which is all that is asked of siblings here.
    paths = frozenset(leaf.path for leaf in named_leaves(unhide(params)))
    decays = [len(leaf.shape) > 1 and not is_bias_or_norm(leaf, paths) for leaf in named_leaves(params)]
    return jax.tree.unflatten(jax.tree.structure(params), decays)


def as_mask_function(mask: Any | MaskFunction | None) -> MaskFunction | None:
    """``mask`` as a function: a tree of booleans that is an Equinox module is callable, and Optax would call it."""
    if mask is None or jax.tree_util.treedef_is_leaf(jax.tree.structure(mask)):
        return mask
    return lambda _: mask
