"""Arguments of other Muons: each is answered with what to write, which then builds an optimizer."""

import functools
import inspect
from typing import Any

import jax.numpy as jnp
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import muon_optax as mo

PARAMS = {"up": jnp.ones((4, 6)), "bias": jnp.ones(6)}
FACTORIES = [mo.muon, mo.recipes.normuon, mo.recipes.muon_clip, mo.recipes.muon_h, mo.recipes.muon_speedrun]

# What is given, and what the answer says to write.
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "beta": ({"beta": 0.9}, "write momentum=0.9, or muon_optax.nesterov_ema(0.9, debias=True)"),
    "40 characters": ({"beta": "x" * 38}, f"write momentum='{'x' * 38}', or"),
    "41 characters": ({"beta": "x" * 39}, "write momentum=..., or"),
    "ns_steps": ({"ns_steps": 4}, "newton_schulz(muon_optax.KELLER[:1] * 4)"),
    "ns_coeffs": ({"ns_coeffs": (3.4, -4.7, 2.0)}, "with one (a, b, c) for each step"),
    "dion": ({"ns_coeffs": "dion"}, "newton_schulz(muon_optax.YOU_JIACHENG)"),
    "ns_dtype": ({"ns_dtype": jnp.float32}, "newton_schulz(dtype=float32)"),
    "aol": ({"preconditioning": "aol"}, "newton_schulz(norm='aol')"),
    "schatten": ({"preconditioning": "schatten"}, "newton_schulz(norm='schatten4')"),
    "spectral": ({"preconditioning": "spectral"}, "norm='schatten4'), the norm closest to the spectral one"),
    "eps": ({"eps": 1e-7}, "leave it out for the matrices, whose scale doesn't count"),
    "consistent_rms": ({"consistent_rms": 0.2}, "write scale='moonlight'"),
    "another RMS": ({"consistent_rms": 0.3}, "scale=lambda fan_in, fan_out: 0.3 * max(fan_in, fan_out) ** 0.5"),
    "no RMS": ({"consistent_rms": None}, "write scale='keller'"),
    "mu_dtype": ({"mu_dtype": jnp.bfloat16}, "write momentum_dtype=bfloat16"),
    "numbers": ({"muon_weight_dimension_numbers": MuonDimensionNumbers()}, "write layouts=, which takes the same"),
    "nesterov_style": ({"nesterov_style": "ema"}, "nesterov_ema(0.95, debias=True) for 'ema'"),
    "adaptive": ({"adaptive": True}, "leave it out, since no argument scales by the dual norm"),
    "adam_learning_rate": ({"adam_learning_rate": 1e-3}, "write adamw_learning_rate=0.001"),
    "adam_b1": ({"adam_b1": 0.9}, "adamw=optax.adamw(learning_rate, b1=0.9, ...)"),
    "adam_b2": ({"adam_b2": 0.95}, "adamw=optax.adamw(learning_rate, b2=0.95, ...)"),
    "adam_weight_decay": ({"adam_weight_decay": 0.1}, "adamw=optax.adamw(learning_rate, weight_decay=0.1, ...)"),
    "batches": ({"batch_update_size": 16}, "run together by themselves"),
    "lr": ({"lr": 0.02}, "write learning_rate=0.02"),
    "params": ({"params": PARAMS, "lr": 0.02}, "go to optimizer.init(params)"),
    "adjust_lr_fn": ({"adjust_lr_fn": "match_rms_adamw"}, "write scale='moonlight'"),
    "original": ({"adjust_lr_fn": "original"}, "write scale='keller'"),
    "ns_coefficients": ({"ns_coefficients": (3.4, -4.7, 2.0)}, "with one (a, b, c) for each step"),
    "betas": ({"betas": (0.9, 0.95)}, "adamw=optax.adamw(learning_rate, b1=..., b2=...)"),
    "use_muon": ({"use_muon": True}, "write layouts=, with None by path"),
    "a slip": ({"weight_decy": 0.1}, "has no argument weight_decy: write weight_decay."),
    "part of a name": ({"sca": 1}, "has no argument sca: write scale."),
    "nothing like it": ({"xyz": 1}, "has no argument xyz: it has learning_rate, weight_decay, weight_decay_mask"),
}


