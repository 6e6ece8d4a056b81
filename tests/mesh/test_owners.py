"""Who orthogonalizes what: every matrix once, evenly shared, in stacks and batches that hold what they should."""

import math
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.dims import padded_shape
from muon_optax._mesh.kinds import Leaf, kind_of, matrices_by_kind
from muon_optax._mesh.owners import by_device, flops_by_device, give_away
from muon_optax._mesh.stacks import ZEROS, make_batches, make_stacks

LAYOUTS = ["io", "oi", "ioo", "iio", "bio", "iob", "bbio", "iiio", "ibo"]


def cost(rows, columns):
    short, long = sorted((rows, columns))
    return float(short * short * (2 * long + short))


def leaf(path, shape, there=((), ()), layout="io", dtype="float32"):
    return Leaf(path, 0, shape, shape, Layout(layout), there, there, dtype)


def leaves_of(*shapes, **options):
    return [leaf(str(number), shape, **options) for number, shape in enumerate(shapes)]


def shared(leaves, sizes, enough=2**28):
    """Matrices by kind, their costs, their owners, what each device has to do, and the batches."""
    matrices = matrices_by_kind(leaves, sizes)
    costs = {kind: sum(cost(*shape) for shape in kind.layout.matrix_shapes(kind.shape)) for kind in matrices}
    owned = give_away(matrices, costs, sizes)
    loads = flops_by_device(owned, costs, sizes)
    return matrices, costs, owned, loads, list(make_batches(list(make_stacks(owned, costs, loads, sizes)), enough))


@st.composite
def dims(draw, axes, number):
    """For each of so many array axes some of the mesh axes, each used once."""
    found = [()] * number
    for axis in draw(st.permutations(axes))[: draw(st.integers(0, len(axes)))]:
        position = draw(st.integers(0, number - 1))
        found[position] = (*found[position], axis)
    return tuple(found)


@st.composite
def leaf_on(draw, sizes, path):
    letters = draw(st.sampled_from(LAYOUTS))
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=len(letters), max_size=len(letters))))
    there = draw(dims(list(sizes), len(letters)))
    used = {axis for part, letter in zip(there, letters, strict=True) if letter == "b" for axis in part}
    moved = iter(draw(dims([axis for axis in sizes if axis not in used], len(letters) - letters.count("b"))))
    # A stack stays among its devices, and only the axes of matrices may leave otherwise than they came.
    back = tuple(part if letter == "b" else next(moved) for part, letter in zip(there, letters, strict=True))
    padded = padded_shape(padded_shape(shape, there, sizes), back, sizes)
    back = back if padded_shape(padded, there, sizes) == padded else there
    padded = padded_shape(padded_shape(shape, there, sizes), back, sizes)
    dtype = draw(st.sampled_from(["float32", "bfloat16"]))
    return Leaf(path, 0, shape, padded, Layout(letters), there, back, dtype)


@st.composite
def problems(draw):
    """Mesh sizes, leaves on them, and bytes that need not be cut."""
    sizes = {name: draw(st.integers(2, 3)) for name in "xyz"[: draw(st.integers(1, 3))]}
    leaves = [draw(leaf_on(sizes, str(number))) for number in range(draw(st.integers(1, 6)))]
    return sizes, leaves, draw(st.sampled_from([1, 500, 2**28]))


@pytest.mark.parametrize(
    "layout, shape, columns",
    [
        ("io", (8, 6), 6),
        ("ioo", (8, 3, 5), 15),
        ("iio", (3, 5, 8), 8),
        ("iiio", (2, 3, 4, 5), 5),
        ("oiii", (5, 4, 2, 3), 24),
    ],
)
def test_axes_of_one_letter_behind_are_the_columns_on_the_way(layout, shape, columns):
    dims = (("x",), *[()] * (len(shape) - 1))
    kind = kind_of(leaf("a", shape, dims, layout), {"x": 1, "y": 2})
    assert (kind.there.columns, kind.back.columns) == (columns, columns)


@settings(max_examples=150)
@given(problems())
def test_every_matrix_has_one_owner_and_travels_once(problem):
    sizes, leaves, enough = problem
    matrices, _, owned, _, batches = shared(leaves, sizes, enough)
    travelling = Counter()
    for stack in (stack for batch in batches for stack in batch):
        for kind, own in stack.owned.items():
            assert len(own) == math.prod(sizes[axis] for axis in kind.pool)
            travelling.update((kind, matrix) for each in own for matrix in each if matrix is not None)
    for kind, expected in matrices.items():
        assert sorted(matrix for own in owned[kind] for matrix in own) == sorted(expected)
        assert {travelling[kind, matrix] for matrix in expected} == {1}
    assert sum(travelling.values()) == sum(map(len, matrices.values()))


