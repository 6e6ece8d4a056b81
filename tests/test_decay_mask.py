"""Which parameters decay: by default, and by masks of every form."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import pytest

from muon_optax._transforms.decay_mask import as_mask_function, decay_mask


def test_axes_and_names_decide() -> None:
    params = {
        "dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
        "norm": {"scale": jnp.ones((3, 2))},
        "frequencies": jnp.ones(3),
        "stacked": {"kernel": jnp.ones((4, 2, 3)), "bias": jnp.ones((4, 3))},
        "temperature": jnp.ones(()),
    }
    assert decay_mask(params) == {
        "dense": {"kernel": True, "bias": False},
        "norm": {"scale": False},
        "frequencies": False,
        "stacked": {"kernel": True, "bias": False},
        "temperature": False,
    }


class Mask(eqx.Module):
    kernel: bool

    def __call__(self, params: Any) -> Any:
        raise AssertionError("a tree of booleans was called")


@pytest.mark.parametrize("mask", [{"kernel": True}, Mask(True), [True, False]], ids=["dict", "module", "list"])
def test_a_tree_is_the_mask_of_every_tree(mask: Any) -> None:
    function = as_mask_function(mask)
    assert function is not None
    assert function({"kernel": 1}) is mask


def test_functions_and_none_are_kept() -> None:
    assert as_mask_function(decay_mask) is decay_mask
    assert as_mask_function(None) is None
