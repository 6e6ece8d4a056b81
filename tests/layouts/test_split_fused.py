"""Fused projections taken apart: on trees of real models, and equal to projections that are leaves of their own."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from meshes import FLOAT32, random_tree
from oracle import relative_error
from places import TESTS

import muon_optax as mo

MODELS = TESTS / "real_models"


def model(name: str) -> dict[str, Any]:
    """The leaves of a real model by path, abstract."""
    leaves = json.loads((MODELS / f"{name}.json").read_text("utf-8"))["leaves"]
    return {path: jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for path, shape, *_ in leaves}


def changed(params: Any, layouts: Callable[[Any], Any]) -> dict[str, Any]:
    """The layouts that are not those of the default rules."""
    found, default = layouts(params), mo.default_layouts(params)
    assert found.keys() == default.keys()
    return {path: layout for path, layout in found.items() if layout != default[path]}


REAL = {
    "flaxdiff_dit": {"dit_block_0/ada_params_module/ada_proj/kernel": 6},
    # Gate, values, the two sides of the state, step sizes.
    "mamba2jax_LM": {"backbone/layers/0/mixer/in_proj/kernel": (128, 128, 128, 128, 8)},
    # By key head: its query and key, its values and their gates.
    "maxtext_qwen3-next-80b-a3b_loop": {"decoder/layers_0/attention/in_proj_qkvz/kernel": (128, 128, 256, 256) * 16},
    "hf_gpt2": {},  # the rules split it by themselves
}


@pytest.mark.parametrize("name", REAL)
def test_real_models_with_sizes(name: str) -> None:
    params, sizes = model(name), REAL[name]
    blocks = {path: (params[path].shape[1] // n,) * n if isinstance(n, int) else n for path, n in sizes.items()}
    assert changed(params, mo.split_fused(sizes)) == {path: mo.Layout("io", own) for path, own in blocks.items()}


def fused(params: dict[str, Any], parts: tuple[str, ...], name: str) -> dict[str, Any]:
    """``params`` with kernels ``(in, out)`` of the same scope side by side."""
    joined = {path: leaf for path, leaf in params.items() if not any(f"/{part}/" in path for part in parts)}
    for path, leaf in params.items():
        if f"/{parts[0]}/" in path:
            shapes = [params[path.replace(parts[0], part)].shape for part in parts]
            shape = (leaf.shape[0], sum(outputs for _, outputs in shapes))
            joined[path.replace(parts[0], name)] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return joined


def test_a_real_model_with_fused_projections_tells_the_sizes() -> None:
    """Llama with 32 query and 8 key heads, as Phi fuses it."""
    params = fused(model("hf_llama"), ("q_proj", "k_proj", "v_proj"), "qkv_proj")
    params = fused(params, ("gate_proj", "up_proj"), "gate_up_proj")
    found = changed(params, mo.split_fused())
    layers = {path.split("/")[2] for path in params if "/layers/" in path}
    assert found == {
        f"model/layers/{layer}/{name}/kernel": mo.Layout("io", split)
        for layer in layers
        for name, split in {
            "self_attn/qkv_proj": (4096, 1024, 1024), "mlp/gate_up_proj": (11008, 11008)
        }.items()
    }  # fmt: skip


SHAPES = {
    "scan/qkv": (2, 6, 14),
    "scan/out": (2, 10, 6),
    "scan/norm": (2, 6),
    "kv": (6, 8),
    "gate_up_proj/weight": (10, 6),
}
PARTS = {"scan/qkv": (10, 2, 2), "kv": (4, 4), "gate_up_proj/weight": (5, 5)}


def apart(tree: Any) -> Any:
    """Every block as a leaf of its own."""
    parts = {name: leaf for name, leaf in tree.items() if name not in PARTS}
    for name, sizes in PARTS.items():
        axis = 0 if name.endswith("weight") else -1
        for number, block in enumerate(np.split(tree[name], np.cumsum(sizes)[:-1], axis)):
            parts[f"{name}/{number}"] = block
    return parts


def test_equal_to_leaves_of_their_own() -> None:
    params, gradients = (random_tree(SHAPES, seed) for seed in (0, 1))
    layouts = {"scan/qkv*": "bio", "scan/out": "bio", "scan/norm": None, "kv*": "io", "*/weight*": "oi"}

    def updates_of(tree: Any, gradients: Any, layouts: Any) -> Any:
        optimizer = mo.muon(0.1, orthogonalizer=FLOAT32, layouts=layouts)
        return optimizer.update(gradients, optimizer.init(tree), tree)[0]

    got = apart(updates_of(params, gradients, mo.split_fused(layouts=layouts)))
    want = updates_of(apart(params), apart(gradients), layouts)
    assert got.keys() == want.keys()
    for name, leaf in want.items():
        np.testing.assert_allclose(got[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
    whole = apart(updates_of(params, gradients, layouts))
    assert relative_error(whole["scan/qkv/1"], want["scan/qkv/1"]) > 0.1


def test_behind_a_mask_and_with_heads() -> None:
    params = {"attention": {"query": {"kernel": jnp.ones((6, 2, 3))}}, "in_proj": jnp.ones((6, 8))}
    layouts = mo.split_fused({"in_proj": 2}, mo.per_head)
    assert {path: str(layout) for path, layout in layouts(params).items()} == {
        "attention/query/kernel": "ibo", "in_proj": "io split 4+4"
    }  # fmt: skip
    hidden = optax.masked(mo.orthogonalize(FLOAT32, layouts=layouts), {"attention": True, "in_proj": False})
    updates, _ = hidden.update(params, hidden.init(params))
    np.testing.assert_array_equal(updates["in_proj"], 1.0)


@pytest.mark.parametrize(
    "inputs, outputs, split", [(6, 8, "6+1+1"), (6, 7, None), (6, 9, None), (6, 6, None), (6, 4, None)], ids=str
)
def test_what_the_queries_leave_is_keys_and_values(inputs: int, outputs: int, split: str | None) -> None:
    params = {"qkv": jnp.ones((6, outputs)), "out": jnp.ones((inputs, 6)), "other": {"out": jnp.ones((4, 6))}}
    if split is not None:
        assert str(mo.split_fused()(params)["qkv"]) == f"io split {split}"
    else:
        with pytest.raises(ValueError, match=r"'qkv' .* nothing beside it tells the sizes"):
            mo.split_fused()(params)


@pytest.mark.parametrize("sizes, split", [((12, 1, 1), "12+1+1"), (14, "+".join("1" * 14)), (1, "14")])
def test_blocks_of_one_output_and_one_block_are_sizes_too(sizes: Any, split: str) -> None:
    assert str(mo.split_fused({"qkv": sizes})(LONE)["qkv"]) == f"io split {split}"


def test_an_odd_half_is_not_split() -> None:
    params = {"gate_up": jnp.ones((6, 9)), "down": jnp.ones((9, 6))}
    assert str(mo.split_fused()(params)["gate_up"]) == "io"


LONE = {
    "qkv": jnp.ones((6, 14)),
    "bias": jnp.ones(14),
    "query": {"kernel": jnp.ones((6, 2, 3)), "bias": jnp.ones((2, 3))},
}


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({}, r"'qkv' of shape \(6, 14\) is a fused projection, and nothing beside it tells"),
        ({"qkv": 3}, "'qkv' has 14 outputs, which 3 equal blocks do not divide"),
        ({"qkv": (6, 6)}, r"'qkv': split \(6, 6\) sums to 12"),
        ({"qkv": 2, "kvq": 2}, "layouts names 'kvq', which matches no parameter"),
        ({"qkv": 2, "*/kernel": 2}, "'query/kernel' of shape .* and layout 'ioo' has no single output axis to split"),
        ({"qkv": 2, "bias": 2}, "'bias' of shape .* and layout 'None' has no single output axis"),
        ({"qkv": (8, 0)}, r"sizes\['qkv'\]=\(8, 0\) is not allowed"),
        ({"qkv": 0}, r"sizes\['qkv'\]=0 is not allowed"),
    ],
    ids=["nothing tells", "uneven", "wrong sum", "unmatched", "two outputs", "a vector", "zero", "no blocks"],
)
def test_what_does_not_fit_is_refused(sizes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mo.split_fused(sizes)(LONE)
