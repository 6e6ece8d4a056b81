"""A momentum that lies in the host's memory and visits the device batch by batch."""

from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.paths import named_leaves, show
from muon_optax._transforms.checks.arguments import check_transform
from muon_optax._transforms.checks.coupling import coupled_inputs

HOST = "pinned_host"  # as JAX names the memory


def offload_to_host(transform: optax.GradientTransformation, *, batches: int = 16) -> optax.GradientTransformation:
    """Keeps the state of ``transform`` in the host's memory (``pinned_host``). The device holds a part of it at a time.

    The parameters are cut into batches of about equal bytes. One after another their momenta are fetched, updated and
    put back, so that about two batches are on the device. Updates and state are those of ``transform``: the host
    computes nothing, and the device nothing else. Counters stay on the device.

    When to choose it: if momentum does not fit. Each step moves it over the host's link twice, beside the products
    where XLA finds room, and waits for what the link can't carry meanwhile.

    Args:
        transform: Any that treats each parameter on its own: :func:`muon_optax.scheduled_trace`,
            :func:`muon_optax.quantized_trace`, :func:`muon_optax.nesterov_ema`, ``optax.trace``,
            ``optax.scale_by_adam``. As ``momentum=`` of :func:`muon_optax.muon` it brings its own Nesterov and dtype.
        batches: Into how many the parameters are cut, >= 1. The device holds about ``2 / batches`` of the state, and
            never less than one parameter's.

    Returns:
        A transform with the state of ``transform``, whose arrays of one axis or more lie in ``pinned_host``. A jitted
        step that donates them needs ``out_shardings``, as :func:`muon_optax.state_shardings` gives them: without, JAX
        may write another result of the same shape into their memory.

    Raises:
        ValueError: At construction, for ``batches`` below 1; at ``init``, if the backend has no ``pinned_host``, or if
            ``transform`` keeps nothing of a parameter or computes what it keeps from another one, by path.

    References:
        Jie Ren et al., "ZeRO-Offload: Democratizing Billion-Scale Model Training", https://arxiv.org/abs/2101.06840,
        2021.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> transform = mo.offload_to_host(mo.scheduled_trace(0.5))
        >>> gradient = {"w": jnp.ones((2, 2))}
        >>> updates, state = transform.update(gradient, transform.init(gradient))
        >>> updates["w"].sharding.memory_kind, state.trace["w"].sharding.memory_kind
        ('device', 'pinned_host')
    """
    check_transform("transform", transform)
    if not isinstance(batches, int) or batches < 1:
        raise ValueError(f"batches={batches!r} is not allowed: use a whole number >= 1, such as 16.")

    def init(params: optax.Params) -> optax.OptState:
        _refuse_without_host_memory()
        _refuse_coupled(transform, params)
        return _to_host(transform.init(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        done: list[tuple[optax.Updates, optax.OptState]] = []
        # Backward: gradients of the last layers come first, and need not wait for those of the others.
        for own in reversed(_batches(_sizes(state, updates), batches)):
            held = _part(state, updates, own)
            if done:
                # A batch comes when the one before has been put back: XLA would fetch all of them at once.
                held, done[-1] = jax.lax.optimization_barrier((held, done[-1]))
            weights = None if params is None else _part(params, updates, own)
            moved, after = transform.update(_part(updates, updates, own), to_device(held), weights)
            done.append((moved, _to_host(after)))
        moved, after = zip(*reversed(done), strict=True)
        return _joined(moved, updates, updates), _joined(after, state, updates)

    return optax.GradientTransformation(init, update)


def on_host(array: Any) -> bool:
    """Whether an array lies in the host's memory, inside jit too."""
    return jax.typeof(array).memory_space == jax.memory.Space.Host


def noting_host(init: Callable[[Any], Any], hosted: list[bool]) -> Callable[[Any], Any]:
    """``init`` that writes for each leaf of its state whether it lies in the host's memory.

    Only types show it. In some versions of JAX the results of ``jax.eval_shape`` do not.
    """

    def noted(params: Any) -> Any:
        state = init(params)
        hosted[:] = map(on_host, jax.tree.leaves(state))
        return state

    return noted


def _to_host(state: Any) -> Any:
    """``state`` with its arrays in the host's memory; counters stay on the device."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Host) if jnp.ndim(leaf) else leaf, state)


def to_device(state: Any) -> Any:
    """``state`` with its arrays in the device's memory."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device) if jnp.ndim(leaf) else leaf, state)


def _trees(state: Any, like: Any) -> tuple[list[Any], Any, list[bool]]:
    """The trees in ``state`` that have the structure of ``like``, and its other leaves; and which are which."""
    inner = jax.tree.structure(like)
    nodes, outer = jax.tree.flatten(state, is_leaf=lambda node: jax.tree.structure(node) == inner)
    return nodes, outer, [jax.tree.structure(node) == inner for node in nodes]


def _sizes(state: Any, like: Any) -> list[int]:
    """Bytes that ``state`` keeps of each leaf of ``like``."""
    nodes, _, alike = _trees(state, like)
    kept = [jax.tree.leaves(node) for node, own in zip(nodes, alike, strict=True) if own]
    return [sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) for leaves in zip(*kept, strict=True)]


def _batches(sizes: Sequence[int], batches: int) -> list[range]:
    """The numbers of the leaves in each batch, which are neighbors; at least one batch, which may be empty."""
    total = sum(sizes) or 1
    # A leaf belongs to the batch in which its middle lies.
    batch = [int(batches * (end - size / 2) / total) for size, end in zip(sizes, accumulate(sizes), strict=True)]
    ends = list(accumulate(len(list(own)) for _, own in groupby(batch)))
    return [range(start, end) for start, end in pairwise([0, *ends])] or [range(0)]


def _part(tree: Any, like: Any, numbers: range) -> Any:
    """``tree`` with ``None`` for all leaves of its trees like ``like`` but those of these numbers."""
    nodes, outer, alike = _trees(tree, like)

    def part(node: Any) -> Any:
        leaves, inner = jax.tree.flatten(node)
        return jax.tree.unflatten(inner, [leaf if number in numbers else None for number, leaf in enumerate(leaves)])

    return jax.tree.unflatten(outer, [part(node) if own else node for node, own in zip(nodes, alike, strict=True)])


def _joined(parts: Sequence[Any], whole: Any, like: Any) -> Any:
    """The inverse of :func:`_part`. Of values that aren't trees like ``like``, such as counters, it takes the last."""
    nodes, outer, alike = _trees(whole, like)
    held = [outer.flatten_up_to(part) for part in parts]
    joined = []
    for index, own in enumerate(alike):
        leaves = [leaf for part in held for leaf in jax.tree.leaves(part[index])]
        # Batches hold neighbors, in order.
        joined.append(jax.tree.unflatten(jax.tree.structure(nodes[index]), leaves) if own else held[-1][index])
    return jax.tree.unflatten(outer, joined)


def _refuse_without_host_memory() -> None:
    device = jax.local_devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise ValueError(
            f"offload_to_host needs a backend with {HOST} memory, and {device.platform!r} has {', '.join(kinds)} only. "
            "Use the transform itself, or muon_optax.quantized_trace for a momentum of a quarter of the bytes."
        )


def _refuse_coupled(transform: optax.GradientTransformation, params: Any) -> None:
    """Refuses a transform that would give another result batch by batch, and one that keeps nothing."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    state = jax.eval_shape(transform.init, shapes)
    leaves = named_leaves(params)
    owners = [_owners(tree, shapes) for tree in (shapes, state, shapes)]
    if leaves and all(owner is None for owner in owners[1]):
        raise ValueError(
            "offload_to_host wraps a transform that keeps nothing of a parameter: wrap the one that keeps the "
            "momentum, such as muon_optax.scheduled_trace(0.95, nesterov=True)."
        )
    arguments, structure = jax.tree.flatten((shapes, state, shapes))

    def flat(*arrays: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(transform.update(*jax.tree.unflatten(structure, arrays)))

    mixed = coupled_inputs(flat, arguments, [owner for own in owners for owner in own])
    for owner, found in zip([*owners[0], *owners[1]], mixed, strict=True):
        others = found - {owner}
        if others:
            what = "a value of its own" if owner is None else f"that of {show(leaves[owner].path)}"
            raise ValueError(
                f"offload_to_host wraps a transform that computes {what} from other parameters, "
                f"{show(leaves[min(others)].path)} among them: batch by batch it would give something else. Wrap the "
                "part that keeps the momentum alone."
            )


def _owners(tree: Any, like: Any) -> list[int | None]:
    """For each leaf of ``tree`` the number of the leaf of ``like`` that it belongs to."""
    nodes, _, alike = _trees(tree, like)
    found: list[int | None] = []
    for node, own in zip(nodes, alike, strict=True):
        found += range(len(jax.tree.leaves(node))) if own else [None] * len(jax.tree.leaves(node))
    return found
