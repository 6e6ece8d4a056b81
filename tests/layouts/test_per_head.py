"""Attention head by head: the layouts, and equality with heads as leaves of their own."""

import jax
import jax.numpy as jnp
import numpy as np
from meshes import FLOAT32, random_tree
from oracle import relative_error

import muon_optax as mo

SHAPES = {
    "attention/query/kernel": (6, 4, 5), "attention/query/bias": (4, 5), "attention/out/kernel": (4, 5, 6),
    "layers/attention/key/kernel": (2, 6, 4, 5), "layers/attention/key/bias": (2, 4, 5),
    "layers/mlp/kernel": (2, 6, 7), "layers/norm/scale": (2, 6), "mlp/kernel": (6, 7),
    "features/kernel": (6, 4, 5), "features/bias": (4, 5), "plain/q_proj/kernel": (6, 20),
    "plain/value": (6, 4, 5), "plain/value_bias": (4, 5),
    "query/features/kernel": (6, 4, 5), "query/features/bias": (4, 5),  # only the layer's own name counts
}  # fmt: skip


def test_queries_keys_and_values_only() -> None:
    params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()}
    changed = {
        path: str(layout) for path, layout in mo.per_head(params).items() if layout != mo.assign_layouts(params)[path]
    }
    assert changed == {
        "attention/query/kernel": "ibo", "layers/attention/key/kernel": "bibo", "plain/value": "ibo"
    }  # fmt: skip


def test_equal_to_a_leaf_for_each_head() -> None:
    shapes = {"query": (6, 4, 5), "out": (4, 5, 6)}
    params, gradients = (random_tree(shapes, seed) for seed in (0, 1))
    whole = mo.muon(0.1, orthogonalizer=FLOAT32, layouts=mo.per_head)
    apart = mo.muon(0.1, orthogonalizer=FLOAT32)

    def heads(tree):
        return {f"w{head}": tree["query"][:, head] for head in range(4)}

    updates, _ = whole.update(gradients, whole.init(params), params)
    want, _ = apart.update(heads(gradients), apart.init(heads(params)), heads(params))
    for head in range(4):
        np.testing.assert_allclose(updates["query"][:, head], want[f"w{head}"], rtol=1e-4, atol=1e-5)
    as_one, _ = apart.update(gradients, apart.init(params), params)
    assert relative_error(as_one["query"][:, 0], want["w0"]) > 0.1
    np.testing.assert_array_equal(as_one["out"], updates["out"])
