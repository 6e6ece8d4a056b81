"""Haiku: a network counts the ones of a 20-bit number, trained by Muon.

    python examples/haiku_mlp.py

The data are made up: random bits, and which of the 21 possible counts is right. Every batch is fresh, so the loss is
one on unseen numbers. The hidden layers are stacked by `hk.experimental.layer_stack`: one array of (layers, in, out),
which `summarize` shows as so many matrices.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import muon_optax as mo

BITS, WIDTH = 20, 64


def batch(key: jax.Array, size: int = 256) -> tuple[jax.Array, jax.Array]:
    # The share of ones differs from number to number, or all counts would be near ten.
    share_key, bits_key = jax.random.split(key)
    share = jax.random.uniform(share_key, (size, 1))
    bits = jax.random.bernoulli(bits_key, share, (size, BITS))
    return bits.astype(jnp.float32), bits.sum(axis=1)


def forward(bits: jax.Array) -> jax.Array:
    def block(x: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(hk.Linear(2 * WIDTH)(hk.RMSNorm(-1)(x)))
        return x + hk.Linear(WIDTH)(hidden)

    x = hk.experimental.layer_stack(3)(block)(hk.Linear(WIDTH, name="stem")(bits))
    return hk.Linear(BITS + 1, name="head")(x)


def main(steps: int = 200) -> tuple[float, float]:
    model = hk.without_apply_rng(hk.transform(forward))
    params = model.init(jax.random.key(0), batch(jax.random.key(0))[0])
    print(mo.summarize(params))

    optimizer = mo.muon(optax.cosine_decay_schedule(1e-2, steps), weight_decay=0.1)
    state = optimizer.init(params)

    def loss_of(params: hk.Params, bits: jax.Array, counts: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, bits), counts).mean()

    @jax.jit
    def train_step(params: hk.Params, state: optax.OptState, key: jax.Array) -> tuple:
        loss, gradients = jax.value_and_grad(loss_of)(params, *batch(key))
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for key in jax.random.split(jax.random.key(1), steps):
        params, state, loss = train_step(params, state, key)
        losses.append(float(loss))
    print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.3f} after {steps} steps")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
