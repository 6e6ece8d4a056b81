"""Numbers are checked at construction: the least one is allowed, what lies outside is refused, traced ones pass."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import EXPLICIT, mesh_of

import muon_optax as mo
from muon_optax._transforms import partition
from muon_optax._transforms.checks.arguments import (
    check_adamw,
    check_momentum_dtype,
    check_number,
    refuse_injected_array,
)
from muon_optax._transforms.checks.coupling import coupled_inputs


@pytest.mark.parametrize("value", [0.5, 0, 0.0, 0.999, jnp.float32(0.5)], ids=str)
def test_numbers_from_the_least_to_below_the_limit_pass(value: object) -> None:
    assert check_number("rate", value, "use a number in [0, 1)", 0.0, 1.0) is None


@pytest.mark.parametrize("value", [-1e-9, 1.0, 1, float("inf"), float("-inf"), float("nan"), jnp.float32(2)], ids=str)
def test_other_numbers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^rate=.* is not allowed: use a number in \[0, 1\)\.$"):
        check_number("rate", value, "use a number in [0, 1)", 0.0, 1.0)


EQUAL = mo.newton_schulz()
FRACTIONS: dict[str, Callable[[float], Any]] = {
    "muon momentum": lambda value: mo.muon(0.1, momentum=value),
    "Settings momentum": lambda value: mo.Settings(momentum=value),
    "scheduled_trace decay": lambda value: mo.scheduled_trace(value),
    "nesterov_ema decay": lambda value: mo.nesterov_ema(value),
    "quantized_trace decay": lambda value: mo.quantized_trace(value),
    "adamuon b2": lambda value: mo.scale_by_adamuon(EQUAL, b2=value),
    "normuon b2": lambda value: mo.scale_by_normuon(b2=value),
}
NOT_NEGATIVE: dict[str, Callable[[float], Any]] = {
    "learning_rate": lambda value: mo.muon(value),
    "adamw_learning_rate": lambda value: mo.muon(0.1, adamw_learning_rate=value),
    "weight_decay": lambda value: mo.muon(0.1, weight_decay=value),
    "factor on the rate": lambda value: mo.Settings(learning_rate=value),
    "factor on the decay": lambda value: mo.Settings(weight_decay=value),
    "cautious": lambda value: mo.add_cautious_decayed_weights(value),
    "hyperball": lambda value: mo.scale_by_hyperball(value),
    "eps": lambda value: mo.scale_by_adamuon(EQUAL, eps=value),
    "block_scale": lambda value: mo.orthogonalize_block_periodic(EQUAL, block_scale=value),
}


@pytest.mark.parametrize("name", FRACTIONS)
def test_fractions_begin_at_zero_and_end_below_one(name: str) -> None:
    build, argument = FRACTIONS[name], name.split()[-1]
    for value in (0.0, 0.999):
        build(value)
    for value in (-0.001, 1.0):
        with pytest.raises(ValueError, match=rf"^{argument}={value!r} is not allowed"):
            build(value)


@pytest.mark.parametrize("build", NOT_NEGATIVE.values(), ids=NOT_NEGATIVE)
def test_rates_and_the_like_begin_at_zero(build: Callable[[float], Any]) -> None:
    build(0.0)
    for value in (-0.001, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=rf"={value!r} is not allowed"):
            build(value)


def test_the_least_threshold_is_the_least_number() -> None:
    mo.clip_qk(5e-324)
    with pytest.raises(ValueError, match=r"threshold=0\.0 is not allowed"):
        mo.clip_qk(0.0)


SHOWN = {
    "as everywhere": mo.Settings(),
    "learning_rate x 0.1, momentum 0.9": mo.Settings(learning_rate=0.1, momentum=0.9),
    "learning_rate x a schedule, weight_decay x 0": mo.Settings(learning_rate=lambda step: 0.5, weight_decay=0),
    "momentum a schedule, scale keller": mo.Settings(momentum=lambda step: 0.5, scale="keller"),
    "scale a function, its own orthogonalizer": mo.Settings(scale=max, orthogonalizer=EQUAL),
    "learning_rate x an array": mo.Settings(learning_rate=jnp.ones(())),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_settings_are_shown_as_in_a_table(shown: str) -> None:
    assert str(SHOWN[shown]) == shown


def test_outputs_belong_to_the_owners_of_what_they_are_made_of() -> None:
    @jax.jit
    def each(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        return a + 1, jnp.linalg.qr(b)[1]

    def function(a: jax.Array, b: jax.Array, rate: jax.Array) -> list[jax.Array]:
        one, other = each(a, b)
        return [rate * one, other, one @ other, rate, jnp.zeros(3), *jnp.linalg.qr(a)]

    square = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    owners = coupled_inputs(function, [square, square, jax.ShapeDtypeStruct((), jnp.float32)], [0, 1, None])
    assert [set(own) for own in owners] == [{0}, {1}, {0, 1}, set(), set(), {0}, {0}]


LACKING = {
    "vectors": ({"bias": jnp.ones(3)}, True),
    "vectors and a number": ({"bias": jnp.ones(3), "temperature": jnp.ones(())}, True),
    "a matrix": ({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(3)}, False),
    "numbers": ({"temperature": jnp.ones(())}, False),
    "nothing": ({}, False),
    "part of a model": ({"bias": jnp.ones(3), "kernel": optax.MaskedNode()}, False),
}


@pytest.mark.parametrize("params, warns", LACKING.values(), ids=LACKING)
def test_a_whole_tree_without_matrices_is_warned_about(params: Any, warns: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mo.partition_by_layout(optax.identity(), optax.identity()).init(params)
    assert [str(warning.message)[:33] for warning in caught] == ["No parameter is seen as a matrix,"] * warns


def test_the_step_is_that_of_the_matrices_branch() -> None:
    params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(3)}
    counted, uncounted = optax.scale_by_schedule(lambda step: step), optax.identity()
    for matrices, others, expected in ((counted, uncounted, 2), (uncounted, counted, 0)):
        optimizer = mo.partition_by_layout(matrices, others)
        state = optimizer.init(params)
        for _ in range(2):
            _, state = optimizer.update(params, state, params)
        assert int(partition._step_of(state)) == expected


def test_states_of_the_same_shapes_are_checked_once() -> None:
    """The check runs `init`, which a step without jit need not pay for each time."""
    begun, trace, params = [], optax.trace(0.9), {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(3)}

    def init(params: Any) -> Any:
        begun.append(params)
        return trace.init(params)

    optimizer = mo.partition_by_layout(optax.GradientTransformation(init, trace.update), optax.identity())
    state = optimizer.init(params)
    for _ in range(3):
        _, state = optimizer.update(params, state, params)
    assert len(begun) == 2


def test_what_lies_on_a_mesh_is_moved_only_to_what_does() -> None:
    here, there = (NamedSharding(mesh_of(EXPLICIT, data=2), spec) for spec in (P("data", None), P(None, "data")))
    on_mesh, elsewhere = (jax.device_put(jnp.ones((4, 4), jnp.bfloat16), place) for place in (here, there))
    alone = jnp.ones((4, 4))
    assert partition._alike(on_mesh, elsewhere).sharding.spec == there.spec
    for value, before in ((on_mesh, alone), (alone, on_mesh)):
        found = partition._alike(value, before)
        assert (jax.typeof(found).sharding, found.dtype) == (jax.typeof(value).sharding, before.dtype)


def test_without_a_limit_every_finite_number_passes() -> None:
    check_number("rate", 1e300, "use a finite number", 0.0)
    with pytest.raises(ValueError, match="rate=inf is not allowed"):
        check_number("rate", float("inf"), "use a finite number", 0.0)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^rate='fast' is not a number; use a finite number\.$"):
        check_number("rate", "fast", "use a finite number", 0.0)


def test_a_traced_number_passes() -> None:
    @jax.jit
    def checked(value: jax.Array) -> jax.Array:
        check_number("rate", value, "use a number in [0, 1)", 0.0, 1.0)
        return value + 1

    assert checked(5.0) == 6


@pytest.mark.parametrize("dtype", [None, "bfloat16", jnp.float32])
def test_floating_momentum_passes(dtype: object) -> None:
    assert check_momentum_dtype(dtype) is None


@pytest.mark.parametrize("dtype", ["int8", jnp.complex64, bool])
def test_momentum_of_another_dtype_is_refused(dtype: object) -> None:
    with pytest.raises(ValueError, match=r"momentum_dtype=.* is not allowed: use a floating type"):
        check_momentum_dtype(dtype)


@pytest.mark.parametrize("given, shown", [(optax.adamw, "adamw"), (3e-4, "0.0003")], ids=["factory", "number"])
def test_what_is_not_a_transform_is_refused_as_adamw(given: object, shown: str) -> None:
    with pytest.raises(TypeError, match=rf"^adamw={shown} is not a gradient transformation: call the factory"):
        check_adamw(given, None)


@pytest.mark.parametrize("half", ["init", "update"])  # a Linen model has the one, an nnx.Optimizer the other
def test_half_of_a_transform_is_refused_as_adamw(half: str) -> None:
    with pytest.raises(TypeError, match="is not a gradient transformation: call the factory"):
        check_adamw(SimpleNamespace(**{half: optax.identity().init}), None)


def test_a_transform_brings_its_own_learning_rate() -> None:
    assert check_adamw(None, 0.1) is None
    assert check_adamw(optax.sgd(0.1), None) is None
    with pytest.raises(ValueError, match=r"^adamw_learning_rate=0\.1 and adamw= exclude each other"):
        check_adamw(optax.sgd(0.1), 0.1)


@pytest.mark.parametrize("value", [jnp.ones(2), np.ones(2), np.float32(1)], ids=["jax", "numpy", "scalar"])
def test_an_injected_array_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"^scale is the array .*static_args=\('scale',\)"):
        refuse_injected_array("scale", value)


@pytest.mark.parametrize("value", [np.bool_(True), "moonlight", None, max])
def test_what_is_not_an_injected_array_passes(value: object) -> None:
    assert refuse_injected_array("scale", value) is None