@pytest.mark.parametrize("given, answer", ANSWERS.values(), ids=ANSWERS)
def test_a_wrong_argument_is_answered(given: dict[str, Any], answer: str) -> None:
    with pytest.raises(TypeError) as raised:
        mo.muon(**({"learning_rate": 0.1} if "lr" not in given else {}), **given)
    assert answer in str(raised.value)
    assert "by position" not in str(raised.value)
    assert all(f"muon() has no argument {name}" in str(raised.value) for name in given)


def test_several_are_answered_at_once() -> None:
    with pytest.raises(
        TypeError, match=r"beta: write momentum=0.9.* adam_b2: write adamw=.* has the whole table"
    ) as raised:
        mo.muon(0.1, beta=0.9, adam_b2=0.95)
    assert "by position" not in str(raised.value)


def test_parameters_by_position_go_elsewhere() -> None:
    with pytest.raises(
        TypeError, match=r"write learning_rate=0.02. What is given by position is learning_rate: .*init"
    ):
        mo.muon(PARAMS, lr=0.02)


def test_every_argument_of_optax_contrib_muon_is_known_or_answered() -> None:
    ours = inspect.signature(mo.muon).parameters
    theirs = inspect.signature(optax.contrib.muon).parameters
    for name in theirs.keys() - ours.keys():
        with pytest.raises(TypeError, match=f"no argument {name}: (write|leave it out)"):
            mo.muon(0.1, **{name: 1})


def test_a_recipe_without_that_argument_says_so() -> None:
    with pytest.raises(
        TypeError, match=r"ns_steps and none in its place, but muon_optax.muon has one: orthogonalizer="
    ):
        mo.recipes.normuon(0.1, ns_steps=4)
    with pytest.raises(TypeError, match=r"normuon\(\) has no argument beta: write momentum=0.9"):
        mo.recipes.normuon(0.1, beta=0.9)


@pytest.mark.parametrize("factory", FACTORIES)
def test_arguments_by_position_are_counted(factory: Any) -> None:
    with pytest.raises(TypeError, match=r"takes one positional argument, learning_rate, and got 3: give all others by"):
        factory(0.02, (3.4445, -4.7750, 2.0315), 5)


@pytest.mark.parametrize("factory", FACTORIES)
def test_the_signature_stays(factory: Any) -> None:
    signature = inspect.signature(factory)
    assert signature == inspect.signature(factory.__wrapped__)
    first, *others = signature.parameters.values()
    assert (first.name, first.kind) == ("learning_rate", first.POSITIONAL_OR_KEYWORD)
    assert {one.kind for one in others} == {first.KEYWORD_ONLY}
    assert factory.__doc__ == factory.__wrapped__.__doc__


def test_partials_and_injected_hyperparameters_pass_through() -> None:
    static = ("orthogonalizer", "scale", "layouts", "shardings", "weight_decay_mask", "momentum_dtype")
    optimizer = optax.inject_hyperparams(mo.muon, static_args=static)(learning_rate=0.1, momentum=0.9)
    state = optimizer.init(PARAMS)
    assert {"learning_rate", "momentum"} <= state.hyperparams.keys()
    numbers = {"up": MuonDimensionNumbers(1, 0), "bias": None}
    state = optax.inject_hyperparams(mo.muon, static_args=static)(learning_rate=0.1, layouts=numbers).init(PARAMS)
    assert "layouts" not in state.hyperparams
    with pytest.raises(TypeError, match="has no argument beta"):
        functools.partial(mo.muon, beta=0.9)(0.1)
