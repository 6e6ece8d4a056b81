"""Which device of a mesh orthogonalizes which matrix, and how matrices get there and back.

A *unit* is what one device orthogonalizes by itself: one matrix, whole. Where a parameter is divided over mesh axes,
each device holds a *piece* of each of its units. Before the orthogonalization every device sends its piece of a unit to
the unit's owner, in a *box* with all that goes the same way, and afterwards the owner sends each device its piece of
the result. Everything here is static: Python numbers, known when a step is traced.
"""

import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from muon_optax._layout import Layout
from muon_optax._shardings import Dims, in_order, local_shape, spec_of

# Width of a row in a box where pieces have no common width: the lanes of a TPU's register.
_LANES = 128
# Bytes of matrices that travel in one trip in any case. What is more is cut, so that not all is in memory at once.
TRIP_BYTES = 2**28


# Idle devices may keep the others waiting for this share of their time, if that makes the program simpler.
_WAIT = 0.02


@dataclass(frozen=True)
class Leaf:
    """A parameter on the mesh: ``there`` is how the updates lie, ``back`` how the result is to lie."""

    path: str
    given: tuple[int, ...]  # the parameter's shape
    shape: tuple[int, ...]  # the same, with axes that the mesh can't divide filled up with zeros
    layout: Layout
    there: Dims
    back: Dims
    dtype: str  # in which its pieces travel

    def unstacked(self, values: Sequence) -> tuple:
        """Of one value an axis those of a unit: without batch axes."""
        return tuple(value for value, letter in zip(values, self.layout.axes, strict=True) if letter != "b")

    def stacked(self, values: Sequence) -> tuple:
        """Of one value an axis those of the batch axes."""
        return tuple(value for value, letter in zip(values, self.layout.axes, strict=True) if letter == "b")

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The mesh axes that the stack is divided over: a unit stays among the devices that hold its part."""
        return tuple(axis for dims in self.stacked(self.there) for axis in dims)


@dataclass(frozen=True)
class Kind:
    """All that a device has to know to orthogonalize a unit, except which one it is."""

    layout: Layout
    shape: tuple[int, ...]
    there: Dims
    back: Dims
    batch_axes: tuple[str, ...]
    dtype: str

    @property
    def matrix_shapes(self) -> tuple[tuple[int, ...], ...]:
        """``(rows, cols)`` of each block."""
        return self.layout.matrix_shapes(self.shape)


class Unit(NamedTuple):
    """A unit: the leaf it is of, where in the device's part of its stack, and which block of a split."""

    leaf: int
    position: int
    block: int | None
    kind: Kind


@dataclass(frozen=True, order=True)
class Route:
    """What goes the same way: pieces divided over ``axes``, and owned by any device of ``planes`` times ``axes``."""

    axes: tuple[str, ...]
    planes: tuple[str, ...]
    dtype: str

    @property
    def pool(self) -> frozenset[str]:
        """The mesh axes over which owners differ."""
        return frozenset(self.axes + self.planes)


@dataclass(frozen=True)
class Run:
    """So many turns in a row in which each device has units of one kind, or none."""

    kinds: tuple[Kind, ...]
    kind_of: tuple[int, ...]  # by device a position in ``kinds``, or -1 for nothing to do
    turns: int


class Region(NamedTuple):
    """Where in a box the units of one run are: for each owner the rows of its turns, one below the other."""

    run: int  # its position in the trip
    turns: int
    first: int
    units: np.ndarray  # (turns, owners), planes major; -1 for none that goes this way


@dataclass(frozen=True)
class Box:
    """The pieces that travel together: for every owner as many rows of one width.

    Regions overlap where no owner has units in both.
    """

    route: Route
    width: int
    rows: int
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Trip:
    """One way there and back: all devices do all runs, each with units of its own."""

    turns: tuple[np.ndarray, ...]  # for every device its unit of the turn, or -1
    runs: tuple[Run, ...]
    there: tuple[Box, ...]
    back: tuple[Box, ...]


