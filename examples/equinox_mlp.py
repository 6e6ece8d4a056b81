"""Equinox: a multilayer perceptron learns a function of four numbers, trained by Muon.

    python examples/equinox_mlp.py

The data are made up: y = sin(3 a) b + exp(-c^2) - |d| at random points, without noise. Every batch is fresh, so the
loss is one on unseen points. Equinox stores its weights as (out, in); `summarize` shows that Muon knows: layout "oi".
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import muon_optax as mo


def batch(key: jax.Array, size: int = 256) -> tuple[jax.Array, jax.Array]:
    x = jax.random.uniform(key, (size, 4), minval=-1.0)
    a, b, c, d = x.T
    return x, jnp.sin(3 * a) * b + jnp.exp(-(c**2)) - jnp.abs(d)


def loss_of(model: eqx.nn.MLP, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((jax.vmap(model)(x) - y) ** 2)


def main(steps: int = 300) -> tuple[float, float]:
    model = eqx.nn.MLP(4, "scalar", 64, 3, activation=jax.nn.gelu, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)  # without the activation function
    # The last layer is a head, which Muon is not for. An MLP calls it layers/3, so it has to be named.
    layouts = {"layers/3/weight": None}
    print(mo.summarize(params, layouts))

    optimizer = mo.muon(optax.cosine_decay_schedule(2e-2, steps), weight_decay=0.01, layouts=layouts)
    state = optimizer.init(params)

    @eqx.filter_jit
    def train_step(model: eqx.nn.MLP, state: optax.OptState, key: jax.Array) -> tuple:
        loss, gradients = eqx.filter_value_and_grad(loss_of)(model, *batch(key))
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for key in jax.random.split(jax.random.key(1), steps):
        model, state, loss = train_step(model, state, key)
        losses.append(float(loss))
    print(f"mean squared error: {losses[0]:.4f} at first, {losses[-1]:.5f} after {steps} steps")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
