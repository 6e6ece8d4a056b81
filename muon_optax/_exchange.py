"""Orthogonalization on a mesh: pieces travel to their owners, whole matrices are orthogonalized, pieces travel back."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from muon_optax._routes import (
    Box,
    Kind,
    Leaf,
    Program,
    Route,
    Routes,
    Trip,
    piece_shape,
    route_of,
    row_count,
    row_view,
)
from muon_optax._shardings import AnyMesh, Dims, spec_of, typed_sharding

MapMatrices: TypeAlias = Callable[[Sequence[jax.Array]], list[jax.Array]]
Sizes: TypeAlias = Mapping[str, int]


def exchange(routes: Routes, mesh: AnyMesh, map_matrices: MapMatrices) -> Callable[..., list[jax.Array]]:
    """A function from the arrays of ``routes.leaves`` to their orthogonalized counterparts.

    Args:
        routes: Where everything goes.
        mesh: The mesh, of Auto or of Explicit axes.
        map_matrices: From arrays ``(*batch, rows, cols)`` to the same orthogonalized, on one device.
    """
    run = jax.shard_map(
        partial(_on_one_device, routes, map_matrices),
        mesh=mesh,
        in_specs=tuple(spec_of(leaf.there) for leaf in routes.leaves),
        out_specs=[spec_of(leaf.back) for leaf in routes.leaves],
        # What a device computes depends on its place in the mesh in ways that the types of arrays can't follow.
        check_vma=False,
    )

    def padded(arrays: Sequence[jax.Array]) -> list[jax.Array]:
        # Zeros beyond the edge change no other row or column of the result.
        results = run(*(_arriving(_pad(array, leaf), leaf) for array, leaf in zip(arrays, routes.leaves, strict=True)))
        return [_crop(result, leaf.given) for result, leaf in zip(results, routes.leaves, strict=True)]

    return padded


def _pad(array: jax.Array, leaf: Leaf) -> jax.Array:
    widths = [(0, wanted - size) for wanted, size in zip(leaf.shape, leaf.given, strict=True)]
    return jnp.pad(array, widths) if leaf.shape != leaf.given else array


def _arriving(array: jax.Array, leaf: Leaf) -> jax.Array:
    """``array`` lying as the plan says, where its type says otherwise; under Auto axes XLA sees to that."""
    typed = typed_sharding(array)
    wanted = spec_of(leaf.there)
    if typed is None or typed.is_equivalent_to(NamedSharding(typed.mesh, wanted), array.ndim):
        return array
    return jax.sharding.reshard(array, NamedSharding(typed.mesh, wanted))


def _crop(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return array[tuple(slice(size) for size in shape)] if array.shape != shape else array


def _on_one_device(routes: Routes, map_matrices: MapMatrices, *arrays: jax.Array) -> list[jax.Array]:
    results: dict[int, jax.Array] = {}
    for number in routes.local:
        leaf = routes.leaves[number]
        blocks = map_matrices(leaf.layout.to_matrices(arrays[number]))
        results[number] = leaf.layout.from_matrices(tuple(blocks), arrays[number].shape)
    pieces: dict[int, jax.Array] = {}
    for trip in routes.trips:
        if pieces:
            # The next trip starts when this one has ended, so that the boxes of one are in memory at a time.
            arrays, pieces = jax.lax.optimization_barrier((arrays, pieces))
        pieces.update(_travel(routes, trip, map_matrices, arrays))
    pieces_of: dict[int, list[jax.Array]] = {}
    for number, unit in enumerate(routes.units):
        pieces_of.setdefault(unit.leaf, []).append(pieces[number])
    for number, leaf in enumerate(routes.leaves):
        if number not in results:
            results[number] = _from_pieces(leaf, pieces_of[number], arrays[number])
    return [results[number] for number in range(len(arrays))]


def _travel(routes: Routes, trip: Trip, map_matrices: MapMatrices, arrays: Sequence[jax.Array]) -> dict[int, jax.Array]:
    """The results of one trip: for each unit the piece that this device holds."""
    sizes = routes.sizes
    received = {box.route: _send(box, routes, arrays) for box in trip.there}
    work = partial(_work, routes.sizes, trip, map_matrices, received)
    done = work(trip.common, before=())

    def work_of_class(program: Program) -> list[jax.Array]:
        made = work(program, before=trip.common)
        return [_filled_up(made[box.route], box, sizes, box.rows - _height(done[box.route])) for box in trip.back]

    if trip.classes:
        branches = [partial(work_of_class, program) for program in trip.classes]
        own = jax.lax.switch(jnp.asarray(trip.class_of)[jax.lax.axis_index(tuple(sizes))], branches)
        for box, rows in zip(trip.back, own, strict=True):
            done[box.route].append(rows)
    pieces = {}
    for box in trip.back:
        returned = _return(box.route, _filled_up(done[box.route], box, sizes, box.rows))
        for owner, units in enumerate(box.contents):
            first = 0
            for unit in units:
                kind = routes.units[unit].kind
                count = row_count(kind, "back", box.width, sizes)
                rows = returned[owner, first : first + count]
                pieces[unit] = _from_rows(rows, kind, piece_shape(kind, "back", sizes))
                first += count
    return pieces


def _send(box: Box, routes: Routes, arrays: Sequence[jax.Array]) -> jax.Array:
    """Packs a box and sends it: ``(senders, rows, width)``, from each sender its pieces of this device's units."""
    along = _count(box.route.axes, routes.sizes)
    planes = [box.contents[first : first + along] for first in range(0, len(box.contents), along)]
    packers = [partial(_pack, box, routes, arrays, contents) for contents in planes]
    # Every plane holds all pieces, and each packs those that its own owners need.
    here = jax.lax.axis_index(box.route.planes) if box.route.planes else 0
    packed = jax.lax.switch(here, packers) if len(packers) > 1 else packers[0]()
    return jax.lax.all_to_all(packed, box.route.axes, 0, 0, tiled=True) if box.route.axes else packed


