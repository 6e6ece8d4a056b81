"""Who orthogonalizes what: every matrix once, evenly shared, in boxes that hold what they should."""

import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.routes.find import TRIP_BYTES, find_routes
from muon_optax._mesh.routes.model import Leaf, piece_shape, route_of, row_count, row_view
from muon_optax._mesh.shardings import local_shape, padded_shape

LAYOUTS = ["io", "oi", "ioo", "iio", "bio", "iob", "bbio", "iiio", "ibo"]


def cost(rows, columns):
    short, long = sorted((rows, columns))
    return float(short * short * (2 * long + short))


def leaves_of(*shapes, there=((), ()), layout="io", dtype="float32"):
    return [Leaf(str(number), shape, shape, Layout(layout), there, there, dtype) for number, shape in enumerate(shapes)]


@st.composite
def dims(draw, axes, count):
    """For each of ``count`` array axes some of the mesh axes, each used once."""
    free = draw(st.permutations(axes))
    found = [()] * count
    for axis in free[: draw(st.integers(0, len(free)))]:
        position = draw(st.integers(0, count - 1))
        found[position] = (*found[position], axis)
    return found


@st.composite
def leaf_on(draw, sizes, path):
    letters = draw(st.sampled_from(LAYOUTS))
    given = tuple(draw(st.lists(st.integers(1, 6), min_size=len(letters), max_size=len(letters))))
    there = draw(dims(list(sizes), len(letters)))
    stacks = [position for position, letter in enumerate(letters) if letter == "b"]
    # A stack stays among its devices, so that the rest of the way back is over other mesh axes.
    used = {axis for position in stacks for axis in there[position]}
    others = [position for position in range(len(letters)) if position not in stacks]
    moved = draw(dims([axis for axis in sizes if axis not in used], len(others)))
    back = list(there)
    for position, part in zip(others, moved, strict=True):
        back[position] = part
    split = None
    if letters in ("io", "bio") and not there[-1] and not back[-1] and given[-1] > 1 and draw(st.booleans()):
        split = (1, given[-1] - 1)
    shape = padded_shape(padded_shape(given, tuple(there), sizes), tuple(back), sizes)
    # Padding for one way may be undone by the other: shapes that are multiples of both.
    if padded_shape(shape, tuple(there), sizes) != shape:
        back = there
    return Leaf(
        path,
        given,
        shape,
        Layout(letters, split),
        tuple(there),
        tuple(back),
        draw(st.sampled_from(["float32", "bfloat16"])),
    )


@st.composite
def problems(draw):
    """Mesh sizes, leaves on them and a limit of bytes for a trip."""
    names = "xyz"[: draw(st.integers(1, 3))]
    sizes = {name: draw(st.integers(1, 3)) for name in names}
    divided = {name: size for name, size in sizes.items() if size > 1}
    leaves = [draw(leaf_on(divided, str(number))) for number in range(draw(st.integers(1, 6)))]
    return sizes, leaves, draw(st.sampled_from([1, 500, TRIP_BYTES]))


def places_of(routes, unit):
    """The devices that have a unit, in all turns of all trips."""
    return [device for trip in routes.trips for turn in trip.turns for device in np.flatnonzero(turn == unit)]


def coordinates(routes, device, axes):
    """Where a device is along some mesh axes."""
    where = dict(zip(routes.sizes, np.unravel_index(device, tuple(routes.sizes.values())), strict=True))
    return tuple(where[axis] for axis in axes)


@settings(max_examples=150)
@given(problems())
def test_every_unit_has_one_owner_among_the_devices_of_its_stack(problem):
    sizes, leaves, trip_bytes = problem
    routes = find_routes(leaves, sizes, cost, trip_bytes)
    for number, unit in enumerate(routes.units):
        axes = unit.kind.batch_axes
        owners = places_of(routes, number)
        # One owner for each part of the stack: the units of two parts are two matrices.
        assert len(owners) == math.prod(sizes[axis] for axis in axes)
        assert len({coordinates(routes, owner, axes) for owner in owners}) == len(owners)


