"""What the array functions refuse, and how."""

import jax.numpy as jnp
import numpy as np
import pytest

import muon_optax as mo

MAKERS = {"newton_schulz": mo.newton_schulz, "polar_factor": mo.polar_factor}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("given", [np.ones((4, 6)), jnp.ones((4, 6))], ids=["numpy", "jax"])
def test_called_with_an_array_it_says_how_to_call_it(maker: str, given: np.ndarray) -> None:
    with pytest.raises(TypeError, match=rf"{maker} makes an orthogonalizer.*{maker}\(\)\(matrix\)"):
        MAKERS[maker](given)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize(
    "given, error, message",
    [
        (jnp.ones((3, 4), jnp.complex64), TypeError, "dtype complex64.*imaginary"),
        (jnp.ones((3, 4), jnp.int32), TypeError, "dtype int32.*float32"),
        (jnp.ones((3,)), ValueError, r"got shape \(3,\)"),
        (jnp.ones(()), ValueError, r"got shape \(\)"),
    ],
    ids=["complex", "integer", "vector", "scalar"],
)
def test_what_has_no_polar_factor_is_refused(maker: str, given: jnp.ndarray, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        MAKERS[maker]()(given)
