"""Shardings for an optimizer's state: each momentum lies as its parameter does, or is spread further (ZeRO-1)."""

from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layouts.paths import named_leaves, parameter_of
from muon_optax._mesh.placement import Plan, refuse_other_paths, refuse_other_shapes
from muon_optax._mesh.shardings import dims_of, shardings_of, spread


def state_shardings(optimizer: optax.GradientTransformation, params: optax.Params, shardings: Any = None) -> Any:
    """A ``NamedSharding`` for every leaf of ``optimizer``'s state, to give to ``jax.jit`` or to a checkpoint.

    What belongs to a parameter and has its shape (momentum, AdamW's moments) lies as the parameter does. With a plan
    made ``over`` a mesh axis it is spread over that axis too (ZeRO-1): parameters are whole on every device, momentum
    lives once, gradients arrive by reduce-scatter and the update leaves by one all-gather. Counters are on all devices.

    Args:
        optimizer: Any Optax transform.
        params: The parameters, or ``ShapeDtypeStruct`` in their place.
        shardings: A :func:`muon_optax.plan` of ``params``; or a tree like ``params`` of ``NamedSharding``, or of arrays
            that carry one. ``None`` for those of ``params`` itself.

    Returns:
        A tree with the structure of ``optimizer.init(params)``.

    Raises:
        ValueError: If the shardings are on several meshes or of another tree, or no leaf is on a mesh.

    References:
        Samyam Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
        https://arxiv.org/abs/1910.02054, 2019.
        Jingyuan Liu et al., "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982, 2025.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> params = {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}
        >>> specs = {"kernel": PartitionSpec("data"), "bias": PartitionSpec()}
        >>> places = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
        >>> state = mo.state_shardings(mo.muon(3e-4), params, places)
        >>> state.inner_states["muon"].inner_state[0].trace["kernel"].spec
        P('data',)
    """
    plan = shardings if isinstance(shardings, Plan) else None
    given = plan.shardings if plan else shardings_of(params if shardings is None else shardings)
    if not given:
        raise ValueError(
            "state_shardings: no parameter lies on a mesh. Give a tree of NamedShardings like the parameters, or a "
            "plan."
        )
    leaves = named_leaves(params)
    refuse_other_paths(given, [leaf.path for leaf in leaves], whole=True)
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    own = _of_plan(plan, shapes) if plan else _of_parameters(given, shapes)
    mesh = next(iter(given.values())).mesh
    state = jax.eval_shape(optimizer.init, params)
    everywhere = NamedSharding(mesh, PartitionSpec())
    found = [own.get(parameter_of(leaf.path, leaf.shape, shapes) or "", everywhere) for leaf in named_leaves(state)]
    return jax.tree.unflatten(jax.tree.structure(state), found)


def init_sharded(
    optimizer: optax.GradientTransformation, params: optax.Params, shardings: Any = None
) -> optax.OptState:
    """``optimizer.init(params)``, made where it is to live: no device ever holds what is not its own.

    Under Auto axes ``jax.jit(optimizer.init)`` forgets how the parameters lie, and every device gets a whole state.

    Args:
        optimizer: Any Optax transform.
        params: The parameters, on their mesh.
        shardings: As in :func:`state_shardings`.

    Returns:
        The state, with the shardings of :func:`state_shardings`.

    Raises:
        ValueError: As :func:`state_shardings`.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> place = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))
        >>> params = {"kernel": jax.device_put(jnp.ones((8, 4)), place)}
        >>> state = mo.init_sharded(mo.muon(3e-4), params)
        >>> state.inner_states["muon"].inner_state[0].trace["kernel"].sharding.spec
        P('data',)
    """
    return jax.jit(optimizer.init, out_shardings=state_shardings(optimizer, params, shardings))(params)


def _of_parameters(
    given: Mapping[str, NamedSharding], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NamedSharding]:
    for path, sharding in given.items():
        dims_of(path, sharding, len(shapes[path]))  # refuses one that does not fit
    return dict(given)


def _of_plan(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NamedSharding]:
    """Of each parameter's state: as the plan's updates come, and for what AdamW trains, spread by the same rule."""
    planned = {leaf.path: leaf.there for leaf in plan.routes.leaves}
    refuse_other_shapes(plan, {path: shape for path, shape in shapes.items() if path in planned})
    found = {}
    for path, sharding in plan.shardings.items():
        own = dims_of(path, sharding, len(shapes[path]))
        dims = planned.get(path) or own
        if path not in planned and plan.over is not None:
            dims = spread(dims, shapes[path], plan.over, sharding)
        # As given where it stays the same: mesh axes of one device count in a type.
        given = (*sharding.spec, *[None] * len(dims))
        parts = [part if new == old else new for part, new, old in zip(given, dims, own, strict=False)]
        found[path] = NamedSharding(sharding.mesh, PartitionSpec(*(part or None for part in parts)))
    return found
