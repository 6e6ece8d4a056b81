"""The same small parameters as trees of every kind that users have."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

SHAPES = {"down": (12, 8), "up": (8, 12)}


class Pair(NamedTuple):
    down: Any
    up: Any


class Layers(nnx.Module):
    def __init__(self, down: jax.Array, up: jax.Array) -> None:
        self.down = nnx.Param(down)
        self.up = nnx.Param(up)


class Module(eqx.Module):
    down: jax.Array
    up: jax.Array
    activation: Callable = jax.nn.relu


def arrays(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    """Two matrices: what every transform takes."""
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def with_vectors(seed: int = 0, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Two matrices, a bias, an embedding: what only partitions take."""
    rng = np.random.default_rng(seed + 1000)
    embedding, bias = rng.standard_normal((10, 8)), rng.standard_normal(12)
    return arrays(seed, dtype) | {"bias": jnp.asarray(bias, dtype), "embedding": jnp.asarray(embedding, dtype)}


# From two arrays to a tree of the kind.
KINDS: dict[str, Callable[[jax.Array, jax.Array], Any]] = {
    "dict": lambda down, up: {"down": down, "up": up},
    "namedtuple": Pair,
    "list": lambda down, up: [down, up],
    "nested-with-none": lambda down, up: {"a": {"down": down, "none": None}, "b": (None, [up, None])},
    "nnx": lambda down, up: nnx.state(Layers(down, up), nnx.Param),
    "equinox": lambda down, up: eqx.filter(Module(down, up), eqx.is_inexact_array),
    "array": lambda down, up: down,
}


def assert_trees_equal(got: Any, want: Any, within: float = 0.0) -> None:
    """Same structure and dtypes; each leaf the same to the last bit, or ``within`` a share of its norm."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, other), one in zip(jax.tree_util.tree_leaves_with_path(want), jax.tree.leaves(got), strict=True):
        assert one.dtype == other.dtype, jax.tree_util.keystr(path)
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        # Written so that NaN fails.
        assert np.linalg.norm(one - other) <= within * np.linalg.norm(other), jax.tree_util.keystr(path)