@dataclass(frozen=True)
class Routes:
    """Where everything goes; ``local`` are the leaves of which each device holds whole matrices and a fair share."""

    sizes: Mapping[str, int]
    leaves: tuple[Leaf, ...]
    units: tuple[Unit, ...]
    local: tuple[int, ...]
    trips: tuple[Trip, ...]
    costs: Mapping[Kind, float]
    local_cost: float  # of the local leaves, on each device

    def describe(self) -> list[str]:
        """A line for each shape of matrices: how many there are, how many a device has, how they lie."""
        owned = Counter()
        for trip in self.trips:
            for turn in trip.turns:
                owned.update((device, self.units[unit].kind) for device, unit in enumerate(turn.tolist()) if unit >= 0)
        lines = []
        for kind in self.costs:
            counts = [owned[device, kind] for device in range(math.prod(self.sizes.values()))]
            shapes = " + ".join(f"{rows} x {columns}" for rows, columns in kind.matrix_shapes)
            ways = f"from {spec_of(kind.there)} to {spec_of(kind.back)}"
            stack = f", stacks over {', '.join(kind.batch_axes)}" if kind.batch_axes else ""
            each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
            lines.append(f"{sum(counts)} of {shapes}: {each} a device, {ways} in {kind.dtype}{stack}")
        lines += [f"{self.leaves[number].path}: on the devices where its matrices are" for number in self.local]
        return lines

    @cached_property
    def loads(self) -> np.ndarray:
        """The cost of all units of each device, those of local leaves left out."""
        load = np.zeros(math.prod(self.sizes.values()))
        for trip in self.trips:
            for turn in trip.turns:
                load += [0 if unit < 0 else self.costs[self.units[unit].kind] for unit in turn]
        return load


def find_routes(
    leaves: Sequence[Leaf],
    sizes: Mapping[str, int],
    cost: Callable[[int, int], float],
    trip_bytes: int = TRIP_BYTES,
) -> Routes:
    """Gives every unit an owner so that no device has more than its share and one unit.

    Args:
        leaves: The parameters.
        sizes: Devices along each mesh axis.
        cost: Of orthogonalizing a matrix of so many rows and columns.
        trip_bytes: Of matrices on a device that need not be cut into several trips.
    """
    sizes = {axis: size for axis, size in sizes.items() if size > 1}
    local = tuple(number for number, leaf in enumerate(leaves) if _is_local(leaf, sizes))
    units = tuple(
        unit for number, leaf in enumerate(leaves) if number not in local for unit in _units(number, leaf, sizes)
    )
    costs = {unit.kind: sum(cost(*shape) for shape in unit.kind.matrix_shapes) for unit in units}
    turns = list(_assign(units, sizes, costs))
    filled = {id(turns[number]) for number in _filled(turns, units, costs)}
    trips = tuple(_trip(part, units, sizes, filled) for part in _cut(turns, units, trip_bytes))
    local_cost = sum(_stack_cost(leaves[number], sizes, cost) for number in local)
    return Routes(sizes, tuple(leaves), units, local, trips, costs, local_cost)


def _stack_cost(leaf: Leaf, sizes: Mapping[str, int], cost: Callable[[int, int], float]) -> float:
    """Of the part of a stack that one device holds."""
    shapes = leaf.layout.matrix_shapes(local_shape(leaf.shape, leaf.there, sizes))
    return sum(math.prod(batch) * cost(rows, columns) for *batch, rows, columns in shapes if rows and columns)


def _is_local(leaf: Leaf, sizes: Mapping[str, int]) -> bool:
    return set(leaf.batch_axes) == set(sizes) or math.prod(leaf.shape) == 0


def _units(number: int, leaf: Leaf, sizes: Mapping[str, int]) -> Iterator[Unit]:
    axes = "".join(leaf.unstacked(leaf.layout.axes))
    there, back, shape = leaf.unstacked(leaf.there), leaf.unstacked(leaf.back), leaf.unstacked(leaf.shape)
    split, output = leaf.layout.split, axes.index("o")
    # The blocks of a fused projection have owners of their own, unless its output axis is divided: then a piece holds
    # parts of several blocks.
    apart = split is not None and not there[output] and not back[output]
    for position in range(math.prod(leaf.stacked(local_shape(leaf.shape, leaf.there, sizes)))):
        for block, size in enumerate(split) if apart and split else [(None, None)]:
            block_shape = shape if size is None else (*shape[:output], size, *shape[output + 1 :])
            layout = Layout(axes, None if apart else split)
            kind = Kind(layout, block_shape, there, back, leaf.batch_axes, leaf.dtype)
            yield Unit(number, position, block, kind)


