"""Which device of a mesh orthogonalizes which matrix, and how matrices get there and back.

A *unit* is what one device orthogonalizes by itself: one matrix, whole. Where a parameter is divided over mesh axes,
each device holds a *piece* of each of its units. Before the orthogonalization every device sends its piece of a unit to
the unit's owner, in a *box* with all that goes the same way, and afterwards the owner sends each device its piece of
the result. Everything here is static: Python numbers, known when a step is traced.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.routes.model import Kind, Leaf, Routes, Unit
from muon_optax._mesh.routes.trips import cut, make_trip
from muon_optax._mesh.routes.turns import assign, filled_turns
from muon_optax._mesh.shardings import local_shape

# Bytes of matrices that travel in one trip in any case. What is more is cut, so that not all is in memory at once.
TRIP_BYTES = 2**28


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
    turns = list(assign(units, sizes, costs))
    filled = set(filled_turns(turns, units, costs))
    trips = tuple(
        make_trip([turns[number] for number in part], [number in filled for number in part], units, sizes)
        for part in cut(turns, units, trip_bytes)
    )
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