@settings(max_examples=150)
@given(problems())
def test_no_matrix_is_left_out_or_taken_twice(problem):
    sizes, leaves, _ = problem
    routes = find_routes(leaves, sizes, cost)
    for number, leaf in enumerate(leaves):
        blocks = [unit for unit in routes.units if unit.leaf == number]
        if number in routes.local:
            assert not blocks
            assert set(leaf.batch_axes) == {axis for axis, size in sizes.items() if size > 1}
            continue
        stack = math.prod(leaf.stacked(local_shape(leaf.shape, leaf.there, sizes)))
        assert Counter(unit.position for unit in blocks) == dict.fromkeys(range(stack), len(leaf.layout.split or (1,)))
        assert sum(math.prod(unit.kind.shape) for unit in blocks) == stack * math.prod(leaf.unstacked(leaf.shape))


@settings(max_examples=150)
@given(problems())
def test_no_device_has_more_than_its_share_and_one_unit(problem):
    sizes, leaves, trip_bytes = problem
    routes = find_routes(leaves, sizes, cost, trip_bytes)
    largest = Counter()
    for kind, price in routes.costs.items():
        largest[kind.batch_axes] = max(largest[kind.batch_axes], price)
    # Matrices of stacks that lie on different mesh axes are shared out one after the other, each evenly.
    assert routes.loads.max() <= routes.loads.mean() + sum(largest.values()) + 1e-6
    assert routes.loads.shape == (math.prod(sizes.values()),)


@settings(max_examples=150)
@given(problems())
def test_a_trip_holds_enough_or_less_than_half_of_all(problem):
    sizes, leaves, trip_bytes = problem
    routes = find_routes(leaves, sizes, cost, trip_bytes)

    def largest(turn):
        kinds = {routes.units[unit].kind for unit in turn.tolist() if unit >= 0}
        return max(
            math.prod(kind.shape) * np.dtype(kind.dtype if kind.dtype != "bfloat16" else "int16").itemsize
            for kind in kinds
        )

    held = [sum(map(largest, trip.turns)) for trip in routes.trips]
    for trip, size in zip(routes.trips, held, strict=True):
        assert len(trip.turns) == 1 or size <= max(trip_bytes, 4 / 9 * sum(held))
    if sum(held) <= trip_bytes:
        assert len(held) <= 1


def test_trips_become_shorter_as_results_pile_up():
    """As results pile up there is room for less: each is a third of what is left and of a third of all 24 turns."""
    routes = find_routes(leaves_of(*[(10, 10)] * 48), {"x": 2}, cost, trip_bytes=1)
    assert [len(trip.turns) for trip in routes.trips] == [10, 7, 5, 2]


def test_a_trip_ends_where_a_kind_ends_if_it_is_half_full():
    routes = find_routes(leaves_of(*[(10, 10)] * 8, *[(10, 9)] * 16), {"x": 2}, cost, trip_bytes=1)
    assert [[kind.shape for run in trip.runs for kind in run.kinds] for trip in routes.trips][:2] == [
        [(10, 10)],
        [(10, 9)],
    ]


def test_large_matrices_travel_first():
    stacked = [Leaf("s", (8, 4, 4), (8, 4, 4), Layout("bio"), (("x",), (), ()), (("x",), (), ()), "float32")]
    whole = leaves_of(*[(6, 6)] * 4)
    routes = find_routes([*stacked, *whole], {"x": 2, "y": 2}, cost, trip_bytes=1)
    assert routes.trips[0].runs[0].kinds[0].shape == (6, 6)


def test_a_kind_begins_in_a_turn_of_its_own_where_nobody_waits_longer():
    def runs(*shapes):
        (trip,) = find_routes(leaves_of(*shapes), {"x": 4}, cost).trips
        return [(run.turns, [kind.shape for kind in run.kinds]) for run in trip.runs]

    # Of equal cost, with 6 and 8 matrices for 4 devices: 4 turns either way.
    assert runs(*[(4, 6)] * 6, *[(6, 4)] * 8) == [(2, [(4, 6)]), (2, [(6, 4)])]
    # 3 turns, or 4 if the kinds were apart.
    assert runs(*[(4, 6)] * 6, *[(6, 4)] * 6) == [(1, [(4, 6)]), (1, [(4, 6), (6, 4)]), (1, [(6, 4)])]