@settings(max_examples=150)
@given(problems())
def test_no_device_has_more_than_its_share_and_one_matrix(problem):
    sizes, leaves, _ = problem
    matrices, costs, _, loads, _ = shared(leaves, sizes)
    largest = Counter()
    for kind, price in costs.items():
        largest[kind.pool] = max(largest[kind.pool], price)
    # Matrices of stacks that lie on different mesh axes are shared out one after the other, each evenly.
    assert loads.max() <= loads.mean() + sum(largest.values()) + 1e-6
    devices = math.prod(sizes.values())
    pools = {kind: math.prod(sizes[axis] for axis in kind.pool) for kind in matrices}
    total = sum(costs[kind] * len(own) * devices / pools[kind] for kind, own in matrices.items())
    assert loads.sum() == total
    assert loads.shape == tuple(sizes.values())


def work_with_zeros(batches, costs, sizes):
    """What each device orthogonalizes, zeros that fill a turn included."""
    work = np.zeros(tuple(sizes.values()))
    for stack in chain.from_iterable(batches):
        for kind, numbers in zip(stack.owned, zip(*stack.held, strict=True), strict=True):
            work += costs[kind] * by_device(numbers, kind.pool, sizes)
    return work


@settings(max_examples=150)
@given(problems())
def test_zeros_keep_no_device_longer_than_matrices_do(problem):
    sizes, leaves, enough = problem
    _, costs, _, loads, batches = shared(leaves, sizes, enough)
    work = work_with_zeros(batches, costs, sizes)
    assert (work >= loads - 1e-6).all()
    assert work.max() <= (1 + ZEROS) * loads.max() + 1e-6


def test_zeros_cost_nothing_where_kinds_come_by_two_ways():
    """Four layers on eight devices: a last turn of replicated keys must not fall to those who do more of the rest."""
    shapes = {"query": (64, 64), "value": (64, 64), "out": (64, 64), "up": (64, 256), "down": (256, 64)}
    divided = [leaf(f"{name}_{layer}", shapes[name], (("data",), ())) for layer in range(4) for name in shapes]
    keys = [leaf(f"key_{layer}", (64, 64)) for layer in range(4)]
    _, costs, _, loads, batches = shared([*divided, *keys], {"data": 8})
    work = work_with_zeros(batches, costs, {"data": 8})
    assert work.max() <= 1.05 * loads.mean()


@settings(max_examples=150)
@given(problems())
def test_the_kinds_of_a_stack_go_the_same_way_and_fit_its_rows(problem):
    sizes, leaves, enough = problem
    *_, batches = shared(leaves, sizes, enough)
    for stack in (stack for batch in batches for stack in batch):
        assert stack.mixed or len(stack.owned) == 1
        for way in (stack.there, stack.back):
            assert {(piece.divided, piece.copied) for piece in way.pieces.values()} == {(way.divided, way.copied)}
            assert sorted(chain.from_iterable(way.owners)) == list(range(len(stack.held)))
            for kind, piece in way.pieces.items():
                assert 0 <= way.height(kind) * way.width - math.prod(piece.shape) < way.width
            heights = [way.height(kind) for kind in stack.owned]
            assert way.rows == max(np.dot(held, heights) for held in stack.held)


@settings(max_examples=150)
@given(problems())
def test_a_batch_holds_enough_or_less_than_half_of_all(problem):
    sizes, leaves, enough = problem
    *_, batches = shared(leaves, sizes, enough)
    held = [sum(stack.bytes for stack in batch) for batch in batches]
    for batch, size in zip(batches, held, strict=True):
        one = len(batch) == 1 and batch[0].turns == 1
        assert one or size <= max(enough, 4 / 9 * sum(held))
    if sum(held) <= enough:
        assert len(held) <= 1


def test_batches_become_shorter_as_results_pile_up():
    """Each is a third of what is left and of a third of all 24 turns."""
    *_, batches = shared(leaves_of(*[(10, 10)] * 48), {"x": 2}, enough=1)
    assert [stack.held[0] for (stack,) in batches] == [(10,), (7,), (5,), (2,)]


@pytest.mark.parametrize("enough, batches", [(724, 1), (723, 2)])
def test_a_batch_is_full_at_what_is_enough(enough, batches):
    """Of each shape one matrix an owner: 400 and 324 bytes."""
    *_, found = shared(leaves_of((10, 10), (9, 9), (10, 10), (9, 9)), {"x": 2}, enough)
    assert len(found) == batches


