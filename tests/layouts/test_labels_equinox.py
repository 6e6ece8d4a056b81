"""Equinox: the layout of every parameter of real models, and two steps of training with ``eqx.apply_updates``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from models import (
    EquinoxTransformer,
    EquinoxVision,
    Table,
    clipped_muon,
    shown,
    squared,
    under,
)

import muon_optax as mo


def block(stack: str = "") -> Table:
    linears = [
        *(f"attention/{name}_proj" for name in ("query", "key", "value", "output")),
        "mlp/layers/0",
        "mlp/layers/1",
    ]
    norms = [f"{norm}/{field}" for norm in ("before", "between") for field in ("weight", "bias")]
    return {f"{name}/weight": stack + "oi" for name in linears} | dict.fromkeys(
        [f"{name}/bias" for name in linears] + norms
    )


HEAD = {"tokens/weight": None, "head/weight": None, "head/bias": None}
LOOP = HEAD | under("blocks/0", block()) | under("blocks/1", block())
STACKED = HEAD | under("blocks", block("b"))
RAW = {"wq": "ioo", "bq": None, "wo": "iio", "weight": "oi", "bias": None}
VISION = {
    "layers/layers/0/weight": "oiii",
    "layers/layers/0/bias": None,
    "layers/layers/1/weight": None,
    "layers/layers/1/bias": None,
    "layers/layers/3/weight": None,  # depthwise
    "layers/layers/3/bias": None,
    "layers/layers/4/weight": "oiii",
    "layers/layers/4/bias": None,
    "layers/layers/7/weight": "oi",
    **under("layers/layers/8", RAW),
    "gru/weight_ih": "oi split 6+6+6",
    "gru/weight_hh": "oi split 6+6+6",
    "gru/bias": None,
    "gru/bias_n": None,
    "lstm/weight_ih": "oi split 6+6+6+6",
    "lstm/weight_hh": "oi split 6+6+6+6",
    "lstm/bias": None,
    **under("raw", RAW),
    "classifier/weight": None,
    "classifier/bias": None,
}
TOKENS = jnp.arange(10).reshape(2, 5) % 11
KEY = jax.random.key(0)


@dataclass(frozen=True)
class Case:
    build: Callable[[], eqx.Module]
    inputs: jax.Array
    table: Table

    def loss(self, model: eqx.Module) -> jax.Array:
        outputs = jax.vmap(model)(self.inputs)
        return squared(outputs, jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape))


IMAGE = jax.random.normal(jax.random.key(1), (2, 1, 6, 7))
CASES = {
    "blocks": Case(lambda: EquinoxTransformer(8, 2, 2, False, KEY), TOKENS, LOOP),
    "stacked blocks": Case(lambda: EquinoxTransformer(8, 2, 3, True, KEY), TOKENS, STACKED),
    "as many stacked blocks as heads and inputs": Case(lambda: EquinoxTransformer(4, 4, 4, True, KEY), TOKENS, STACKED),
    "vision": Case(lambda: EquinoxVision(2, KEY), IMAGE, VISION),
    "vision, as many heads as inputs": Case(lambda: EquinoxVision(6, KEY), IMAGE, VISION),
}


def arrays(model: eqx.Module) -> Any:
    return eqx.filter(model, lambda leaf: eqx.is_inexact_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct))


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_every_parameter_has_its_layout_at_init_and_at_update(case: Case):
    model = eqx.filter_eval_shape(case.build)
    assert shown(arrays(model)) == case.table
    assert shown(eqx.filter_eval_shape(eqx.filter_grad(case.loss), model)) == case.table
    labels = mo.label_params(arrays(model))
    assert jax.tree.structure(labels) == jax.tree.structure(arrays(model))


@pytest.mark.parametrize(
    "name", ["blocks", "as many stacked blocks as heads and inputs", pytest.param("vision", marks=pytest.mark.slow)]
)
def test_two_steps(name: str):
    case, optimizer = CASES[name], clipped_muon()
    model = case.build()
    state = optimizer.init(arrays(model))
    before = arrays(model)

    @eqx.filter_jit
    def step(model: eqx.Module, state: optax.OptState) -> tuple[eqx.Module, optax.OptState, jax.Array]:
        loss, gradients = eqx.filter_value_and_grad(case.loss)(model)
        updates, state = optimizer.update(gradients, state, arrays(model))
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(3):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, arrays(model))
    unchanged = {path for path, value in zip(shown(before), jax.tree.leaves(changed), strict=True) if not value}
    # A key's bias cancels in the softmax: its gradient is rounding, or nothing.
    assert all(path.endswith("key_proj/bias") for path in unchanged)


class Stacked(eqx.Module):
    """A user's module whose norm is a class of his own, stacked: nothing but names and siblings tell."""

    class Scale(eqx.Module):
        weight: jax.Array

    attn_rms: Scale
    weight: jax.Array
    bias: jax.Array
    up: jax.Array
    down: jax.Array


def test_the_siblings_of_a_users_own_arrays():
    model = Stacked(
        Stacked.Scale(jnp.ones((3, 6))), jnp.ones((3, 5, 6)), jnp.ones((3, 5)), jnp.ones((3, 6, 8)), jnp.ones((3, 8, 6))
    )
    assert shown(model) == {"attn_rms/weight": None, "weight": "boi", "bias": None, "up": "bio", "down": "bio"}


def test_stacked_recurrent_cells_and_convolutions():
    keys = jax.random.split(KEY, 3)
    cells = eqx.filter_eval_shape(eqx.filter_vmap(lambda key: eqx.nn.GRUCell(4, 6, key=key)), keys)
    split = "boi split 6+6+6"
    assert shown(arrays(cells)) == {"weight_ih": split, "weight_hh": split, "bias": None, "bias_n": None}
    convolutions = eqx.filter_eval_shape(eqx.filter_vmap(lambda key: eqx.nn.Conv2d(2, 4, 3, key=key)), keys)
    assert shown(arrays(convolutions)) == {"weight": "boiii", "bias": None}
    depthwise = eqx.filter_eval_shape(eqx.filter_vmap(lambda key: eqx.nn.Conv1d(2, 4, 3, groups=2, key=key)), keys)
    assert shown(arrays(depthwise)) == {"weight": None, "bias": None}


class ConvWithMixing(eqx.nn.Conv2d):
    """What a subclass adds to a layer is no layer's."""

    mixing: jax.Array

    def __init__(self):
        super().__init__(2, 4, 3, key=KEY)
        self.mixing = jnp.ones((3, 4))


class OwnLinear(eqx.nn.Linear):
    """A subclass of a layer is the layer."""


class NormalizedLinear(eqx.nn.Linear):
    """Its name is no norm's, whatever it sounds like."""


@pytest.mark.parametrize("kind", [OwnLinear, NormalizedLinear])
def test_a_subclass_is_its_base(kind: type[eqx.nn.Linear]):
    assert shown(kind(3, 4, key=KEY)) == {"weight": "oi", "bias": None}


def test_arrays_that_a_subclass_adds():
    layer = eqx.tree_at(lambda layer: layer.bias, ConvWithMixing(), None)
    assert shown(layer) == {"weight": "oiii", "mixing": "io"}
