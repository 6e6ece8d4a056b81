"""Sharded parameters give the updates of unsharded ones, on meshes with Auto and with Explicit axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import muon_optax as mo

SPECS = {
    "replicated": {"kernel": P(), "query": P(), "experts": P(), "bias": P()},
    "first axis": {"kernel": P("data"), "query": P("data"), "experts": P("data"), "bias": P("data")},
    "last axis": {"kernel": P(None, "model"), "query": P(None, None, "model"), "experts": P(), "bias": P()},
    "two axes": {
        "kernel": P("data", "model"),
        "query": P("data", "model"),
        "experts": P("data", None, "model"),
        "bias": P(),
    },
}
LAYOUTS = {"query": "ioo", "experts": "bio"}


def random_tree(seed):
    shapes = {"kernel": (16, 32), "query": (16, 4, 8), "experts": (4, 16, 8), "bias": (32,)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def two_updates(params, gradients):
    optimizer = mo.muon(0.1, layouts=LAYOUTS, orthogonalizer=mo.newton_schulz(dtype=jnp.float32))
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    _, state = update(gradients, state, params)
    return update(gradients, state, params)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["Auto", "Explicit"])
@pytest.mark.parametrize("specs", SPECS.values(), ids=SPECS.keys())
def test_sharded_updates_equal_unsharded_ones(kind, specs):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    place = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params, gradients = random_tree(0), random_tree(1)
    expected, _ = two_updates(params, gradients)
    updates, state = two_updates(jax.device_put(params, place), jax.device_put(gradients, place))
    for name in params:
        # Newton-Schulz amplifies the 1e-7 of another order of summation about a thousand times.
        np.testing.assert_allclose(updates[name], expected[name], atol=1e-4 * float(jnp.max(jnp.abs(expected[name]))))
    momentum = state.inner_states["muon"].inner_state[0].trace
    if kind is AxisType.Explicit:
        for name in ("kernel", "query", "experts"):
            assert jax.typeof(updates[name]).sharding.spec == jax.typeof(momentum[name]).sharding.spec
            assert momentum[name].sharding.is_equivalent_to(place[name], momentum[name].ndim)
