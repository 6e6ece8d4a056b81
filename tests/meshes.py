"""Meshes of virtual devices, trees of every kind of matrix to lay on them, and how updates are to come back."""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import muon_optax as mo

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
KINDS = {"Auto": AUTO, "Explicit": EXPLICIT}
# The two differ in little but types: where that little is tested elsewhere, Explicit axes wait for the slow run.
AUTO_FIRST = [pytest.param(AUTO, id="Auto"), pytest.param(EXPLICIT, id="Explicit", marks=pytest.mark.slow)]

SHAPES = {
    "kernel": (16, 32),
    "torch": (8, 16),
    "query": (16, 4, 8),
    "out": (4, 8, 16),
    "experts": (8, 16, 8),
    "fused": (16, 32),
    "conv": (3, 3, 4, 8),
}
LAYOUTS = {
    "kernel": "io",
    "torch": "oi",
    "query": "ioo",
    "out": "iio",
    "experts": "bio",
    "fused": mo.Layout("io", split=(16, 8, 8)),
    "conv": "iiio",
}

# One step shows where every number went, and compiles in a third of the time of five.
ONE_STEP = mo.newton_schulz(mo.CUBIC[:1], dtype=jnp.float32)
FLOAT32 = mo.newton_schulz(dtype=jnp.float32)
# Newton-Schulz amplifies the 1e-7 of another order of summation, five steps of it about a thousand times.
WITHIN = 1e-4


def mesh_of(kind: AxisType = AUTO, **axes: int) -> Mesh:
    """A mesh of the first devices."""
    devices = jax.devices()[: math.prod(axes.values())]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(kind,) * len(axes), devices=devices)


def random_tree(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), dtype) for name, shape in shapes.items()}


def shardings(mesh: Mesh, specs: Mapping[str, P]) -> dict[str, NamedSharding]:
    return {name: NamedSharding(mesh, spec) for name, spec in specs.items()}


def given(kind: AxisType, places: Any) -> Any:
    """What to pass as ``shardings``: nothing under Explicit axes, whose types tell."""
    return None if kind is EXPLICIT else places


def types(tree: Any) -> list[Any]:
    """Shape, dtype and, under Explicit axes, the sharding of every leaf."""
    return [jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]


def lie_alike(tree: Any, places: Any) -> bool:
    """Whether every array lies as the sharding, or the other array, at its place."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(places), strict=True)
    return all(one.sharding.is_equivalent_to(getattr(other, "sharding", other), one.ndim) for one, other in pairs)


def updated(transform: Any, tree: Any) -> Any:
    """The updates of a transform without a state, compiled."""
    updates, _ = jax.jit(transform.update)(tree, transform.init(tree))
    return updates


@cache
def unsharded(orthogonalizer: Callable[[jax.Array], jax.Array] = ONE_STEP) -> dict[str, np.ndarray]:
    """What one device makes of ``random_tree(SHAPES, 1)``."""
    return updated(mo.orthogonalize(orthogonalizer, layouts=LAYOUTS), random_tree(SHAPES, 1))


def assert_near(got: Any, want: Any, within: float = WITHIN) -> None:
    """Same structure, shapes and dtypes; every number ``within`` a share of the largest of its leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name = jax.tree_util.keystr(path)
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        largest = np.max(np.abs(other), initial=0.0)
        np.testing.assert_allclose(one, other, rtol=0, atol=within * largest, err_msg=name)
