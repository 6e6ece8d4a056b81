"""The wrapper that keeps a matrix still while its gradient is exactly zero."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.handed_on import resolve_quietly
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._transforms.checks.arguments import check_transform


def hold_idle_matrices(
    inner: optax.GradientTransformation, layouts: Layouts = None
) -> optax.GradientTransformationExtraArgs:
    """Sets the update of every matrix to zero at the steps where its gradient is exactly zero.

    Orthogonalization brings any momentum to full size, however small it is. A matrix that gets one gradient and then
    exact zeros therefore moves on at full speed until its momentum underflows, for about 1,700 steps at momentum 0.95
    in float32. That happens to experts that get no token, LoRA slots that no batch uses, and layers that are frozen by
    a zero gradient. Wrapped in this transform they stay where they are, without weight decay. The state of ``inner``
    changes as without it, and momentum decays while a matrix is idle.

    Each index of a layout's batch axes is a matrix of its own, so in a stack of experts only those with tokens move.
    Leaves without a layout pass unchanged.

    Args:
        inner: Any transform of the whole tree, such as :func:`muon_optax.muon`.
        layouts: As given to :func:`muon_optax.muon`.

    Returns:
        A transform with the state of ``inner``.

    Raises:
        ValueError: As :func:`muon_optax.assign_layouts`.
        TypeError: If ``inner`` is not a transform.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> optimizer = mo.hold_idle_matrices(mo.muon(0.1))
        >>> params = {"kernel": jnp.eye(2)}
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> updates, _ = optimizer.update({"kernel": jnp.zeros((2, 2))}, state, params)
        >>> bool((updates["kernel"] == 0).all())
        True
    """
    check_transform("inner", inner)
    extended = optax.with_extra_args_support(inner)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        resolved = resolve_quietly(updates, layouts)
        results, state = extended.update(updates, state, params, **extra_args)
        held = [
            result if layout is None else _hold(jnp.asarray(leaf.value), jnp.asarray(result), layout)
            for (leaf, layout), result in zip(resolved, jax.tree.leaves(results), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(results), held), state

    return optax.GradientTransformationExtraArgs(extended.init, update)


def _hold(gradient: jax.Array, update: jax.Array, layout: Layout) -> jax.Array:
    axes = tuple(axis for axis, letter in enumerate(layout.axes) if letter != "b")
    return jnp.where(jnp.all(gradient == 0, axis=axes, keepdims=True), 0, update)
