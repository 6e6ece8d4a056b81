"""Orthogonalization on a mesh: pieces travel to their owners, whole matrices are orthogonalized, pieces travel back."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, islice
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layout import Layout
from muon_optax._routes import (
    Box,
    Kind,
    Leaf,
    Program,
    Route,
    Routes,
    Run,
    Trip,
    piece_shape,
    route_of,
    row_count,
    row_view,
)
from muon_optax._shardings import AnyMesh, Dims, spec_of, typed_sharding

Pieces: TypeAlias = dict[int, jax.Array]  # (units, *piece) by the number of the first unit
MapStacks: TypeAlias = Callable[[Sequence[jax.Array]], list[jax.Array]]
Sizes: TypeAlias = Mapping[str, int]


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
        stack = _as_stack(leaf, arrays[number])
        blocks = map_stacks(layout.to_matrices(stack))
        results[number] = _from_pieces(leaf, [layout.from_matrices(tuple(blocks), stack.shape)], arrays[number])
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
        results[number] = _from_pieces(routes.leaves[number], own, arrays[number])
    return [results[number] for number in range(len(arrays))]


def _travel(routes: Routes, trip: Trip, map_stacks: MapStacks, arrays: Sequence[jax.Array]) -> Pieces:
    """The results of one trip: the pieces that this device holds."""
    sizes = routes.sizes
    received = {box.route: _send(box, routes, trip, arrays) for box in trip.there}
    done = _work(sizes, trip, map_stacks, received, trip.common, before=())

    def work_of_class(program: Program) -> list[jax.Array]:
        made = _work(sizes, trip, map_stacks, received, program, before=trip.common)
        return [_filled_up(made[box.route], box, sizes, box.rows - _height(done[box.route])) for box in trip.back]

    if trip.classes:
        branches = [partial(work_of_class, program) for program in trip.classes]
        own = jax.lax.switch(jnp.asarray(trip.class_of)[jax.lax.axis_index(tuple(sizes))], branches)
        for box, rows in zip(trip.back, own, strict=True):
            done[box.route].append(rows)
    pieces: Pieces = {}
    for box in trip.back:
        pieces |= _unpack(box, routes, trip, _return(box.route, _filled_up(done[box.route], box, sizes, box.rows)))
    return pieces


def _send(box: Box, routes: Routes, trip: Trip, arrays: Sequence[jax.Array]) -> jax.Array:
    """Packs a box and sends it: ``(senders, rows, width)``, from each sender its pieces of this device's units."""
    along = _count(box.route.axes, routes.sizes)
    packers = [
        partial(_pack, box, routes, trip, arrays, slice(first, first + along))
        for first in range(0, len(box.own), along)
    ]
    # Every plane holds all pieces, and each packs those that its own owners need.
    here = jax.lax.axis_index(box.route.planes) if box.route.planes else 0
    packed = jax.lax.switch(here, packers) if len(packers) > 1 else packers[0]()
    return jax.lax.all_to_all(packed, box.route.axes, 0, 0, tiled=True) if box.route.axes else packed


def _pack(box: Box, routes: Routes, trip: Trip, arrays: Sequence[jax.Array], plane: slice) -> jax.Array:
    """This device's pieces of the units of one plane's owners, as ``(owners, rows, width)``."""
    dtype, regions = jnp.dtype(box.route.dtype), []
    for run, numbers in zip(_runs_of(box, trip, routes, "there"), box.common, strict=True):
        chosen = numbers[:, plane]
        pieces = _gathered(routes, run.kind, chosen.reshape(-1).tolist(), arrays).astype(dtype)
        rows = _to_rows(pieces, run.kind, box.width)
        by_owner = jnp.swapaxes(rows.reshape(*chosen.shape, *rows.shape[1:]), 0, 1)
        regions.append(by_owner.reshape(chosen.shape[1], -1, box.width))
    own = box.own[plane]
    height = box.rows - _height(regions)
    parts, gap = [], 0
    for units in own:
        rows = [
            _to_rows(_piece(routes, unit, arrays).astype(dtype), routes.units[unit].kind, box.width) for unit in units
        ]
        # Owners without units leave one gap together: their number can be large.
        if rows and gap:
            parts.append(jnp.zeros((gap, box.width), dtype))
            gap = 0
        parts += rows
        gap += height - sum(part.shape[0] for part in rows)
    last = jnp.concatenate([*parts, jnp.zeros((gap, box.width), dtype)])
    return jnp.concatenate([*regions, last.reshape(len(own), height, box.width)], axis=1)


