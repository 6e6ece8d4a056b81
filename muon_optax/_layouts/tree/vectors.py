"""Biases and norms, of any number of axes: those of a stack of layers have two."""

from collections.abc import Container, Mapping
from typing import TypeAlias

from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names
from muon_optax._layouts.tree.layer_types import layer_type_of

# Of every leaf, by path; ``None`` for one that is hidden.
Shapes: TypeAlias = Mapping[str, tuple[int, ...] | None]

_WEIGHT_OF_BIAS = (("bias", "kernel"), ("bias", "weight"), ("bias", "weights"), ("b", "w"), ("B", "W"), ("b", "W"))


def is_norm(leaf: NamedLeaf, shapes: Shapes) -> bool:
    """Whether a norm's type or name holds the leaf, and no bias of fewer axes beside it says that it is a layer."""
    kind = layer_type_of(leaf)
    if kind is not None:
        return kind == "norm"
    *scopes, name = leaf.path.split("/")[-2:]
    name = names.clean(name)
    if name in names.NORM_ARRAY or names.NORM.fullmatch(name):
        return True
    if name not in names.NORM_FIELD or not any(names.NORM.fullmatch(names.clean(scope)) for scope in scopes):
        return False
    biases = (shapes.get(bias) for bias in biases_of(leaf.path))
    return not any(bias is not None and len(bias) < len(leaf.shape) for bias in biases)


def weight_beside(path: str, paths: Container[str]) -> str | None:
    """The weight whose bias would have this path: "w" for "b", "wq" for "bq", "query_w" for "query_b"."""
    scope, slash, name = path.rpartition("/")
    weights = [f"{letter}{name[1:]}" for letter in "wW" if name[:1] in ("b", "B")]
    weights += [f"{name[:-2]}_w"] if name.endswith("_b") else []
    return next((f"{scope}{slash}{weight}" for weight in weights if f"{scope}{slash}{weight}" in paths), None)


def biases_of(path: str) -> list[str]:
    """The paths that the bias of the weight at ``path`` could have."""
    scope, slash, name = path.rpartition("/")
    found = [f"{bias}{name[len(weight) :]}" for bias, weight in _WEIGHT_OF_BIAS if name.startswith(weight)]
    found += [f"{name[:-2]}_b"] if name.endswith("_w") else []
    found += [f"{name.removesuffix('_weight')}_bias"] if name.endswith("_weight") else []
    found += ["bias"] if name == "recurrent_kernel" or name.startswith(("weight_", "pointwise_")) else []
    found += [f"{name}_bias"]
    return [f"{scope}{slash}{bias}" for bias in found]


def is_bias_or_norm(leaf: NamedLeaf, shapes: Shapes) -> bool:
    """Whether ``leaf`` is a bias or a norm's parameter, of any number of axes (stacked ones have two)."""
    return is_named_vector(leaf, shapes) or weight_beside(leaf.path, shapes) is not None


def is_named_vector(leaf: NamedLeaf, shapes: Shapes) -> bool:
    """The same, if the leaf's own name or type says it."""
    *scopes, name = map(names.clean, leaf.path.split("/")[-2:])
    if name != "kernel" and any(map(names.BIAS_MODULE.fullmatch, scopes)):
        return True
    return bool(names.BIAS.fullmatch(name) or names.OTHER_SCALE.fullmatch(name)) or is_norm(leaf, shapes)
