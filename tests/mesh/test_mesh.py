"""Whatever the mesh and however the parameters lie on it, training goes as on one device."""

from collections import OrderedDict
from contextlib import nullcontext
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import (
    AUTO,
    AUTO_FIRST,
    EXPLICIT,
    FLOAT32,
    KINDS,
    LAYOUTS,
    ONE_STEP,
    SHAPES,
    assert_near,
    given,
    lie_alike,
    mesh_of,
    random_tree,
    shardings,
    types,
    unsharded,
    updated,
)
from placements import PLACEMENTS, placed
from tolerances import RTOL

import muon_optax as mo
from muon_optax._mesh.typed import gather

TYPED = {"FSDP x tensor", "FSDP x expert", "three axes", "axes of one device"}  # under Explicit axes by default


def placements():
    for name, (axes, specs) in PLACEMENTS.items():
        for kind_name, kind in KINDS.items():
            marks = pytest.mark.slow if kind is EXPLICIT and name not in TYPED else ()
            yield pytest.param(kind, axes, specs, id=f"{name}, {kind_name}", marks=marks)


@pytest.mark.parametrize("kind, axes, specs", list(placements()))
def test_sharded_updates_equal_unsharded_ones(kind, axes, specs):
    places = placed(kind, axes, specs)
    transform = mo.orthogonalize(ONE_STEP, layouts=LAYOUTS, shardings=given(kind, places))
    tree = jax.device_put(random_tree(SHAPES, 1), places)
    updates = updated(transform, tree)
    assert_near(updates, unsharded())
    assert lie_alike(updates, places)
    assert types(updates) == types(tree)


UNEVEN = {"kernel": (10, 7), "experts": (5, 6, 4), "out": (3, 4, 10), "fused": (2, 12, 6)}


@pytest.mark.parametrize("devices", range(1, 9))
def test_sizes_that_the_mesh_does_not_divide_are_padded(devices):
    # Arrays can't be laid out unevenly; inside jit, where XLA decides, shardings may say so all the same.
    layouts = {name: LAYOUTS[name] for name in UNEVEN} | {"fused": mo.Layout("boi", split=(8, 4))}
    specs = {"kernel": P("data"), "experts": P("data", None), "out": P(None, None, "data"), "fused": P(None, "data")}
    tree = random_tree(UNEVEN, 3)
    mesh = mesh_of(data=devices) if devices < 8 else mesh_of(data=4, model=2)
    if devices == 8:
        specs["kernel"] = P("data", "model")
    transform = mo.orthogonalize(ONE_STEP, layouts=layouts, shardings=shardings(mesh, specs))
    assert_near(updated(transform, tree), uneven_updates(tuple(layouts.items())))


@cache
def uneven_updates(layouts: Any) -> Any:
    return updated(mo.orthogonalize(ONE_STEP, layouts=dict(layouts)), random_tree(UNEVEN, 3))


GIVEN = {
    "shardings": lambda tree, places: places,
    "arrays": lambda tree, places: jax.device_put(tree, places),
    "ShapeDtypeStructs": lambda tree, places: {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places[name]) for name, leaf in tree.items()
    },
    "a plan": lambda tree, places: mo.plan(tree, places, orthogonalizer=ONE_STEP),
}


@pytest.mark.parametrize("make", GIVEN.values(), ids=GIVEN)
def test_shardings_are_given_as_any_tree_that_has_them(make):
    tree = random_tree({"kernel": (16, 32)}, 2)
    places = shardings(mesh_of(data=4, model=2), {"kernel": P("model", "data")})
    transform = mo.orthogonalize(ONE_STEP, shardings=make(tree, places))
    program = jax.jit(transform.update).lower(jax.device_put(tree, places), transform.init(tree)).compile()
    updates, _ = program(jax.device_put(tree, places), transform.init(tree))
    assert_near(updates, updated(mo.orthogonalize(ONE_STEP), tree))
    text = program.as_text()
    # One way there and one back, and none of the partitioner's own.
    assert (text.count(" all-to-all("), text.count(" all-gather("), text.count(" all-reduce(")) == (2, 0, 0)


# All of muon, with the AdamW branch, decay, schedules, wrappers and loops.

MODEL = {"kernel": (16, 32), "query": (16, 4, 8), "experts": (4, 16, 8), "bias": (32,)}
SPECS = {
    "kernel": P("data", "model"),
    "query": P("data", "model"),
    "experts": P("data", None, "model"),
    "bias": P("data"),
}
MODEL_LAYOUTS = {"query": "ioo", "experts": "bio"}
PARAMS, GRADIENTS = random_tree(MODEL, 10), random_tree(MODEL, 11)


