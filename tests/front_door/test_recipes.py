"""The recipes: equal to float64 NumPy where the order of the parts matters, and right about who trains what."""

from functools import partial
from typing import Any

import family_oracle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import record_oracle
import trees

import muon_optax as mo
from muon_optax import recipes

RATE, STEPS = 0.02, 4
WITHIN = 4e-2  # the products are in bfloat16, and Polar Express multiplies small singular values most
RNG = np.random.default_rng(0)
WEIGHT, GRADIENTS = RNG.standard_normal((6, 10)), RNG.standard_normal((STEPS, 6, 10))


def by_hand(normuon: Any, coefficients: Any, scale: str, momenta: Any, decay: Any) -> np.ndarray:
    """A weight trained by Nesterov momentum, Newton-Schulz, NorMuon, a scale and a decay, in that order."""
    W, m, v = WEIGHT, np.zeros_like(WEIGHT), None
    for g, momentum in zip(GRADIENTS, momenta, strict=True):
        m = momentum * m + g
        step, v = normuon(oracle.newton_schulz(g + momentum * m, coefficients), v, W)
        step = oracle.SCALES[scale](*W.shape) * step
        W = W - RATE * (step + decay(step, W))
    return W


NORMUON = by_hand(family_oracle.normuon(), mo.KELLER, "moonlight", [0.95] * STEPS, lambda step, W: 0.1 * W)


