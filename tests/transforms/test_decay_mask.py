"""Which parameters decay: by default, and by masks of every form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import muon_optax as mo
from muon_optax._layouts.paths import named_leaves
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


@pytest.mark.parametrize("mask", [{"kernel": True}, Mask(True)], ids=["dict", "module"])
def test_a_tree_is_read_by_path(mask: Any) -> None:
    function = as_mask_function(mask)
    assert function is not None
    assert function({"kernel": 1}) == {"kernel": True}


def test_a_boolean_holds_for_all_below_its_path_and_none_is_left_out() -> None:
    function = as_mask_function({"a": True, "b": {"w": False}})
    assert function is not None
    params = {"a": {"w": 1.0, "v": [1.0]}, "b": {"w": 1.0}}
    assert function(params) == {"a": {"w": True, "v": [True]}, "b": {"w": False}}
    with pytest.raises(ValueError, match="weight_decay_mask has no entry for 'c'"):
        function({"c": 1.0})


def test_a_mask_may_be_a_state_of_flax() -> None:
    params = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    optimizer = mo.muon(0.1, weight_decay_mask=jax.tree.map(lambda leaf: leaf.ndim > 1, params))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    moved = {leaf.path: bool((leaf.value != 0).any()) for leaf in named_leaves(updates)}
    assert moved == {"bias": False, "kernel": True}


@pytest.mark.parametrize("mask", ["kernel", {"kernel": "yes"}, True, jnp.zeros(())], ids=repr)
def test_what_is_not_a_mask_is_refused_by_name(mask: Any) -> None:
    with pytest.raises(TypeError, match=r"^weight_decay_mask"):
        as_mask_function(mask)


def test_functions_and_none_are_kept() -> None:
    assert as_mask_function(decay_mask) is decay_mask
    assert as_mask_function(None) is None
