"""Which device of a mesh orthogonalizes which matrix, and how matrices get there and back.

A *unit* is what one device orthogonalizes by itself: one matrix, whole. Where a parameter is divided over mesh axes,
each device holds a *piece* of each of its units. Before the orthogonalization every device sends its piece of a unit to
the unit's owner, in a *box* with all that goes the same way, and afterwards the owner sends each device its piece of
the result. Everything here is static: Python numbers, known when a step is traced.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from muon_optax._layout import Layout
from muon_optax._shardings import Dims, in_order, local_shape, spec_of

# Width of a row in a box where pieces have no common width: the lanes of a TPU's register.
_LANES = 128
# Bytes of pieces that a device sends before it gets results back. More would be in memory at once, less would be more
# collectives: 60 layers of 384 experts on 1024 chips take four trips and 2.6 GB of temporary memory.
TRIP_BYTES = 2**29


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


class Run(NamedTuple):
    """So many turns in a row in which a device has a unit of one kind."""

    kind: Kind
    turns: int


Program: TypeAlias = tuple[Run, ...]


@dataclass(frozen=True)
class Box:
    """The pieces that travel together: for every owner as many rows of one width, filled from the front.

    First come the units of the trip's common runs, then those of the owner's class.
    """

    route: Route
    width: int
    rows: int
    common: tuple[np.ndarray, ...]  # for each common run of this route its units, (turns, owners), -1 for none
    own: tuple[tuple[int, ...], ...]  # for each owner, planes major, the units of its class


@dataclass(frozen=True)
class Trip:
    """One way there and back: all devices do the ``common`` runs, and then those of their own class."""

    turns: tuple[np.ndarray, ...]  # for every device its unit of the turn, or -1
    there: tuple[Box, ...]
    back: tuple[Box, ...]
    common: Program
    classes: tuple[Program, ...]  # none, if no device has anything that others have not
    class_of: np.ndarray  # by device


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
        trip_bytes: Of pieces that a device may send in one trip.
    """
    sizes = {axis: size for axis, size in sizes.items() if size > 1}
    local = tuple(number for number, leaf in enumerate(leaves) if _is_local(leaf, sizes))
    units = tuple(
        unit for number, leaf in enumerate(leaves) if number not in local for unit in _units(number, leaf, sizes)
    )
    costs = {unit.kind: sum(cost(*shape) for shape in unit.kind.matrix_shapes) for unit in units}
    turns = list(_assign(units, sizes, costs))
    trips = tuple(_trip(part, units, sizes) for part in _cut(turns, units, trip_bytes))
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
        for first in range(0, len(members), pool_load.size):
            turn = np.full(pool_load.size, -1)
            # Small differences are rounding; equal loads keep the order of the mesh, so that all boxes look alike.
            idlest = np.argsort(pool_load.round(6), kind="stable")
            for position, unit in enumerate(members[first : first + turn.size]):
                turn[idlest[position]] = unit
                pool_load[idlest[position]] += costs[units[unit].kind]
            yield np.broadcast_to(turn.reshape(pool.shape), load.shape).reshape(-1)
        load = np.broadcast_to(pool_load.reshape(pool.shape), load.shape).copy()


def _cut(turns: Sequence[np.ndarray], units: Sequence[Unit], limit: int) -> Iterator[list[np.ndarray]]:
    part, held = [], 0
    for turn in turns:
        size = max(_bytes(units[unit].kind) for unit in set(turn.tolist()) if unit >= 0)
        if part and held + size > limit:
            yield part
            part, held = [], 0
        part.append(turn)
        held += size
    if part:
        yield part


def _bytes(kind: Kind) -> int:
    return math.prod(kind.shape) * jnp.dtype(kind.dtype).itemsize


def _trip(turns: Sequence[np.ndarray], units: Sequence[Unit], sizes: Mapping[str, int]) -> Trip:
    kinds = [[None if unit < 0 else units[unit].kind for unit in turn.tolist()] for turn in turns]
    shared = [set(row) == {row[0]} and row[0] is not None for row in kinds]
    order = np.argsort(np.logical_not(shared), kind="stable").tolist()
    common = [kinds[number][0] for number in order if shared[number]]
    rest = [kinds[number] for number in order if not shared[number]]
    programs = [tuple(kind for row in rest if (kind := row[device])) for device in range(len(turns[0]))]
    classes = list(dict.fromkeys(programs))
    longest = max(classes, key=len)
    class_of = np.array([classes.index(program) for program in programs])
    # Where one program begins with every other, all run it, some on rows that nobody reads: it takes no longer, and
    # there is nothing to branch on.
    if all(longest[: len(program)] == program for program in classes):
        common, classes = [*common, *longest], []
    shared_runs = _runs(common)
    ordered = [turns[number] for number in order]
    there, back = (tuple(_boxes(ordered, shared_runs, units, sizes, way)) for way in ("there", "back"))
    return Trip(tuple(ordered), there, back, shared_runs, tuple(map(_runs, classes)), class_of)


def _runs(kinds: Sequence[Kind | None]) -> Program:
    return tuple(Run(kind, len(list(same))) for kind, same in groupby(kinds) if kind)


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


def _boxes(
    turns: Sequence[np.ndarray], common: Program, units: Sequence[Unit], sizes: Mapping[str, int], way: str
) -> Iterator[Box]:
    present = {unit for turn in turns for unit in turn.tolist() if unit >= 0}
    routes = {unit: route_of(units[unit].kind, way, sizes) for unit in sorted(present)}
    shared = sum(run.turns for run in common)
    for route in dict.fromkeys(routes.values()):
        kinds = {units[unit].kind for unit, own in routes.items() if own == route}
        columns = {row_view(kind, piece_shape(kind, way, sizes))[1] for kind in kinds}
        divisor = math.gcd(*columns)
        width = divisor if divisor >= _LANES or {divisor} == columns else _LANES
        height = {kind: row_count(kind, way, width, sizes) for kind in kinds}
        owners = _owners(route, sizes)
        grid = np.array([turn[owners] for turn in turns])
        first = np.cumsum([0, *(run.turns for run in common)])
        runs = [(run, grid[start : start + run.turns]) for run, start in zip(common, first, strict=False)]
        runs = [(run, numbers) for run, numbers in runs if run.kind in kinds]
        own = tuple(tuple(unit for unit in rest.tolist() if routes.get(unit) == route) for rest in grid[shared:].T)
        rows = sum(run.turns * height[run.kind] for run, _ in runs)
        rows += max(sum(height[units[unit].kind] for unit in numbers) for numbers in own)
        yield Box(route, width, rows, tuple(numbers for _, numbers in runs), own)


def _owners(route: Route, sizes: Mapping[str, int]) -> list[int]:
    """The devices of one pool by number in the mesh, planes major: those with coordinate 0 along the other axes."""
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    numbers = numbers[tuple(slice(None) if axis in route.pool else 0 for axis in sizes)]
    pool = [axis for axis in sizes if axis in route.pool]
    return numbers.transpose([pool.index(axis) for axis in route.planes + route.axes]).reshape(-1).tolist()
