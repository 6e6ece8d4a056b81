"""Momentum that follows a schedule, momentum as an average: equal to NumPy, to Optax, and as muon's argument."""

from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees
from meshes import FLOAT32
from trees import assert_trees_equal

import muon_optax as mo

WARM_UP = optax.linear_schedule(0.5, 0.95, 3)
RNG = np.random.default_rng(0)
GRADIENTS = RNG.standard_normal((5, 4, 3))


def steps_of(transform: Any, dtype: Any = jnp.float32) -> tuple[Any, Any]:
    """The updates of every step for a leaf called w, and the last state."""
    state, update, found = transform.init({"w": jnp.zeros((4, 3), dtype)}), jax.jit(transform.update), []
    for gradient in GRADIENTS:
        updates, state = update({"w": jnp.asarray(gradient, dtype)}, state)
        found.append(updates["w"])
    return np.stack(found), state


def heavy_ball(decays: Any, nesterov: bool) -> np.ndarray:
    m, found = np.zeros((4, 3)), []
    for g, decay in zip(GRADIENTS, decays, strict=True):
        m = decay * m + g
        found.append(g + decay * m if nesterov else m)
    return np.stack(found)


DECAYS = [0.5, 0.65, 0.8, 0.95, 0.95]  # WARM_UP at each step


@pytest.mark.parametrize("nesterov", [False, True], ids=["plain", "nesterov"])
def test_a_schedule_equals_numpy(nesterov: bool) -> None:
    with jax.enable_x64(True):
        got, state = steps_of(mo.scheduled_trace(WARM_UP, nesterov), jnp.float64)
    np.testing.assert_allclose(got, heavy_ball(DECAYS, nesterov), rtol=1e-6, atol=1e-6)  # the schedule is in float32
    assert int(state.step) == len(GRADIENTS)
    late = heavy_ball([0.95, *DECAYS[:-1]], nesterov)
    assert np.abs(got[1:] - late[1:]).max() > 0.1  # a schedule read one step late


@pytest.mark.parametrize("arguments", [(), *product((False, True), (None, "float32", "bfloat16"))], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_constant_decay_is_optaxs_trace_bit_for_bit(dtype: str, arguments: tuple[Any, ...]) -> None:
    want, kept = steps_of(optax.trace(0.95, *arguments), dtype)
    for decay in (0.95, lambda step: 0.95):
        got, state = steps_of(mo.scheduled_trace(decay, *arguments), dtype)
        assert_trees_equal((got, state.trace), (want, kept.trace))


def test_all_dtypes_that_a_state_goes_on_in_are_named_in_order() -> None:
    gradients = {dtype: jnp.ones(2, dtype) for dtype in ("float32", "bfloat16", "float16")}
    state, said = mo.scheduled_trace(0.9).init(gradients), "its momentum is bfloat16 and float16 and float32, and goes"
    with jax.enable_x64(True), pytest.warns(mo.MuonWarning, match=said):
        mo.scheduled_trace(0.9, momentum_dtype=jnp.float64).update(gradients, state)


def test_the_decay_of_a_schedule_is_not_rounded_to_bfloat16() -> None:
    gradient, state = jnp.ones(1, jnp.bfloat16), None
    transform = mo.scheduled_trace(optax.linear_schedule(0.0, 0.998, 1))  # 0.998 is 1 in bfloat16
    state = transform.init(gradient)._replace(step=jnp.asarray(1, jnp.int32), trace=jnp.full(1, 256, jnp.bfloat16))
    updates, state = transform.update(jnp.zeros_like(gradient), state)
    np.testing.assert_array_equal(updates, jnp.asarray([255.0], jnp.bfloat16))
    assert (updates.dtype, state.trace.dtype) == (jnp.bfloat16, jnp.bfloat16)


@pytest.mark.parametrize("debias", [False, True], ids=["biased", "debiased"])
def test_the_average_equals_numpy(debias: bool) -> None:
    m, want = np.zeros((4, 3)), []
    for t, g in enumerate(GRADIENTS, 1):
        m = 0.95 * m + 0.05 * g
        later, now = (1 - 0.95 ** (t + 1), 1 - 0.95**t) if debias else (1, 1)
        want.append(0.95 * m / later + 0.05 * g / now)
    with jax.enable_x64(True):
        got, state = steps_of(mo.nesterov_ema(0.95, debias=debias), jnp.float64)
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-12)
    np.testing.assert_allclose(state.ema["w"], m, rtol=1e-12)
    assert int(state.count) == len(GRADIENTS)


