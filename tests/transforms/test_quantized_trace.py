"""Momentum in few bits: the codes, the bytes, the error over many steps, and checkpoints."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AUTO_FIRST, EXPLICIT, ONE_STEP, assert_near, lie_alike, mesh_of, random_tree, shardings, types
from trees import assert_trees_equal

import muon_optax as mo

SHAPES = {"scalar": (), "vector": (5,), "odd": (3, 7), "blocks": (4, 32), "cut": (2, 3, 37), "one": (4, 1)}


def rounded(momentum: np.ndarray, bits: int, block_size: int) -> np.ndarray:
    """Float64 NumPy: what is left of a momentum after it was stored."""
    limit, stored = 2 ** (bits - 1) - 1, np.zeros(momentum.shape)
    for start in range(0, momentum.shape[-1], block_size):
        block = momentum[..., start : start + block_size]
        scale = np.max(np.abs(block), axis=-1, keepdims=True) / limit
        stored[..., start : start + block_size] = np.round(block / scale) * scale
    return stored


@pytest.mark.parametrize("nesterov", [False, True], ids=["plain", "nesterov"])
@pytest.mark.parametrize("bits, block_size", [(8, 16), (4, 16), (4, 2)])
@pytest.mark.parametrize("name", SHAPES)
def test_parity(name: str, bits: Any, block_size: int, nesterov: bool) -> None:
    rng = np.random.default_rng(0)
    gradients = np.float32(rng.standard_normal((4, *SHAPES[name])))
    transform = mo.quantized_trace(0.9, nesterov, bits=bits, block_size=block_size)
    state, memory = transform.init(jnp.zeros(SHAPES[name])), np.zeros(SHAPES[name] or (1,))
    for gradient in gradients:
        updates, state = transform.update(jnp.asarray(gradient), state)
        momentum = 0.9 * memory + gradient
        want = gradient + 0.9 * momentum if nesterov else momentum
        np.testing.assert_allclose(updates, want.reshape(gradient.shape), rtol=1e-5, atol=1e-6)
        memory = rounded(momentum, bits, block_size)


@pytest.mark.parametrize("bits, at_most", [(8, 0.27), (4, 0.14)])
def test_bytes_of_the_state(bits: Any, at_most: float) -> None:
    params = {"kernel": jnp.ones((16, 512)), "experts": jnp.ones((4, 8, 128)), "cut": jnp.ones((4, 1000))}
    few, full = (sum(leaf.nbytes for leaf in jax.tree.leaves(transform.init(params)))
                 for transform in (mo.quantized_trace(0.9, bits=bits), optax.trace(0.9)))  # fmt: skip
    assert few <= at_most * full


def gradient_of(kind: str, step: jax.Array) -> jax.Array:
    key, shape = jax.random.fold_in(jax.random.key(0), step), (16, 256)
    gaussian, fixed = jax.random.normal(key, shape), jax.random.normal(jax.random.key(1), shape)
    rare = jax.random.uniform(jax.random.fold_in(key, 1), (shape[0], 1)) < 0.05
    return {"gaussian": gaussian, "drifting": gaussian + fixed, "heavy": gaussian * jnp.exp(1.5 * fixed),
            "rare": gaussian * rare}[kind]  # fmt: skip


# Largest error of the momentum over all steps, relative to its norm: the table of docs/family.md.
ERRORS = {
    "gaussian": {8: 0.022, 4: 0.42},
    "drifting": {8: 0.022, 4: 0.42},
    "heavy": {8: 0.11, 4: 0.8},
    "rare": {8: 0.012, 4: 0.2},
}


@pytest.mark.parametrize("steps", [300, pytest.param(10_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ERRORS)
def test_the_error_does_not_grow(kind: str, bits: Any, steps: int) -> None:
    few, full = mo.quantized_trace(0.95, bits=bits), optax.trace(0.95)

    def step(states: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        gradient = gradient_of(kind, index)
        (one, first), (two, second) = few.update(gradient, states[0]), full.update(gradient, states[1])
        return (first, second), jnp.linalg.norm(one - two) / jnp.linalg.norm(two)

    zeros = jnp.zeros((16, 256))
    _, errors = jax.jit(lambda: jax.lax.scan(step, (few.init(zeros), full.init(zeros)), jnp.arange(steps)))()
    assert 0.1 * ERRORS[kind][bits] < jnp.max(errors) < ERRORS[kind][bits]


def test_an_entry_that_is_not_finite_harms_no_other() -> None:
    gradient = jnp.full((2, 8), 0.25).at[0, 3].set(jnp.nan).at[1, 2].set(-jnp.inf)
    for bits in (8, 4):
        transform = mo.quantized_trace(0.5, bits=bits, block_size=4)
        _, state = transform.update(gradient, transform.init(gradient))
        updates, _ = transform.update(jnp.ones((2, 8)), state)
        np.testing.assert_array_equal(np.isnan(updates), ~np.isfinite(gradient))
        np.testing.assert_array_equal(updates[np.isfinite(gradient)], 1.125)


def test_a_block_of_zeros_makes_no_nan_on_the_way() -> None:
    """What people turn on to find a NaN of their own must not stop at `init`."""
    with jax.debug_nans(True), jax.disable_jit():
        state = mo.quantized_trace(0.5).init({"w": jnp.zeros((2, 8))})
    np.testing.assert_array_equal(state.codes["w"], 0)


def test_a_block_never_straddles_rows() -> None:
    gradient = jnp.array([[1e6, 1e6, 1e6], [1.0, 1.0, 1.0]])
    transform = mo.quantized_trace(0.5)
    _, state = transform.update(gradient, transform.init(gradient))
    np.testing.assert_allclose(transform.update(gradient, state)[0], 1.5 * gradient, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_orbax_round_trip_continues_identically(bits: Any, tmp_path: Path) -> None:
    transform, params = mo.quantized_trace(0.9, bits=bits), {"w": jnp.ones((4, 37)), "b": jnp.ones(3)}
    gradient = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)
    _, state = transform.update(gradient, transform.init(params))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(transform.init, params))
    assert_trees_equal(transform.update(gradient, restored), transform.update(gradient, state))


def test_codes_and_scales_lie_as_their_parameter() -> None:
    places = {"w": NamedSharding(mesh_of(data=4), P("data")), "n": NamedSharding(mesh_of(data=4), P(None, "data"))}
    params = jax.device_put({"w": jnp.ones((8, 256)), "n": jnp.ones((3, 256))}, places)
    state = mo.init_sharded(mo.quantized_trace(0.9, block_size=64), params)
    assert lie_alike(state.codes, places)
    assert lie_alike(state.scales, places)
    # Blocks of 128 would lie on two devices each.
    straddling = mo.state_shardings(mo.quantized_trace(0.9), params)
    assert (straddling.codes["n"].spec, straddling.scales["n"].spec) == (P(None, "data"), P())


# Of a last axis of 64 entries on several devices: blocks of 32 of which each lies on one device, or not.
TRAVEL = {
    "two blocks a device": (P(None, "one"), 32, P(None, "one")),
    "half a block": (P(None, ("one", "other")), 32, P(None, None)),
    "one block": (P(None, ("one", "other")), 16, P(None, ("one", "other"))),
    "rows are divided": (P("one", None), 32, P("one", None)),
}


@pytest.mark.parametrize("spec, block_size, lies", TRAVEL.values(), ids=TRAVEL)
def test_only_blocks_that_lie_on_several_devices_travel(spec: P, block_size: int, lies: P) -> None:
    mesh = mesh_of(EXPLICIT, one=2, other=2)
    plain = random_tree({"w": (6, 64)}, 0)
    params = jax.device_put(plain, shardings(mesh, {"w": spec}))
    transform = mo.quantized_trace(0.9, bits=4, block_size=block_size)
    state = transform.init(params)
    updates, after = jax.jit(transform.update)(params, state)
    assert [kept.scales["w"].sharding.spec for kept in (state, after)] == [lies, lies]
    assert [array.sharding.spec for array in (after.codes["w"], updates["w"])] == [spec, spec]
    want = transform.update(plain, transform.init(plain))
    assert_near((updates, after.scales), (want[0], want[1].scales))
    np.testing.assert_array_equal(after.codes["w"], want[1].codes["w"])


# The longest axis that eight devices divide: the last, the first, none, and the last with half a block on each.
SPREAD = {"kernel": (16, 2048), "query": (16, 4, 8), "odd": (3, 5), "half": (3, 512)}


@pytest.mark.parametrize("kind", AUTO_FIRST)
@pytest.mark.parametrize("bits", [8, 4])
def test_zero1_keeps_codes_and_scales_once(bits: Any, kind: Any) -> None:
    layouts = {"query": "ioo", "odd": "io", "half": "io"}
    values, slopes = (random_tree(SPREAD, seed) for seed in (0, 1))
    places = shardings(mesh_of(kind, data=8), dict.fromkeys(SPREAD, P()))
    params, gradients = jax.device_put(values, places), jax.device_put(slopes, places)
    plan = mo.plan(params, places, layouts, orthogonalizer=ONE_STEP, over="data")
    momentum = mo.quantized_trace(0.9, nesterov=True, bits=bits)

    def muon(passed: Any = None) -> Any:
        return mo.muon(0.1, momentum=momentum, layouts=layouts, orthogonalizer=ONE_STEP, shardings=passed)

    one, other = mo.init_sharded(muon(plan), params, plan), muon().init(values)
    first, update, plain = one, jax.jit(muon(plan).update), jax.jit(muon().update)
    for _ in range(2):
        updates, one = update(gradients, one, params)
        want, other = plain(slopes, other, values)
    assert_near(updates, want)
    assert lie_alike(one, first)
    assert types(one) == types(first)

    kept = one.inner_states["muon"].inner_state[0]
    shares = {
        name: (kept.codes[name].nbytes / kept.codes[name].addressable_shards[0].data.nbytes,
               kept.scales[name].nbytes / kept.scales[name].addressable_shards[0].data.nbytes)
        for name in SPREAD
    }  # fmt: skip
    assert shares == {"kernel": (8, 8), "query": (8, 8), "odd": (1, 1), "half": (8, 1)}
