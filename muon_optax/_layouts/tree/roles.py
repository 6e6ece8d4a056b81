"""One table from names to roles: what a projection of attention or of a feed-forward layer does."""

import re
from functools import cache
from typing import Literal

_PROJECTION = r"(_?(proj|projection|w|einsum|lin|linear|dense|layer))?"
_FEED = r"(ffn_|ffw_|mlp_)?"
_FED = r"(_?proj|_w)?"

# Whole names of modules or arrays, in lower case and without a trailing number; the first pattern that matches decides.
ROLES = {
    "query": rf"(to_|c_|w_)?w?(q|query|queries){_PROJECTION}",
    "key": rf"(to_|c_|w_)?w?(k|key|keys){_PROJECTION}",
    "value": rf"(to_|c_|w_)?w?(v|value|values){_PROJECTION}",
    # Side by side in one array.
    "fused": rf"c_attn|in_proj_weight|query_key_value|(\w+_)?w?qkv{_PROJECTION}",
    "key_value": rf"(to_|w_)?w?kv{_PROJECTION}",
    "gate_up": r"(to_)?(gate_up|up_gate|gate_and_up|w13)(_(proj|projection|linear|dense))?",
    # Multi-head latent attention: down to a latent, up to the heads.
    "query_down": r"w?q_(a|down)(_proj)?",
    "query_up": r"w?q_(b|up)(_proj)?",
    "key_value_down": r"w?kv_(a|down)(_proj)?(_with_mqa)?",
    "key_value_up": r"w?kv_(b|up)(_proj)?",
    "latent": rf"(to_)?w?(k|v|key|value)_(a|b){_PROJECTION}",
    "gating": rf"(to_)?w?gating{_PROJECTION}",
    "output": rf"(to_)?(o|w_?o|out|output|attn_vec|attention_output|attention_out|attn_out){_PROJECTION}",
    "up": rf"{_FEED}(wi|w1|w3|up|fc1|fc_in|c_fc|w_in|w_up|lin1|linear1|intermediate){_FED}|dense_h_to_4h",
    "gate": rf"{_FEED}(gate|w_gate){_FED}",
    "down": rf"{_FEED}(w2|down|fc2|fc_out|c_proj|w_out|w_down|lin2|linear2){_FED}|dense_4h_to_h",
    "router": r"(\w+_)?router(_\w+)?",
}
_PATTERNS = {role: re.compile(pattern) for role, pattern in ROLES.items()}

_LATENTS = frozenset({"query_down", "query_up", "key_value_down", "key_value_up", "latent"})
# What reads the residual stream for attention, and what reads it at all.
ATTENTION_INPUTS = frozenset({"query", "key", "value", "fused", "key_value", "gating"}) | _LATENTS
_INPUTS = ATTENTION_INPUTS | {"up", "gate", "gate_up"}
# What makes the heads of queries, keys and values.
HEADS = frozenset({"query", "key", "value", "key_value", "fused", "query_up", "key_value_up", "latent"})
HALVES = frozenset({"key_value", "gate_up"})


@cache
def role_of(name: str) -> str | None:
    """The role of a projection of this name; an array of its own may be called "wi_0_weight"."""
    bare = re.sub(r"(_\d+)?_weight$", "", name)
    return next((r for r, pattern in _PATTERNS.items() if pattern.fullmatch(name) or pattern.fullmatch(bare)), None)


def is_query(name: str) -> bool:
    """Whether the name is a query's, also in latent attention."""
    return role_of(name) in ("query", "query_down", "query_up")


def reads_attention(name: str) -> bool:
    """Whether the name is that of queries, keys or values."""
    return role_of(name) in ATTENTION_INPUTS


def writes_attention(name: str) -> bool:
    """Whether the name is that of attention's output."""
    return role_of(name) == "output"


@cache
def side_of(name: str) -> Literal["reads", "writes"] | None:
    """Whether a layer of this name reads the residual stream or writes it."""
    role = role_of(name)
    if role in _INPUTS:
        return "reads"
    return "writes" if role in ("output", "down") else None
