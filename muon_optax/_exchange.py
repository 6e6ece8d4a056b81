"""Orthogonalization on a mesh: pieces travel to their owners, whole matrices are orthogonalized, pieces travel back."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, groupby, islice
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layout import Layout
from muon_optax._routes import (
    Box,
    Kind,
    Leaf,
    Region,
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
Program: TypeAlias = Mapping[int, Kind]  # what a device does in which runs of a trip
# So many panels are cut and joined as slices: a TPU's registers hold 8 x 128 elements of a panel as they are, and it is
# spared a transposition (5% of the cycles of Llama-7B's update on 256 chips). More would make a long program.
_FEW_PANELS = 48


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
    received = {box.route: _send(box, routes, arrays) for box in trip.there}
    made = _work(routes.sizes, trip, map_stacks, received)
    pieces: Pieces = {}
    for box in trip.back:
        pieces |= _unpack(box, routes, _return(box.route, made[box.route]))
    return pieces


def _send(box: Box, routes: Routes, arrays: Sequence[jax.Array]) -> jax.Array:
    """Packs a box and sends it: ``(senders, rows, width)``, from each sender its pieces of this device's units."""
    along, planes = _count(box.route.axes, routes.sizes), _count(box.route.planes, routes.sizes)
    packers = [partial(_pack, box, routes, arrays, plane * along, along) for plane in range(planes)]
    # Every plane holds all pieces, and each packs those that its own owners need.
    here = jax.lax.axis_index(box.route.planes) if box.route.planes else 0
    packed = jax.lax.switch(here, packers) if planes > 1 else packers[0]()
    return jax.lax.all_to_all(packed, box.route.axes, 0, 0, tiled=True) if box.route.axes else packed


def _pack(box: Box, routes: Routes, arrays: Sequence[jax.Array], first: int, owners: int) -> jax.Array:
    """This device's pieces of the units of so many owners, as ``(owners, rows, width)``."""
    columns = []
    kinds = [_kinds(routes, region) for region in box.regions]
    for _, same in groupby(range(first, first + owners), lambda owner: [own[owner] for own in kinds]):
        alike = list(same)
        parts, end = [], 0
        for region, own in zip(box.regions, kinds, strict=True):
            kind = own[alike[0]]
            if kind is None:
                continue
            chosen = region.units[:, alike[0] : alike[-1] + 1]
            rows = _to_rows(_gathered(routes, kind, chosen.reshape(-1).tolist(), arrays), kind, box.width)
            by_owner = jnp.swapaxes(rows.reshape(*chosen.shape, *rows.shape[1:]), 0, 1)
            parts += [_empty(box, len(alike), region.first - end), by_owner.reshape(len(alike), -1, box.width)]
            end = region.first + parts[-1].shape[1]
        columns.append(jnp.concatenate([*parts, _empty(box, len(alike), box.rows - end)], axis=1))
    return jnp.concatenate(columns)


def _unpack(box: Box, routes: Routes, returned: jax.Array) -> Pieces:
    """The inverse of :func:`_pack` for the results ``(owners, rows, width)``."""
    pieces = {}
    for region in box.regions:
        kinds = _kinds(routes, region)
        for kind, same in groupby(range(len(kinds)), kinds.__getitem__):
            alike = list(same)
            if kind is None:
                continue
            chosen = region.units[:, alike[0] : alike[-1] + 1]
            height = row_count(kind, "back", box.width, routes.sizes)
            rows = returned[alike[0] : alike[-1] + 1, region.first : region.first + region.turns * height]
            by_turn = jnp.swapaxes(rows.reshape(-1, region.turns, height, box.width), 0, 1)
            piece = piece_shape(kind, "back", routes.sizes)
            whole = _from_rows(by_turn.reshape(-1, height, box.width), kind, piece)
            for start, end, unit in _ranges(routes, chosen.reshape(-1).tolist()):
                if unit is not None:
                    pieces[unit] = whole[start:end]
    return pieces