def muon(**options: Any) -> optax.GradientTransformation:
    return mo.muon(0.1, layouts=MODEL_LAYOUTS, **{"orthogonalizer": ONE_STEP} | options)


@cache
def places(kind: Any) -> dict[str, NamedSharding]:
    return shardings(mesh_of(kind, data=4, model=2), SPECS)


def run(optimizer: Any, params: Any, gradients: Any, steps: int = 2) -> tuple[Any, Any]:
    """The last updates and state; the gradients and parameters are the same in every step."""
    update = jax.jit(optimizer.update)
    state = mo.init_sharded(optimizer, params) if len(params["bias"].devices()) > 1 else optimizer.init(params)
    for _ in range(steps):
        updates, state = update(gradients, state, params)
    return updates, state


def on_mesh(kind: Any, tree: Any) -> Any:
    return jax.device_put(tree, places(kind))


def on_one_device(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


@cache
def two_steps() -> tuple[Any, Any]:
    return run(muon(), on_one_device(PARAMS), on_one_device(GRADIENTS))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_muon_with_its_state(kind):
    optimizer = muon(shardings=given(kind, places(kind)))
    params = on_mesh(kind, PARAMS)
    before = mo.init_sharded(optimizer, params)
    updates, state = run(optimizer, params, on_mesh(kind, GRADIENTS))
    assert_near(updates, two_steps()[0])
    assert_near(state, two_steps()[1])
    assert lie_alike(updates, params)
    assert lie_alike(state, before)
    assert (types(updates), types(state)) == (types(params), types(before))
    momentum = state.inner_states["muon"].inner_state[0].trace
    assert momentum["kernel"].addressable_shards[0].data.shape == (4, 16)


def test_explicit_types_need_no_init_of_their_own():
    params = on_mesh(EXPLICIT, PARAMS)
    optimizer = muon()
    for one, other in zip(types(optimizer.init(params)), types(mo.init_sharded(optimizer, params)), strict=True):
        assert one == other or one.shape == other.shape == ()  # a counter lies on no mesh until the first step


@pytest.mark.parametrize("kind", AUTO_FIRST)
def test_one_matrix_without_jit(kind):
    tree = {"kernel": on_mesh(kind, GRADIENTS)["kernel"]}
    transform = mo.orthogonalize(ONE_STEP, shardings=given(kind, tree))
    updates, _ = transform.update(tree, transform.init(tree))
    assert_near(updates, updated(mo.orthogonalize(ONE_STEP), {"kernel": GRADIENTS["kernel"]}))
    assert types(updates) == types(tree)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_arrays_on_no_mesh_go_where_a_plan_says(kind):
    """Such as gradients from NumPy."""
    tree = {"kernel": GRADIENTS["kernel"]}
    plan = mo.plan(tree, {"kernel": places(kind)["kernel"]}, orthogonalizer=ONE_STEP)
    updates = updated(mo.orthogonalize(ONE_STEP, shardings=plan), tree)
    assert updates["kernel"].sharding.is_equivalent_to(plan.shardings["kernel"], 2)
    assert_near(updates, updated(mo.orthogonalize(ONE_STEP), tree))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_updates_without_parameters(kind):
    tree = {"kernel": on_mesh(kind, GRADIENTS)["kernel"]}
    transform = optax.chain(mo.orthogonalize(ONE_STEP, shardings=given(kind, tree)), optax.scale(2.0))
    updates = updated(transform, tree)
    assert types(updates) == types(tree)
    assert_near(
        updates, updated(optax.chain(mo.orthogonalize(ONE_STEP), optax.scale(2.0)), {"kernel": GRADIENTS["kernel"]})
    )


def test_a_plan_finds_its_leaves_by_path():
    """A dict is sorted by name, and an OrderedDict of the same paths is not."""
    tree = random_tree({"a": (8, 8), "b": (8, 8)}, 4)
    plan = mo.plan(tree, shardings(mesh_of(data=2), dict.fromkeys(tree, P("data"))), orthogonalizer=ONE_STEP)
    reordered = OrderedDict(b=tree["b"], a=tree["a"])
    updates = updated(mo.orthogonalize(ONE_STEP, shardings=plan), reordered)
    assert_near(dict(updates), updated(mo.orthogonalize(ONE_STEP), tree))


def test_experts_that_come_otherwise_than_they_leave():
    """A gradient with another spec than its parameter: experts stay where the parameter has them."""
    tree, mesh = random_tree({"experts": (2, 4, 8, 6)}, 9), mesh_of(EXPLICIT, data=2, model=2)
    came, leave = (shardings(mesh, {"experts": spec}) for spec in (P("data", "model"), P("data", None, "model")))
    transform = mo.orthogonalize(ONE_STEP, layouts={"experts": "bbio"})
    update = jax.jit(lambda updates, params: transform.update(updates, optax.EmptyState(), params)[0])
    updates = update(jax.device_put(tree, came), jax.device_put(tree, leave))
    assert_near(updates, updated(transform, tree))
    assert lie_alike(updates, leave)


def normalized(matrices):
    """An orthogonalizer that says nothing about its cost and dtype."""
    return matrices / jnp.linalg.norm(matrices, axis=(-2, -1), keepdims=True)


@pytest.mark.parametrize("kind", AUTO_FIRST)
@pytest.mark.parametrize("orthogonalizer", [mo.polar_factor(), normalized], ids=["polar_factor", "a function"])
def test_any_orthogonalizer(kind, orthogonalizer):
    optimizer = muon(orthogonalizer=orthogonalizer, shardings=given(kind, places(kind)))
    with pytest.warns(match="has no dtype and no flops") if orthogonalizer is normalized else nullcontext():
        updates, _ = run(optimizer, on_mesh(kind, PARAMS), on_mesh(kind, GRADIENTS), steps=1)
    plain = run(muon(orthogonalizer=orthogonalizer), on_one_device(PARAMS), on_one_device(GRADIENTS), steps=1)
    assert_near(updates, plain[0])


DTYPES = {"kernel": jnp.bfloat16, "query": jnp.float16, "experts": jnp.float32, "bias": jnp.bfloat16}


@pytest.mark.parametrize("kind", AUTO_FIRST)
@pytest.mark.parametrize(
    "orthogonalizer",
    [
        pytest.param(mo.newton_schulz(mo.CUBIC[:1]), id="one step"),
        pytest.param(None, id="default", marks=pytest.mark.slow),
    ],
)
def test_a_tree_of_several_dtypes_and_products_in_bfloat16(kind, orthogonalizer):
    params, gradients = ({name: tree[name].astype(DTYPES[name]) for name in tree} for tree in (PARAMS, GRADIENTS))
    optimizer = muon(orthogonalizer=orthogonalizer, shardings=given(kind, places(kind)))
    updates, _ = run(optimizer, on_mesh(kind, params), on_mesh(kind, gradients), steps=1)
    plain, _ = run(muon(orthogonalizer=orthogonalizer), on_one_device(params), on_one_device(gradients), steps=1)
    # The result travels in bfloat16, which rounds a float32 update once more.
    assert_near(updates, plain, RTOL["bfloat16"])


def test_the_scale_of_a_gradient_does_not_count_on_the_wire():
    place = {"kernel": places(AUTO)["kernel"]}
    transform = mo.orthogonalize_via_newton_schulz(shardings=place)
    update = jax.jit(lambda tree: transform.update(tree, optax.EmptyState())[0])
    expected = update({"kernel": GRADIENTS["kernel"]})
    for exponent in (-100, 100):
        got = update({"kernel": GRADIENTS["kernel"] * np.float32(2.0**exponent)})
        np.testing.assert_array_equal(got["kernel"], expected["kernel"])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_empty_arrays_and_none_in_a_nested_tree(kind):
    tree = {
        "a": np.zeros((0, 8), np.float32),
        "c": [None, (GRADIENTS["kernel"],)],
        "d": np.zeros((4, 0, 8), np.float32),
    }
    place = jax.tree.map(lambda _: NamedSharding(mesh_of(kind, data=4), P("data")), tree)
    placed = jax.device_put(tree, place)
    updates = updated(mo.orthogonalize(ONE_STEP, layouts={"d": "bio"}, shardings=given(kind, place)), placed)
    assert_near(updates, updated(mo.orthogonalize(ONE_STEP, layouts={"d": "bio"}), tree))
    assert types(updates) == types(placed)


def test_empty_arrays_under_a_plan_that_spreads_momentum():
    tree = {"a": np.zeros((0, 8), np.float32), "c": GRADIENTS["kernel"]}
    plan = mo.plan(tree, shardings(mesh_of(data=4), dict.fromkeys(tree, P())), orthogonalizer=ONE_STEP, over="data")
    updates = updated(mo.orthogonalize(ONE_STEP, shardings=plan), tree)
    assert_near(updates, updated(mo.orthogonalize(ONE_STEP), tree))


def test_a_tree_of_one_array_and_a_tree_without_matrices():
    place = NamedSharding(mesh_of(data=4), P("data"))
    kernel = jax.device_put(GRADIENTS["kernel"], place)
    assert_near(
        updated(mo.orthogonalize(ONE_STEP, shardings=place), kernel), updated(mo.orthogonalize(ONE_STEP), kernel)
    )
    bias = {"bias": jax.device_put(GRADIENTS["bias"], place)}
    updates, _ = run(mo.muon(0.1, layouts={}, shardings={"bias": place}), bias, bias, steps=1)
    assert_near(updates, run(mo.muon(0.1, layouts={}), on_one_device(bias), on_one_device(bias), steps=1)[0])


@pytest.mark.parametrize("passed", [None, "shardings"])
def test_inside_shard_map_all_is_local(passed):
    mesh = mesh_of(data=4)
    stack = np.random.default_rng(5).standard_normal((8, 16, 8)).astype(np.float32)
    place = NamedSharding(mesh, P("data"))
    transform = mo.orthogonalize(ONE_STEP, layouts={"": "bio"}, shardings=place if passed else None)

    def local(stack):
        return transform.update(stack, optax.EmptyState())[0]

    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data")))
    program = mapped.lower(jax.device_put(stack, place)).compile()
    assert_near(program(jax.device_put(stack, place)), updated(mo.orthogonalize(ONE_STEP, layouts={"": "bio"}), stack))
    assert "all-to-all" not in program.as_text()
    assert "all-gather" not in program.as_text()


# Training.

LAYERS = {"up": (16, 32), "bias": (32,), "down": (32, 16)}
INPUTS, TARGETS = random_tree({"x": (32, 16), "y": (32, 16)}, 20).values()
FSDP = dict.fromkeys(LAYERS, P("data"))
TRAININGS = {
    "Auto, FSDP": (AUTO, {"data": 8}, FSDP, None),
    "Explicit, FSDP": (EXPLICIT, {"data": 8}, FSDP, None),
    "Auto, FSDP x tensor": (
        AUTO,
        {"data": 4, "model": 2},
        {"up": P("data", "model"), "bias": P("model"), "down": P("model", "data")},
        None,
    ),
    "Auto, ZeRO-1": (AUTO, {"data": 8}, dict.fromkeys(LAYERS, P()), "data"),
}


def train(optimizer: Any, params: Any, state: Any, inputs: Any, targets: Any) -> tuple[Any, Any]:
    """Parameters and losses of 20 steps in a loop, buffers donated."""

    def loss_of(params):
        up, bias, down = (gather(params[name]) for name in ("up", "bias", "down"))
        return jnp.mean((jax.nn.relu(inputs @ up + bias) @ down - targets) ** 2)

    def step(carry, _):
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    def steps(params, state):
        return jax.lax.scan(step, (params, state), length=20)

    (params, _), losses = jax.jit(steps, donate_argnums=(0, 1))(params, state)
    return params, losses


def initial() -> dict[str, np.ndarray]:
    return {name: 0.1 * leaf for name, leaf in random_tree(LAYERS, 21).items()}


@cache
def trained_on_one_device() -> tuple[Any, Any]:
    optimizer, params = mo.muon(0.02, orthogonalizer=FLOAT32), on_one_device(initial())
    return train(optimizer, params, optimizer.init(params), INPUTS, TARGETS)


@pytest.mark.parametrize("kind, axes, specs, over", TRAININGS.values(), ids=TRAININGS)
def test_twenty_steps_of_training_equal_those_of_one_device(kind, axes, specs, over):
    mesh = mesh_of(kind, **axes)
    place = shardings(mesh, specs)
    plan = mo.plan(initial(), place, orthogonalizer=FLOAT32, over=over)
    optimizer = mo.muon(0.02, orthogonalizer=FLOAT32, shardings=given(kind, plan))
    params = jax.device_put(initial(), place)
    state = optimizer.init(params) if kind is EXPLICIT else mo.init_sharded(optimizer, params, plan)
    inputs, targets = (jax.device_put(array, NamedSharding(mesh, P())) for array in (INPUTS, TARGETS))
    params, losses = train(optimizer, params, state, inputs, targets)
    expected, expected_losses = trained_on_one_device()
    assert expected_losses[-1] < 0.8 * expected_losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)
    assert_near(params, expected, 1e-3)
