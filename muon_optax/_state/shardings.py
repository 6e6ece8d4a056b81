"""The shardings of an optimizer's state. Momentum lies as its parameter does, or spread further (ZeRO-1)."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layouts.paths import NamedLeaf, named_leaves, parameter_of
from muon_optax._mesh.checks import refuse_no_mesh, refuse_other_paths, refuse_other_shapes, refuse_unusable_spec
from muon_optax._mesh.dims import count, named_axes, short_spec_of
from muon_optax._mesh.given import as_given
from muon_optax._mesh.placement import Placement
from muon_optax._mesh.plan import Plan
from muon_optax._mesh.typed import explicit_axes, inside_shard_map, typed_sharding
from muon_optax._transforms.checks.arguments import check_transform
from muon_optax._transforms.momenta.offload_to_host import HOST, noting_host, on_host


def state_shardings(optimizer: optax.GradientTransformation, params: optax.Params, shardings: Any = None) -> Any:
    """The ``NamedSharding`` of every leaf of ``optimizer``'s state, for ``jax.jit`` or for a checkpoint.

    Arrays with a parameter's shape (momentum, AdamW's moments) have the parameter's sharding. Statistics of its rows or
    blocks have it on the axes whose shards hold whole ones. With a plan made ``over`` a mesh axis they are spread over
    that axis too (ZeRO-1). Parameters are then whole on every device, momentum is stored once, gradients arrive by
    reduce-scatter, and the update leaves by an all-gather. Counters are everywhere. Arrays of
    :func:`muon_optax.offload_to_host` have the memory kind ``"pinned_host"``.

    Args:
        optimizer: Any Optax transform.
        params: The parameters, or ``ShapeDtypeStruct`` in their place.
        shardings: A :func:`muon_optax.plan` of ``params``; or a tree like ``params`` of ``NamedSharding``, or of arrays
            that carry one. ``None`` for those of ``params`` itself.

    Returns:
        A tree with the structure of ``optimizer.init(params)``.

    Raises:
        ValueError: If the shardings are on several meshes or of another tree, or no leaf is on a mesh.
        TypeError: If ``optimizer`` is not a transform.

    References:
        Samyam Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
        https://arxiv.org/abs/1910.02054, 2019.
        Jingyuan Liu et al., "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982, 2025.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> place = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))
        >>> params = {"kernel": jax.device_put(jnp.ones((8, 4)), place)}
        >>> mo.state_shardings(mo.muon(3e-4), params).inner_states["muon"].inner_state[0].trace["kernel"].spec
        P('data',)
    """
    check_transform("optimizer", optimizer)
    placement = _placement(params, shardings)
    hosted: list[bool] = []
    state = jax.eval_shape(noting_host(optimizer.init, hosted), params)
    return _places(state, params, placement, hosted)


def init_sharded(
    optimizer: optax.GradientTransformation, params: optax.Params, shardings: Any = None
) -> optax.OptState:
    """Makes ``optimizer.init(params)`` in its shardings, so no device ever holds more than its own part.

    Under Auto axes ``jax.jit(optimizer.init)`` forgets how the parameters lie, and every device gets a whole state.

    Args:
        optimizer: Any Optax transform.
        params: The parameters, on their mesh.
        shardings: As in :func:`state_shardings`.

    Returns:
        The state, with the shardings of :func:`state_shardings`.

    Raises:
        ValueError: As :func:`state_shardings`.
        TypeError: Likewise.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> place = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))
        >>> params = {"kernel": jax.device_put(jnp.ones((8, 4)), place)}
        >>> state = mo.init_sharded(mo.muon(3e-4), params)
        >>> state.inner_states["muon"].inner_state[0].trace["kernel"].sharding.spec
        P('data',)
    """
    check_transform("optimizer", optimizer)
    return jax.jit(optimizer.init, out_shardings=state_shardings(optimizer, params, shardings))(params)


def state_bytes_of_a_device(
    optimizer: optax.GradientTransformation, params: optax.Params, shardings: Any = None
) -> dict[str, int]:
    """The bytes of state that one device keeps, ``"device"`` in its memory and ``"pinned_host"`` in its host's.

    They are those of the state's arrays in the shardings of :func:`state_shardings`, which gives the arguments.
    """
    state, places = jax.eval_shape(optimizer.init, params), state_shardings(optimizer, params, shardings)
    kept = {"device": 0, HOST: 0}
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True):
        memory = HOST if place.memory_kind == HOST else "device"
        kept[memory] += math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    return kept


def stay_spread(
    optimizer: optax.GradientTransformationExtraArgs, shardings: Any
) -> optax.GradientTransformationExtraArgs:
    """``optimizer`` with a state that stays spread as a plan made ``over`` a mesh axis says, and whole updates.

    Without it XLA would choose, and every user would have to pass ``out_shardings``. Anything but such a plan changes
    nothing, nor do Explicit axes, whose types hold the state where it is.
    """
    # Without `over` momentum lies as its gradient does, which XLA finds by itself.
    if not isinstance(shardings, Plan) or shardings.over is None:
        return optimizer

    def stay(state: optax.OptState, params: optax.Params) -> optax.OptState:
        hosted = list(map(on_host, jax.tree.leaves(state)))
        return jax.tree.map(_constrain, state, _places(state, params, _placement(params, shardings), hosted))

    def init(params: optax.Params) -> optax.OptState:
        return stay(optimizer.init(params), params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, state = optimizer.update(updates, state, params, **extra_args)
        back = [shardings.shardings[leaf.path] for leaf in named_leaves(updates)]
        whole = jax.tree.map(_constrain, updates, jax.tree.unflatten(jax.tree.structure(updates), back))
        return whole, stay(state, updates)

    return optax.GradientTransformationExtraArgs(init, update)


def _constrain(array: Any, place: NamedSharding) -> Any:
    # Inside `shard_map` all is local. Under Explicit axes an array's type holds it in place, and JAX refuses to say it
    # again, of arrays without a type too, which `jax.eval_shape` makes.
    explicit = explicit_axes(place.mesh) & {*chain.from_iterable(named_axes(place.spec, len(place.spec)))}
    if inside_shard_map() or typed_sharding(array) is not None or explicit:
        return array
    return jax.lax.with_sharding_constraint(array, place)


def _placement(params: Any, shardings: Any) -> Placement:
    """The placement of parameters and their state, as given, or from the parameters themselves."""
    given = as_given(params if shardings is None else shardings) or refuse_no_mesh("state_shardings")
    placement = given.placement if isinstance(given, Plan) else given
    leaves = named_leaves(params)
    refuse_other_paths(placement.back, leaves, whole=True)
    if isinstance(given, Plan):
        refuse_other_shapes(given.mesh, given.uses, [leaf for leaf in leaves if leaf.path in given.uses])
    for leaf in leaves:
        refuse_unusable_spec(leaf.path, placement.there[leaf.path], len(leaf.shape))
    return placement


def _places(state: Any, params: Any, placement: Placement, hosted: Sequence[bool]) -> Any:
    """For every leaf of a state the sharding of what it belongs to; for others that of being everywhere.

    Those that are ``hosted`` lie in the host's memory.
    """
    shapes = {leaf.path: leaf.shape for leaf in named_leaves(params)}
    everywhere = NamedSharding(placement.mesh, PartitionSpec())

    def place(leaf: NamedLeaf) -> NamedSharding:
        # By path and shape, since any Optax transform may hold a tree like the parameters somewhere in its state.
        path = parameter_of(leaf.path, leaf.shape, shapes)
        if path is not None:
            return placement.there[path]
        path = parameter_of(leaf.path, (), dict.fromkeys(shapes, ()))
        return everywhere if path is None else _place_of_statistic(leaf, placement.there[path], shapes[path])

    places = [
        place(leaf).with_memory_kind(HOST) if away else place(leaf)
        for leaf, away in zip(named_leaves(state), hosted, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(state), places)


def _place_of_statistic(leaf: NamedLeaf, own: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """As the parameter on every axis whose shards hold whole entries of the statistic; everywhere for other axes."""
    entries = leaf.shape if len(leaf.shape) == len(shape) else (0,) * len(shape)
    dims = tuple(
        part if held and size % held == 0 and held % count(part, own.mesh.shape) == 0 else ()
        for part, size, held in zip(named_axes(own.spec, len(shape)), shape, entries, strict=True)
    )
    return NamedSharding(own.mesh, short_spec_of(dims))