def _assign(units: Sequence[Unit], sizes: Mapping[str, int], costs: Mapping[Kind, float]) -> Iterator[np.ndarray]:
    """One turn after the other: for every device a unit, or -1. The costliest first, to the least loaded."""
    load = np.zeros(tuple(sizes.values()))
    stacks: dict[tuple[str, ...], list[int]] = {}
    for number, unit in enumerate(units):
        stacks.setdefault(unit.kind.batch_axes, []).append(number)
    order = {kind: position for position, kind in enumerate(costs)}
    # Units of divided stacks have fewer devices to choose from, so they choose first.
    for batch_axes in sorted(stacks, key=lambda axes: -math.prod(sizes[axis] for axis in axes)):
        positions = tuple(position for position, axis in enumerate(sizes) if axis in batch_axes)
        pool = load.max(axis=positions, keepdims=True)
        pool_load = pool.reshape(-1)
        members = sorted(stacks[batch_axes], key=lambda unit: (-costs[units[unit].kind], order[units[unit].kind]))
        by_kind = [list(same) for _, same in groupby(members, lambda unit: units[unit].kind)]
        for turn in _turns(by_kind, [costs[units[same[0]].kind] for same in by_kind], pool_load):
            yield np.broadcast_to(turn.reshape(pool.shape), load.shape).reshape(-1)
        load = np.broadcast_to(pool_load.reshape(pool.shape), load.shape).copy()


def _turns(by_kind: Sequence[Sequence[int]], costs: Sequence[float], load: np.ndarray) -> list[np.ndarray]:
    """The turns of one pool, and its ``load`` brought up to date.

    A kind begins in a turn of its own where that leaves fewer turns with two kinds, and nobody has to wait longer: a
    turn of one kind is a simpler program.
    """
    apart: set[int] = set()
    turns, loads, programs = _deal(by_kind, costs, load, apart)
    shortest = loads.max()
    for kind in range(1, len(by_kind)):
        other = _deal(by_kind, costs, load, apart | {kind})
        if other[2] < programs and other[1].max() <= shortest * (1 + 1e-6):
            apart.add(kind)
            turns, loads, programs = other
    load[:] = loads
    return turns


def _deal(
    by_kind: Sequence[Sequence[int]], costs: Sequence[float], load: np.ndarray, apart: Container[int]
) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Turns and loads if kinds of these numbers begin in a turn of their own, and how many kinds all turns have."""
    load, turns, programs, idlest = load.copy(), [], 0, np.empty(0, int)
    for kind, units in enumerate(by_kind):
        if kind in apart:
            idlest = idlest[:0]
        programs += bool(idlest.size)
        for unit in units:
            if not idlest.size:
                # Small differences are rounding; equal loads keep the order of the mesh, so that all boxes look alike.
                idlest = np.argsort(load.round(6), kind="stable")
                turns.append(np.full(load.size, -1))
                programs += 1
            turns[-1][idlest[0]] = unit
            load[idlest[0]] += costs[kind]
            idlest = idlest[1:]
    return turns, load, programs


def _cut(turns: Sequence[np.ndarray], units: Sequence[Unit], enough: int) -> Iterator[list[np.ndarray]]:
    """Parts that travel one after the other: none of more bytes than are ``enough``, or than memory is the better for.

    While a part is under way, the results of those before it are in memory, and itself about three times: as it came,
    orthogonalized and packed. So the longest goes first. Where each is a third of what is left and of a third of all,
    the peak is four thirds of all, and about four parts are enough.
    """
    sizes = [max(_bytes(units[unit].kind) for unit in set(turn.tolist()) if unit >= 0) for turn in turns]
    kinds = [{units[unit].kind for unit in set(turn.tolist()) if unit >= 0} for turn in turns]
    pools = [
        list(pool) for _, pool in groupby(range(len(turns)), lambda turn: units[turns[turn].max()].kind.batch_axes)
    ]
    if sum(sizes) <= enough:
        pools = [list(range(len(turns)))]
    # Of large matrices less is left behind than is needed on the way.
    for pool in sorted(pools, key=lambda pool: -max((sizes[turn] for turn in pool), default=0)):
        left = whole = sum(sizes[turn] for turn in pool)
        part, held = [], 0
        for turn in pool:
            limit = max(enough, (left + whole / 3) / 3)
            other = whole > enough and held > limit / 2 and not kinds[turn] & kinds[part[0]]
            if part and (held + sizes[turn] > limit or other):
                yield [turns[number] for number in part]
                left -= held
                part, held = [], 0
            part.append(turn)
            held += sizes[turn]
        if part:
            yield [turns[number] for number in part]


def _bytes(kind: Kind) -> int:
    return math.prod(kind.shape) * jnp.dtype(kind.dtype).itemsize


def _trip(turns: Sequence[np.ndarray], units: Sequence[Unit], sizes: Mapping[str, int], filled: Container[int]) -> Trip:
    rows = [_kinds_of(turn, units, id(turn) in filled) for turn in turns]
    runs = tuple(Run(*row, len(list(same))) for row, same in groupby(rows))
    there, back = (tuple(_boxes(turns, runs, sizes, way)) for way in ("there", "back"))
    return Trip(tuple(turns), runs, there, back)


def _kinds_of(turn: np.ndarray, units: Sequence[Unit], filled: bool) -> tuple[tuple[Kind, ...], tuple[int, ...]]:
    """The kinds of a turn's units, and for every device the position of its own."""
    own = [None if unit < 0 else units[unit].kind for unit in turn.tolist()]
    kinds = tuple(kind for kind in dict.fromkeys(own) if kind is not None)
    position = {kind: number for number, kind in enumerate(kinds)}
    return kinds, tuple(position[kind] if kind is not None else 0 if filled else -1 for kind in own)


