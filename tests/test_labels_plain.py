"""Plain trees, as research code has them: the layout of every array, what names mean, and two steps of training."""

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from models import (
    Table,
    assert_updated_as_layers,
    clipped_muon,
    plain_mlp,
    plain_scanned,
    run_plain_scanned,
    shown,
    under,
)

import muon_optax as mo

MLP = {
    "emb": None,
    "W1": "io",
    "b1": None,
    "W2": "io",
    "b2": None,
    "ln_f/g": None,
    "ln_f/b": None,
    "unembed": None,
}
KERNELS = dict.fromkeys(["wq", "wk", "wv", "wo", "w_up", "w_down"], "bio")
VECTORS = dict.fromkeys(["ln1", "ln2", "b_up"])


def zeros(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("width", [6, 4])
def test_a_plain_mlp(width: int):
    params = jax.eval_shape(lambda: plain_mlp(width))
    assert shown(params) == MLP
    assert jax.tree.leaves(mo.label_params(params)).count("muon") == 2


@pytest.mark.parametrize(("width", "layers"), [(6, 3), (6, 6), (4, 3)], ids=["", "as many layers as inputs", "narrow"])
@pytest.mark.parametrize("flat", [False, True], ids=["in a scope", "flat"])
def test_layers_in_one_array_with_norms(width: int, layers: int, flat: bool):
    params = jax.eval_shape(lambda: plain_scanned(width, layers, flat=flat))
    layer = KERNELS | VECTORS
    outside = {"wte": None, "lm_head": None, "ln_f": None}
    assert shown(params) == outside | (layer if flat else under("layers", layer))


def test_layers_in_one_array_without_norms():
    outside = {"wte": None, "lm_head": None}
    params = jax.eval_shape(lambda: plain_scanned(6, 3, norms=False))
    assert shown(params) == outside | under("layers", KERNELS)
    flat = jax.eval_shape(lambda: plain_scanned(6, 3, norms=False, flat=True))
    with pytest.warns(UserWarning, match="'w_down'.*'w_up'.*'wk'.*'wo'.*'wq'.*'wv'"):  # nothing tells
        assert shown(flat) == outside | dict.fromkeys(KERNELS)


def test_two_steps_of_a_chain_on_scanned_layers():
    params, optimizer = plain_scanned(6, 6), clipped_muon()
    tokens = jnp.arange(20).reshape(2, 10) % 11
    state = optimizer.init(params)

    def loss_of(params: dict[str, Any]) -> jax.Array:
        logits = run_plain_scanned(params, tokens[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, state = carry
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), loss

    (trained, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=3))((params, state))
    assert losses[2] < losses[1] < losses[0]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), params, trained)
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("norms", [True, False])
def test_a_stack_is_updated_as_its_layers_would_be(norms: bool):
    assert_updated_as_layers(plain_scanned(6, 3, norms=norms)["layers"], 3)