def _pack(box: Box, routes: Routes, arrays: Sequence[jax.Array], contents: Sequence[tuple[int, ...]]) -> jax.Array:
    """This device's pieces of the units of one plane's owners, as ``(owners, rows, width)``."""
    dtype = jnp.dtype(box.route.dtype)
    parts, gap = [], 0
    for units in contents:
        rows = [
            _to_rows(_piece(routes, unit, arrays).astype(dtype), routes.units[unit].kind, box.width) for unit in units
        ]
        # Owners without units leave one gap together: their number can be large.
        if rows and gap:
            parts.append(jnp.zeros((gap, box.width), dtype))
            gap = 0
        parts += rows
        gap += box.rows - sum(part.shape[0] for part in rows)
    packed = jnp.concatenate([*parts, jnp.zeros((gap, box.width), dtype)])
    return packed.reshape(len(contents), box.rows, box.width)


def _return(route: Route, filled: jax.Array) -> jax.Array:
    """Sends results back: ``(owners, rows, width)``, from each owner this device's pieces of its units."""
    if route.axes:
        filled = jax.lax.all_to_all(filled, route.axes, 0, 0, tiled=True)
    return jax.lax.all_gather(filled, route.planes, axis=0, tiled=True) if route.planes else filled


def _work(
    sizes: Sizes,
    trip: Trip,
    map_matrices: MapMatrices,
    received: Mapping[Route, jax.Array],
    program: Program,
    before: Program,
) -> dict[Route, list[jax.Array]]:
    """An owner's work: takes units of the kinds in ``program`` from the boxes and makes the rows to return.

    Their rows in the boxes begin where those of ``before`` end.
    """
    taken, blocks = dict.fromkeys(received, 0), []
    there, back = ({box.route: box for box in boxes} for boxes in (trip.there, trip.back))
    for number, kind in enumerate((*before, *program)):
        box = there[route_of(kind, "there", sizes)]
        first, count = taken[box.route], row_count(kind, "there", box.width, sizes)
        taken[box.route] += count
        if number >= len(before):
            rows = received[box.route][:, first : first + count]
            pieces = _from_rows(rows, kind, piece_shape(kind, "there", sizes))
            blocks.append(kind.layout.to_matrices(_join(pieces, kind.there, sizes)))
    results = iter(map_matrices(list(chain.from_iterable(blocks))))
    made: dict[Route, list[jax.Array]] = {route: [] for route in back}
    for kind, unit in zip(program, blocks, strict=True):
        whole = kind.layout.from_matrices(tuple(islice(results, len(unit))), kind.shape)
        box = back[route_of(kind, "back", sizes)]
        made[box.route].append(_to_rows(_divide(whole.astype(kind.dtype), kind.back, sizes), kind, box.width))
    return made


def _height(rows: Sequence[jax.Array]) -> int:
    return sum(part.shape[1] for part in rows)


def _filled_up(rows: Sequence[jax.Array], box: Box, sizes: Sizes, height: int) -> jax.Array:
    """``rows`` below each other and zeros up to ``height``."""
    gap = jnp.zeros((_count(box.route.axes, sizes), height - _height(rows), box.width), box.route.dtype)
    return jnp.concatenate([*rows, gap], axis=1)


def _count(axes: Sequence[str], sizes: Sizes) -> int:
    return math.prod(sizes[axis] for axis in axes)


