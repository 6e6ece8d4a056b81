"""Repeated blocks of a model: the rules look at a few of many equal ones, and the rest is decided alike."""

import re
from collections import defaultdict
from collections.abc import Sequence

from muon_optax._layouts.paths import NamedLeaf

# More than any rule counts: the first block, those in the middle, and networks side by side look as in the whole.
KEPT = 6
_BLOCK = re.compile(r"(?:^|/)[^/]*\d[^/]*(?=/)")  # the outermost module with a number


def without_repetitions(leaves: Sequence[NamedLeaf]) -> tuple[list[NamedLeaf], dict[str, str]]:
    """The leaves of the first few equal blocks, and for each other leaf the kept one that it equals.

    Blocks are equal if their paths differ in a number, and their arrays in nothing: not in names, shapes and dtypes.
    """
    blocks: defaultdict[str, list[NamedLeaf]] = defaultdict(list)
    for leaf in leaves:
        match = _BLOCK.search(leaf.path)
        if match:
            blocks[leaf.path[: match.end()]].append(leaf)
    equal: defaultdict[tuple, list[str]] = defaultdict(list)
    for block, inside in blocks.items():
        start = len(block)
        # A layer's own type holds more than can be compared here.
        arrays = tuple(
            (leaf.path[start:], leaf.shape, getattr(leaf.value, "dtype", None), leaf.owner and id(leaf.owner))
            for leaf in inside
        )
        equal[re.sub(r"\d+", "#", block), arrays].append(block)
    alike = {}
    for group in equal.values():
        for block in group[KEPT:]:
            for leaf, other in zip(blocks[block], blocks[group[KEPT - 1]], strict=True):
                alike[leaf.path] = other.path
    return [leaf for leaf in leaves if leaf.path not in alike], alike