def _filled(turns: Sequence[np.ndarray], units: Sequence[Unit], costs: Mapping[Kind, float]) -> Iterator[int]:
    """The turns of one kind in which idle devices do as the others, on zeros, so that there is nothing to branch on.

    Nobody waits for that, or not for long.
    """
    price = [np.array([0.0 if unit < 0 else costs[units[unit].kind] for unit in turn]) for turn in turns]
    load = np.sum(price, axis=0) if price else np.zeros(1)
    spare = (1 + _WAIT) * load.max() - load
    for number, turn in enumerate(turns):
        idle, kinds = turn < 0, {units[unit].kind for unit in set(turn.tolist()) if unit >= 0}
        cost = price[number].max()
        if len(kinds) == 1 and (spare[idle] >= cost).all():
            spare = spare - cost * idle
            yield number


def route_of(kind: Kind, way: str, sizes: Mapping[str, int]) -> Route:
    """The route that units of a kind take, ``"there"`` or ``"back"``."""
    axes = {axis for dims in getattr(kind, way) for axis in dims}
    planes = set(sizes) - axes - set(kind.batch_axes)
    return Route(in_order(axes, sizes), in_order(planes, sizes), kind.dtype)


def piece_shape(kind: Kind, way: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The part of a unit that one device holds."""
    return local_shape(kind.shape, getattr(kind, way), sizes)


def row_view(kind: Kind, piece: tuple[int, ...]) -> tuple[int, int]:
    """A piece as a matrix that can be cut into rows of a box: the last run of one letter is its columns."""
    letters = kind.layout.axes
    columns = len(letters) - len(letters.rstrip(letters[-1]))
    return math.prod(piece[:-columns]), math.prod(piece[-columns:])


def row_count(kind: Kind, way: str, width: int, sizes: Mapping[str, int]) -> int:
    """Rows of a box that a piece takes."""
    rows, columns = row_view(kind, piece_shape(kind, way, sizes))
    return rows * columns // width if columns % width == 0 else -(-rows * columns // width)


def _boxes(turns: Sequence[np.ndarray], runs: Sequence[Run], sizes: Mapping[str, int], way: str) -> Iterator[Box]:
    routes = {kind: route_of(kind, way, sizes) for run in runs for kind in run.kinds}
    for route in dict.fromkeys(routes.values()):
        columns = {row_view(kind, piece_shape(kind, way, sizes))[1] for kind, own in routes.items() if own == route}
        divisor = math.gcd(*columns)
        width = divisor if divisor >= _LANES or {divisor} == columns else _LANES
        height = {kind: row_count(kind, way, width, sizes) for kind, own in routes.items() if own == route}
        owners = _owners(route, sizes)
        grid = np.array([turn[owners] for turn in turns])
        regions, turn, end = [], 0, np.zeros(len(owners), int)
        for number, run in enumerate(runs):
            heights = np.array([*(height.get(kind, 0) for kind in run.kinds), 0])
            rows = run.turns * heights[np.array(run.kind_of)[owners]]
            if rows.any():
                first = int(end[rows > 0].max())
                end = np.where(rows > 0, first + rows, end)
                here = np.where(rows > 0, grid[turn : turn + run.turns], -1)
                regions.append(Region(number, run.turns, first, here))
            turn += run.turns
        yield Box(route, width, int(end.max()), tuple(regions))


def _owners(route: Route, sizes: Mapping[str, int]) -> list[int]:
    """The devices of one pool by number in the mesh, planes major: those with coordinate 0 along the other axes."""
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    numbers = numbers[tuple(slice(None) if axis in route.pool else 0 for axis in sizes)]
    pool = [axis for axis in sizes if axis in route.pool]
    return numbers.transpose([pool.index(axis) for axis in route.planes + route.axes]).reshape(-1).tolist()
