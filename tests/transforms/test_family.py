"""The family: parity with float64 NumPy on every layout, wrong variants told apart, meshes, hostile inputs."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import family_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from meshes import (
    AUTO_FIRST,
    EXPLICIT,
    FLOAT32,
    LAYOUTS,
    ONE_STEP,
    SHAPES,
    assert_near,
    lie_alike,
    mesh_of,
    random_tree,
    shardings,
    types,
)

import muon_optax as mo

LEAVES = {
    "io": ("io", (6, 10)),
    "io-tall": ("io", (10, 6)),
    "io-square": ("io", (6, 6)),
    "oi": ("oi", (5, 8)),
    "ioo": ("ioo", (6, 2, 5)),
    "ibo": ("ibo", (6, 2, 4)),
    "bio": ("bio", (3, 4, 5)),
    "oio": ("oio", (2, 6, 4)),
    "split": (mo.Layout("io", split=(9, 2, 6)), (6, 17)),
    "stacked-split": (mo.Layout("boi", split=(4, 2)), (2, 6, 3)),
}
STEPS = 3


class Part(NamedTuple):
    """A transform, its oracle, and oracles of mistakes."""

    build: Callable[[Any, str], optax.GradientTransformation]
    step: oracle.Step
    mistakes: dict[str, oracle.Step]


PARTS = {
    "normuon": Part(
        lambda layouts, dtype: mo.scale_by_normuon(layouts=layouts),
        oracle.normuon(),
        {"wrong axis": oracle.normuon(wrong_axis=True), "norm not restored": oracle.normuon(restored=False)},
    ),
    "normuon-longer": Part(
        lambda layouts, dtype: mo.scale_by_normuon(0.9, axis="longer", layouts=layouts),
        oracle.normuon(0.9, longer=True),
        {"shorter axis": oracle.normuon(0.9, longer=True, wrong_axis=True)},
    ),
    "adamuon": Part(
        lambda layouts, dtype: mo.scale_by_adamuon(mo.newton_schulz(dtype=dtype), layouts=layouts),
        oracle.adamuon(),
        {"no sign": oracle.adamuon(sign=False), "no RMS step": oracle.adamuon(rms=False)},
    ),
    "cautious": Part(
        lambda layouts, dtype: mo.add_cautious_decayed_weights(0.3),
        oracle.cautious(0.3),
        {"decay against the step": oracle.cautious(0.3, wrong_sign=True)},
    ),
    "hyperball": Part(lambda layouts, dtype: mo.scale_by_hyperball(0.1, layouts=layouts), oracle.hyperball(0.1), {}),
}


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest) -> Part:
    return PARTS[request.param]


def updates_of(transform: Any, weight: Any, leaf_steps: list[Any], dtype: str) -> list[np.ndarray]:
    """The updates of a leaf called w, compiled once; the weight follows them."""
    params, update = {"w": jnp.asarray(weight, dtype)}, jax.jit(transform.update)
    state, found = transform.init(params), []
    for leaf in leaf_steps:
        updates, state = update({"w": jnp.asarray(leaf, dtype)}, state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(updates["w"], np.float64))
    return found


def error(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    return max(np.linalg.norm(one - two) / np.linalg.norm(two) for one, two in zip(got, want, strict=True))


@cache
def inputs(shape: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """A weight and updates whose matrices and neurons differ in size; float32 numbers, which every dtype here holds."""
    rng = np.random.default_rng(0)
    sizes = [np.exp(rng.standard_normal([n if axis == own else 1 for axis in range(len(shape))]))
             for own, n in enumerate(shape)]  # fmt: skip
    leaves = [np.prod(np.broadcast_arrays(*sizes), axis=0) * rng.standard_normal(shape) for _ in range(STEPS + 1)]
    weight, *steps = [np.asarray(np.float32(leaf), np.float64) for leaf in leaves]
    return weight, steps


@pytest.mark.parametrize("dtype, within", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("leaf", LEAVES)
def test_parity(part: Part, leaf: str, dtype: str, within: float) -> None:
    layout, shape = LEAVES[leaf]
    axes, split = (layout.axes, layout.split) if isinstance(layout, mo.Layout) else (layout, None)
    weight, steps = inputs(shape)
    with jax.enable_x64(dtype == "float64"):
        got = updates_of(part.build({"w": layout}, dtype), weight, steps, dtype)
    assert error(got, oracle.run(part.step, steps, weight, axes, split)) < within


def mistakes() -> list[Any]:
    return [pytest.param(part, step, id=f"{name}: {mistake}") for name, part in PARTS.items()
            for mistake, step in part.mistakes.items()]  # fmt: skip


@pytest.mark.parametrize("part, wrong", mistakes())
def test_a_mistake_would_show(part: Part, wrong: oracle.Step) -> None:
    weight, steps = inputs((10, 6))
    got = updates_of(part.build({"w": "io"}, "float32"), weight, steps, "float32")
    assert error(got, oracle.run(wrong, steps, weight, "io", None)) > 0.02


@pytest.mark.parametrize("name", ["normuon", "hyperball"])
def test_one_statistic_for_a_stack_would_show(name: str) -> None:
    """One radius or one norm for all experts together: the oracle sees the stack as one matrix."""
    weight, steps = inputs((3, 4, 5))
    got = updates_of(PARTS[name].build({"w": "bio"}, "float32"), weight, steps, "float32")
    assert error(got, oracle.run(PARTS[name].step, steps, weight, "oio", None)) > 0.02


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (4, 6), (6, 4)], ids=str)
@pytest.mark.parametrize("axis", ["output", "longer"])
def test_the_moments_of_normuon_and_the_least_that_is_divided_by(axis: Any, shape: tuple[int, int]) -> None:
    """A factor on all moments changes no update, and of neurons of usual size none is that small."""
    weight, steps = inputs(shape)
    faint = np.where(np.arange(shape[1]) == 1, 1e-7, 1.0) * np.where(np.arange(shape[0]) == 1, 1e-7, 1.0)[:, None]
    transform, step, v = (
        mo.scale_by_normuon(axis=axis, layouts={"w": "io"}),
        oracle.normuon(longer=axis == "longer"),
        None,
    )
    state = transform.init({"w": jnp.asarray(weight, jnp.float32)})
    for leaf in steps:
        want, v = step(faint * leaf, v, weight)
        updates, state = transform.update({"w": jnp.asarray(faint * leaf, jnp.float32)}, state)
        np.testing.assert_allclose(updates["w"], want, rtol=1e-5)
        np.testing.assert_allclose(state.moments["w"], v, rtol=1e-5)


# Meshes: on every part, and on momentum in few bits.

ON_MESH = {name: SHAPES[name] for name in ("kernel", "torch", "query", "experts", "fused")}
MESH_LAYOUTS = {name: LAYOUTS[name] for name in ON_MESH}
MESH_PARTS = {
    "normuon": lambda: mo.scale_by_normuon(layouts=MESH_LAYOUTS),
    "normuon-longer": lambda: mo.scale_by_normuon(axis="longer", layouts=MESH_LAYOUTS),
    "adamuon": lambda: mo.scale_by_adamuon(ONE_STEP, layouts=MESH_LAYOUTS),
    "cautious": lambda: mo.add_cautious_decayed_weights(0.3),
    "hyperball": lambda: mo.scale_by_hyperball(0.1, layouts=MESH_LAYOUTS),
    "quantized-8": lambda: mo.quantized_trace(0.9, nesterov=True, block_size=8),
    "average": lambda: mo.nesterov_ema(0.9, debias=True),
    "scheduled": lambda: mo.scheduled_trace(optax.linear_schedule(0.5, 0.9, 3), nesterov=True),
    "quantized-4": lambda: mo.quantized_trace(0.9, nesterov=True, bits=4, block_size=8),
}
PLACEMENTS = {
    "1-D": ({"data": 8}, {name: P(*[None] * (len(shape) - 1), "data") for name, shape in ON_MESH.items()}),
    "2-D": (
        {"data": 4, "model": 2},
        {
            "kernel": P("data", "model"),
            "torch": P("model", "data"),
            "query": P("data", "model"),
            "experts": P("data", None, "model"),
            "fused": P("data", "model"),
        },
    ),
}


def specs_of(tree: Any) -> list[Any]:
    """Shape, dtype and how it lies of every leaf; a counter comes to its mesh at the first step."""
    return [(kind.shape, kind.dtype, kind.sharding.spec) for kind in types(tree)]


def two_steps(transform: Any, params: Any, gradients: list[Any], update: Any = None) -> tuple[Any, Any]:
    state, updates, update = transform.init(params), None, update or jax.jit(transform.update)
    for gradient in gradients:
        updates, new_state = update(gradient, state, params)
        assert specs_of(new_state) == specs_of(state)
        params, state = optax.apply_updates(params, updates), new_state
    return updates, state


@cache
def on_one_device(name: str) -> Any:
    params, *gradients = (random_tree(ON_MESH, seed) for seed in range(3))
    return two_steps(MESH_PARTS[name](), params, gradients)[0]


@pytest.mark.parametrize("kind", AUTO_FIRST)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", MESH_PARTS)
def test_sharded_equals_unsharded(name: str, placement: str, kind: Any) -> None:
    axes, specs = PLACEMENTS[placement]
    places = shardings(mesh_of(kind, **axes), specs)
    params, *gradients = (jax.device_put(random_tree(ON_MESH, seed), places) for seed in range(3))
    got, _ = two_steps(MESH_PARTS[name](), params, gradients)
    assert_near(got, on_one_device(name), 1e-4)


@pytest.mark.parametrize("placement", [pytest.param("1-D", marks=pytest.mark.slow), "2-D"])
@pytest.mark.parametrize("name", MESH_PARTS)
def test_types_and_state_shardings_agree(name: str, placement: str) -> None:
    """Where a state comes to lie by itself under Explicit axes, there ``state_shardings`` places it."""
    axes, specs = PLACEMENTS[placement]
    params = jax.device_put(random_tree(ON_MESH, 0), shardings(mesh_of(EXPLICIT, **axes), specs))
    part = MESH_PARTS[name]()
    state, places = part.init(params), mo.state_shardings(part, params)
    on_mesh = [(leaf, place) for leaf, place in zip(*map(jax.tree.leaves, (state, places)), strict=True) if leaf.ndim]
    assert lie_alike(*map(list, zip(*on_mesh, strict=True))) if on_mesh else name == "cautious"


# Hostile inputs, dtypes, transformations.

STACK_SHAPES, STACK = {"stack": (3, 4, 6)}, {"stack": "bio"}
IN_A_CHAIN = {
    name: optax.chain(mo.orthogonalize(FLOAT32, layouts=STACK), part.build(STACK, "float32"))
    for name, part in PARTS.items()
} | {"quantized": mo.quantized_trace(0.9)}
UPDATE = {name: jax.jit(transform.update) for name, transform in IN_A_CHAIN.items()}


@pytest.mark.parametrize("name", IN_A_CHAIN)
@pytest.mark.parametrize("value", [0.0, np.nan, 1e30, 1e-30], ids=str)
def test_a_hostile_matrix_harms_no_other(name: str, value: float) -> None:
    params, *gradients = (random_tree(STACK_SHAPES, seed) for seed in range(3))
    want = two_steps(IN_A_CHAIN[name], params, gradients, UPDATE[name])[0]["stack"]
    factors = np.float32([1, value, 1])[:, None, None]
    hostile = [{"stack": factors * leaf["stack"]} for leaf in gradients]
    got = two_steps(IN_A_CHAIN[name], params, hostile, UPDATE[name])[0]["stack"]
    np.testing.assert_allclose(got[::2], want[::2], rtol=1e-5, atol=1e-6)
    if value == 0:  # only a decay moves a weight without a gradient
        np.testing.assert_allclose(got[1], 0.3 * 1.3 * params["stack"][1] if name == "cautious" else 0, atol=1e-6)
    else:  # the size of a gradient is forgotten by all but the momentum; NaN stays
        factor = value if name == "quantized" or np.isnan(value) else 1
        np.testing.assert_allclose(got[1] / factor, want[1] * (factor / factor), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("name", IN_A_CHAIN)
def test_scan_donation_and_bfloat16_parameters(name: str) -> None:
    params, *gradients = (random_tree(STACK_SHAPES, seed, jnp.bfloat16) for seed in range(3))
    transform, carry = IN_A_CHAIN[name], (params, IN_A_CHAIN[name].init(params))
    want, state = two_steps(transform, params, gradients, UPDATE[name])

    def step(carry: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = transform.update(gradient, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), updates

    def train(carry: Any, gradients: Any) -> tuple[Any, Any]:
        return jax.lax.scan(step, carry, gradients)

    carry = jax.tree.map(jnp.array, carry)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
    trained, updates = jax.jit(train, donate_argnums=0)(carry, stacked)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(carry))
    # A bit of bfloat16, carried on by Newton-Schulz.
    assert_near(jax.tree.map(lambda leaf: leaf[-1], updates), want, 3e-2)
    assert types(trained[1]) == types(state)
    assert jnp.dtype(jnp.bfloat16) not in {leaf.dtype for leaf in jax.tree.leaves(state)}


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: mo.scale_by_normuon(1.0), "b2=1.0 is not allowed"),
        (lambda: mo.scale_by_normuon(axis="input"), "axis='input' is not allowed: use 'output'"),
        (lambda: mo.scale_by_adamuon(b2=-1), "b2=-1 is not allowed"),
        (lambda: mo.add_cautious_decayed_weights(-0.1), "weight_decay=-0.1 is not allowed"),
        (lambda: mo.scale_by_hyperball(np.nan), "learning_rate=nan is not allowed"),
        (lambda: mo.quantized_trace(0.9, bits=2), "bits=2 is not allowed: use 8 or 4"),
        (lambda: mo.quantized_trace(0.9, block_size=0), "block_size=0 is not allowed: use an even"),
        (lambda: mo.quantized_trace(0.9, block_size=7), "block_size=7 is not allowed: use an even"),
        (lambda: mo.quantized_trace(0.9).init({"w": jnp.ones(2, int)}), "'w' has dtype int32.*use optax.trace"),
        (lambda: mo.scale_by_normuon().init({"bias": jnp.ones(3)}), "'bias' of shape .3,. has no layout"),
    ],
)
def test_refusals(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("value", [-1e-30, -1.0, 1e30])
def test_a_radius_of_any_size_and_sign_of_entries(value: float) -> None:
    state = mo.scale_by_hyperball(0.1, layouts={"w": "io"}).init({"w": jnp.full((2, 3), value)})
    np.testing.assert_allclose(state.radii["w"], [[np.sqrt(6) * abs(value)]], rtol=1e-6)


def test_a_matrix_of_zeros_has_no_sphere() -> None:
    transform, params = mo.scale_by_hyperball(0.1, layouts=STACK), random_tree(STACK_SHAPES, 0)
    params["stack"][1] = 0
    with pytest.raises(ValueError, match=r"'stack' of shape .3, 4, 6. and layout 'bio' holds a matrix of zeros.*None"):
        transform.init(params)
    state = jax.jit(transform.init)(params)  # values are out of sight there, and NaN is noticed
    updates, _ = transform.update(random_tree(STACK_SHAPES, 1), state, params)
    assert np.isnan(updates["stack"][1]).all()
    assert np.isfinite(updates["stack"][::2]).all()


@pytest.mark.parametrize("part", [mo.add_cautious_decayed_weights(0.1), mo.scale_by_hyperball(0.1, layouts=STACK)])
def test_params_are_needed(part: optax.GradientTransformation) -> None:
    params = random_tree(STACK_SHAPES, 0)
    with pytest.raises(ValueError, match=r"needs the parameters: call update\(updates, state, params\)"):
        part.update(params, part.init(params))


def test_radii_hold_for_a_thousand_steps_and_schedules_are_read() -> None:
    params, gradient = random_tree(STACK_SHAPES, 0), random_tree(STACK_SHAPES, 1)
    transform = mo.scale_by_hyperball(optax.linear_schedule(0.1, 0.0, 500), layouts=STACK)

    def step(carry: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        updates, state = transform.update(jax.tree.map(lambda g: g * jnp.cos(index), gradient), state, params)
        return (optax.apply_updates(params, updates), state), jnp.max(jnp.abs(updates["stack"]))

    carry, moved = jax.lax.scan(step, (jax.tree.map(jnp.asarray, params), transform.init(params)), jnp.arange(1000))
    norms = np.linalg.norm(carry[0]["stack"], axis=(1, 2))
    np.testing.assert_allclose(norms, np.linalg.norm(params["stack"], axis=(1, 2)), rtol=1e-6)
    assert moved[0] > 0.02
    assert moved[-1] < 1e-6


def test_a_cautious_decay_follows_its_schedule_and_mask() -> None:
    params, updates = {"w": jnp.ones(2), "b": jnp.ones(2)}, {"w": jnp.zeros(2), "b": jnp.zeros(2)}
    transform = mo.add_cautious_decayed_weights(lambda step: 0.1 * (step + 1), mask={"w": True, "b": False})
    state = transform.init(params)
    for factor in (0.1, 0.2):
        decayed, state = transform.update(updates, state, params)
        np.testing.assert_allclose(decayed["w"], factor, rtol=1e-6)
        np.testing.assert_array_equal(decayed["b"], 0)


def momentum_in(bits: Any) -> optax.GradientTransformation:
    return mo.partition_by_layout(mo.quantized_trace(0.9, bits=bits), optax.adam(0.1))


@pytest.mark.parametrize(
    "build, kernel, fused",
    [
        (lambda layouts: mo.recipes.normuon(0.1, layouts=layouts), 4 * (6 * 10 + 10), 4 * (6 * 12 + 12)),
        # The longer axis of the second block, 6 x 3, are the inputs.
        (
            lambda layouts: mo.recipes.normuon(0.1, axis="longer", layouts=layouts),
            4 * (6 * 10 + 10),
            4 * (6 * 12 + 9 + 6),
        ),
        (
            lambda layouts: mo.recipes.muon_h(0.1, adamw_learning_rate=0.1, layouts=layouts),
            4 * (6 * 10 + 1),
            4 * (6 * 12 + 2),
        ),
        (lambda layouts: momentum_in(bits=8), 6 * 10 + 4 * 6, 6 * 12 + 4 * 6),
        (lambda layouts: momentum_in(bits=4), 6 * 5 + 4 * 6, 6 * 6 + 4 * 6),
    ],
    ids=["normuon", "normuon-longer", "muon_h", "8 bits", "4 bits"],
)
def test_the_summary_counts_statistics(build: Any, kernel: int, fused: int) -> None:
    params = {"kernel": jnp.ones((6, 10)), "fused": jnp.ones((6, 12)), "bias": jnp.ones(3)}
    layouts = {"fused": mo.Layout("io", split=(9, 3))}
    rows = {row.path: row.state_bytes for row in mo.summarize(params, layouts, optimizer=build(layouts)).rows}
    assert rows == {"kernel": kernel, "fused": fused, "bias": 2 * 4 * 3}
