"""The parameters that decay, by the default of the AdamW branch or by a user's mask."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

from muon_optax._layouts.assigning.rules import is_bias_or_norm
from muon_optax._layouts.functions import check_function
from muon_optax._layouts.paths import HIDDEN, named_leaves, show, unhide
from muon_optax._transforms.checks.arguments import refuse_injected_array

MaskFunction: TypeAlias = Callable[[Any], Any]


def decay_mask(params: Any) -> Any:
    """The default mask of AdamW's decay: ``True`` for every leaf of two or more axes, except biases and norms.

    An ``adamw`` of your own decays biases and norms too, unless you give it this mask.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``.

    Returns:
        A tree of booleans like ``params``.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo, optax
        >>> mo.decay_mask({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4), "norm": {"scale": jnp.ones((3, 4))}})
        {'bias': False, 'kernel': True, 'norm': {'scale': False}}
        >>> optimizer = mo.muon(1e-3, adamw=optax.adamw(3e-4, b2=0.99, weight_decay=0.1, mask=mo.decay_mask))
    """
    # Leaves hidden by a partition still have a path.
    leaves = named_leaves(unhide(params))
    shapes = {leaf.path: None if leaf.value is HIDDEN else leaf.shape for leaf in leaves}
    decays = [len(leaf.shape) > 1 and not is_bias_or_norm(leaf, shapes) for leaf in leaves if leaf.value is not HIDDEN]
    return jax.tree.unflatten(jax.tree.structure(params), decays)


def as_mask_function(mask: Any | MaskFunction | None) -> MaskFunction | None:
    """``mask`` as a function from parameters to a tree of booleans.

    A tree is read by path: one that is an Equinox module is callable, and Optax would call it, and containers and
    Flax boxes may differ from those of the parameters. A boolean holds for all parameters below its path.

    Raises:
        TypeError: If a leaf of the tree is not a boolean, 0 or 1, or the mask is a boolean or a number alone.
    """
    is_function = callable(mask) and jax.tree_util.treedef_is_leaf(jax.tree.structure(mask))
    if callable(mask) and is_function:
        give = "Give a tree of booleans like the parameters, or a function from parameters to one."
        check_function("weight_decay_mask", mask, "params", give)
    if mask is None or is_function:
        return mask
    refuse_injected_array("weight_decay_mask", mask)
    if isinstance(mask, int | float | complex):
        # A function that optax.inject_hyperparams called with its step count arrives as one boolean.
        raise TypeError(
            f"weight_decay_mask={mask} is not a tree of booleans like the parameters, or a function from parameters to "
            "one. Under optax.inject_hyperparams name it in static_args=('weight_decay_mask',), since that calls every "
            "function as a schedule; to decay nothing use weight_decay=0."
        )
    decays = {leaf.path: leaf.value for leaf in named_leaves(mask)}
    for path, value in decays.items():
        is_decision = isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1))
        if not is_decision and getattr(value, "dtype", None) != np.bool_:
            raise TypeError(
                f"weight_decay_mask has {value!r} at {show(path)}: give a tree of booleans like the parameters, or a "
                "function from parameters to one."
            )

    def mask_function(params: Any) -> Any:
        found = [bool(_decision(decays, leaf.path)) for leaf in named_leaves(params)]
        return jax.tree.unflatten(jax.tree.structure(params), found)

    return mask_function


def _decision(decays: Mapping[str, Any], path: str) -> Any:
    parts = path.split("/")
    for end in range(len(parts), -1, -1):
        if (prefix := "/".join(parts[:end])) in decays:
            return decays[prefix]
    raise ValueError(f"weight_decay_mask has no entry for {show(path)}: give a boolean for every parameter.")
