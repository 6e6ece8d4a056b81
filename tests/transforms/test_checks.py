"""Numbers are checked at construction: the least one is allowed, what lies outside is refused, traced ones pass."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from muon_optax._transforms.checks.arguments import (
    check_adamw,
    check_momentum_dtype,
    check_number,
    refuse_injected_array,
)


@pytest.mark.parametrize("value", [0.5, 0, 0.0, 0.999, jnp.float32(0.5)], ids=str)
def test_numbers_from_the_least_to_below_the_limit_pass(value: object) -> None:
    assert check_number("rate", value, "use a number in [0, 1)", 0.0, 1.0) is None


@pytest.mark.parametrize("value", [-1e-9, 1.0, 1, float("inf"), float("-inf"), float("nan"), jnp.float32(2)], ids=str)
def test_other_numbers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^rate=.* is not allowed: use a number in \[0, 1\)\.$"):
        check_number("rate", value, "use a number in [0, 1)", 0.0, 1.0)


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
