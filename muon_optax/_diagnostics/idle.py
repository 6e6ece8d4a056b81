"""Parameters that move without ever having had a gradient."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._diagnostics.sizes import update_rms
from muon_optax._layouts.assigning.messages import MuonWarning
from muon_optax._layouts.paths import brief, show
from muon_optax._state.kept_arrays import holds_state, kept_arrays
from muon_optax._transforms.checks.arguments import check_transform, is_transform

_LISTED = 8  # leaves that a message names


def moved_without_gradient(
    optimizer: optax.GradientTransformation, state: optax.OptState, params: optax.Params, **extra_args: Any
) -> dict[str, float]:
    """Finds parameters that never got a gradient and yet move, since decay shrinks them. For use outside ``jit``, once.

    A parameter behind ``stop_gradient``, a layer that the loss does not reach, a table that no batch reads: all get
    gradients of zeros, which an optimizer takes for gradients. Call this after the first steps. A parameter is found if
    everything that ``state`` keeps of it (momentum, moments) is zero.

    Args:
        optimizer: The run's.
        state: Its state. A parameter of which it keeps nothing, as ``optax.sgd`` does, is left out.
        params: The parameters.
        **extra_args: What ``optimizer.update`` needs besides, such as ``max_logits``.

    Returns:
        A mapping from the paths of these parameters to the share of its norm by which each moves in a step.

    Raises:
        TypeError: If ``optimizer`` is not a transform, or ``state`` not a state.

    Warns:
        MuonWarning: With the paths, if there are any.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"backbone": jnp.ones((4, 4)), "head": jnp.ones(4)}
        >>> optimizer = mo.hold_idle(mo.muon(0.01, layouts={"backbone": "io"}))
        >>> mo.diagnostics.moved_without_gradient(optimizer, optimizer.init(params), params)
        {}
    """
    check_transform("optimizer", optimizer)
    if is_transform(state) or not holds_state(state):
        raise TypeError(
            f"state={brief(state)} holds no state of an optimizer: call moved_without_gradient(optimizer, state, "
            "params)."
        )
    kept: dict[str, list[Any]] = {}
    for one in kept_arrays(state):
        # Radii are norms of the parameter, and a recorder keeps more of those.
        if one.path and not one.counts and one.field != "radii" and one.node.kind != "RecordState":
            kept.setdefault(one.path, []).extend(one.values)
    sizes_before = update_rms(params)
    if not sizes_before:
        raise TypeError(
            f"params={brief(params)} holds no arrays: call moved_without_gradient(optimizer, state, params)."
        )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, state, params, **extra_args)
    sizes = zip(sizes_before.items(), update_rms(updates).values(), strict=True)
    shares = {
        path: float(moved) / float(size)
        for (path, size), moved in sizes
        if float(moved) and path in kept and not any(bool(jnp.any(value != 0)) for value in kept[path])
    }
    if shares:
        listed = ", ".join(
            f"{show(path)} (by {share:.2g} of its size)" for path, share in list(shares.items())[:_LISTED]
        )
        more = f" and {len(shares) - _LISTED} more" if len(shares) > _LISTED else ""
        warnings.warn(
            f"{len(shares)} parameter{'s' * (len(shares) > 1)} never got a gradient and move{'s' * (len(shares) == 1)} "
            f"at each step: {listed}{more}. If the loss should reach them, look for the break. If they are frozen, "
            "wrap the optimizer in muon_optax.hold_idle, or leave them out of what it trains.",
            MuonWarning,
            stacklevel=2,
        )
    return shares
