"""Any function from matrices to matrices can take Newton-Schulz's place: the exact polar factor, and one of our own.

    python examples/own_orthogonalizer.py

A two-layer network learns a teacher's outputs three times from one start, with three orthogonalizers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import muon_optax as mo


def soft_orthogonalizer(matrices: jax.Array) -> jax.Array:
    """Large singular values become 1, small ones, which are mostly noise, stay small: sigma / (sigma + sigma_1 / 20).

    Takes ``(*batch, rows, cols)``, as every orthogonalizer does, and each matrix by itself.
    """
    U, S, Vh = jnp.linalg.svd(matrices.astype(jnp.float32), full_matrices=False)
    largest = S[..., :1]
    soft = S / jnp.where(largest == 0, 1, S + largest / 20)
    return ((U * soft[..., None, :]) @ Vh).astype(matrices.dtype)


ORTHOGONALIZERS = {
    "newton_schulz()": mo.newton_schulz(),
    "polar_factor()": mo.polar_factor(),
    "our own": soft_orthogonalizer,
}


def network(params: dict, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["up"]) @ params["down"]


def train(orthogonalizer: Callable[[jax.Array], jax.Array], steps: int) -> tuple[float, float]:
    """First and last loss."""
    keys = jax.random.split(jax.random.key(0), 5)
    teacher = {"up": jax.random.normal(keys[0], (16, 32)) / 4, "down": jax.random.normal(keys[1], (32, 8)) / 6}
    params = {"up": jax.random.normal(keys[2], (16, 64)) / 4, "down": jax.random.normal(keys[3], (64, 8)) / 8}
    x = jax.random.normal(keys[4], (256, 16))
    y = network(teacher, x)
    optimizer = mo.muon(optax.cosine_decay_schedule(2e-2, steps), weight_decay=0.0, orthogonalizer=orthogonalizer)

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, state = carry
        loss, gradients = jax.value_and_grad(lambda params: jnp.mean((network(params, x) - y) ** 2))(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, None, steps))((params, optimizer.init(params)))
    return float(losses[0]), float(losses[-1])


def main(steps: int = 200) -> dict[str, tuple[float, float]]:
    losses = {name: train(orthogonalizer, steps) for name, orthogonalizer in ORTHOGONALIZERS.items()}
    for name, (first, last) in losses.items():
        print(f"{name:16} loss {first:.4f} -> {last:.6f}")
    return losses


if __name__ == "__main__":
    main()