def _kinds(routes: Routes, region: Region) -> list[Kind | None]:
    """The kind of each owner's units."""
    return [routes.units[unit].kind if unit >= 0 else None for unit in region.units.max(axis=0).tolist()]


def _empty(box: Box, owners: int, rows: int) -> jax.Array:
    return jnp.zeros((owners, rows, box.width), box.route.dtype)


def _return(route: Route, filled: jax.Array) -> jax.Array:
    """Sends results back: ``(owners, rows, width)``, from each owner this device's pieces of its units."""
    if route.axes:
        filled = jax.lax.all_to_all(filled, route.axes, 0, 0, tiled=True)
    return jax.lax.all_gather(filled, route.planes, axis=0, tiled=True) if route.planes else filled


def _work(
    sizes: Sizes, trip: Trip, map_stacks: MapStacks, received: Mapping[Route, jax.Array]
) -> dict[Route, jax.Array]:
    """An owner's work: takes its units from the boxes that it ``received`` and fills those to return."""
    there, back = (
        [
            {box.route: (box, region) for box in boxes for region in box.regions if region.run == run}
            for run in range(len(trip.runs))
        ]
        for boxes in (trip.there, trip.back)
    )

    def take(run: int, kind: Kind) -> tuple[jax.Array, ...]:
        box, region = there[run][route_of(kind, "there", sizes)]
        height = row_count(kind, "there", box.width, sizes)
        rows = received[box.route][:, region.first : region.first + region.turns * height]
        pieces = rows.reshape(-1, region.turns, height, box.width)
        pieces = _from_rows(pieces, kind, piece_shape(kind, "there", sizes))
        return _stacked(kind).to_matrices(jax.vmap(partial(_join, dims=kind.there, sizes=sizes), in_axes=1)(pieces))

    def give(run: int, kind: Kind, blocks: tuple[jax.Array, ...]) -> dict[Route, jax.Array]:
        box, region = back[run][route_of(kind, "back", sizes)]
        units = _stacked(kind).from_matrices(blocks, (region.turns, *kind.shape)).astype(kind.dtype)
        divided = jax.vmap(partial(_divide, dims=kind.back, sizes=sizes), out_axes=1)(units)
        rows = _to_rows(divided, kind, box.width)
        return {box.route: rows.reshape(rows.shape[0], -1, box.width)}

    def together(program: Program) -> dict[int, dict[Route, jax.Array]]:
        taken = {run: take(run, kind) for run, kind in program.items()}
        results = iter(map_stacks(list(chain.from_iterable(taken.values()))))
        return {run: give(run, kind, tuple(islice(results, len(taken[run])))) for run, kind in program.items()}

    def in_a_branch(runs: Sequence[int], program: Program) -> dict[Route, jax.Array]:
        """What the program gives, and zeros where another one gives more."""
        given, filled = together(program), {}
        for box in trip.back:
            regions = [region for region in box.regions if region.run in runs]
            if regions:
                first, end = extent(box, regions)
                own = [
                    (region.first, rows)
                    for region in regions
                    if (rows := given.get(region.run, {}).get(box.route)) is not None
                ]
                filled[box.route] = _joined(box, _count(box.route.axes, sizes), own, first, end)
        return filled

    def extent(box: Box, regions: Sequence[Region]) -> tuple[int, int]:
        kinds = [(region, kind) for region in regions for kind in trip.runs[region.run].kinds]
        heights = [
            region.first + region.turns * row_count(kind, "back", box.width, sizes)
            for region, kind in kinds
            if route_of(kind, "back", sizes) == box.route
        ]
        return min(region.first for region in regions), max(heights)

    # What all devices do is orthogonalized together: it can share batches.
    common = [number for number, run in enumerate(trip.runs) if set(run.kind_of) == {0}]
    made = together({number: trip.runs[number].kinds[0] for number in common})
    parts: dict[Route, list[tuple[int, jax.Array]]] = {
        box.route: [(region.first, made[region.run][box.route]) for region in box.regions if region.run in common]
        for box in trip.back
    }
    here = jax.lax.axis_index(tuple(sizes))
    for runs in _stages({number: run for number, run in enumerate(trip.runs) if number not in common}):
        own = list(zip(*(trip.runs[run].kind_of for run in runs), strict=True))
        programs = list(dict.fromkeys(own))
        branches = [
            {run: trip.runs[run].kinds[kind] for run, kind in zip(runs, program, strict=True) if kind >= 0}
            for program in programs
        ]
        chosen = jnp.asarray([programs.index(program) for program in own])[here]
        given = jax.lax.switch(chosen, [partial(in_a_branch, runs, program) for program in branches])
        for box in trip.back:
            regions = [region for region in box.regions if region.run in runs]
            if regions:
                parts[box.route].append((extent(box, regions)[0], given[box.route]))
    return {box.route: _joined(box, _count(box.route.axes, sizes), parts[box.route], 0, box.rows) for box in trip.back}


