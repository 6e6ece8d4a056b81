"""Arrays in wrappers, such as "weight/args/1" or "base_layer/weight", by the array's bare path."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence

from muon_optax._layouts.paths import NamedLeaf

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
