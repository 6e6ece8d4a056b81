"""The recipes: equal to float64 NumPy where the order of the parts matters, and right about who trains what."""

from typing import Any

import family_oracle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import trees

import muon_optax as mo

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
SPEEDRUN = by_hand(
    family_oracle.normuon(0.9, longer=True), mo.polar_express(5), "keller",
    0.85 + 0.1 * np.arange(STEPS) / 300, lambda step, W: 1.2 * RATE * W * (step * W >= 0),
)  # fmt: skip
SPEEDRUN_WITHOUT_WARMUP = by_hand(
    family_oracle.normuon(0.9, longer=True), mo.polar_express(5), "keller",
    [0.95] * STEPS, lambda step, W: 1.2 * RATE * W * (step * W >= 0),
)  # fmt: skip


def trained(optimizer: Any, dtype: Any = jnp.float32) -> np.ndarray:
    params = {"kernel": jnp.asarray(WEIGHT, dtype), "bias": jnp.ones(3, dtype)}
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in GRADIENTS:
        updates, state = update({"kernel": jnp.asarray(gradient, dtype), "bias": jnp.ones(3, dtype)}, state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params["kernel"], np.float64)


@pytest.mark.parametrize(
    "optimizer, want", [(mo.normuon(RATE), NORMUON), (mo.muon_speedrun(RATE, adamw_learning_rate=1e-3), SPEEDRUN)]
)
def test_parity(optimizer: Any, want: np.ndarray) -> None:
    assert oracle.relative_error(trained(optimizer) - WEIGHT, want - WEIGHT) < WITHIN


def test_the_warm_up_and_bfloat16_gradients() -> None:
    moved = trained(mo.muon_speedrun(RATE, adamw_learning_rate=1e-3)) - WEIGHT
    assert oracle.relative_error(moved, SPEEDRUN_WITHOUT_WARMUP - WEIGHT) > 2 * WITHIN
    still = trained(mo.muon_speedrun(RATE, adamw_learning_rate=1e-3, momentum=optax.constant_schedule(0.95))) - WEIGHT
    assert oracle.relative_error(still, SPEEDRUN_WITHOUT_WARMUP - WEIGHT) < WITHIN
    rounded = trained(mo.muon_speedrun(1.0, adamw_learning_rate=1e-3, weight_decay=0), jnp.bfloat16)
    assert (
        oracle.relative_error(rounded, trained(mo.muon_speedrun(1.0, adamw_learning_rate=1e-3, weight_decay=0))) < 5e-2
    )


def test_muon_h_keeps_matrices_and_head_on_their_spheres() -> None:
    params: Any = trees.with_vectors()
    params["lm_head"] = {"kernel": 1 + params["embedding"].T, "bias": jnp.ones(10)}
    optimizer = mo.muon_h(0.1, adamw_learning_rate=0.1)
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
    optimizer, plain = mo.muon_clip(RATE, threshold=10.0), mo.muon(RATE)
    updates, _ = optimizer.update(params, optimizer.init(params), params, max_logits=jnp.array([1.0, 40.0]))
    want = optax.apply_updates(params, plain.update(params, plain.init(params), params)[0])
    got = optax.apply_updates(params, updates)
    np.testing.assert_allclose(got["k_proj"], want["k_proj"] * np.array([1, 1, 0.5, 0.5]), rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="max_logits"):
        optimizer.update(params, optimizer.init(params), params)