def _stages(runs: Mapping[int, Run]) -> list[list[int]]:
    """Runs that differ by device, joined to be chosen by one branch where that writes no more of them out."""

    def written_out(stage: Sequence[int]) -> int:
        programs = set(zip(*(runs[run].kind_of for run in stage), strict=True))
        return sum(kind >= 0 for program in programs for kind in program)

    stages: list[list[int]] = []
    for run in runs:
        if stages and written_out([*stages[-1], run]) <= written_out(stages[-1]) + written_out([run]):
            stages[-1].append(run)
        else:
            stages.append([run])
    return stages


def _joined(box: Box, owners: int, parts: Sequence[tuple[int, jax.Array]], start: int, stop: int) -> jax.Array:
    """The rows of a box from ``start`` to ``stop``, of parts ``(first row, rows)`` and else of zeros."""
    columns, end = [], start
    for first, rows in sorted(parts, key=lambda part: part[0]):
        if first < end:
            # Where parts overlap all but one are zero.
            padded = [
                jnp.pad(rows, [(0, 0), (first - start, stop - first - rows.shape[1]), (0, 0)]) for first, rows in parts
            ]
            return functools.reduce(jnp.add, padded)
        columns += [_empty(box, rows.shape[0], first - end), rows]
        end = first + rows.shape[1]
    return jnp.concatenate([*columns, _empty(box, owners, stop - end)], axis=1)


def _stacked(kind: Kind) -> Layout:
    return Layout("b" + kind.layout.axes, kind.layout.split)


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
        panels = columns // width
        matrix = pieces.reshape(*lead, rows, columns)
        if panels <= _FEW_PANELS:
            return jnp.concatenate(jnp.split(matrix, panels, axis=-1), axis=-2)
        return jnp.swapaxes(matrix.reshape(*lead, rows, panels, width), -2, -3).reshape(*lead, rows * panels, width)
    elements = pieces.reshape(*lead, rows * columns)
    padding = [(0, 0)] * len(lead) + [(0, -elements.shape[-1] % width)]
    return jnp.pad(elements, padding).reshape(*lead, -1, width)


def _from_rows(rows: jax.Array, kind: Kind, piece: tuple[int, ...]) -> jax.Array:
    """The inverse of :func:`_to_rows`: ``(*devices, *piece)``."""
    lead, width = rows.shape[:-2], rows.shape[-1]
    _, columns = row_view(kind, piece)
    if columns % width == 0:
        panels = columns // width
        if panels <= _FEW_PANELS:
            return jnp.concatenate(jnp.split(rows, panels, axis=-2), axis=-1).reshape(*lead, *piece)
        return jnp.swapaxes(rows.reshape(*lead, panels, -1, width), -2, -3).reshape(*lead, *piece)
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
