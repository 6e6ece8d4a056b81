"""The meaning of names, which are whole components of a path."""

import re
from functools import cache

EMBEDDING = re.compile(
    r"((tok|token|word|time|class|label|input)_)?(emb|embed|embedder|embeddings?)"
    r"|(\w+_)?pos(ition(al)?)?_(emb|embed|embedder|embeddings?)|posembed_input|embed_(tokens?|positions?)|w[tp]e"
    r"|(?!to_)(\w+_)?tokens"
)
# The array itself, for arrays that lie in a model or in a dict without a module of their own.
EMBEDDING_ARRAY = re.compile(
    r"(.*_)?(un)?emb(ed(ding|der)?)?s?(_(table|matrix|weights?|tokens|positions|vlm))?"
    r"|(cls|mask|register|reg|distill?|pos)_?tokens?|pos(itions?|itional)?(_enc(oding)?s?|_table)?|w[tp]e"
    r"|rel(ative)?_pos(ition)?s?(_[a-z])?"
)
# A word in the name of a module, which may be a layer of an embedding.
EMBEDDING_WORD = re.compile(r"(?<![a-z])emb(ed(ding|der)?)?s?(?![a-z])")
HEAD = re.compile(
    r"(?!(multi|per|attn|attention|each|sub)_)(\w+_)?head(_?(dense|proj|projection|linear|layer|out))?"
    r"|(?!pre_)(\w+_)?classifier|(\w*_)?logits?(_?(dense|proj|projection|linear|layer))?|(dense_)?predictions?"
    r"|unembed(ding|der)?|embed_out"
)
# Heads too, but only where nothing takes what they give: a hidden layer may be called so.
LAST = re.compile(r"(?!(attn|attention)_)(\w+_outputs|(\w+_)?scores?|\w+_relationship)")
# Whether a path is worth taking apart: most are not.
MAYBE_EMBEDDING = re.compile("emb|wte|wpe|tok|pos", re.IGNORECASE)
MAYBE_HEAD = re.compile("head|classifier|logit|prediction|embed", re.IGNORECASE)
BIAS = re.compile(r"(.*_)?bias(es)?(_.*|\d*)|(.*_)?(offset|beta)")
# A module whose arrays are biases of attention, by distance; a kernel in it is a layer's.
BIAS_MODULE = re.compile(r"(.*_)?rel(ative)?_(\w+_)?bias(_table)?")
NORM = re.compile(r".*norm(s|alization)?\d*(_.*)?|(ln|rms|rmsn|bn)(_?[a-z]?\d*|_.*)|.*_(ln|rms)")
NORM_ARRAY = frozenset({"scale", "gamma"})
NORM_FIELD = frozenset({"weight", "w", "g", "b", "gain"})  # never "kernel": under "norm_mlp" that is a matrix
OTHER_SCALE = re.compile(r"(.*_)?(a_log|scales?|scalers?|coefs?|sinks?)")
# A norm of queries or keys has the length of a head, or of a compressed rank: that says nothing of the model's width.
INNER_NORM = re.compile(r"_*(q|k|v|kv|qk|query|key|value|attn_inner)(_\w+)?_*(layer)?_?(norm|ln|rms)\w*|per_dim_scale")

ATTENTION = re.compile(r".*(attn|attention).*")
CONVOLUTION = re.compile(r"conv|^depthwise|^pointwise|transpose|^patch")  # patches may be wider than any window
EXPERTS = re.compile(r"(routed_|local_)?experts?|.*moe.*")
SHARED = re.compile(r".*shared.*")

MODULE_ARRAY = frozenset({"kernel", "w", "weight", "weights"})
_WEIGHT_WORD = re.compile(
    r"kernel|weights?|matrix|proj(ection)?|linear|lin|dense|fc|mlp|ffn?|up|down|gat(e|ing)|out|query|key|value"
    r"|[qkvo]|q?kv|attn|attention|lora|einsum|router|conv|left|right|mix(ing)?|transform|hidden|layer|mapping|w[a-z]{0,2}"
)
_OTHER_WORD = re.compile(
    r"params?|log|std|codebooks?|codes?|inducing|inputs|points|vectors?|tokens?|latents?|prototypes|centroids|centers"
    r"|anchors|memory|bank|buffer|states?|stats|mean|var|cov|step|dt|coefs?|coefficients|alpha|beta|mask|positions?"
    r"|re|im|real|imag(inary)?"  # halves of a complex array
    r"|freqs?|frequenc(y|ies)|phase|basis|tables?|prior|temperature|variance|lengthscales?|offsets?|shift|scales"
)


@cache
def clean(component: str) -> str:
    """Lower case, without a trailing number or index: "Dense_0" is "dense", e3nn's "w[0,0] 8x0e,4x0e" is "w"."""
    return re.sub(r"_\d+$|:\d+$|(?<=\w)\[.*", "", component).lower()


@cache
def is_weight(name: str) -> bool | None:
    """Whether an array of this name is a layer's weight; ``None`` for a name that says nothing."""
    words = [re.sub(r"\d+d?$", "", word) for word in name.split("_")]
    if words[0] == "log":
        return False
    known = [_WEIGHT_WORD.fullmatch(word) is not None for word in words]
    if known[-1]:
        return True
    if any(map(_OTHER_WORD.fullmatch, words)):
        return False
    return True if any(known) else None


@cache
def is_layer(module: str) -> bool:
    """Whether the last word of a module's name is a layer's: "proj", "linear", "fc1"."""
    return _WEIGHT_WORD.fullmatch(re.sub(r"\d+$", "", module.rpartition("_")[2])) is not None
