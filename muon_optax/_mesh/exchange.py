"""Send and return. Pieces travel to their owners, whole matrices are orthogonalized, pieces travel back."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, groupby
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from muon_optax._mesh.dims import spec_of
from muon_optax._mesh.kinds import Kind, Leaf, Matrix
from muon_optax._mesh.packing import close_rows, open_rows, read, write
from muon_optax._mesh.plan import Plan
from muon_optax._mesh.stacks import Held, Stack
from muon_optax._mesh.typed import relocate

MapStacks: TypeAlias = Callable[[Sequence[jax.Array], Sequence[str]], list[jax.Array]]
Arrays: TypeAlias = Mapping[str, jax.Array]
Numbered: TypeAlias = Mapping[int, jax.Array]  # by the number of a leaf


def exchange(plan: Plan, map_stacks: MapStacks) -> Callable[[Arrays], dict[str, jax.Array]]:
    """Makes a function from the updates of ``plan``'s matrices, by path, to their orthogonalized counterparts.

    ``map_stacks`` orthogonalizes stacks ``(matrices, rows, cols)`` on one device, given the name of the orthogonalizer
    of each.
    """
    # Arrays without elements stay: beside others in a `shard_map` they crash XLA (jaxlib 0.11.2).
    filled = {number: leaf for number, leaf in enumerate(plan.leaves) if math.prod(leaf.shape)}
    run = jax.shard_map(
        partial(_on_each_device, plan, map_stacks),
        mesh=plan.mesh,
        in_specs=({number: spec_of(leaf.there) for number, leaf in filled.items()},),
        out_specs={number: spec_of(leaf.back) for number, leaf in filled.items()},
        # What a device computes depends on its place in the mesh in ways that the types of arrays can't follow.
        check_vma=False,
    )

    def whole(arrays: Arrays) -> dict[str, jax.Array]:
        padded = {number: _padded_block(plan, leaf, arrays[leaf.path]) for number, leaf in enumerate(plan.leaves)}
        results = {**padded, **run({number: padded[number] for number in filled})}
        blocks: dict[str, list[jax.Array]] = {}
        for number, leaf in enumerate(plan.leaves):
            # Zeros that were appended for the mesh go, and the blocks of a fused projection meet again.
            blocks.setdefault(leaf.path, []).append(results[number][tuple(map(slice, leaf.shape))])
        joined = {path: jnp.concatenate(own, plan.uses[path].layout.axes.index("o")) for path, own in blocks.items()}
        return {path: relocate(array, plan.shardings[path]) for path, array in joined.items()}

    return whole


def _padded_block(plan: Plan, leaf: Leaf, array: jax.Array) -> jax.Array:
    output = leaf.layout.axes.index("o")
    block = array[(*[slice(None)] * output, slice(leaf.start, leaf.start + leaf.shape[output]))]
    # Zeros beyond the edge change no other row or column of the result.
    widths = [(0, padded - size) for padded, size in zip(leaf.padded, leaf.shape, strict=True)]
    return relocate(jnp.pad(block, widths), NamedSharding(plan.mesh, spec_of(leaf.there)))


def _on_each_device(plan: Plan, map_stacks: MapStacks, arrays: Numbered) -> Numbered:
    sent, done = arrays, {}
    for stacks in plan.batches:
        if done:
            # A batch starts when the one before has ended, so that the stacks of one are in memory at a time.
            sent, done = jax.lax.optimization_barrier((sent, done))
        received = [_send(plan.leaves, stack, sent) for stack in stacks]
        made = _work(stacks, received, map_stacks)
        for stack in stacks:
            done |= _return(stack, made[stack])
    results = {}
    for number, own in groupby(sorted(done), key=lambda matrix: matrix[0]):
        pieces = jnp.concatenate([done[first] for first in own])
        results[number] = plan.leaves[number].array_of(pieces, arrays[number])
    return results


def _send(leaves: Sequence[Leaf], stack: Stack, arrays: Numbered) -> jax.Array:
    """Sends a stack. The result ``(senders, rows, width)`` has every sender's pieces of this owner's matrices."""
    way = stack.there
    # A device knows its place in the mesh only when it runs, so every copy's program is written out.
    packers = [partial(_pack, leaves, stack, owners, arrays) for owners in way.owners]
    # Where several devices hold a piece, each packs what its own share of the owners needs.
    packed = jax.lax.switch(jax.lax.axis_index(way.copied), packers)
    return jax.lax.all_to_all(packed, way.divided, 0, 0, tiled=True) if way.divided else packed


def _pack(leaves: Sequence[Leaf], stack: Stack, owners: Sequence[int], arrays: Numbered) -> jax.Array:
    """Packs this device's pieces of the matrices of some owners, ``(owners, rows, width)``."""
    packed = []
    for held, alike in stack.alike(owners):
        runs = [(kind, stack.runs(kind, turns, alike)) for kind, turns in stack.contents(held)]
        pieces = [jnp.concatenate([_pieces(leaves, arrays, kind, *run) for run in own]) for kind, own in runs]
        packed.append(write(stack, stack.there, held, pieces, len(alike)))
    return jnp.concatenate(packed)