def _unpack(box: Box, routes: Routes, trip: Trip, returned: jax.Array) -> Pieces:
    """The inverse of :func:`_pack` for the results ``(owners, rows, width)``."""
    pieces, first = {}, 0
    for run, numbers in zip(_runs_of(box, trip, routes, "back"), box.common, strict=True):
        height = row_count(run.kind, "back", box.width, routes.sizes)
        rows = returned[:, first : first + run.turns * height]
        by_turn = jnp.swapaxes(rows.reshape(-1, run.turns, height, box.width), 0, 1).reshape(-1, height, box.width)
        whole = _from_rows(by_turn, run.kind, piece_shape(run.kind, "back", routes.sizes))
        for start, end, unit in _ranges(routes, numbers.reshape(-1).tolist()):
            if unit is not None:
                pieces[unit] = whole[start:end]
        first += run.turns * height
    for owner, units in enumerate(box.own):
        at = first
        for unit in units:
            kind = routes.units[unit].kind
            height = row_count(kind, "back", box.width, routes.sizes)
            rows = returned[owner, at : at + height]
            pieces[unit] = _from_rows(rows, kind, piece_shape(kind, "back", routes.sizes))[None]
            at += height
    return pieces


def _runs_of(box: Box, trip: Trip, routes: Routes, way: str) -> list[Run]:
    return [run for run in trip.common if route_of(run.kind, way, routes.sizes) == box.route]


def _return(route: Route, filled: jax.Array) -> jax.Array:
    """Sends results back: ``(owners, rows, width)``, from each owner this device's pieces of its units."""
    if route.axes:
        filled = jax.lax.all_to_all(filled, route.axes, 0, 0, tiled=True)
    return jax.lax.all_gather(filled, route.planes, axis=0, tiled=True) if route.planes else filled


