"""Attention in Flax NNX that hands out its largest logits, and `mo.clip_qk`, which holds them at a high learning rate.

    python examples/clip_qk.py

The task: at every place, give back what stood one place before. The step returns the maxima with the loss: one
reduction over logits that are there anyway.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import muon_optax as mo

WIDTH, HEADS, TIME, BATCH, THRESHOLD = 32, 2, 16, 16, 30.0


class Attention(nnx.Module):
    """Causal attention without a norm on queries and keys."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        heads = HEADS, WIDTH // HEADS
        self.query, self.key, self.value = (nnx.LinearGeneral(WIDTH, heads, rngs=rngs) for _ in range(3))
        self.out = nnx.LinearGeneral(heads, WIDTH, axis=(-2, -1), rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of (batch, time, WIDTH): the outputs, and the largest logit of each head, (HEADS,)."""
        logits = jnp.einsum("bthd,bshd->bhts", self.query(x), self.key(x)) * (WIDTH // HEADS) ** -0.5
        logits = jnp.where(jnp.tri(x.shape[1], dtype=bool), logits, -jnp.inf)
        mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), self.value(x))
        return self.out(mixed), jnp.max(logits, axis=(0, 2, 3))


def train(optimizer: optax.GradientTransformationExtraArgs, steps: int) -> np.ndarray:
    """The largest logit of each head at every step, (steps, HEADS)."""
    graph, params = nnx.split({"attention": Attention(nnx.Rngs(0))})

    def loss_of(params: nnx.State, x: jax.Array) -> tuple[jax.Array, dict]:
        outputs, maxima = nnx.merge(graph, params)["attention"](x)
        return jnp.mean(jnp.square(outputs[:, 1:] - x[:, :-1])), {"attention": maxima}

    @jax.jit
    def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = carry
        x = jax.random.normal(key, (BATCH, TIME, WIDTH)) + jax.random.normal(jax.random.key(1), (TIME, WIDTH))
        gradients, maxima = jax.grad(loss_of, has_aux=True)(params, x)
        updates, state = optimizer.update(gradients, state, params, max_logits=maxima)
        return (optax.apply_updates(params, updates), state), maxima["attention"]

    _, maxima = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(2), steps))
    return np.asarray(maxima)


def main(steps: int = 60, learning_rate: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    muon = mo.muon(learning_rate)
    free = train(optax.with_extra_args_support(muon), steps)
    clipped = train(optax.chain(muon, mo.clip_qk(THRESHOLD)), steps)
    print(f"largest logit at learning rate {learning_rate}: {free[steps // 2 :].max():.0f} without the clip")
    print(f"and {clipped[steps // 2 :].max():.0f} with the clip at {THRESHOLD:.0f}")
    return free, clipped


if __name__ == "__main__":
    main()