def _piece(routes: Routes, number: int, arrays: Sequence[jax.Array]) -> jax.Array:
    """This device's piece of a unit."""
    unit = routes.units[number]
    leaf, index = routes.leaves[unit.leaf], iter(unit.stacked)
    piece = arrays[unit.leaf][tuple(next(index) if letter == "b" else slice(None) for letter in leaf.layout.axes)]
    if unit.block is None:
        return piece
    split = leaf.layout.split or ()
    output = unit.kind.layout.axes.index("o")
    return jax.lax.slice_in_dim(piece, sum(split[: unit.block]), sum(split[: unit.block + 1]), axis=output)


def _from_pieces(leaf: Leaf, blocks: Sequence[jax.Array], array: jax.Array) -> jax.Array:
    """This device's part of a leaf from its pieces of all the leaf's units, in their order."""
    stacks = [position for position, letter in enumerate(leaf.layout.axes) if letter == "b"]
    batch = [array.shape[position] for position in stacks]
    apart = len(blocks) // math.prod(batch)  # one, or the blocks of a split that had owners of their own
    output = leaf.unstacked(leaf.layout.axes).index("o")
    units = [
        blocks[first] if apart == 1 else jnp.concatenate(blocks[first : first + apart], axis=output)
        for first in range(0, len(blocks), apart)
    ]
    if not stacks:
        return units[0].astype(array.dtype)
    stacked = jnp.stack(units).reshape(*batch, *units[0].shape)
    return jnp.moveaxis(stacked, range(len(stacks)), stacks).astype(array.dtype)


def _to_rows(pieces: jax.Array, kind: Kind, width: int) -> jax.Array:
    """Pieces ``(*devices, *piece)`` as rows of a box: panels of ``width`` columns one below the other.

    If the columns are no multiple of the width, the elements in order.
    """
    lead = pieces.shape[: pieces.ndim - len(kind.shape)]
    rows, columns = row_view(kind, pieces.shape[len(lead) :])
    if columns % width == 0:
        matrix = pieces.reshape(*lead, rows, columns)
        # Slices and not a transposition: a TPU's registers hold 8 x 128 elements of a panel as they are.
        return jnp.concatenate(jnp.split(matrix, columns // width, axis=-1), axis=-2)
    elements = pieces.reshape(*lead, rows * columns)
    padding = [(0, 0)] * len(lead) + [(0, -elements.shape[-1] % width)]
    return jnp.pad(elements, padding).reshape(*lead, -1, width)


def _from_rows(rows: jax.Array, kind: Kind, piece: tuple[int, ...]) -> jax.Array:
    """The inverse of :func:`_to_rows`: ``(*devices, *piece)``."""
    lead, width = rows.shape[:-2], rows.shape[-1]
    _, columns = row_view(kind, piece)
    if columns % width == 0:
        return jnp.concatenate(jnp.split(rows, columns // width, axis=-2), axis=-1).reshape(*lead, *piece)
    return rows.reshape(*lead, -1)[..., : math.prod(piece)].reshape(*lead, *piece)


def _grid(dims: Dims, sizes: Sizes) -> tuple[tuple[int, ...], list[int]]:
    """The sizes of the mesh axes that ``dims`` name, in the order of the mesh, and for each axis its place in there."""
    present = {axis for part in dims for axis in part}
    ordered = [axis for axis in sizes if axis in present]
    return tuple(sizes[axis] for axis in ordered), [ordered.index(axis) for part in dims for axis in part]


def _join(pieces: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """Pieces ``(devices, *piece)``, devices in the order of the mesh, as the whole that they are divided from."""
    grid, places = _grid(dims, sizes)
    spread = pieces.reshape(*grid, *pieces.shape[1:])
    order, taken = [], 0
    for axis, part in enumerate(dims):
        order += [*places[taken : taken + len(part)], len(grid) + axis]
        taken += len(part)
    shape = [size * _count(part, sizes) for size, part in zip(pieces.shape[1:], dims, strict=True)]
    return jnp.transpose(spread, order).reshape(shape)


def _divide(whole: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """The inverse of :func:`_join`."""
    grid, places = _grid(dims, sizes)
    shape, at, order, taken = [], 0, [0] * len(grid), 0
    rest = []
    for size, part in zip(whole.shape, dims, strict=True):
        for axis in part:
            order[places[taken]] = at
            shape.append(sizes[axis])
            taken, at = taken + 1, at + 1
        shape.append(size // _count(part, sizes))
        rest.append(at)
        at += 1
    spread = jnp.transpose(whole.reshape(shape), order + rest)
    return spread.reshape(math.prod(grid), *(spread.shape[len(grid) :]))
