"""Plain trees, as research code has them: the layout of every array, the warning, and two steps of training."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from models import (
    assert_updated_as_layers,
    clipped_muon,
    plain_mlp,
    plain_scanned,
    run_plain_scanned,
    shown,
    under,
)

import muon_optax as mo

MLP = {
    "emb": None,
    "W1": "io",
    "b1": None,
    "W2": "io",
    "b2": None,
    "ln_f/g": None,
    "ln_f/b": None,
    "unembed": None,
}
KERNELS = dict.fromkeys(["wq", "wk", "wv", "wo", "w_up", "w_down"], "bio")
VECTORS = dict.fromkeys(["ln1", "ln2", "b_up"])


@pytest.mark.parametrize("width", [6, 4])
def test_a_plain_mlp(width: int):
    params = jax.eval_shape(lambda: plain_mlp(width))
    assert shown(params) == MLP
    assert jax.tree.leaves(mo.label_params(params)).count("muon") == 2


@pytest.mark.parametrize(("width", "layers"), [(6, 3), (6, 6), (4, 3)], ids=["", "as many layers as inputs", "narrow"])
@pytest.mark.parametrize("flat", [False, True], ids=["in a scope", "flat"])
def test_layers_in_one_array_with_norms(width: int, layers: int, flat: bool):
    params = jax.eval_shape(lambda: plain_scanned(width, layers, flat=flat))
    layer = KERNELS | VECTORS
    outside = {"wte": None, "lm_head": None, "ln_f": None}
    assert shown(params) == outside | (layer if flat else under("layers", layer))


def test_layers_in_one_array_without_norms():
    outside = {"wte": None, "lm_head": None}
    params = jax.eval_shape(lambda: plain_scanned(6, 3, norms=False))
    assert shown(params) == outside | under("layers", KERNELS)
    flat = jax.eval_shape(lambda: plain_scanned(6, 3, norms=False, flat=True))
    with pytest.warns(UserWarning, match="'w_down'.*'w_up'.*'wk'.*'wo'.*'wq'.*'wv'"):  # nothing tells
        assert shown(flat) == outside | dict.fromkeys(KERNELS)


def test_two_steps_of_a_chain_on_scanned_layers():
    params, optimizer = plain_scanned(6, 6), clipped_muon()
    tokens = jnp.arange(20).reshape(2, 10) % 11
    state = optimizer.init(params)

    def loss_of(params: dict[str, Any]) -> jax.Array:
        logits = run_plain_scanned(params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (trained, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=3))((params, state))
    assert losses[2] < losses[1] < losses[0]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, trained)
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("norms", [True, False])
def test_a_stack_is_updated_as_its_layers_would_be(norms: bool):
    assert_updated_as_layers(plain_scanned(6, 3, norms=norms)["layers"], 3)


def test_the_warning_names_every_unknown_path_once_and_at_init_only():
    params = {"a": jnp.ones((2, 3, 4)), "deep": {"b": jnp.ones((3, 4, 5, 6))}, "w": jnp.ones((3, 4)), "v": jnp.ones(3)}
    optimizer = mo.muon(1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = optimizer.init(params)
    (warning,) = caught
    assert warning.category is mo.MuonWarning
    text = str(warning.message)
    assert "'a' float32[2, 3, 4], 'deep/b' float32[3, 4, 5, 6]. Give 'a' a letter" in text
    assert "'bio' is 2 matrices from 3 inputs to 4 outputs" in text
    for path in ("'w'", "'v'"):
        assert path not in text
    optimizer.update(params, state, params)  # a warning here would be an error
