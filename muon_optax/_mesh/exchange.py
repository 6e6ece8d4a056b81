"""Send and return: pieces travel to their owners, whole matrices are orthogonalized, pieces travel back."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, groupby, islice
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.kinds import Kind, Leaf, Matrix
from muon_optax._mesh.owners import Direction, Stack
from muon_optax._mesh.plan import Plan
from muon_optax._mesh.shardings import Dims, Sizes, count, spec_of, typed_sharding

MapStacks: TypeAlias = Callable[[Sequence[jax.Array]], list[jax.Array]]
Arrays: TypeAlias = Mapping[str, jax.Array]


def exchange(plan: Plan, map_stacks: MapStacks) -> Callable[[Arrays], dict[str, jax.Array]]:
    """A function from the updates of ``plan``'s matrices, by path, to their orthogonalized counterparts.

    Args:
        plan: Who orthogonalizes what.
        map_stacks: From stacks ``(matrices, rows, cols)`` on one device to the same, orthogonalized.
    """
    # Arrays without elements stay: beside others in a `shard_map` they crash XLA (jaxlib 0.11.2).
    filled = {number: leaf for number, leaf in enumerate(plan.leaves) if math.prod(leaf.shape)}
    run = jax.shard_map(
        partial(_on_one_device, plan, map_stacks),
        mesh=plan.mesh,
        in_specs=({number: spec_of(leaf.there) for number, leaf in filled.items()},),
        out_specs={number: spec_of(leaf.back) for number, leaf in filled.items()},
        # What a device computes depends on its place in the mesh in ways that the types of arrays can't follow.
        check_vma=False,
    )

    def whole(arrays: Arrays) -> dict[str, jax.Array]:
        blocks: dict[str, list[jax.Array]] = {}
        placed = {number: _placed(leaf, arrays[leaf.path]) for number, leaf in enumerate(plan.leaves)}
        results = run({number: placed[number] for number in filled}) if filled else {}
        for number, leaf in enumerate(plan.leaves):
            # Zeros that were appended for the mesh go, and the blocks of a fused projection meet again.
            result = results.get(number, placed[number])[tuple(map(slice, leaf.shape))]
            blocks.setdefault(leaf.path, []).append(result)
        axes = {leaf.path: leaf.layout.axes.index("o") for leaf in plan.leaves}
        joined = {path: jnp.concatenate(own, axis=axes[path]) for path, own in blocks.items()}
        return {path: _lying_as(plan.shardings[path].spec, array) for path, array in joined.items()}

    return whole


def _placed(leaf: Leaf, array: jax.Array) -> jax.Array:
    output = leaf.layout.axes.index("o")
    ends = [leaf.start * (axis == output) + size for axis, size in enumerate(leaf.shape)]
    block = array[tuple(map(slice, [end - size for end, size in zip(ends, leaf.shape, strict=True)], ends))]
    # Zeros beyond the edge change no other row or column of the result.
    widths = [(0, padded - size) for padded, size in zip(leaf.padded, leaf.shape, strict=True)]
    return _lying_as(spec_of(leaf.there), jnp.pad(block, widths))


def _lying_as(spec: PartitionSpec, array: jax.Array) -> jax.Array:
    """``array`` with ``spec`` in its type, if it has one; under Auto axes XLA sees to that."""
    # The plan knows nothing of mesh axes of one device, and in a type they count.
    typed = typed_sharding(array)
    if typed is None or typed.spec == spec:
        return array
    return jax.sharding.reshard(array, NamedSharding(typed.mesh, spec))


def _on_one_device(plan: Plan, map_stacks: MapStacks, arrays: dict[int, jax.Array]) -> dict[int, jax.Array]:
    sent, done = arrays, {}
    for batch in plan.batches:
        if done:
            # A batch starts when the one before has ended, so that the stacks of one are in memory at a time.
            sent, done = jax.lax.optimization_barrier((sent, done))
        received = [_send(plan.leaves, stack, sent) for stack in batch]
        for stack, made in zip(batch, _work(batch, received, map_stacks), strict=True):
            done |= _return(stack, made)
    results = {}
    for number, own in groupby(sorted(done), key=lambda matrix: matrix[0]):
        leaf, array = plan.leaves[number], arrays[number]
        batch = leaf.of_batch(range(array.ndim))
        stack = jnp.concatenate([done[first] for first in own])
        stack = stack.reshape(*leaf.of_batch(array.shape), *stack.shape[1:])
        results[number] = jnp.moveaxis(stack, range(len(batch)), batch).astype(array.dtype)
    return results


def _send(leaves: Sequence[Leaf], stack: Stack, arrays: Mapping[int, jax.Array]) -> jax.Array:
    """``(senders, rows, width)``: from each device that holds another piece its pieces of this owner's matrices."""
    way = stack.kind.there
    # A device knows its place in the mesh only when it runs, so every copy's program is written out.
    packers = [partial(_pack, leaves, stack, owners, arrays) for owners in stack.ordered("there")]
    # Where several devices hold a piece, each packs what its own share of the owners needs.
    packed = jax.lax.switch(jax.lax.axis_index(way.copied), packers) if len(packers) > 1 else packers[0]()
    return jax.lax.all_to_all(packed, way.divided, 0, 0, tiled=True) if way.divided else packed


