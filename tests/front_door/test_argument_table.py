"""The table of docs/from_optax.md: what it says to write for an argument of another Muon gives the same updates."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from optax.contrib import MuonDimensionNumbers as Numbers
from trees import assert_trees_equal

import muon_optax as mo

SHAPES = {"up": (8, 20), "down": (20, 8), "query": (8, 2, 6), "bias": (12,)}
# As Optax decides without being told: what has two axes is a matrix.
TWO_AXES = {"up": Numbers(), "down": Numbers(), "query": None, "bias": None}
AVERAGE = partial(mo.nesterov_ema, debias=True)
FLOAT32 = partial(mo.newton_schulz, dtype=jnp.float32)
SCHEDULE = optax.linear_schedule(0.1, 0.01, 5)
MASK = {"up": True, "down": False, "query": True, "bias": False}


def adamw(learning_rate: Any = 0.1, weight_decay: float = 0.0, **given: Any) -> optax.GradientTransformation:
    """The AdamW of ``optax.contrib.muon``: it shares the argument ``nesterov``, and does not decay by default."""
    return optax.adamw(learning_rate, weight_decay=weight_decay, **{"nesterov": True} | given)


def ours(learning_rate: Any = 0.1, **given: Any) -> optax.GradientTransformation:
    """What ``optax.contrib.muon(learning_rate)`` is here, but for what is given."""
    same = {
        "weight_decay": 0.0, "momentum": AVERAGE(0.95), "scale": "keller", "orthogonalizer": FLOAT32(),
        "layouts": TWO_AXES, "adamw": adamw(learning_rate),
    }  # fmt: skip
    return mo.muon(learning_rate, **same | given)


def tree(seed: int) -> dict[str, jax.Array]:
    return {name: jnp.asarray(oracle.gaussian(*shape, seed=seed), jnp.float32) for name, shape in SHAPES.items()}


def updates_of(optimizer: optax.GradientTransformation, steps: int = 4) -> list[Any]:
    params, state, found = tree(0), optimizer.init(tree(0)), []
    for seed in range(1, steps + 1):
        updates, state = jax.jit(optimizer.update)(tree(seed), state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found


LINES: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "nothing": ({}, ours),
    "learning_rate": ({"learning_rate": SCHEDULE}, lambda: ours(SCHEDULE)),
    "ns_coeffs": (
        {"ns_coeffs": (2.0, -1.5, 0.5), "ns_steps": 6},
        lambda: ours(orthogonalizer=FLOAT32(((2.0, -1.5, 0.5),) * 6)),
    ),
    "ns_coeffs of each step": (
        {"ns_coeffs": mo.YOU_JIACHENG[:3]},
        lambda: ours(orthogonalizer=FLOAT32(mo.YOU_JIACHENG[:3])),
    ),
    "ns_coeffs='dion'": ({"ns_coeffs": "dion"}, lambda: ours(orthogonalizer=FLOAT32(mo.YOU_JIACHENG))),
    "ns_steps": ({"ns_steps": 3}, lambda: ours(orthogonalizer=FLOAT32(mo.KELLER[:1] * 3))),
    "beta": ({"beta": 0.8}, lambda: ours(momentum=AVERAGE(0.8))),
    "eps": ({"eps": 1e-7}, lambda: ours(adamw=adamw(eps=1e-7))),
    "weight_decay": ({"weight_decay": 0.3}, lambda: ours(weight_decay=0.3)),
    "weight_decay_mask": (
        {"weight_decay": 0.3, "weight_decay_mask": MASK},
        lambda: ours(weight_decay=0.3, weight_decay_mask=MASK),
    ),
    "mu_dtype": (
        {"mu_dtype": jnp.bfloat16},
        lambda: ours(momentum=AVERAGE(0.95, momentum_dtype=jnp.bfloat16), adamw=adamw(mu_dtype=jnp.bfloat16)),
    ),
    "nesterov=False": (
        {"nesterov": False},
        lambda: ours(momentum=0.95, nesterov=False, adamw=adamw(nesterov=False)),
    ),
    "nesterov=False, as an average": (
        {"nesterov": False},
        lambda: ours(momentum=optax.ema(0.95), adamw=adamw(nesterov=False)),
    ),
    "preconditioning='aol'": ({"preconditioning": "aol"}, lambda: ours(orthogonalizer=FLOAT32(norm="aol"))),
    "preconditioning='schatten'": (
        {"preconditioning": "schatten"},
        lambda: ours(orthogonalizer=FLOAT32(norm="schatten4")),
    ),
    "adam_b1, adam_b2": ({"adam_b1": 0.8, "adam_b2": 0.9}, lambda: ours(adamw=adamw(b1=0.8, b2=0.9))),
    "adam_eps_root": ({"adam_eps_root": 1e-3}, lambda: ours(adamw=adamw(eps_root=1e-3))),
    "adam_weight_decay": ({"adam_weight_decay": 0.3}, lambda: ours(adamw=adamw(weight_decay=0.3))),
    "adam_learning_rate": ({"adam_learning_rate": 0.01}, lambda: ours(adamw=adamw(0.01))),
    "muon_weight_dimension_numbers": (
        {"muon_weight_dimension_numbers": TWO_AXES | {"query": Numbers(0, (1, 2))}},
        lambda: ours(layouts=TWO_AXES | {"query": Numbers(0, (1, 2))}),
    ),
    "consistent_rms=0.2": ({"consistent_rms": 0.2}, lambda: ours(scale="moonlight")),
    "consistent_rms": (
        {"consistent_rms": 0.3},
        lambda: ours(scale=lambda fan_in, fan_out: 0.3 * max(fan_in, fan_out) ** 0.5),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("given, build", LINES.values(), ids=LINES)
def test_a_line_of_optaxs_table(given: dict[str, Any], build: Callable[[], Any]) -> None:
    theirs = optax.contrib.muon(**{"learning_rate": 0.1} | given)
    # Optax multiplies a bfloat16 average by beta in bfloat16, here it is done in float32.
    within = 1e-2 if "mu_dtype" in given else 1e-5
    for got, want in zip(updates_of(build()), updates_of(theirs), strict=True):
        assert_trees_equal(got, want, within)


def test_every_line_changes_what_optax_does() -> None:
    """Else an argument that both ignore would pass; ``eps`` alone is below rounding."""
    plain = updates_of(optax.contrib.muon(0.1))
    for name, (given, _) in LINES.items():
        if name not in ("nothing", "eps"):
            changed = updates_of(optax.contrib.muon(**{"learning_rate": 0.1} | given))
            assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (changed, plain)), strict=True)), name


@pytest.mark.parametrize("step, share", [(2, 0.14), (10, 0.03), (100, 1e-4)])
def test_a_plain_momentum_differs_by_the_bias_correction(step: int, share: float) -> None:
    """By how much an update of the default momentum differs, as the page says."""
    plain, debiased = (updates_of(ours(momentum=one), step)[-1]["up"] for one in (0.95, AVERAGE(0.95)))
    assert share / 3 < oracle.relative_error(plain, np.asarray(debiased)) < 2 * share


# MaxText's own muon keeps a sum of gradients by default, by nesterov_style="sgd".


def test_maxtexts_default_momentum_is_the_default_here() -> None:
    """``m <- beta m + g`` and ``g + beta m``, its AdamW without Nesterov; in float64 NumPy."""
    optimizer = mo.muon(0.1, weight_decay=0.0, scale="keller", orthogonalizer=FLOAT32(), layouts=TWO_AXES)
    gradients = np.stack([tree(seed)["up"] for seed in range(1, 5)])
    run = oracle.muon(np.asarray(tree(0)["up"]), gradients, learning_rate=0.1, weight_decay=0.0)
    got = sum(np.asarray(updates["up"], np.float64) for updates in updates_of(optimizer))
    assert oracle.relative_error(got, run.params[-1] - np.asarray(tree(0)["up"], np.float64)) < 1e-5


def test_a_sum_in_maxtexts_state_is_carried_over_as_it_is() -> None:
    """Its ``MuonState`` has Optax's fields and does not say which it keeps: ``momentum=0.0`` leaves it as it is."""
    optimizer = mo.muon(0.1, momentum=0.95, layouts=TWO_AXES)
    params, state = tree(0), optimizer.init(tree(0))
    _, state = optimizer.update(tree(1), state, params)
    sums = state.inner_states["muon"].inner_state[0].trace
    theirs = optax.contrib.muon(0.1, muon_weight_dimension_numbers=TWO_AXES).init(params)
    muon = theirs.inner_states["muon"]
    kept = muon.inner_state[0]._replace(mu=sums, count=jnp.asarray(1))
    chain = (kept, *muon.inner_state[1:])
    theirs = theirs._replace(inner_states=theirs.inner_states | {"muon": muon._replace(inner_state=chain)})
    got, _ = mo.carry_over(theirs, optimizer.init(params), momentum=0.0)
    assert_trees_equal(got.inner_states["muon"].inner_state[0].trace, sums)