@settings(max_examples=150)
@given(problems())
def test_boxes_hold_the_units_of_their_trip_and_no_others(problem):
    sizes, leaves, trip_bytes = problem
    routes = find_routes(leaves, sizes, cost, trip_bytes)
    for trip in routes.trips:
        for way, boxes in (("there", trip.there), ("back", trip.back)):
            assert len({box.route for box in boxes}) == len(boxes)
            found = Counter()
            for box in boxes:
                owners = math.prod(sizes[axis] for axis in box.route.planes + box.route.axes)
                taken = np.zeros((owners, box.rows), int)
                for region in box.regions:
                    run = trip.runs[region.run]
                    assert region.units.shape == (run.turns, owners)
                    for owner, units in enumerate(region.units.T.tolist()):
                        held = [unit for unit in units if unit >= 0]
                        found.update(held)
                        kinds = {routes.units[unit].kind for unit in held}
                        assert {route_of(kind, way, routes.sizes) for kind in kinds} <= {box.route}
                        for kind in kinds:
                            height = run.turns * row_count(kind, way, box.width, routes.sizes)
                            assert region.first + height <= box.rows
                            taken[owner, region.first : region.first + height] += 1
                assert taken.max() == 1
            assert found == Counter({unit for turn in trip.turns for unit in turn.tolist() if unit >= 0})


@settings(max_examples=150)
@given(problems(), st.integers(1, 200))
def test_rows_of_a_box_have_room_for_a_piece_and_no_full_row_more(problem, width):
    sizes, leaves, _ = problem
    routes = find_routes(leaves, sizes, cost)
    for kind in routes.costs:
        for way in ("there", "back"):
            piece = piece_shape(kind, way, routes.sizes)
            rows, columns = row_view(kind, piece)
            assert rows * columns == math.prod(piece)
            assert 0 <= row_count(kind, way, width, routes.sizes) * width - rows * columns < width


def test_the_costliest_matrices_are_given_away_first_to_who_has_least():
    routes = find_routes(leaves_of((2, 2), (9, 9), (5, 5), (4, 4)), {"x": 2}, cost)
    two, nine, five, four = (places_of(routes, number) for number in range(4))
    assert nine == two != five == four
    assert sorted(routes.loads) == [cost(5, 5) + cost(4, 4), cost(9, 9) + cost(2, 2)]


def test_stacks_on_some_devices_are_shared_out_first_and_others_fill_up():
    """Three experts on each half of the mesh and five matrices for all: 6 + 5 = 11 units on 4 devices."""
    stacks = leaves_of((6, 4, 4), there=(("expert",), (), ()), layout="bio")
    routes = find_routes([*leaves_of(*[(4, 4)] * 5), *stacks], {"data": 2, "expert": 2}, cost)
    assert sorted(routes.loads / cost(4, 4)) == [2, 3, 3, 3]


def test_turns_with_the_same_kinds_on_the_same_devices_are_one_run():
    square, long = [(4, 4)] * 9, [(4, 6)] * 2
    (trip,) = find_routes(leaves_of(*square, *long), {"x": 4}, cost).trips
    # Who has nothing in the last row of squares does the same on zeros: it has the time.
    assert [(run.turns, [kind.shape for kind in run.kinds]) for run in trip.runs] == [
        (1, [(4, 6), (4, 4)]),
        (2, [(4, 4)]),
    ]
    assert trip.runs[0].kind_of == (0, 0, 1, 1)


def test_a_box_is_as_wide_as_the_pieces_have_columns_or_as_a_register():
    def widths(*shapes):
        (trip,) = find_routes(leaves_of(*shapes, there=(("x",), ())), {"x": 2}, cost).trips
        return [box.width for box in trip.there]

    assert widths((4, 6), (8, 6)) == [6]
    assert widths((4, 256), (4, 384)) == [128]
    assert widths((4, 6), (4, 8)) == [128]


def test_dtypes_and_divisions_travel_in_boxes_of_their_own():
    leaves = [
        *leaves_of((4, 4), there=(("x",), ())),
        *leaves_of((4, 4), there=(("x",), ()), dtype="bfloat16"),
        *leaves_of((4, 4), there=((), ("y",))),
        *leaves_of((4, 4)),
    ]
    (trip,) = find_routes(leaves, {"x": 2, "y": 2}, cost).trips
    routes = [(box.route.axes, box.route.planes, box.route.dtype) for box in trip.there]
    assert sorted(routes) == [
        ((), ("x", "y"), "float32"),
        (("x",), ("y",), "bfloat16"),
        (("x",), ("y",), "float32"),
        (("y",), ("x",), "float32"),
    ]