def test_the_warning_names_every_unknown_path_once_and_at_init_only():
    params = {"a": jnp.ones((2, 3, 4)), "deep": {"b": jnp.ones((3, 4, 5, 6))}, "w": jnp.ones((3, 4)), "v": jnp.ones(3)}
    optimizer = mo.muon(1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = optimizer.init(params)
    (warning,) = caught
    assert warning.category is UserWarning
    text = str(warning.message)
    assert "'a' float32[2, 3, 4], 'deep/b' float32[3, 4, 5, 6]. Give their layout" in text
    assert "layouts={'a': 'bio'}" in text
    for path in ("'w'", "'v'"):
        assert path not in text
    optimizer.update(params, state, params)  # a warning here would be an error


class Attention(NamedTuple):
    wq: Any
    bq: Any
    wo: Any


# (name, tree, table): names that sound like something, and shapes that coincide.
NAMES: list[tuple[str, Any, Table]] = [
    (
        "attention with heads, as many as inputs",
        Attention(zeros(4, 4, 5), zeros(4, 5), zeros(4, 5, 4)),
        {"wq": "ioo", "bq": None, "wo": "iio"},
    ),
    (
        "a norm's scale for each head is no stack",
        {
            name: {"kernel": zeros(*shape)}
            for name, shape in {"query": (6, 4, 5), "key": (6, 4, 5), "value": (6, 4, 5), "out": (4, 5, 6)}.items()
        }
        | {"query_norm": {"scale": zeros(4, 5)}},
        {
            "query/kernel": "ioo",
            "key/kernel": "ioo",
            "value/kernel": "ioo",
            "out/kernel": "iio",
            "query_norm/scale": None,
        },
    ),
    ("heads of one element", {"query": zeros(4, 4, 1), "out": zeros(4, 1, 4)}, {"query": "ioo", "out": "iio"}),
    (
        "scanned norms of every spelling",
        {
            "layer": {
                name: {"weight": zeros(3, 6)} for name in ("ln1", "ln_f", "layer_norm", "LayerNorm_0", "rms", "norm2")
            }
        },
        {f"layer/{name}/weight": None for name in ("ln1", "ln_f", "layer_norm", "LayerNorm_0", "rms", "norm2")},
    ),
    (
        "what only sounds like a norm, an embedding or a head",
        {
            name: {"kernel": zeros(6, 8)}
            for name in ("normalizer_proj", "transform", "normal", "embed_dim_proj", "out", "out_proj", "output_proj")
        }
        | {"head_dim_proj": zeros(6, 8), "embed_dim_proj2": zeros(6, 8), "normalizer": zeros(6, 8)},
        {
            f"{name}/kernel": "io"
            for name in ("normalizer_proj", "transform", "normal", "embed_dim_proj", "out", "out_proj", "output_proj")
        }
        | {"head_dim_proj": "io", "embed_dim_proj2": "io", "normalizer": "io"},
    ),
    (
        "heads",
        {
            name: {"kernel": zeros(6, 8)}
            for name in ("head", "lm_head", "classifier", "logits", "unembed", "value_head")
        },
        {f"{name}/kernel": None for name in ("head", "lm_head", "classifier", "logits", "unembed", "value_head")},
    ),
    (
        "embeddings",
        {name: zeros(6, 8) for name in ("wte", "wpe", "tok_emb", "pos_embedding", "cls_token", "embedding_table")}
        | {"embed_tokens": {"weight": zeros(6, 8)}},
        dict.fromkeys(
            ("wte", "wpe", "tok_emb", "pos_embedding", "cls_token", "embedding_table", "embed_tokens/weight")
        ),
    ),
    ("the factors of LoRA", {"w": zeros(6, 6), "a": zeros(6, 2), "b": zeros(2, 6)}, {"w": "io", "a": "io", "b": "io"}),
    ("a stacked dense layer", {"W": zeros(3, 6, 8), "b": zeros(3, 8)}, {"W": "bio", "b": None}),
    ("state-space matrices", {"A_log": zeros(6, 4), "in_proj": zeros(6, 8)}, {"A_log": None, "in_proj": "io"}),
    (
        "PyTorch's names",
        {"linear": {"weight": zeros(8, 6), "bias": zeros(8)}, "conv1": {"weight": zeros(8, 6, 3, 3), "bias": zeros(8)}},
        {"linear/weight": "oi", "linear/bias": None, "conv1/weight": "oiii", "conv1/bias": None},
    ),
    (
        "a list of (weight, bias)",
        [(zeros(6, 8), zeros(8)), (zeros(8, 2), zeros(2))],
        {"0/0": "io", "0/1": None, "1/0": "io", "1/1": None},
    ),
    (
        "experts of a model whose name has moe in it",
        {"moe_lm": {"block": {"attn": {"qkv": {"kernel": zeros(6, 3, 4, 5), "bias": zeros(3, 4, 5)}}}}},
        {"moe_lm/block/attn/qkv/kernel": "iooo", "moe_lm/block/attn/qkv/bias": None},
    ),
    (
        "experts",
        {
            "experts": {"up": zeros(4, 6, 8), "down": zeros(4, 8, 6)},
            "router": {"kernel": zeros(6, 4), "bias": zeros(4)},
        },
        {"experts/up": "bio", "experts/down": "bio", "router/kernel": "io", "router/bias": None},
    ),
    (
        "one-dimensional convolutions without biases, as wide as each other",
        {"Conv_0": {"kernel": zeros(3, 8, 16)}, "Conv_1": {"kernel": zeros(3, 16, 8)}},
        {"Conv_0/kernel": "iio", "Conv_1/kernel": "iio"},
    ),
]


@pytest.mark.parametrize(("tree", "table"), [case[1:] for case in NAMES], ids=[case[0] for case in NAMES])
def test_names_and_shapes_that_coincide(tree: Any, table: Table):
    assert shown(tree) == table


# Nothing tells these apart from something else, so the rules must not guess.
UNKNOWN = {
    "as many experts as layers, and no name says so": {"wi": zeros(8, 8, 6, 12), "wo": zeros(8, 8, 12, 6)},
    "experts whose output is called as attention's": {"wo": zeros(4, 8, 6), "router": {"kernel": zeros(6, 4)}},
    "layers stacked on the second axis": {"query": zeros(6, 3, 4, 5), "out": zeros(4, 3, 5, 6)},
    "a general dense layer without a bias": {"dense": {"kernel": zeros(6, 3, 5)}},
    "a transposed convolution as PyTorch stores it": {"conv_transpose": {"weight": zeros(8, 6, 3, 3)}},
    "integers": {"table": jax.ShapeDtypeStruct((4, 5), jnp.int32)},
}


@pytest.mark.parametrize("tree", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_nothing_tells_is_left_to_adamw_and_named(tree: Any):
    with pytest.warns(UserWarning, match="No rule knows") as caught:
        table = shown(tree)
    unknown = {path for path in table if not path.startswith("router")}
    assert all(table[path] is None and repr(path) in str(caught[0].message) for path in unknown)
