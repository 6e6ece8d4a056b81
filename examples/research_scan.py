"""Plain optax.chain research code: a dict of arrays, Muon taken apart into its parts, a jitted lax.scan as the loop.

    python examples/research_scan.py

A model of bytes, eight seen and one to come, on the source text of Python's standard library. The hidden layers lie in
one array, (layers, width, width), which `lax.scan` runs over: by its layout "bio" each is a matrix of its own.
"""

import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import muon_optax as mo

CONTEXT, WIDTH, LAYERS, BATCH = 8, 128, 3, 256


def init(key: jax.Array) -> dict:
    keys, normal = jax.random.split(key, 4), jax.random.normal
    return {
        "embedding": 0.1 * normal(keys[0], (256, 32)),
        "w_in": normal(keys[1], (CONTEXT * 32, WIDTH)) * (CONTEXT * 32) ** -0.5,
        "hidden": {
            "norm": jnp.ones((LAYERS, WIDTH)),
            "w": normal(keys[2], (LAYERS, WIDTH, WIDTH)) * WIDTH**-0.5,
            "b": jnp.zeros((LAYERS, WIDTH)),
        },
        "head": normal(keys[3], (WIDTH, 256)) * WIDTH**-0.5,
    }


def loss_of(params: dict, text: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats per byte; ``text`` is (batch, CONTEXT + 1)."""
    x = params["embedding"][text[:, :-1]].reshape(len(text), -1) @ params["w_in"]

    def layer(x: jax.Array, weights: dict) -> tuple[jax.Array, None]:
        normed = weights["norm"] * x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)
        return x + jax.nn.gelu(normed @ weights["w"] + weights["b"]), None

    x, _ = jax.lax.scan(layer, x, params["hidden"])
    return optax.softmax_cross_entropy_with_integer_labels(x @ params["head"], text[:, -1]).mean()


def main(steps: int = 300) -> tuple[float, float]:
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = jnp.asarray(np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8))
    params = init(jax.random.key(0))
    print(mo.summarize(params))
    # mo.muon(schedule, weight_decay=0.1) in one line; taken apart, every line can be another.
    schedule = optax.cosine_decay_schedule(5e-3, steps)
    matrices = optax.chain(
        optax.trace(0.95, nesterov=True),
        mo.orthogonalize_via_newton_schulz(),
        mo.scale_by_shape("moonlight"),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(schedule),
    )
    optimizer = mo.partition_by_layout(matrices, optax.adamw(schedule, b2=0.95))

    def step(carry: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = carry
        starts = jax.random.randint(key, (BATCH, 1), 0, len(text) - CONTEXT)
        loss, gradients = jax.value_and_grad(loss_of)(params, text[starts + jnp.arange(CONTEXT + 1)])
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    keys = jax.random.split(jax.random.key(1), steps)
    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, optimizer.init(params)))
    first, last = float(losses[0]), float(losses[-10:].mean())
    print(f"loss in nats per byte: {first:.3f} at first, {last:.3f} over the last ten of {steps} steps")
    return first, last


if __name__ == "__main__":
    main()
