"""Trees of hostile inputs: models of which nothing is said, empty arrays, odd keys."""

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hostile.inputs import SHAPE, Build, arrays, beside, steps, tree, weights
from hostile.row import Inputs

ATTENTION = {f"block/attn/{name}/kernel": ((12, 3, 4), "ioo") for name in ("query", "key", "value")}
TRANSFORMER = {
    **ATTENTION,
    **{path.replace("kernel", "bias"): ((3, 4), None) for path in ATTENTION},
    **{"block/attn/out/kernel": ((3, 4, 12), "iio"), "block/attn/out/bias": ((12,), None)},
    **{"block/norm/scale": ((12,), None), "embed/embedding": ((20, 12), None), "lm_head/kernel": ((12, 20), None)},
    **{"block/up/kernel": ((12, 24), "io"), "block/up/bias": ((24,), None), "block/down/kernel": ((24, 12), "io")},
}
SCANNED = {
    **{
        "blocks/norm/scale": ((3, 12), None),
        "blocks/up/kernel": ((3, 12, 24), "bio"),
        "blocks/up/bias": ((3, 24), None),
    },
    **{"blocks/down/kernel": ((3, 24, 12), "bio"), "blocks/down/bias": ((3, 12), None)},
}
OUTPUTS_FIRST = {"up/weight": ((32, 8), "oi"), "down/weight": ((8, 32), "oi")}
OUTPUTS_FIRST |= {"up/bias": ((32,), None), "down/bias": ((8,), None)}
CONVOLUTION = {"conv/kernel": ((3, 3, 4, 8), "iiio"), "conv/bias": ((8,), None)}
EXPERTS = {"experts/up": ((3, 8, 12), "bio"), "experts/down": ((3, 12, 8), "bio"), "router/kernel": ((8, 3), "io")}
MODELS = {
    "Flax's transformer, nothing said": arrays(TRANSFORMER),
    "Flax's layers stacked by nn.scan, nothing said": arrays(SCANNED),
    "weights stored (out, in) as in PyTorch and Equinox, nothing said": arrays(OUTPUTS_FIRST),
    "a convolution (height, width, in, out), nothing said": arrays(CONVOLUTION),
    "experts in raw arrays (expert, in, out), nothing said": arrays(EXPERTS),
}
EMPTY = {
    "vector of shape (0,)": beside(None, *[jnp.ones(0)] * 3),
    "matrix of shape (0, 4)": beside("io", *[jnp.ones((0, 4))] * 3),
    "matrix of shape (4, 0)": beside("io", *[jnp.ones((4, 0))] * 3),
    "a stack of no matrices, (0, 3, 4)": beside("bio", *[jnp.ones((0, 3, 4))] * 3),
    "a stack of empty matrices, (3, 0, 4)": beside("bio", *[jnp.ones((3, 0, 4))] * 3),
}


def single_array() -> Inputs:
    return Inputs(*jax.tree.map(jnp.float32, (weights(*SHAPE), list(steps()))), {"": "io"})


class Part(enum.IntEnum):
    KERNEL = 1
    BIAS = 2


class Layer(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclass
class Model:
    """A tree that can be called, as an Equinox module is."""

    w: Any
    b: Any

    def __call__(self, x: Any) -> Any:
        raise TypeError("the model was called in place of being read as a tree")


LEVELS = 300
DEEP = {"/".join(("d",) * LEVELS + (name,)): layout for name, layout in (("w", "io"), ("b", None))}
MODEL = tree(Model, {"w": "io", "b": None})


def keyed(first: Any, second: Any) -> Build:
    paths = ["/".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in (first, second)]
    return tree(lambda w, b: {first: w, second: b}, {paths[0]: "io", paths[1]: None})


def nested(w: Any, b: Any) -> Any:
    leaf = {"w": w, "b": b}
    for _ in range(LEVELS):
        leaf = {"d": leaf}
    return leaf


KEYS = {
    "integers as keys": keyed(1, 2),
    "tuples as keys": keyed(("a", 1), ("b", 2)),
    "members of an enum as keys": keyed(Part.KERNEL, Part.BIAS),
    "an empty key": keyed("", "b"),
    "keys with a slash": keyed("a/w", "a/b"),
    "keys with a line break, and beyond ASCII": keyed("层\nw", "ß"),
    "keys with the characters of globs": keyed("a[0]*?", "a0xy"),  # an exact path counts first
    "a NamedTuple in a list in a tuple": tree(lambda w, b: ([Layer(w, b)],), {"0/0/kernel": "io", "0/0/bias": None}),
    "a model that can be called (Equinox), with layouts": MODEL,
    f"{LEVELS} levels deep": tree(nested, DEEP),
}
MATRICES = tree(lambda w, b: {"a/w": w, "a": {"w": w}, "b": b}, {"a/w": "io", "b": None})
VECTORS = tree(lambda w, b: {"w": w, "a/b": b, "a": {"b": b}}, {"w": "io", "a/b": None})
BOTH = tree(lambda w, b: {"a/w": b, "a": {"w": w}}, {"a/w": "io"})
