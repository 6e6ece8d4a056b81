"""Flat dictionaries: keys such as "layers.0.q_proj.weight", read as the nested tree that they were."""

from collections import defaultdict
from collections.abc import Collection, Mapping

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
