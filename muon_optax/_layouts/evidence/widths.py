"""The model's width, which is the length of the norms in scope. The axis of that length reads or writes the stream."""

from muon_optax._layouts.evidence.experts import is_expert
from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.seen import Reading, Seen
from muon_optax._layouts.tree.windows import LARGEST_WINDOW

_SIDE_BY_SIDE = {"fused": 3, "key_value": 2}  # as an axis in front


def by_width_of_inputs(seen: Seen) -> Reading | None:
    """The first axis has the model's width and is the input. Where outputs are stored first, the last one is."""
    last, role = len(seen.core) - 1, roles.side_of(seen.module)
    if last < 2 or role == "writes" or "conv" in seen.module:
        return None
    if role is None and names.is_weight(seen.name) is None:
        return None  # an array of any name may as well have the width as its output
    axis = seen.width
    if last == 3 and axis in (1, 2) and seen.core[0] == _SIDE_BY_SIDE.get(roles.role_of(seen.module) or ""):
        return Reading("bioo" if axis == 1 else "boio", "side by side + width")
    if axis is None and roles.reads_attention(seen.module) and seen.reads_normalized:
        axis = 0  # from a compressed rank, which has a norm of its own
    if axis == 0 and (role == "reads" or not seen.outputs_first):
        return Reading("i" + "o" * last, "width")
    if axis != last or not seen.outputs_first or role != "reads" or (last == 2 and is_expert(seen.leaf)):
        return None  # experts have no heads: with outputs first theirs are (experts, out, in)
    return Reading("o" * last + "i", "width")


def by_width_of_outputs(seen: Seen) -> Reading | None:
    """For an output projection (by name) or a convolution, the last axis has the model's width and is the output."""
    core = seen.core
    last, axis = len(core) - 1, seen.width
    if last < 2:
        return None
    path = seen.leaf.path.lower()
    attention = names.ATTENTION.fullmatch(path) is not None or bool(seen.scopes[0].queries)
    if roles.side_of(seen.module) == "writes" and attention:
        if axis == last:
            return Reading("i" * last + "o", "name + width")
        # Stored as the query is, (d, heads, size), or as all weights of a framework that has outputs first.
        as_query = core in seen.cores(seen.scopes[0].queries)
        return Reading("o" + "i" * last, "name + width") if axis == 0 and (seen.outputs_first or as_query) else None
    window = last == 3 and max(core[:2]) <= LARGEST_WINDOW and seen.name in ("kernel", "w") and not attention
    if window and axis == last and seen.told and not seen.stack.sizes and roles.side_of(seen.module) is None:
        return Reading("i" * last + "o", "window + width")
    return None