def _work(
    sizes: Sizes,
    trip: Trip,
    map_stacks: MapStacks,
    received: Mapping[Route, jax.Array],
    program: Program,
    before: Program,
) -> dict[Route, list[jax.Array]]:
    """An owner's work: takes the units of the runs in ``program`` from the boxes and makes the rows to return.

    Their rows in the boxes begin where those of ``before`` end.
    """
    taken, blocks = dict.fromkeys(received, 0), []
    there, back = ({box.route: box for box in boxes} for boxes in (trip.there, trip.back))
    for number, (kind, turns) in enumerate((*before, *program)):
        box = there[route_of(kind, "there", sizes)]
        first, count = taken[box.route], turns * row_count(kind, "there", box.width, sizes)
        taken[box.route] += count
        if number >= len(before):
            rows = received[box.route][:, first : first + count].reshape(-1, turns, count // turns, box.width)
            pieces = _from_rows(rows, kind, piece_shape(kind, "there", sizes))
            units = jax.vmap(partial(_join, dims=kind.there, sizes=sizes), in_axes=1)(pieces)
            blocks.append(_stacked(kind).to_matrices(units))
    results = iter(map_stacks(list(chain.from_iterable(blocks))))
    made: dict[Route, list[jax.Array]] = {route: [] for route in back}
    for (kind, turns), parts in zip(program, blocks, strict=True):
        units = _stacked(kind).from_matrices(tuple(islice(results, len(parts))), (turns, *kind.shape))
        box = back[route_of(kind, "back", sizes)]
        divided = jax.vmap(partial(_divide, dims=kind.back, sizes=sizes), out_axes=1)(units.astype(kind.dtype))
        rows = _to_rows(divided, kind, box.width)
        made[box.route].append(rows.reshape(rows.shape[0], -1, box.width))
    return made


def _stacked(kind: Kind) -> Layout:
    return Layout("b" + kind.layout.axes, kind.layout.split)


def _height(rows: Sequence[jax.Array]) -> int:
    return sum(part.shape[1] for part in rows)


def _filled_up(rows: Sequence[jax.Array], box: Box, sizes: Sizes, height: int) -> jax.Array:
    """``rows`` below each other and zeros up to ``height``."""
    gap = jnp.zeros((_count(box.route.axes, sizes), height - _height(rows), box.width), box.route.dtype)
    return jnp.concatenate([*rows, gap], axis=1)


def _count(axes: Sequence[str], sizes: Sizes) -> int:
    return math.prod(sizes[axis] for axis in axes)


def _ranges(routes: Routes, numbers: Sequence[int]) -> Iterator[tuple[int, int, int | None]]:
    """Positions from start to end that hold units of one leaf one after the other, and the first unit, or no units."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end < len(numbers) and _continues(routes, numbers[end - 1], numbers[end]):
            continue
        yield start, end, numbers[start] if numbers[start] >= 0 else None
        start = end


def _continues(routes: Routes, before: int, here: int) -> bool:
    if before < 0 or here < 0:
        return before == here
    return here == before + 1 and routes.units[here].leaf == routes.units[before].leaf


def _gathered(routes: Routes, kind: Kind, numbers: Sequence[int], arrays: Sequence[jax.Array]) -> jax.Array:
    """This device's pieces of units of one kind, ``(units, *piece)``, with zeros for none."""
    parts = []
    for start, end, first in _ranges(routes, numbers):
        if first is None:
            parts.append(jnp.zeros((end - start, *piece_shape(kind, "there", routes.sizes)), kind.dtype))
        elif routes.units[first].block is None:
            # Units of one leaf in their order: a part of its stack.
            unit = routes.units[first]
            stack = _as_stack(routes.leaves[unit.leaf], arrays[unit.leaf])
            parts.append(stack[unit.position : unit.position + end - start])
        else:
            parts += [_piece(routes, number, arrays)[None] for number in numbers[start:end]]
    return jnp.concatenate([part.astype(kind.dtype) for part in parts])


def _piece(routes: Routes, number: int, arrays: Sequence[jax.Array]) -> jax.Array:
    """This device's piece of a unit."""
    unit = routes.units[number]
    leaf = routes.leaves[unit.leaf]
    piece = _as_stack(leaf, arrays[unit.leaf])[unit.position]
    if unit.block is None:
        return piece
    edges = [0, *accumulate(leaf.layout.split or ())]
    output = unit.kind.layout.axes.index("o")
    return jax.lax.slice_in_dim(piece, edges[unit.block], edges[unit.block + 1], axis=output)


def _as_stack(leaf: Leaf, array: jax.Array) -> jax.Array:
    """A leaf's local array with its batch axes in front, as one."""
    stacks = [position for position, letter in enumerate(leaf.layout.axes) if letter == "b"]
    return jnp.moveaxis(array, stacks, range(len(stacks))).reshape(-1, *leaf.unstacked(array.shape))


def _from_pieces(leaf: Leaf, pieces: Sequence[jax.Array], array: jax.Array) -> jax.Array:
    """This device's part of a leaf from its pieces of all the leaf's units, in their order."""
    stacks = [position for position, letter in enumerate(leaf.layout.axes) if letter == "b"]
    batch = leaf.stacked(array.shape)
    apart = sum(map(len, pieces)) // math.prod(batch)  # one, or the blocks of a split that had owners of their own
    if apart > 1:
        blocks = [block for part in pieces for block in part]
        output = leaf.unstacked(leaf.layout.axes).index("o")
        groups = [blocks[first : first + apart] for first in range(0, len(blocks), apart)]
        pieces = [jnp.concatenate(group, axis=output)[None] for group in groups]
    stack = jnp.concatenate(pieces)
    return jnp.moveaxis(stack.reshape(*batch, *stack.shape[1:]), range(len(stacks)), stacks).astype(array.dtype)


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
