"""The factors of a low-rank update."""

import math
import re

from muon_optax._layouts.tree.seen import Reading, Seen

_LOW_RANK = re.compile(r"(.*lora[^/]*[/_])([ab])", re.IGNORECASE)


def by_low_rank(seen: Seen) -> Reading | None:
    """The factors `a` (inputs, rank) and `b` (rank, outputs) of a low-rank update have two axes or more."""
    match = _LOW_RANK.fullmatch(seen.leaf.path)
    if match is None:
        return None
    same_case = "AB" if match[2].isupper() else "ab"
    shapes = [seen.tree.shapes.get(match[1] + factor, ()) for factor in same_case]
    if not all(map(seen.stack.fits, shapes)):
        return None
    first, second = map(seen.stack.core, shapes)
    if len(first) < 2 or len(second) < 2:
        return None
    if (
        len(first) == len(second)
        and first[:-2] == second[:-2]
        and first[-1] == second[-2]
        and first[-1] < min(first[-2], second[-1])
    ):
        return Reading("b" * (len(first) - 2) + "io", "low rank")  # a pair of factors for each head, or each half
    # Stored the other way round, (rank, inputs) and (outputs, rank), they agree where the layer is square.
    if first[-1] != second[0] or second[0] >= math.prod(second[1:]):
        return None
    axes = len(seen.core) - 1
    return Reading("i" * axes + "o" if match[2] in "aA" else "i" + "o" * axes, "low rank")
