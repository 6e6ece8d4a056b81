"""The bare path of each leaf: joined keys taken apart, wrappers left out."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names

_SEPARATORS = (".", ":", "__")
_ARRAYS = names.MODULE_ARRAY | names.NORM_ARRAY | {"bias", "b", "embedding", "embeddings", "beta"}


def nested_paths(paths: Collection[str]) -> Mapping[str, str]:
    """From each path whose last component is a joined key to the path with that key taken apart.

    A separator counts only where a dictionary is flat, its keys end in names of arrays behind the separator, and no
    array's bare name stands among them: "kernel:0" and "layer__norm" are whole names.
    """
    keys: defaultdict[str, list[str]] = defaultdict(list)
    inner = set()  # scopes that hold other scopes
    for path in paths:
        scope, _, key = path.rpartition("/")
        keys[scope].append(key)
    for scope in keys:
        while scope and (scope := scope.rpartition("/")[0]) not in inner:
            inner.add(scope)
    found = {}
    for scope, own in keys.items():
        separator = None if scope in inner else _separator(own)
        if separator is not None:
            prefix = f"{scope}/" if scope else ""
            found |= {f"{prefix}{key}": prefix + "/".join(filter(None, key.split(separator))) for key in own}
    return found and {path: found.get(path, path) for path in paths}


def _separator(keys: list[str]) -> str | None:
    for separator in _SEPARATORS:
        joined = [key for key in keys if len(list(filter(None, key.split(separator)))) > 1]
        ends = {key.rpartition(separator)[2] for key in joined}
        if ends & _ARRAYS and _ARRAYS.isdisjoint(keys):
            return separator
    return None


# Haliax's arrays, paramax's wrappers, pairs of a scale and a matrix; PyTorch's weight normalization, old and new.
_PARTS = re.compile(
    r"((?:.*/)?)(?:(weight|bias|kernel|w)/(?:(?:\w+/)*args/)?\d+|(weight)_[gv]|parametrizations/(weight|bias)/original\d*)"
)
_AROUND = re.compile(r"(?:^|(?<=/))(?:base_layer|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)/")
_HALF = re.compile(r"(.+)/(?:real|imaginary)")


def unwrapped(leaves: Sequence[NamedLeaf]) -> list[NamedLeaf]:
    """The leaves by their bare paths; of several parts of one array, the largest gets it.

    Wrappers may lie in wrappers: "weight/weight/args/0" beside "weight/scale/args/0".
    """
    if _are_boxed(leaves):
        return unwrapped([leaf._replace(path=leaf.path[:-2]) for leaf in leaves])
    parts: defaultdict[str, list[NamedLeaf]] = defaultdict(list)
    short: dict[str, str] = {}
    paths = {leaf.path for leaf in leaves}
    for leaf in leaves:
        path = leaf.path
        bare = _AROUND.sub("", path) if "_" in path else path
        match = _PARTS.fullmatch(bare) if bare[-1:].isdigit() or bare.endswith(("_g", "_v")) else None
        if match:
            parts[match[1] + next(filter(None, match.groups()[1:]))].append(leaf)
            continue
        # optax.contrib.split_real_and_imaginary makes two leaves of one array: both are seen as it is.
        half = _HALF.fullmatch(bare) if bare.endswith(("/real", "/imaginary")) else None
        if half and {f"{half[1]}/real", f"{half[1]}/imaginary"} <= paths:
            bare = half[1]
        if bare != path:
            short[path] = bare
    for bare, wrapped in parts.items():
        if bare not in paths:
            short[max(wrapped, key=lambda leaf: math.prod(leaf.shape)).path] = bare
    return [leaf._replace(path=short[leaf.path]) if leaf.path in short else leaf for leaf in leaves]


def _are_boxed(leaves: Sequence[NamedLeaf]) -> bool:
    """Whether each array lies alone in a container of its own, as one that carries notes on axes does: "w/0"."""
    boxed = bool(leaves) and all(leaf.path.endswith("/0") for leaf in leaves)
    return boxed and not _ARRAYS.isdisjoint(leaf.path.split("/")[-2] for leaf in leaves)