def _return(stack: Stack, made: jax.Array) -> dict[Matrix, jax.Array]:
    """This device's pieces of the results ``(receivers, rows, width)``, by the first matrix of each run."""
    way = stack.kind.back
    if way.divided:
        made = jax.lax.all_to_all(made, way.divided, 0, 0, tiled=True)
    if way.copied:
        made = jax.lax.all_gather(made, way.copied, axis=0, tiled=True)
    done, start = {}, 0
    # Owners that have as many of each kind are unpacked at once, which keeps the program short.
    for held, same in groupby(chain.from_iterable(stack.ordered("back")), stack.held.__getitem__):
        owners = list(same)
        rows = made[start : start + len(owners)]
        start += len(owners)
        for (kind, turns), pieces in zip(stack.parts(held), _read(stack, "back", held, rows), strict=True):
            end = 0
            # Slices of one leaf's neighbors, and no gather by index: XLA joins a slice with what uses it.
            for first, many in _runs([matrix for owner in owners for matrix in stack.owned[kind][owner][turns]]):
                end += many
                if first is not None:
                    done[first] = pieces[end - many : end]
    return done


def _runs(matrices: Sequence[Matrix | None]) -> Iterator[tuple[Matrix | None, int]]:
    """The first of matrices that follow each other in one leaf, ``None`` for zeros; and how many they are."""
    for key, same in groupby(enumerate(matrices), lambda pair: pair[1] and (pair[1][0], pair[1][1] - pair[0])):
        run = [matrix for _, matrix in same]
        yield (None if key is None else run[0]), len(run)


def _pack(leaves: Sequence[Leaf], stack: Stack, owners: list[int], arrays: Mapping[int, jax.Array]) -> jax.Array:
    """This device's pieces of the matrices of some owners, ``(owners, rows, width)``."""
    packed: list[jax.Array] = []
    for held, same in groupby(owners, stack.held.__getitem__):
        alike, pieces = list(same), []
        for kind, turns in stack.parts(held):
            parts = []
            for first, many in _runs([matrix for owner in alike for matrix in stack.owned[kind][owner][turns]]):
                if first is None:
                    parts.append(jnp.zeros((many, *kind.there.piece), kind.dtype))
                    continue
                leaf, array = leaves[first[0]], arrays[first[0]]
                batch = leaf.of_batch(range(array.ndim))
                # In the dtype of the products from here on: half the bytes to copy, not only to send.
                own = jnp.moveaxis(array, batch, range(len(batch))).reshape(-1, *kind.there.piece)
                parts.append(own[first[1] : first[1] + many].astype(kind.dtype))
            pieces.append(jnp.concatenate(parts))
        packed.append(_write(stack, "there", held, pieces, len(alike)))
    return jnp.concatenate(packed)


def _work(batch: Sequence[Stack], received: Sequence[jax.Array], map_stacks: MapStacks) -> list[jax.Array]:
    """An owner's work: the rows to return, ``(receivers, rows, width)`` for each stack."""
    # What all devices do is orthogonalized together: small matrices of several kinds share batches.
    common = {number: stack for number, stack in enumerate(batch) if not stack.mixed}
    opened = {number: _open(stack, stack.held[0], received[number]) for number, stack in common.items()}
    results = iter(map_stacks(list(chain.from_iterable(opened.values()))))
    made = {number: _close(stack, stack.held[0], results) for number, stack in common.items()}
    for number, stack in enumerate(batch):
        if stack.mixed:
            # One branch for each division of labor, not for each device: compiling is what many devices cost.
            programs = list(dict.fromkeys(stack.held))
            branches = [partial(_branch, stack, held, map_stacks) for held in programs]
            chosen = jnp.asarray([programs.index(held) for held in stack.held])
            here = jax.lax.axis_index(stack.kind.pool)
            made[number] = jax.lax.switch(chosen[here], branches, received[number])
    return [made[number] for number in range(len(batch))]


def _branch(stack: Stack, held: Sequence[int], map_stacks: MapStacks, rows: jax.Array) -> jax.Array:
    """The work of owners that have so many matrices of each kind."""
    return _close(stack, held, iter(map_stacks(_open(stack, held, rows))))