# Keller Jordan's MuonWithAuxAdam.


def kellers_adam(gradients: np.ndarray, learning_rate: float, b1: float, b2: float, eps: float) -> np.ndarray:
    """The sum of its updates, in float64."""
    first, second, moved = np.zeros_like(gradients[0]), np.zeros_like(gradients[0]), 0.0
    for step, g in enumerate(gradients, 1):
        first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
        moved = moved - learning_rate * first / (1 - b1**step) / (np.sqrt(second / (1 - b2**step)) + eps)
    return moved


def test_equals_kellers_muon_with_groups_of_adam() -> None:
    """As the page writes it: Adam's groups are an ``optax.partition`` of their own, by path."""

    def group(path: Any, leaf: Any) -> str:
        return "heads" if jax.tree_util.keystr(path, simple=True) == "query" else "vectors"

    auxiliary = {
        "heads": optax.adam(0.22, b1=0.8, b2=0.95, eps=1e-10),
        "vectors": optax.adam(0.04, b1=0.8, b2=0.95, eps=1e-10),
    }
    adam = optax.partition(auxiliary, lambda params: jax.tree_util.tree_map_with_path(group, params))
    optimizer = mo.muon(
        0.05, weight_decay=0.0, scale="keller", orthogonalizer=FLOAT32(), adamw=adam,
        layouts={"up": "oi", "down": "oi", "query": None},
    )  # fmt: skip
    got = jax.tree.map(lambda *updates: np.sum(np.asarray(updates, np.float64), axis=0), *updates_of(optimizer))
    gradients = {name: np.stack([tree(seed)[name] for seed in range(1, 5)]).astype(np.float64) for name in SHAPES}
    for name, rate in (("query", 0.22), ("bias", 0.04)):
        assert oracle.relative_error(got[name], kellers_adam(gradients[name], rate, 0.8, 0.95, 1e-10)) < 1e-5
    for name in ("up", "down"):
        turned = np.swapaxes(gradients[name], -1, -2)
        run = oracle.muon(np.zeros(turned.shape[1:]), turned, learning_rate=0.05, weight_decay=0.0)
        assert oracle.relative_error(got[name], run.params[-1].T) < 1e-5
