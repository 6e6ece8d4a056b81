"""float32 parameters that are cast in the loss are master copies of bfloat16 ones: docs/recipes_for_training.md."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import muon_optax as mo

HALF, STEPS = jnp.bfloat16, 10
INPUTS = jax.random.normal(jax.random.key(2), (32, 8))
PARAMS = {
    "up": {"kernel": jax.random.normal(jax.random.key(0), (8, 16)) / 3, "bias": jnp.zeros(16)},
    "down": {"kernel": jax.random.normal(jax.random.key(1), (16, 8)) / 4, "bias": jnp.zeros(8)},
}


def muon() -> optax.GradientTransformationExtraArgs:
    exact = mo.newton_schulz(dtype=jnp.float32)
    return mo.muon(1e-4, weight_decay=0.1, layouts={"down/kernel": "io"}, orthogonalizer=exact)


def loss(params: Any) -> jax.Array:
    """All products in the dtype of ``params``."""
    hidden = jax.nn.relu(INPUTS.astype(HALF) @ params["up"]["kernel"] + params["up"]["bias"])
    outputs = hidden @ params["down"]["kernel"] + params["down"]["bias"]
    return jnp.mean((outputs.astype(jnp.float32) - INPUTS) ** 2)


def steps(params: Any, gradient: Callable[[Any], Any]) -> Any:
    optimizer = muon()
    state = optimizer.init(params)
    for _ in range(STEPS):
        updates, state = optimizer.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.fixture(scope="module")
def copies() -> Any:
    """The float32 copies that bfloat16 parameters and bfloat16 gradients lead to, kept beside them by hand."""
    optimizer, copies = muon(), PARAMS
    params, state = optax.tree.cast(copies, HALF), optimizer.init(copies)
    for _ in range(STEPS):
        gradients = jax.grad(loss)(params)
        assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(HALF)}
        updates, state = optimizer.update(optax.tree.cast(gradients, jnp.float32), state, copies)
        copies = jax.tree.map(jnp.add, copies, updates)
        params = optax.tree.cast(copies, HALF)
    return copies


def plain() -> Any:
    return steps(PARAMS, jax.grad(lambda params: loss(optax.tree.cast(params, HALF))))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(8, dtype=HALF, name="down")(nn.relu(nn.Dense(16, dtype=HALF, name="up")(x)))


def linen() -> Any:
    state = TrainState.create(apply_fn=Linen().apply, params=PARAMS, tx=muon())

    def model_loss(params: Any) -> jax.Array:
        outputs = state.apply_fn({"params": params}, INPUTS)
        return jnp.mean((outputs.astype(jnp.float32) - INPUTS) ** 2)

    for _ in range(STEPS):
        state = state.apply_gradients(grads=jax.grad(model_loss)(state.params))
    return state.params


class NNX(nnx.Module):
    def __init__(self, dtype: Any, param_dtype: Any) -> None:
        dtypes = {"dtype": dtype, "param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        self.up, self.down = nnx.Linear(8, 16, **dtypes), nnx.Linear(16, 8, **dtypes)
        for name, layer in PARAMS.items():
            for part, value in layer.items():
                getattr(getattr(self, name), part)[...] = value.astype(param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(nnx.relu(self.up(x)))


def nnx_loss(model: NNX) -> jax.Array:
    return jnp.mean((model(INPUTS.astype(HALF)).astype(jnp.float32) - INPUTS) ** 2)


def cast_nnx_loss(model: NNX) -> jax.Array:
    graph, params = nnx.split(model)
    return nnx_loss(nnx.merge(graph, optax.tree.cast(params, HALF)))


def trained_nnx(model: NNX, of_model: Callable[[NNX], jax.Array]) -> Any:
    optimizer = nnx.Optimizer(model, muon(), wrt=nnx.Param)
    for _ in range(STEPS):
        optimizer.update(model, nnx.grad(of_model)(model))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def nnx_loaded() -> Any:
    """Built in bfloat16, cast up once."""
    model = NNX(None, HALF)
    nnx.update(model, optax.tree.cast(nnx.state(model, nnx.Param), jnp.float32))
    for name, layer in PARAMS.items():  # the values that bfloat16 has rounded away
        for part, value in layer.items():
            getattr(getattr(model, name), part)[...] = value
    return trained_nnx(model, cast_nnx_loss)


WAYS = {
    "cast in the loss": plain,
    "Linen, dtype=": linen,
    "NNX, dtype=": lambda: trained_nnx(NNX(HALF, jnp.float32), nnx_loss),
    "NNX, cast up once": nnx_loaded,
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_float32_parameters_are_the_copies(way: Callable[[], Any], copies: Any) -> None:
    for name, layer in way().items():
        for part, value in layer.items():
            assert value.dtype == jnp.float32
            # Each of ten updates moves an entry by about 2e-5, so a lost one, or one of another gradient, shows.
            np.testing.assert_allclose(value, copies[name][part], rtol=0, atol=5e-7, err_msg=f"{name}/{part}")


def test_bfloat16_parameters_without_copies_lose_most_of_it(copies: Any) -> None:
    params = steps(optax.tree.cast(PARAMS, HALF), jax.grad(loss))
    for name in PARAMS:
        moved = np.linalg.norm(np.asarray(copies[name]["kernel"] - PARAMS[name]["kernel"]))
        rounded = copies[name]["kernel"].astype(HALF).astype(jnp.float32)
        apart = np.linalg.norm(np.asarray(params[name]["kernel"].astype(jnp.float32) - rounded))
        assert apart > 0.5 * moved
