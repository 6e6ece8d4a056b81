"""Biases and norms, of any number of axes: those of a stack of layers have two."""

from muon_optax._layouts.evidence import names
from muon_optax._layouts.evidence.layer_types import kind_of
from muon_optax._layouts.paths import NamedLeaf

_WEIGHT_OF_BIAS = (("bias", "kernel"), ("bias", "weight"), ("bias", "weights"), ("b", "w"), ("B", "W"), ("b", "W"))


def is_norm(leaf: NamedLeaf) -> bool:
    """Whether a norm's type or name holds the leaf."""
    kind = kind_of(leaf)
    if kind is not None:
        return kind == "norm"
    *scopes, name = leaf.path.rsplit("/", 2)[-2:]
    name = names.clean(name)
    if name in names.NORM_ARRAY or names.NORM.fullmatch(name):
        return True
    return name in names.NORM_FIELD and any(names.NORM.fullmatch(names.clean(scope)) for scope in scopes)


def weight_beside(path: str, paths: frozenset[str]) -> str | None:
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
    found += ["bias"] if name == "recurrent_kernel" or name.startswith(("weight_", "pointwise_")) else []
    return [f"{scope}{slash}{bias}" for bias in found]


def is_bias_or_norm(leaf: NamedLeaf, paths: frozenset[str]) -> bool:
    """Whether ``leaf`` is a bias or a norm's parameter, of any number of axes (stacked ones have two)."""
    name = names.clean(leaf.path.rpartition("/")[2])
    if names.BIAS.fullmatch(name) or names.OTHER_SCALE.fullmatch(name) or is_norm(leaf):
        return True
    return weight_beside(leaf.path, paths) is not None
