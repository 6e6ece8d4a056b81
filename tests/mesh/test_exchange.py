"""How matrices travel: packed and unpacked without loss, in few collectives, in the dtype of the products."""

import math
from dataclasses import replace
from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from meshes import LAYOUTS, ONE_STEP, SHAPES, assert_near, mesh_of, random_tree, shardings, unsharded, updated

import muon_optax as mo
from muon_optax._mesh import packing
from muon_optax._mesh.exchange import exchange
from muon_optax._mesh.packing import divide, join
from muon_optax._mesh.stacks import make_batches
from muon_optax._orthogonalizers.batching import map_stacks

SIZES = {"x": 2, "y": 3, "z": 2}


@st.composite
def divided(draw):
    """How an array of 1 to 4 axes is divided over a mesh, and the shape of its pieces."""
    ndim = draw(st.integers(1, 4))
    dims = [()] * ndim
    for axis in draw(st.permutations(list(SIZES)))[: draw(st.integers(0, 3))]:
        position = draw(st.integers(0, ndim - 1))
        dims[position] = (*dims[position], axis)
    return tuple(dims), tuple(draw(st.integers(1, 3)) for _ in range(ndim))


def pieces_in_numpy(whole, dims):
    """The piece of every device, in the order of the mesh axes that ``dims`` name, straight from the definition."""
    present = [axis for axis in SIZES if any(axis in part for part in dims)]
    pieces = []
    for device in np.ndindex(*(SIZES[axis] for axis in present)):
        where = dict(zip(present, device, strict=True))
        piece = whole
        for position, part in enumerate(dims):
            for axis in part:
                piece = np.split(piece, SIZES[axis], axis=position)[where[axis]]
        pieces.append(piece)
    return np.stack(pieces)


@settings(max_examples=200)
@given(divided())
def test_joining_and_dividing_follow_the_mesh(drawn):
    dims, piece = drawn
    shape = [size * math.prod(SIZES[axis] for axis in part) for size, part in zip(piece, dims, strict=True)]
    whole = np.arange(math.prod(shape)).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        # Only numbers move, and NumPy moves them without compiling a program for every shape.
        patch.setattr(packing, "jnp", np)
        pieces = divide(whole, dims, SIZES)
        np.testing.assert_array_equal(pieces, pieces_in_numpy(whole, dims))
        np.testing.assert_array_equal(join(pieces, dims, SIZES), whole)


def test_several_batches_bring_the_same_results():
    tree = random_tree(SHAPES, 1)
    specs = {name: P("data") if name in ("kernel", "experts") else P() for name in SHAPES}
    places = shardings(mesh_of(data=2, model=2), specs)
    plan = mo.plan(tree, places, LAYOUTS, orthogonalizer=ONE_STEP)
    batches = tuple(make_batches(list(chain.from_iterable(plan.batches)), 3000))
    assert len(plan.batches) == 1 < len(batches)
    plan = replace(plan, batches=batches)
    run = exchange(plan, lambda stacks, _: map_stacks(ONE_STEP, stacks))
    lowered = jax.jit(run).lower(jax.device_put(tree, places))
    assert_near(lowered.compile()(jax.device_put(tree, places)), unsharded())
    # A batch starts when the one before has ended.
    text = lowered.as_text()
    assert text.count("stablehlo.optimization_barrier") == len(batches) - 1
    assert text.count("stablehlo.all_gather") == plan.collectives["all-gather"]


@st.composite
def placements(draw):
    """A mesh, for each of the parameters mesh axes that need not divide it, and an axis to spread momentum over."""
    axes = draw(
        st.sampled_from([{"x": 2, "y": 2, "z": 2}, {"x": 4, "y": 2}, {"x": 3, "y": 2}, {"x": 5}, {"x": 1, "y": 7}])
    )
    specs = {}
    for name, shape in SHAPES.items():
        parts = [()] * len(shape)
        for axis in draw(st.permutations(list(axes)))[: draw(st.integers(0, len(axes)))]:
            position = draw(st.integers(0, len(shape) - 1))
            parts[position] = (*parts[position], axis)
        specs[name] = P(*parts)
    return axes, specs, draw(st.sampled_from([None, *axes]))


@pytest.mark.slow
@settings(max_examples=15)
@given(placements())
def test_any_placement_brings_the_same_results(drawn):
    axes, specs, over = drawn
    tree = random_tree(SHAPES, 1)
    plan = mo.plan(tree, shardings(mesh_of(**axes), specs), LAYOUTS, orthogonalizer=ONE_STEP, over=over)
    assert_near(updated(mo.orthogonalize(ONE_STEP, layouts=LAYOUTS, shardings=plan), tree), unsharded())