def trained(optimizer: Any, dtype: Any = jnp.float32) -> np.ndarray:
    params = {"kernel": jnp.asarray(WEIGHT, dtype), "bias": jnp.ones(3, dtype)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in GRADIENTS:
        updates, state = update({"kernel": jnp.asarray(gradient, dtype), "bias": jnp.ones(3, dtype)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"], np.float64)


def test_normuon_in_bfloat16() -> None:
    assert oracle.relative_error(trained(mo.recipes.normuon(RATE)) - WEIGHT, NORMUON - WEIGHT) < WITHIN


# The speed runs, in steps large enough for the decay to count.

LONG, LARGE = 20, 0.1
LONG_GRADIENTS = np.random.default_rng(1).standard_normal((LONG, 6, 10))
WARM_UP = optax.linear_schedule(0.85, 0.95, 300)
RATES = LARGE * (1 - np.arange(LONG) / 40)
MATRICES = {"wide": (WEIGHT, LONG_GRADIENTS), "tall": (WEIGHT.T, LONG_GRADIENTS.transpose(0, 2, 1))}


def speedrun(weight: np.ndarray, gradients: np.ndarray, momentum: Any = None) -> np.ndarray:
    rate = optax.linear_schedule(LARGE, 0.0, 40)
    optimizer = mo.recipes.muon_speedrun(rate, adamw_learning_rate=1e-3, momentum=momentum)
    params = {"kernel": jnp.asarray(weight, jnp.float32)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update({"kernel": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"], np.float64)


def of_the_record(weight: np.ndarray, gradients: np.ndarray, momenta: Any = None, **changed: Any) -> np.ndarray:
    """Trained as the record is, whose matrices are (out, in)."""
    momenta = 0.85 + 0.1 * np.arange(LONG) / 300 if momenta is None else momenta
    turned = gradients.transpose(0, 2, 1)
    return record_oracle.train(weight.T, turned, RATES, momenta, record_oracle.Record(**changed)).T


def apart(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> float:
    """A share of the way that the weight has come."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(other - weight))


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "newton_schulz", partial(mo.newton_schulz, dtype=jnp.float32))


@pytest.mark.usefixtures("in_float32")
def test_normuon_equals_numpy() -> None:
    assert oracle.relative_error(trained(mo.recipes.normuon(RATE)) - WEIGHT, NORMUON - WEIGHT) < 1e-4


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("shape", MATRICES)
def test_the_speed_runs_update_is_the_records(shape: str) -> None:
    weight, gradients = MATRICES[shape]
    got = speedrun(weight, gradients, mo.nesterov_ema(WARM_UP))
    assert apart(got, of_the_record(weight, gradients), weight) < 1e-4
    # Each of these would be seen, and so is the first difference that the docstring lists.
    wrong: dict[str, dict[str, Any]] = {
        "another cushion": {"coefficients": mo.polar_express(5)},
        "the norm alone": {"larger": 1.0},
        "the shorter axis": {"longer": False},
        "another b2": {"b2": 0.95},
        "decay everywhere": {"cautious": False},
        "another decay": {"weight_decay": 1.1},
    }
    wrong |= {"a decay without the shape's factor": {"scaled_decay": False}} if shape == "wide" else {}
    for name, changed in wrong.items():
        assert apart(got, of_the_record(weight, gradients, **changed), weight) > 3e-3, name
    plain = speedrun(weight, gradients)
    assert apart(plain, of_the_record(weight, gradients, average=False), weight) < 1e-4
    assert 1e-3 < apart(plain, of_the_record(weight, gradients), weight) < 2e-2


@pytest.mark.usefixtures("in_float32")
def test_a_sum_and_an_average_agree_where_momentum_is_constant() -> None:
    weight, gradients = MATRICES["wide"]
    got = speedrun(weight, gradients, 0.95)
    assert apart(got, of_the_record(weight, gradients, [0.95] * LONG), weight) < 1e-4


def test_the_momentum_of_the_speed_run_warms_up_over_300_steps() -> None:
    params = {"kernel": jnp.eye(2)}
    optimizer = mo.recipes.muon_speedrun(0.0, adamw_learning_rate=0.0)

    def step(state: Any, _: None) -> Any:
        return optimizer.update(params, state, params)[1], None

    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, length=310))(optimizer.init(params))
    kept = 0.0
    for number in range(310):
        kept = (0.85 + 0.1 * min(number / 300, 1)) * kept + 1
    np.testing.assert_allclose(state.inner_states["muon"].inner_state[0].trace["kernel"], kept * np.eye(2), rtol=1e-5)


USUAL_DECAYS: dict[str, Any] = {
    "normuon": (mo.recipes.normuon(RATE), 0.1),
    "muon_clip": (mo.recipes.muon_clip(RATE), 0.1),
    "muon_speedrun": (mo.recipes.muon_speedrun(0.0, adamw_learning_rate=RATE), 1e-4),
    "muon_h": (mo.recipes.muon_h(0.0, adamw_learning_rate=RATE), 0.0),
}


@pytest.mark.parametrize("optimizer, decay", USUAL_DECAYS.values(), ids=USUAL_DECAYS)
def test_the_usual_decay_of_what_adamw_trains(optimizer: Any, decay: float) -> None:
    """Without a gradient decay is all that moves an embedding, and nothing moves a bias."""
    params = {
        "embedding": jnp.asarray(WEIGHT, jnp.float32),
        "q_proj": jnp.eye(4),
        "k_proj": jnp.eye(4),
        "bias": jnp.ones(3),
    }
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(still, optimizer.init(params), params, max_logits=jnp.ones(4))
    np.testing.assert_allclose(updates["embedding"], -RATE * decay * WEIGHT, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_the_speed_run_in_bfloat16() -> None:
    weight, gradients = MATRICES["wide"]
    moved = speedrun(weight, gradients)
    assert apart(moved, of_the_record(weight, gradients, average=False), weight) < WITHIN
    assert apart(moved, of_the_record(weight, gradients, [0.95] * LONG), weight) > 2 * WITHIN
    arguments: Any = {"adamw_learning_rate": 1e-3, "weight_decay": 0}
    rounded = trained(mo.recipes.muon_speedrun(1.0, **arguments), jnp.bfloat16)
    assert oracle.relative_error(rounded, trained(mo.recipes.muon_speedrun(1.0, **arguments))) < 5e-2


@pytest.mark.usefixtures("in_float32")
def test_muon_h_equals_numpy() -> None:
    """Nesterov momentum and the five steps of Jiacheng You to the sphere; Adam's steps to the head's; Adam's rate."""
    start = {"kernel": WEIGHT, "head": {"kernel": WEIGHT[:, :3]}, "bias": WEIGHT[0]}
    slopes = [{"kernel": g, "head": {"kernel": g[:, 3:6]}, "bias": g[1]} for g in GRADIENTS]
    optimizer = mo.recipes.muon_h(RATE, adamw_learning_rate=0.05)
    params = jax.tree.map(jnp.float32, start)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in slopes:
        updates, state = update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, updates)

    def adam(path: Any) -> Any:
        mu = nu = 0.0
        for t, gradient in enumerate(map(path, slopes), 1):
            mu, nu = 0.9 * mu + 0.1 * gradient, 0.95 * nu + 0.05 * gradient**2
            yield mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.95**t)) + 1e-8)

    def momentum() -> Any:
        m = np.zeros_like(WEIGHT)
        for g in GRADIENTS:
            m = 0.95 * m + g
            yield oracle.newton_schulz(g + 0.95 * m, mo.YOU_JIACHENG)

    def on_sphere(W: np.ndarray, steps: Any, rate: float) -> np.ndarray:
        radius, step = None, family_oracle.hyperball(rate)
        for direction in steps:
            update, radius = step(direction, radius, W)
            W = W + update
        return W

    want = {
        "kernel": on_sphere(WEIGHT, momentum(), RATE),
        "head": {"kernel": on_sphere(WEIGHT[:, :3], adam(lambda tree: tree["head"]["kernel"]), 0.05)},
        "bias": WEIGHT[0] - 0.05 * sum(adam(lambda tree: tree["bias"])),
    }
    moves = [jax.tree.map(lambda leaf, before: leaf - before, tree, start) for tree in (params, want)]
    for got, expected in zip(*map(jax.tree.leaves, moves), strict=True):
        assert oracle.relative_error(got, expected) < 1e-4


def test_muon_h_keeps_matrices_and_head_on_their_spheres() -> None:
    params: Any = trees.with_vectors()
    params["lm_head"] = {"kernel": 1 + params["embedding"].T, "bias": jnp.ones(10)}
    optimizer = mo.recipes.muon_h(0.1, adamw_learning_rate=0.1)
    state, moved = optimizer.init(params), params
    for step in range(3):
        gradient = jax.tree.map(lambda leaf, step=step: jnp.cos(step + leaf), params)
        updates, state = jax.jit(optimizer.update)(gradient, state, moved)
        moved = optax.apply_updates(moved, updates)
    norms = jax.tree.map(lambda before, after: float(jnp.linalg.norm(after) / jnp.linalg.norm(before)), params, moved)
    for norm in (norms["up"], norms["down"], norms["lm_head"]["kernel"]):
        assert norm == pytest.approx(1, rel=1e-6)
    for norm in (norms["bias"], norms["embedding"], norms["lm_head"]["bias"]):
        assert abs(norm - 1) > 1e-3
    for path in ("up", "down", "embedding"):
        assert oracle.relative_error(moved[path], params[path]) > 0.05
    assert oracle.relative_error(moved["lm_head"]["kernel"], params["lm_head"]["kernel"]) > 0.05
    with pytest.raises(ValueError, match=r"'lm_head/kernel' .* holds a matrix of zeros"):
        optimizer.init({"up": jnp.ones((4, 8)), "lm_head": {"kernel": jnp.zeros((8, 10))}})


def test_muon_clip_is_muon_then_clip_qk() -> None:
    params = {"q_proj": jnp.eye(4), "k_proj": jnp.eye(4), "bias": jnp.ones(4)}
    optimizer, plain = mo.recipes.muon_clip(RATE, threshold=10.0), mo.muon(RATE)
    updates, _ = optimizer.update(params, optimizer.init(params), params, max_logits=jnp.array([1.0, 40.0]))
    want = optax.apply_updates(params, plain.update(params, plain.init(params), params)[0])
    got = optax.apply_updates(params, updates)
    np.testing.assert_allclose(got["k_proj"], want["k_proj"] * np.array([1, 1, 0.5, 0.5]), rtol=1e-6, atol=1e-7)
    # The usual threshold is 100.
    updates, _ = mo.recipes.muon_clip(0.0).update(
        params, optimizer.init(params), params, max_logits=jnp.array([100.0, 400.0])
    )
    np.testing.assert_allclose(optax.apply_updates(params, updates)["k_proj"], np.diag([1, 1, 0.5, 0.5]), rtol=1e-6)
    with pytest.raises(ValueError, match="max_logits"):
        optimizer.update(params, optimizer.init(params), params)
