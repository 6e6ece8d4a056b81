"""Flax Linen with TrainState: attention learns to recall, trained by Muon.

    python examples/linen_trainstate.py

The data are made up: a sequence of random symbols, each of which comes twice; at the second time the model has to name
the symbol that followed the first. Every batch is fresh, so the loss is one on unseen data. Guessing costs ln(16) or
2.77.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training.train_state import TrainState

import muon_optax as mo

SYMBOLS, WIDTH = 16, 64


def batch(key: jax.Array, size: int = 128) -> tuple[jax.Array, jax.Array]:
    """Sequences ``a b c d ... a b c d ...`` of different symbols, and at which symbol each position ends."""
    orders = jax.vmap(lambda key: jax.random.permutation(key, SYMBOLS)[:8])(jax.random.split(key, size))
    text = jnp.concatenate([orders, orders], axis=1)
    return text[:, :-1], text[:, 1:]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.RMSNorm()(x), mask=mask)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        positions = nn.Embed(tokens.shape[-1], WIDTH, name="positions")(jnp.arange(tokens.shape[-1]))
        x = nn.Embed(SYMBOLS, WIDTH, name="symbols")(tokens) + positions
        for _ in range(2):
            x = Block()(x)
        return nn.Dense(SYMBOLS, name="head")(nn.RMSNorm()(x))


@jax.jit
def train_step(state: TrainState, key: jax.Array) -> tuple[TrainState, jax.Array]:
    tokens, targets = batch(key)

    def loss_of(params: dict) -> jax.Array:
        logits = state.apply_fn({"params": params}, tokens)[:, 7:]  # from where the answer is known
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets[:, 7:]).mean()

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), loss


def main(steps: int = 200) -> tuple[float, float]:
    model = Transformer()
    params = model.init(jax.random.key(0), batch(jax.random.key(0))[0])["params"]
    print(mo.summarize(params))

    schedule = optax.warmup_cosine_decay_schedule(0.0, 5e-3, steps // 10, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), mo.muon(schedule, weight_decay=0.1))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)
    losses = []
    for key in jax.random.split(jax.random.key(1), steps):
        state, loss = train_step(state, key)
        losses.append(float(loss))
    print(f"loss: {losses[0]:.3f} at first, {losses[-1]:.2g} after {steps} steps")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
