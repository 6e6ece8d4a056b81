"""Orthogonalization on a mesh: pieces travel to their owners, whole matrices are orthogonalized, pieces travel back."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.exchange.owner import MapStacks, Owner
from muon_optax._mesh.exchange.packing import pack, unpack
from muon_optax._mesh.exchange.pieces import Pieces, as_stack, count, from_pieces
from muon_optax._mesh.routes.model import Box, Leaf, Route, Routes, Trip
from muon_optax._mesh.shardings import AnyMesh, spec_of, typed_sharding


def exchange(
    routes: Routes, mesh: AnyMesh, shardings: Mapping[str, NamedSharding], map_stacks: MapStacks
) -> Callable[..., list[jax.Array]]:
    """A function from the arrays of ``routes.leaves`` to their orthogonalized counterparts.

    Args:
        routes: Where everything goes.
        mesh: The mesh, of Auto or of Explicit axes.
        shardings: How the results are to lie, by path.
        map_stacks: From stacks ``(matrices, rows, cols)`` on one device to the same orthogonalized.
    """
    run = jax.shard_map(
        partial(_on_one_device, routes, map_stacks),
        mesh=mesh,
        in_specs=tuple(spec_of(leaf.there) for leaf in routes.leaves),
        out_specs=[spec_of(leaf.back) for leaf in routes.leaves],
        # What a device computes depends on its place in the mesh in ways that the types of arrays can't follow.
        check_vma=False,
    )

    def padded(arrays: Sequence[jax.Array]) -> list[jax.Array]:
        # Zeros beyond the edge change no other row or column of the result.
        results = run(
            *(
                _lying_as(spec_of(leaf.there), _pad(array, leaf))
                for array, leaf in zip(arrays, routes.leaves, strict=True)
            )
        )
        return [
            _lying_as(shardings[leaf.path].spec, _crop(result, leaf.given))
            for result, leaf in zip(results, routes.leaves, strict=True)
        ]

    return padded


def _pad(array: jax.Array, leaf: Leaf) -> jax.Array:
    widths = [(0, wanted - size) for wanted, size in zip(leaf.shape, leaf.given, strict=True)]
    return jnp.pad(array, widths) if leaf.shape != leaf.given else array


def _lying_as(spec: PartitionSpec, array: jax.Array) -> jax.Array:
    """``array`` with ``spec`` in its type, if it has one; under Auto axes XLA sees to that.

    The plan knows nothing of mesh axes of one device, and in a type they count.
    """
    typed = typed_sharding(array)
    if typed is None or typed.spec == spec:
        return array
    return jax.sharding.reshard(array, NamedSharding(typed.mesh, spec))


def _crop(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return array[tuple(slice(size) for size in shape)] if array.shape != shape else array


def _on_one_device(routes: Routes, map_stacks: MapStacks, *arrays: jax.Array) -> list[jax.Array]:
    results: dict[int, jax.Array] = {}
    for number in routes.local:
        leaf = routes.leaves[number]
        if arrays[number].size == 0:
            results[number] = arrays[number]
            continue
        layout = Layout("b" + "".join(leaf.unstacked(leaf.layout.axes)), leaf.layout.split)
        stack = as_stack(leaf, arrays[number])
        blocks = map_stacks(layout.to_matrices(stack))
        results[number] = from_pieces(leaf, [layout.from_matrices(tuple(blocks), stack.shape)], arrays[number])
    pieces: Pieces = {}
    for trip in routes.trips:
        if pieces:
            # The next trip starts when this one has ended, so that the boxes of one are in memory at a time.
            arrays, pieces = jax.lax.optimization_barrier((arrays, pieces))
        pieces |= _travel(routes, trip, map_stacks, arrays)
    pieces_of: dict[int, list[jax.Array]] = {}
    for first in sorted(pieces):
        pieces_of.setdefault(routes.units[first].leaf, []).append(pieces[first])
    for number, own in pieces_of.items():
        results[number] = from_pieces(routes.leaves[number], own, arrays[number])
    return [results[number] for number in range(len(arrays))]


def _travel(routes: Routes, trip: Trip, map_stacks: MapStacks, arrays: Sequence[jax.Array]) -> Pieces:
    """The results of one trip: the pieces that this device holds."""
    received = {box.route: _send(box, routes, arrays) for box in trip.there}
    made = Owner(routes.sizes, trip, map_stacks).work(received)
    pieces: Pieces = {}
    for box in trip.back:
        pieces |= unpack(box, routes, _return(box.route, made[box.route]))
    return pieces


def _send(box: Box, routes: Routes, arrays: Sequence[jax.Array]) -> jax.Array:
    """Packs a box and sends it: ``(senders, rows, width)``, from each sender its pieces of this device's units."""
    along, planes = count(box.route.axes, routes.sizes), count(box.route.planes, routes.sizes)
    packers = [partial(pack, box, routes, arrays, plane * along, along) for plane in range(planes)]
    # Every plane holds all pieces, and each packs those that its own owners need.
    here = jax.lax.axis_index(box.route.planes) if box.route.planes else 0
    packed = jax.lax.switch(here, packers) if planes > 1 else packers[0]()
    return jax.lax.all_to_all(packed, box.route.axes, 0, 0, tiled=True) if box.route.axes else packed


def _return(route: Route, filled: jax.Array) -> jax.Array:
    """Sends results back: ``(owners, rows, width)``, from each owner this device's pieces of its units."""
    if route.axes:
        filled = jax.lax.all_to_all(filled, route.axes, 0, 0, tiled=True)
    return jax.lax.all_gather(filled, route.planes, axis=0, tiled=True) if route.planes else filled
