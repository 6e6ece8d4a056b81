"""Haiku: the layout of every parameter of real models, and two steps of training with its pure functions."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import haiku as hk
import jax
import jax.numpy as jnp
import optax
import pytest
from models import (
    Table,
    clipped_muon,
    haiku_recurrent,
    haiku_stack,
    haiku_vision,
    shown,
    squared,
    under,
)

import muon_optax as mo


def linear(*names: str) -> Table:
    return {f"{name}/w": "io" for name in names} | {f"{name}/b": None for name in names}


VISION = {
    "conv2_d/w": "iiio",
    "conv2_d/b": None,
    "mix/w": "iiio",
    "depthwise_conv2_d/w": None,
    "depthwise_conv2_d/b": None,
    "conv2_d_transpose/w": "iioi",  # Haiku stores (height, width, out, in) there
    "conv2_d_transpose/b": None,
    "layer_norm/scale": None,
    "layer_norm/offset": None,
    **under("multi_head_attention", linear("query", "key", "value", "linear")),
    **linear("mlp/~/linear_0", "mlp/~/linear_1"),
    "classifier/w": None,
    "classifier/b": None,
}


def recurrent(hidden: int) -> Table:
    three, four = "+".join([str(hidden)] * 3), "+".join([str(hidden)] * 4)
    return {
        "embed/embeddings": None,
        "gru/w_i": f"io split {three}",
        "gru/w_h": f"io split {three}",
        "gru/b": None,
        "lstm/linear/w": f"io split {four}",
        "lstm/linear/b": None,
        "head/w": None,
        "head/b": None,
    }


def stack(norms: bool) -> Table:
    blocks = {"linear/w": "bio", "linear/b": None, "linear_1/w": "bio", "linear_1/b": None}
    blocks |= {"rms_norm/scale": None} if norms else {}
    return under("__layer_stack_no_per_layer", blocks) | {"head/w": None, "head/b": None}


@dataclass(frozen=True)
class Case:
    forward: Callable[[jax.Array], jax.Array]
    inputs: jax.Array
    table: Table

    def init(self) -> hk.Params:
        return self._transformed().init(jax.random.key(0), self.inputs)

    def _transformed(self) -> hk.Transformed:
        return hk.without_apply_rng(hk.transform(self.forward))

    def loss(self, params: hk.Params) -> jax.Array:
        outputs = self._transformed().apply(params, self.inputs)
        return squared(outputs, jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape))


def noise(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


TOKENS = jnp.arange(10).reshape(2, 5) % 11
CASES = {
    "vision": Case(haiku_vision, noise(2, 5, 6, 3), VISION),
    "recurrent": Case(partial(haiku_recurrent, hidden=4), TOKENS, recurrent(4)),
    "recurrent, as many inputs as hidden": Case(partial(haiku_recurrent, hidden=6), TOKENS, recurrent(6)),
    **{
        f"{layers} layers of width {width}, norms={norms}": Case(
            partial(haiku_stack, layers=layers, norms=norms), noise(2, width), stack(norms)
        )
        for layers, width, norms in ((3, 4, True), (3, 4, False), (4, 4, True), (4, 4, False))
    },
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_every_parameter_has_its_layout_at_init_and_at_update(case: Case):
    params = jax.eval_shape(case.init)
    assert shown(params) == case.table
    assert shown(jax.eval_shape(jax.grad(case.loss), params)) == case.table
    labels = mo.label_params(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert set(jax.tree.leaves(labels)) == {"muon", "adamw"}


@pytest.mark.parametrize(
    "name", [pytest.param("vision", marks=pytest.mark.slow), "recurrent", "4 layers of width 4, norms=False"]
)
def test_two_steps(name: str):
    case, optimizer = CASES[name], clipped_muon()
    params = jax.jit(case.init)()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = optimizer.init(params)

    @jax.jit
    def step(params: hk.Params, state: optax.OptState) -> tuple[hk.Params, optax.OptState, jax.Array]:
        loss, gradients = jax.value_and_grad(case.loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses, before = [], params
    for _ in range(3):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    changed = {
        f"{module}/{name}"
        for module, name, value in hk.data_structures.traverse(params)
        if (value != before[module][name]).any()
    }
    # A key's bias cancels in the softmax: its gradient is rounding, or nothing.
    assert set(case.table) - changed <= {"multi_head_attention/key/b"}