def test_the_average_is_optaxs_and_a_share_of_the_trace() -> None:
    updates, state = steps_of(mo.nesterov_ema(0.95))
    assert_trees_equal(state, steps_of(optax.ema(0.95, debias=False))[1], 1e-6)
    assert_trees_equal(updates, 0.05 * steps_of(optax.trace(0.95, nesterov=True))[0], 1e-6)
    rounded, state = steps_of(mo.nesterov_ema(0.95, momentum_dtype=jnp.bfloat16), jnp.float16)
    assert (rounded.dtype, state.ema["w"].dtype) == (jnp.float16, jnp.bfloat16)
    assert_trees_equal(rounded.astype(np.float32), updates, 1e-2)


def test_an_average_follows_a_schedule() -> None:
    m = np.zeros((4, 3))
    for g, decay in zip(GRADIENTS, DECAYS, strict=True):
        m = decay * m + (1 - decay) * g
    got, state = steps_of(mo.nesterov_ema(WARM_UP))
    np.testing.assert_allclose(state.ema["w"], m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[-1], 0.95 * m + 0.05 * GRADIENTS[-1], rtol=1e-5, atol=1e-6)


def trained(optimizer: Any) -> tuple[Any, Any]:
    params = trees.with_vectors()
    state, update, updates = optimizer.init(params), jax.jit(optimizer.update), None
    for seed in range(1, 5):
        updates, state = update(trees.with_vectors(seed), state, params)
    return updates, state


def muon(momentum: Any, **arguments: Any) -> Any:
    return mo.muon(0.1, momentum=momentum, orthogonalizer=FLOAT32, **arguments)


def test_muon_takes_a_schedule() -> None:
    updates, state = trained(muon(WARM_UP))
    assert isinstance(state.inner_states["muon"].inner_state[0], type(mo.scheduled_trace(WARM_UP).init({})))
    constant, plain = trained(muon(lambda step: 0.95)), trained(muon(0.95))
    assert_trees_equal(constant[0], plain[0], 1e-5)  # a number in the program and one that is computed there
    # The step is counted for a number too, and a schedule may take its place.
    assert jax.tree.structure(plain[1]) == jax.tree.structure(state)
    assert float(jnp.linalg.norm(updates["up"] - plain[0]["up"])) > 0.1 * float(jnp.linalg.norm(updates["up"]))


@pytest.mark.parametrize("static", [(), ("momentum",)], ids=["injected", "static"])
def test_inject_hyperparams_and_a_schedule(static: tuple[str, ...]) -> None:
    """Injected, the state shows the momentum of the step; named static, the part keeps its own count. Both agree."""
    names = ("orthogonalizer", "scale", "layouts", "shardings", "weight_decay_mask", "momentum_dtype", *static)
    build = optax.inject_hyperparams(mo.muon, static_args=names)
    updates, state = trained(build(0.1, momentum=WARM_UP, orthogonalizer=FLOAT32))
    assert_trees_equal(updates, trained(muon(WARM_UP))[0], 1e-5)
    shown = state.hyperparams.get("momentum")
    assert shown is None if static else float(shown) == pytest.approx(0.95)


def test_muon_takes_a_transform_for_momentum() -> None:
    got, state = trained(muon(mo.quantized_trace(0.9, nesterov=True)))
    chain = optax.chain(
        mo.quantized_trace(0.9, nesterov=True), mo.orthogonalize(FLOAT32), mo.scale_by_shape(),
        optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(0.1),
    )  # fmt: skip
    assert_trees_equal(got["up"], trained(mo.partition_by_layout(chain, optax.adam(0.1)))[0]["up"])
    assert state.inner_states["muon"].inner_state[0].codes["up"].dtype == jnp.int8


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: muon(optax.constant_schedule(1.0)).init(trees.arrays()), ValueError, r"decay\(0\)=1.0 is not allowed"),
        (lambda: muon(mo.quantized_trace).init(trees.arrays()), TypeError, r"decay\(0\)=GradientTransf.* not a number"),
        (lambda: mo.nesterov_ema(1.5), ValueError, "decay=1.5 is not allowed"),
        (lambda: mo.nesterov_ema(WARM_UP, debias=True), ValueError, "debias=True is not allowed with a schedule"),
        (lambda: muon(optax.trace(0.9), nesterov=False), ValueError, "nesterov=False .* say nothing beside a transf"),
        (lambda: muon(optax.trace(0.9), momentum_dtype=jnp.float32), ValueError, "momentum_dtype=.*float32.* nothing"),
    ],
    ids=["schedule out of range", "a factory that was not called", "average", "debias", "nesterov", "momentum_dtype"],
)
def test_refusals(build: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()
