"""One vocabulary: the rules, `per_head`, `split_fused` and `clip_qk` give a name the same role."""

import jax.numpy as jnp
import pytest

import muon_optax as mo
from muon_optax._layouts.tree.roles import HEADS, role_of, side_of

NAMES = {
    "query": "query q q_proj wq to_q c_q query_proj q_einsum queries q_linear query_dense",
    "key": "key k k_proj wk to_k c_k key_proj k_einsum keys",
    "value": "value v v_proj wv to_v c_v",
    "fused": "qkv c_attn qkv_proj query_key_value attn_qkv in_proj_weight",
    "key_value": "kv kv_proj kv_einsum to_kv",
    "gate_up": "gate_up_proj w13 gate_and_up",
    "query_down": "q_a_proj wq_a q_down_proj",
    "query_up": "q_b_proj wq_b q_up_proj",
    "key_value_down": "kv_a_proj kv_a_proj_with_mqa wkv_a kv_down_proj",
    "key_value_up": "kv_b_proj wkv_b kv_up_proj",
    "output": "out o o_proj wo out_proj attention_output attn_vec_einsum to_out",
    "up": "up up_proj wi fc1 c_fc w_in dense_h_to_4h",
    "gate": "gate gate_proj w_gate",
    "down": "down down_proj fc2 c_proj w_out linear2 dense_4h_to_h",
    "router": "router router_weights",
}
CASES = [(name, role) for role, listed in NAMES.items() for name in listed.split()]


@pytest.mark.parametrize("name, role", CASES)
def test_role(name: str, role: str) -> None:
    assert role_of(name) == role


@pytest.mark.parametrize("name", ["dense", "kernel", "embed", "norm", "logits", "mlp", "layers"])
def test_other_names_have_no_role(name: str) -> None:
    assert role_of(name) is None
    assert side_of(name) is None


@pytest.mark.parametrize("name", [name for name, role in CASES if role in HEADS - {"fused", "key_value"}])
def test_what_the_rules_know_as_a_projection_splits_by_head(name: str) -> None:
    params = {name: {"kernel": jnp.ones((6, 2, 4)), "bias": jnp.ones((2, 4))}}
    assert str(mo.assign_layouts(params)[f"{name}/kernel"]) == "ioo"
    assert str(mo.per_head(params)[f"{name}/kernel"]) == "ibo"


PAIRS = [("q_proj", "k_proj"), ("c_q", "c_k"), ("q_einsum", "k_einsum"), ("queries", "keys"), ("wq", "wk")]


@pytest.mark.parametrize("query, key", PAIRS)
def test_clip_qk_knows_the_same_names(query: str, key: str) -> None:
    params = {"attn": {query: {"kernel": jnp.ones((6, 2, 4))}, key: {"kernel": jnp.ones((6, 2, 4))}}}
    layouts = {"*": "ioo"}
    mo.clip_qk(100.0, layouts=layouts).init(params)


LETTERS = {
    "Flax": ((64, 4, 16), "ioo", "ibo"),
    "Gemma": ((4, 64, 16), "oio", "bio"),
    "Gemma's keys and values": ((2, 4, 64, 16), "boio", "bbio"),
    "Levanter's groups": ((2, 2, 16, 64), "oooi", "bboi"),
    "Levanter": ((4, 16, 64), "ooi", "boi"),
    "MaxText's stack": ((64, 3, 4, 16), "iboo", "ibbo"),
}


@pytest.mark.parametrize("shape, whole, split", LETTERS.values(), ids=LETTERS)
def test_per_head_works_on_letters(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], whole: str, split: str
) -> None:
    layouts = {"query/kernel": mo.Layout(whole)}
    monkeypatch.setattr("muon_optax._layouts.assigning.per_head.assign_layouts", lambda params: layouts)
    assert str(mo.per_head({"query": {"kernel": jnp.ones(shape)}})["query/kernel"]) == split


def test_per_head_refuses_a_tree_in_which_it_changes_nothing() -> None:
    with pytest.raises(ValueError, match="per_head found no query, key or value with an axis for its heads"):
        mo.per_head({"q_proj": {"kernel": jnp.ones((8, 8))}})
