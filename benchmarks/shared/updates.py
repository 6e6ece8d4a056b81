"""Whole updates that are compared: who makes them, on which values, again and again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import muon_optax as mo
from benchmarks.shared.optimizers import Tree, adamw, muon, optax_muon
from benchmarks.shared.report import is_cpu

REFERENCE = "optax.contrib.muon"


def contestants(params: Tree) -> dict[str, optax.GradientTransformation]:
    """Everyone who updates ``params``."""
    dtype = jax.tree.leaves(params)[0].dtype
    optimizers = {"muon_optax.muon": muon()}
    if dtype == jnp.float32:
        optimizers["muon_optax.muon, float32 products"] = muon(mo.newton_schulz(dtype=jnp.float32))
    optimizers[REFERENCE] = optax_muon(params)
    if dtype == jnp.float32 and not is_cpu():
        optimizers[f"{REFERENCE}, highest"] = _multiplying_exactly(optimizers[REFERENCE])
    return optimizers | {"optax.adamw": adamw()}


def _multiplying_exactly(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    def update(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return optimizer.update(*arguments)

    return optax.GradientTransformation(optimizer.init, update)


class Training:
    """Calls a compiled step again and again: it consumes the state and the parameters that it is given."""

    def __init__(self, run: Callable[..., Any], gradients: Tree, state: Any, params: Tree) -> None:
        self._run, self._gradients, self._state = run, gradients, state
        self._params = jax.tree.map(jnp.copy, params)

    def __call__(self) -> Tree:
        self._params, self._state = self._run(self._gradients, self._state, self._params)
        return self._params


def draw(shapes: Tree, seed: int) -> Tree:
    """Normal values of the shapes and dtypes of ``shapes``."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    normal = [0.02 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, normal)
