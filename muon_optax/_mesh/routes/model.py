"""What routes are made of: units, the boxes they travel in, the trips and turns of the devices. All of it is static."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.shardings import Dims, in_order, local_shape, spec_of


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