def _pieces(leaves: Sequence[Leaf], arrays: Numbered, kind: Kind, first: Matrix | None, many: int) -> jax.Array:
    """This device's pieces of ``many`` matrices that follow each other in one leaf, or zeros."""
    if first is None:
        return jnp.zeros((many, *kind.there.shape), kind.dtype)
    number, start = first
    # The dtype of the products begins here, so copies halve their bytes too.
    return leaves[number].pieces_of(arrays[number])[start : start + many].astype(kind.dtype)


def _work(stacks: Sequence[Stack], received: Sequence[jax.Array], map_stacks: MapStacks) -> dict[Stack, jax.Array]:
    """Orthogonalizes what an owner received. The results are the rows ``(receivers, rows, width)`` of each stack."""
    made = {}
    # Only mixed stacks need branches, and take one for all. Between two branches devices would wait for each other.
    for mixed in sorted({stack.mixed for stack in stacks}):
        own = {stack: rows for stack, rows in zip(stacks, received, strict=True) if stack.mixed == mixed}
        made.update(zip(own, _in_branches([*own], map_stacks, [*own.values()]), strict=True))
    return made


def _in_branches(stacks: Sequence[Stack], map_stacks: MapStacks, received: Sequence[jax.Array]) -> list[jax.Array]:
    """Does the work in stacks, in a branch for each combination of numbers that devices hold in them."""
    held = list(zip(*(stack.held_by_device() for stack in stacks), strict=True))
    # Devices that hold the same numbers share a branch, since each branch costs time to compile.
    programs = list(dict.fromkeys(held))
    branches = [partial(_orthogonalized, stacks, map_stacks, program) for program in programs]
    if len(branches) == 1:
        return branches[0](received)
    chosen = jnp.asarray([programs.index(own) for own in held])
    return jax.lax.switch(chosen[jax.lax.axis_index(tuple(stacks[0].sizes))], branches, received)


def _orthogonalized(
    stacks: Sequence[Stack], map_stacks: MapStacks, held: Sequence[Held], received: Sequence[jax.Array]
) -> list[jax.Array]:
    """Makes the rows that owners return if they hold these numbers in each stack."""
    # All at once, so that small matrices of several kinds and stacks share one product.
    blocks = list(chain.from_iterable(map(open_rows, stacks, held, received)))
    results = iter(map_stacks([matrices for matrices, _ in blocks], [name for _, name in blocks]))
    return [close_rows(stack, own, results) for stack, own in zip(stacks, held, strict=True)]


def _return(stack: Stack, made: jax.Array) -> dict[Matrix, jax.Array]:
    """Returns a stack. The result has this device's pieces of the results, by the first matrix of each run."""
    way = stack.back
    if way.divided:
        made = jax.lax.all_to_all(made, way.divided, 0, 0, tiled=True)
    if way.copied:
        made = jax.lax.all_gather(made, way.copied, axis=0, tiled=True)
    done, start = {}, 0
    for held, alike in stack.alike(chain.from_iterable(way.owners)):
        rows = made[start : start + len(alike)]
        start += len(alike)
        for (kind, turns), pieces in zip(stack.contents(held), read(stack, way, held, rows), strict=True):
            end = 0
            # Slices of one leaf's neighbors, not a gather by index, since XLA fuses a slice with its use.
            for first, many in stack.runs(kind, turns, alike):
                end += many
                if first is not None:
                    done[first] = pieces[end - many : end]
    return done
