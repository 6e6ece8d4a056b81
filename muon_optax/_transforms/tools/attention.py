"""Attention layers in a tree of parameters: which kernels, and which biases, make queries and keys."""

import math
import re
from collections import defaultdict
from typing import Any, NamedTuple

from muon_optax._layouts.assigning.resolve import Layouts, resolve
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, has_hidden, named_leaves, show
from muon_optax._layouts.tree.names import clean
from muon_optax._layouts.tree.roles import role_of

# What each role is here. Of latent attention: the up-projections, and the down-projection that also makes the shared
# rotary key.
_PARTS = {
    "query": "query",
    "key": "key",
    "query_up": "query_up",
    "key_value_up": "key_up",
    "key_value_down": "key_down",
}
_NORM_OF_LOGITS = re.compile(r"(q|k|qk|query|key)_?(norm|ln|layer_?norm|rms_?norm)")
_BIAS_OF = {"kernel": "bias", "weight": "bias", "w": "b"}


class Kernel(NamedTuple):
    """A projection's kernel and its bias, if it has one."""

    leaf: NamedLeaf
    layout: Layout
    bias: NamedLeaf | None

    @property
    def outputs(self) -> tuple[int, ...]:
        """Sizes of all axes but the inputs: layers, heads, features."""
        return tuple(n for n, letter in zip(self.leaf.shape, self.layout.axes, strict=True) if letter != "i")


class Attention(NamedTuple):
    """The kernels of one layer, or of a stack of layers.

    ``rotary`` is the number of rotary features of a query's head in multi-head latent attention, else ``None``.
    """

    query: Kernel
    key: Kernel
    rotary: int | None


def find_attention(tree: Any, layouts: Layouts) -> dict[str, Attention]:
    """Every attention layer by the path of the scope that holds its kernels.

    Raises:
        ValueError: If there is none, one lacks a kernel or normalizes its queries, or a mask hides part of the tree.
    """
    if has_hidden(tree):
        raise ValueError(
            "clip_qk must see the whole tree, biases too: chain it after muon_optax.muon(...) or partition_by_layout, "
            "not inside a partition or a mask."
        )
    leaves = named_leaves(tree)
    resolved, unknown = resolve(tree, leaves, layouts)
    by_path, without_rule = {leaf.path: leaf for leaf in leaves}, {leaf.path for leaf in unknown}
    scopes: dict[str, dict[str, Kernel]] = defaultdict(dict)
    for leaf in leaves:
        layout, (scope, name) = resolved[leaf.path], _module(leaf.path)
        part = _PARTS.get(role_of(name) or "")
        if leaf.path in without_rule and part is not None:
            raise ValueError(_unpaired(leaf.path, "has a layout that no rule knows: give it one, such as 'ioo'"))
        if layout is None or part is None:
            continue
        if part in scopes[scope] or layout.split is not None:
            raise ValueError(_unpaired(leaf.path, "is one of several, or a fused projection"))
        scopes[scope][part] = Kernel(leaf, layout, _bias_of(leaf.path, by_path))
    if not scopes:
        raise ValueError(
            "clip_qk found no query and key kernels. It knows names such as query and key, q_proj and k_proj, wq, wk, "
            "and q_b_proj, kv_b_proj and kv_a_proj of latent attention."
        )
    for leaf in leaves:
        scope = leaf.path.rpartition("/")[0].rpartition("/")
        if scope[0] in scopes and _NORM_OF_LOGITS.fullmatch(scope[2].lower()):
            raise ValueError(
                f"{show(leaf.path)} normalizes queries or keys, which takes every factor of their kernels out again: "
                "such attention needs no clip_qk."
            )
    return {scope: _attention(kernels) for scope, kernels in scopes.items()}


def _module(path: str) -> tuple[str, str]:
    """The scope and the name of the projection that a leaf belongs to."""
    scope, _, name = path.rpartition("/")
    if scope and name in _BIAS_OF:
        scope, _, name = scope.rpartition("/")
    return scope, clean(name)


def _bias_of(path: str, by_path: dict[str, NamedLeaf]) -> NamedLeaf | None:
    scope, slash, name = path.rpartition("/")
    bias = _BIAS_OF.get(name) or re.sub("^[wW]", "b", name)  # "bq" for an array called "wq"
    return None if bias == name else by_path.get(f"{scope}{slash}{bias}")


def _attention(kernels: dict[str, Kernel]) -> Attention:
    first = next(iter(kernels.values())).leaf.path
    query, key = kernels.get("query_up") or kernels.get("query"), kernels.get("key_up") or kernels.get("key")
    if query is None or key is None:
        raise ValueError(_unpaired(first, f"has no {'query' if query is None else 'key'} kernel beside it"))
    if "key_up" not in kernels:
        return Attention(query, key, None)
    if "key_down" not in kernels:
        raise ValueError(_unpaired(key.leaf.path, "has no down-projection beside it, which tells the rotary features"))
    down = kernels["key_down"]
    # The down-projection makes the latent, which the up-projection takes, and the rotary key that all heads share.
    return Attention(query, key, down.layout.fan_out(down.leaf.shape) - key.layout.fan_in(key.leaf.shape))


def _unpaired(path: str, why: str) -> str:
    return (
        f"clip_qk can't tell which query goes with which key: {show(path)} {why}. Rename it, or leave it alone with "
        f"clip_qk(layouts={{{path!r}: None}})."
    )


def heads_of(kernel: Kernel, stack: tuple[int, ...], heads: int) -> tuple[int, ...]:
    """The sizes of the axes that hold ``heads`` heads and their features.

    Raises:
        ValueError: If the kernel can't hold that many, or isn't a stack of these sizes.
    """
    outputs = kernel.outputs
    rest = outputs[len(stack) :]
    if outputs[: len(stack)] != stack or not rest or math.prod(rest) % heads or (len(rest) > 1 and rest[0] != heads):
        raise ValueError(
            f"{show(kernel.leaf.path)} of shape {kernel.leaf.shape} and layout {str(kernel.layout)!r} does not hold "
            f"{heads} heads{f' in a stack of {stack}' if stack else ''}: max_logits has the shape (*layers, heads), "
            "one number for each query head."
        )
    if kernel.bias is not None and kernel.bias.shape != outputs:
        raise ValueError(f"{show(kernel.bias.path)} has shape {kernel.bias.shape}, where its kernel makes {outputs}.")
    return rest
