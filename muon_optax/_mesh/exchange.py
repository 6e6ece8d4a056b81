"""Send and return: pieces travel to their owners, whole matrices are orthogonalized, pieces travel back."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, groupby, islice
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.kinds import Kind
from muon_optax._mesh.pieces import as_stack, block_of, divide, from_stack, join, read, runs, write
from muon_optax._mesh.plan import Plan
from muon_optax._mesh.shardings import spec_of, typed_sharding
from muon_optax._mesh.stacks import Stack

MapStacks: TypeAlias = Callable[[Sequence[jax.Array]], list[jax.Array]]


def exchange(plan: Plan, map_stacks: MapStacks) -> Callable[[Sequence[jax.Array]], list[jax.Array]]:
    """A function from the arrays of ``plan.leaves`` to their orthogonalized counterparts.

    Args:
        plan: Who orthogonalizes what.
        map_stacks: From stacks ``(matrices, rows, cols)`` on one device to the same, orthogonalized.
    """
    run = jax.shard_map(
        partial(_on_one_device, plan, map_stacks),
        mesh=plan.mesh,
        in_specs=tuple(spec_of(leaf.there) for leaf in plan.leaves),
        out_specs=[spec_of(leaf.back) for leaf in plan.leaves],
        # What a device computes depends on its place in the mesh in ways that the types of arrays can't follow.
        check_vma=False,
    )

    def padded(arrays: Sequence[jax.Array]) -> list[jax.Array]:
        # Zeros beyond the edge change no other row or column of the result.
        widths = [
            [(0, full - size) for full, size in zip(leaf.shape, leaf.given, strict=True)] for leaf in plan.leaves
        ]
        filled = [jnp.pad(array, width) for array, width in zip(arrays, widths, strict=True)]
        placed = [_lying_as(spec_of(leaf.there), array) for array, leaf in zip(filled, plan.leaves, strict=True)]
        results = [
            result[tuple(map(slice, leaf.given))] for result, leaf in zip(run(*placed), plan.leaves, strict=True)
        ]
        return [
            _lying_as(plan.shardings[leaf.path].spec, result)
            for result, leaf in zip(results, plan.leaves, strict=True)
        ]

    return padded


def _lying_as(spec: PartitionSpec, array: jax.Array) -> jax.Array:
    """``array`` with ``spec`` in its type, if it has one; under Auto axes XLA sees to that."""
    # The plan knows nothing of mesh axes of one device, and in a type they count.
    typed = typed_sharding(array)
    if typed is None or typed.spec == spec:
        return array
    return jax.sharding.reshard(array, NamedSharding(typed.mesh, spec))


def _on_one_device(plan: Plan, map_stacks: MapStacks, *arrays: jax.Array) -> list[jax.Array]:
    outputs = [leaf.layout.axes.index("o") for leaf in plan.leaves]
    edges = [leaf.edges() for leaf in plan.leaves]
    blocks = list(chain.from_iterable(map(jnp.split, arrays, edges, outputs)))
    sent, done = blocks, {}
    for batch in plan.batches:
        if done:
            # A batch starts when the one before has ended, so that the stacks of one are in memory at a time.
            sent, done = jax.lax.optimization_barrier((sent, done))
        received = [_send(plan, stack, sent) for stack in batch]
        for stack, made in zip(batch, _work(batch, received, map_stacks), strict=True):
            done |= _return(plan, stack, made)
    # An array without elements has no matrices.
    results = list(blocks)
    for number, firsts in groupby(sorted(done), lambda first: block_of(first, plan.firsts)):
        stack = jnp.concatenate([done[first] for first in firsts])
        results[number] = from_stack(plan.blocks[number], stack, results[number])
    parts = iter(results)
    return [
        jnp.concatenate(list(islice(parts, len(cuts) + 1)), axis=output)
        for cuts, output in zip(edges, outputs, strict=True)
    ]


def _send(plan: Plan, stack: Stack, arrays: Sequence[jax.Array]) -> jax.Array:
    """``(senders, rows, width)``: from each device that holds another piece its pieces of this owner's matrices."""
    way, planes = stack.way("there"), stack.order("there")
    packers = [partial(_pack, plan, stack, owners, arrays) for owners in planes]
    # Every plane holds the same pieces, and each packs those that its own owners need.
    packed = jax.lax.switch(jax.lax.axis_index(way.copied), packers) if len(planes) > 1 else packers[0]()
    return jax.lax.all_to_all(packed, way.divided, 0, 0, tiled=True) if way.divided else packed