# Shapes on the first axis of so many devices, and of every stack how many of each kind the owners have.
MIXED = {
    "every device another shape": (
        4,
        [(8, 4 * size) for size in range(1, 6)],
        [[(1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 0), (0, 0, 0, 1, 1)]],
    ),
    "two small for one large": (4, [(16, 128)] * 2 + [(8, 128)] * 4, [[(1, 0), (1, 0), (0, 2), (0, 2)]]),
    "many panels, as wide as a register": (2, [(4, 50 * 128), (4, 3 * 128)], [[(1, 0), (0, 1)]]),
    "no common width": (4, [(8, 6), (8, 10), (4, 12)], [[(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]]),
    "a last turn that is not full": (4, [(8, 12)] * 6, [[(2,)] * 4]),
    "a stack for all, one for the rest": (
        4,
        [(4, 4)] * 9 + [(4, 6)] * 2,
        [[(1, 1), (1, 0), (0, 2), (0, 2)], [(1,)] * 4],
    ),
}


@pytest.mark.parametrize("devices, shapes, held", MIXED.values(), ids=MIXED)
def test_what_owners_have_may_differ(devices, shapes, held):
    tree = random_tree({str(number): shape for number, shape in enumerate(shapes)}, 7)
    layouts, placed = dict.fromkeys(tree, "io"), shardings(mesh_of(data=devices), dict.fromkeys(tree, P("data")))
    plan = mo.plan(tree, placed, layouts, orthogonalizer=ONE_STEP)
    assert [[stack.held for stack in batch] for batch in plan.batches] == [held]
    planned, plain = (mo.orthogonalize(ONE_STEP, layouts=layouts, shardings=given) for given in (plan, None))
    assert_near(updated(planned, tree), updated(plain, tree))


def test_blocks_of_fused_projections_have_owners_of_their_own():
    """Two layers of two blocks on four devices: one block each."""
    tree, layouts = random_tree({"fused": (2, 12, 8)}, 8), {"fused": mo.Layout("boi", split=(6, 6))}
    places = shardings(mesh_of(data=4), {"fused": P(None, None, "data")})
    plan = mo.plan(tree, places, layouts, orthogonalizer=ONE_STEP)
    assert set(plan.loads) == {ONE_STEP.flops(8, 6)}
    updates = updated(mo.orthogonalize(ONE_STEP, layouts=layouts, shardings=plan), tree)
    assert_near(updates, updated(mo.orthogonalize(ONE_STEP, layouts=layouts), tree))


def test_many_matrices_of_one_shape_take_one_collective_each_way():
    def collectives(layers, coefficients):
        tree = {str(layer): np.ones((8, 8), np.float32) for layer in range(layers)}
        places = shardings(mesh_of(data=4), dict.fromkeys(tree, P("data")))
        transform = mo.orthogonalize_via_newton_schulz(coefficients, shardings=places)
        text = jax.jit(transform.update).lower(tree, transform.init(tree)).as_text()
        return [
            text.count(f"stablehlo.{name}") for name in ("all_to_all", "all_gather", "all_reduce", "reduce_scatter")
        ]

    assert collectives(4, mo.CUBIC[:1]) == collectives(12, mo.CUBIC[:4]) == [2, 0, 0, 0]


@pytest.mark.parametrize(
    "update, products, wire",
    [
        ("float32", "bfloat16", "bf16"),
        ("float32", "float32", "f32"),
        ("bfloat16", "float32", "bf16"),
        ("float16", "bfloat16", "f16"),
        ("float32", "float16", "f32"),
        ("float32", None, "f32"),
    ],
)
def test_matrices_travel_in_the_dtype_of_the_products_if_that_is_narrower_and_wide_enough(update, products, wire):
    tree = {"kernel": np.ones((16, 32), jnp.dtype(update))}
    place = shardings(mesh_of(data=8), {"kernel": P("data")})
    orthogonalizer = mo.newton_schulz(mo.CUBIC[:1], dtype=jnp.dtype(products)) if products else mo.polar_factor()
    transform = mo.orthogonalize(orthogonalizer, shardings=place)
    text = jax.jit(transform.update).lower(tree, transform.init(tree)).as_text()
    sent = [line for line in text.splitlines() if "stablehlo.all_to_all" in line]
    assert len(sent) == 2
    assert all(f"x{wire}>) ->" in line for line in sent)


def test_an_orthogonalizer_that_changes_a_shape_is_refused_on_a_mesh_too():
    place = shardings(mesh_of(data=2), {"kernel": P("data")})
    transform = mo.orthogonalize(lambda matrices: matrices[..., :1], shardings=place)
    with pytest.warns(UserWarning, match="no dtype and no flops"), pytest.raises(TypeError, match="changed the shape"):
        updated(transform, {"kernel": np.ones((4, 4), np.float32)})