def _open(stack: Stack, held: Sequence[int], rows: jax.Array) -> list[jax.Array]:
    """The blocks ``(matrices, rows, cols)`` of so many matrices of each kind, whole."""
    blocks = []
    for (kind, turns), pieces in zip(stack.parts(held), _read(stack, "there", held, rows), strict=True):
        apart = pieces.reshape(-1, turns.stop - turns.start, *kind.there.piece)
        whole = jax.vmap(partial(join, dims=kind.there.dims, sizes=stack.sizes), in_axes=1)(apart)
        blocks += _many(kind).to_matrices(whole)
    return blocks


def _close(stack: Stack, held: Sequence[int], blocks: Iterator[jax.Array]) -> jax.Array:
    """The inverse of :func:`_open`, for the way back."""
    pieces = []
    for kind, _ in stack.parts(held):
        own = tuple(islice(blocks, len(kind.layout.blocks(kind.shape))))
        whole = _many(kind).from_matrices(own, (len(own[0]), *kind.shape)).astype(kind.dtype)
        apart = jax.vmap(partial(divide, dims=kind.back.dims, sizes=stack.sizes), out_axes=1)(whole)
        pieces.append(apart.reshape(-1, *kind.back.piece))
    return _write(stack, "back", held, pieces, count(stack.kind.back.divided, stack.sizes))


def _many(kind: Kind) -> Layout:
    return Layout("b" + kind.layout.axes, kind.layout.split)


def _write(
    stack: Stack, direction: Direction, held: Sequence[int], pieces: Sequence[jax.Array], lead: int
) -> jax.Array:
    """Pieces ``(lead times matrices, *piece)`` of each part one below the other, ``(lead, rows, width)``."""
    width, parts = stack.width(direction), []
    for (kind, _), own in zip(stack.parts(held), pieces, strict=True):
        columns = getattr(kind, direction).columns
        if columns % width:
            # Kinds without a common width share a stack as a row of elements.
            flat = own.reshape(len(own), -1)
            own = jnp.pad(flat, [(0, 0), (0, -flat.shape[-1] % width)])
        else:
            # Panels of columns, and no transposition: a TPU's registers hold 8 x 128 elements of them as they are.
            own = jnp.concatenate(jnp.split(own.reshape(len(own), -1, columns), columns // width, axis=2), axis=1)
        parts.append(own.reshape(lead, -1, width))
    # A collective needs equal parts. Owners with fewer matrices send zeros.
    empty = stack.rows(direction) - sum(part.shape[1] for part in parts)
    if empty:
        parts.append(jnp.zeros((lead, empty, width), stack.kind.dtype))
    return jnp.concatenate(parts, axis=1)


def _read(stack: Stack, direction: Direction, held: Sequence[int], rows: jax.Array) -> list[jax.Array]:
    """The inverse of :func:`_write`."""
    width, pieces, end = stack.width(direction), [], 0
    for kind, turns in stack.parts(held):
        way = getattr(kind, direction)
        height = stack.height(way, direction)
        start, end = end, end + (turns.stop - turns.start) * height
        own = rows[:, start:end].reshape(-1, height, width)
        if way.columns % width:
            own = own.reshape(len(own), -1)[:, : math.prod(way.piece)]
        else:
            own = jnp.concatenate(jnp.split(own, way.columns // width, axis=1), axis=2)
        pieces.append(own.reshape(-1, *way.piece))
    return pieces


def join(pieces: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """Pieces ``(devices, *piece)``, devices in the order of the mesh, as the whole that they are divided from."""
    # Collectives see devices in the order of the mesh; an axis may be divided in another, such as ("model", "data").
    outer, inner = _axes(dims, sizes)
    shape = [size * count(part, sizes) for size, part in zip(pieces.shape[1:], dims, strict=True)]
    grid = pieces.reshape(*(sizes[axis] for axis in outer), *pieces.shape[1:])
    return jnp.transpose(grid, [[*outer, *range(len(dims))].index(axis) for axis in inner]).reshape(shape)


def divide(whole: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """The inverse of :func:`join`."""
    outer, inner = _axes(dims, sizes)
    piece = [size // count(part, sizes) for size, part in zip(whole.shape, dims, strict=True)]
    grid = whole.reshape([piece[axis] if isinstance(axis, int) else sizes[axis] for axis in inner])
    return jnp.transpose(grid, [inner.index(axis) for axis in [*outer, *range(len(dims))]]).reshape(-1, *piece)


def _axes(dims: Dims, sizes: Sizes) -> tuple[list[str], list[str | int]]:
    """The mesh axes that divide an array, in the order of the mesh; and where they stand among the array's own axes."""
    inner = [axis for number, part in enumerate(dims) for axis in (*part, number)]
    return [axis for axis in sizes if axis in inner], inner