def _pack(plan: Plan, stack: Stack, owners: Sequence[int], arrays: Sequence[jax.Array]) -> jax.Array:
    """This device's pieces of the matrices of some owners, ``(owners, rows, width)``."""
    parts = []
    for held, alike in groupby(owners, stack.held.__getitem__):
        same = list(alike)
        pieces = {}
        for position, kind in enumerate(stack.kinds):
            if held[position]:
                numbers = list(chain.from_iterable(stack.owned[owner][position] for owner in same))
                own = _gathered(plan, kind, numbers, arrays)
                pieces[kind] = own.reshape(len(same), -1, *own.shape[1:])
        parts.append(write(stack, "there", pieces, len(same)))
    return jnp.concatenate(parts)


def _gathered(plan: Plan, kind: Kind, numbers: Sequence[int], arrays: Sequence[jax.Array]) -> jax.Array:
    """This device's pieces of matrices of one kind, ``(matrices, *piece)``."""
    parts = []
    for leaf, first, many in runs(numbers, plan.firsts):
        if leaf < 0:
            parts.append(jnp.zeros((many, *kind.there.piece), kind.dtype))
        else:
            start = first - plan.firsts[leaf]
            parts.append(as_stack(plan.blocks[leaf], arrays[leaf])[start : start + many].astype(kind.dtype))
    return jnp.concatenate(parts)


def _work(batch: Sequence[Stack], received: Sequence[jax.Array], map_stacks: MapStacks) -> list[jax.Array]:
    """An owner's work: the rows to return, ``(receivers, rows, width)`` for each stack."""
    # What all devices do is orthogonalized together: it can share batches.
    common = [number for number, stack in enumerate(batch) if len(set(stack.held)) == 1]
    opened = [_open(batch[number], batch[number].held[0], received[number]) for number in common]
    results = iter(map_stacks(list(chain.from_iterable(opened))))
    made = {
        number: _close(batch[number], batch[number].held[0], list(islice(results, len(blocks))))
        for number, blocks in zip(common, opened, strict=True)
    }
    for number, stack in enumerate(batch):
        if number not in made:
            programs = list(dict.fromkeys(stack.held))
            chosen = jnp.asarray([programs.index(held) for held in stack.held])
            branches = [partial(_run, stack, held, map_stacks) for held in programs]
            here = jax.lax.axis_index(stack.kinds[0].pool)
            made[number] = jax.lax.switch(chosen[here], branches, received[number])
    return [made[number] for number in range(len(batch))]


def _run(stack: Stack, held: Sequence[int], map_stacks: MapStacks, rows: jax.Array) -> jax.Array:
    return _close(stack, held, map_stacks(_open(stack, held, rows)))


def _open(stack: Stack, held: Sequence[int], rows: jax.Array) -> list[jax.Array]:
    """The blocks ``(matrices, rows, cols)`` of so many matrices of each kind, whole."""
    blocks = []
    for kind, pieces in read(stack, "there", held, rows).items():
        whole = jax.vmap(partial(join, dims=kind.there.dims, sizes=stack.sizes), in_axes=1)(pieces)
        blocks += _many(kind).to_matrices(whole)
    return blocks


def _close(stack: Stack, held: Sequence[int], blocks: Sequence[jax.Array]) -> jax.Array:
    """The inverse of :func:`_open`, for the way back."""
    results, pieces = iter(blocks), {}
    for kind, matrices in zip(stack.kinds, held, strict=True):
        if matrices:
            shape = (matrices, *kind.shape)
            own = tuple(islice(results, len(kind.layout.blocks(kind.shape))))
            whole = _many(kind).from_matrices(own, shape).astype(kind.dtype)
            pieces[kind] = jax.vmap(partial(divide, dims=kind.back.dims, sizes=stack.sizes), out_axes=1)(whole)
    receivers = len(stack.order("back")[0])
    return write(stack, "back", pieces, receivers)


def _many(kind: Kind) -> Layout:
    return Layout("b" + kind.layout.axes, kind.layout.split)


def _return(plan: Plan, stack: Stack, made: jax.Array) -> dict[int, jax.Array]:
    """This device's pieces of the results, by the number of the first matrix."""
    way = stack.way("back")
    if way.divided:
        made = jax.lax.all_to_all(made, way.divided, 0, 0, tiled=True)
    if way.copied:
        made = jax.lax.all_gather(made, way.copied, axis=0, tiled=True)
    done, start = {}, 0
    # Each owner of a mixed stack by itself: XLA joins a slice with what uses it, but not through a reshape.
    owners = list(chain.from_iterable(stack.order("back")))
    for same in [owners] if len(set(stack.held)) == 1 else [[owner] for owner in owners]:
        for kind, pieces in read(stack, "back", stack.held[same[0]], made[start : start + len(same)]).items():
            position, end = stack.kinds.index(kind), 0
            numbers = list(chain.from_iterable(stack.owned[owner][position] for owner in same))
            own = pieces.reshape(-1, *kind.back.piece)
            for leaf, first, many in runs(numbers, plan.firsts):
                if leaf >= 0:
                    done[first] = own[end : end + many]
                end += many
        start += len(same)
    return done