def test_neighbors_in_a_leaf_are_one_run():
    """A run is one slice, and slices cost compile time: nine layers of two leaves on two devices, and a zero."""
    layers = [leaf(name, (number, 4, 4), ((), (), ()), "bio") for name, number in (("a", 6), ("b", 3))]
    *_, ((stack,),) = shared(layers, {"x": 2})
    (kind,) = stack.owned
    assert list(stack.runs(kind, slice(0, 5), [0, 1])) == [((0, 0), 6), ((1, 0), 3), (None, 1)]
    assert list(stack.runs(kind, slice(1, 4), [1])) == [((1, 0), 3)]


def test_large_matrices_travel_first():
    stacked = leaf("s", (8, 4, 4), (("x",), (), ()), "bio")
    *_, batches = shared([stacked, *leaves_of(*[(6, 6)] * 4)], {"x": 2, "y": 2}, enough=1)
    assert next(iter(batches[0][0].owned)).shape == (6, 6)


def test_the_costliest_are_given_away_first_to_who_has_least():
    _, _, owned, loads, _ = shared(leaves_of((2, 2), (9, 9), (5, 5), (4, 4)), {"x": 2})
    assert {kind.shape: [len(own) for own in owners] for kind, owners in owned.items()} == {
        (9, 9): [1, 0],
        (5, 5): [0, 1],
        (4, 4): [0, 1],
        (2, 2): [1, 0],
    }
    assert loads.tolist() == [cost(9, 9) + cost(2, 2), cost(5, 5) + cost(4, 4)]


def test_stacks_on_some_devices_are_shared_out_first_and_others_fill_up():
    """Three experts on each half of the mesh and five matrices for all: 6 + 5 = 11 on 4 devices."""
    stacked = leaves_of((6, 4, 4), there=(("expert",), (), ()), layout="bio")
    *_, loads, _ = shared([*leaves_of(*[(4, 4)] * 5), *stacked], {"data": 2, "expert": 2})
    assert sorted(loads.flatten() / cost(4, 4)) == [2, 3, 3, 3]


def test_of_an_owner_on_several_devices_the_busiest_counts():
    """Of five matrices for owners (x, y) two are at (0, 0), two for (y, z) go to y = 1, and two for all to (1, 0)."""
    stacks = [leaf("a", (10, 4, 4), (("z",), (), ()), "bio"), leaf("b", (4, 4, 4), (("x",), (), ()), "bio")]
    *_, loads, _ = shared([*leaves_of((4, 4), (4, 4)), *stacks], {"x": 2, "y": 2, "z": 2})
    assert (loads == 2 * cost(4, 4)).all()


def held_by(*shapes, devices=4):
    """Of each stack the shapes that it holds, and how many of each every owner has."""
    *_, batches = shared(leaves_of(*shapes), {"x": devices})
    return [([kind.shape for kind in stack.owned], stack.held) for batch in batches for stack in batch]


def test_what_all_owners_have_travels_apart_from_what_is_left_over():
    # Two rectangles, then nine squares, always to the idlest: one square each, and the rest is mixed.
    assert sorted(held_by(*[(4, 4)] * 9, *[(4, 6)] * 2)) == [
        ([(4, 4)], [(1,)] * 4),
        ([(4, 6), (4, 4)], [(1, 1), (1, 0), (0, 2), (0, 2)]),
    ]
    # One kind alone is left over: zeros fill its last turn.
    assert held_by(*[(4, 4)] * 5) == [([(4, 4)], [(2,)] * 4)]


def test_rows_are_as_wide_as_pieces_have_columns_or_as_a_register():
    def width(*shapes):
        ((stack,),) = shared(leaves_of(*shapes, there=(("x",), ())), {"x": 8})[-1]
        return stack.there.width

    assert width((8, 6), (16, 6)) == 6
    assert width((8, 256), (16, 384)) == 128
    assert width((8, 6), (8, 8)) == 128


def test_dtypes_and_divisions_travel_apart():
    leaves = [
        *leaves_of((4, 4), there=(("x",), ())),
        *leaves_of((4, 4), there=(("x",), ()), dtype="bfloat16"),
        *leaves_of((4, 4), there=((), ("y",))),
        *leaves_of((4, 4)),
    ]
    (batch,) = shared(leaves, {"x": 2, "y": 2})[-1]
    ways = [(stack.there.divided, stack.there.copied, stack.dtype) for stack in batch]
    assert sorted(ways) == [
        ((), ("x", "y"), "float32"),
        (("x",), ("y",), "bfloat16"),
        (("x",), ("y",), "float32"),
        (("y",), ("x",), "float32"),
    ]
