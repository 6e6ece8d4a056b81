"""Siblings: a query beside its output, a gate beside its linear layer, the two kernels of a recurrent cell."""

import math
import re

from muon_optax._layouts.evidence import names
from muon_optax._layouts.evidence.stacks import Shape
from muon_optax._layouts.evidence.tree import Reading, Seen

_LOW_RANK = re.compile(r"(.*lora[^/]*[/_])([ab])", re.IGNORECASE)
_CELLS = (("dense_i/kernel", "dense_h/kernel"), ("w_i", "w_h"), ("kernel", "recurrent_kernel"))


def by_attention(seen: Seen) -> Reading | None:
    """A query (d, heads, size) and an output (heads, size, d) that agree in heads, and what stands beside them."""
    core, is_in = seen.core, names.ATTENTION_IN.fullmatch(seen.module)
    is_out = names.ATTENTION_OUT.fullmatch(seen.module)
    if len(core) != 3 or not (is_in or is_out):
        return None
    pairs = _attention_pairs(seen)
    for query, out in pairs:
        if query[1] != out[0]:
            continue
        if is_out and core == out:
            return Reading("iio", "query beside out")
        if is_in and (core[1] == query[1] or core[2] == query[2]):
            return Reading("ioo", "query beside out")
    if any(_are_heads_first(query, out) for query, out in pairs):
        return None  # no norm says so, and layers may be stacked in front
    # Without siblings: as many heads times their size as inputs.
    if is_in and core[0] == core[1] * core[2]:
        return Reading("ioo", "name + heads", weak=seen.width != 0)
    if is_out and core[2] == core[0] * core[1]:
        return Reading("iio", "name + heads", weak=seen.width != 2)
    return _half_attention(seen) if is_in else None


def _half_attention(seen: Seen) -> Reading | None:
    """Queries (d, heads, size) and keys (d, fewer heads, size), whose output is out of sight."""
    d, _, size = seen.core
    scope = seen.scopes[0]
    alike = {core for core in seen.cores(scope.kernels) if len(core) == 3 and (core[0], core[2]) == (d, size)}
    heads = {core[1] for core in alike}
    # Layers of (heads, size), stacked in front, would have to fit each other.
    if len(heads) > 1 and not scope.has_others and not scope.outs and size not in heads:
        return Reading("ioo", "query beside key", weak=True)
    return None


def _attention_pairs(seen: Seen) -> list[tuple[Shape, Shape]]:
    """Queries and outputs of three axes in the same attention."""
    scope = seen.scopes[0]
    queries, outs = (sorted(s for s in seen.cores(shapes) if len(s) == 3) for shapes in (scope.queries, scope.outs))
    return [(query, out) for query in queries for out in outs]


def _are_heads_first(query: Shape, out: Shape) -> bool:
    """Whether a query is (heads, d, size) and an output (heads, size, d)."""
    return query == (out[0], out[2], out[1]) and query[0] != query[1]


def by_heads_first(seen: Seen) -> Reading | None:
    """A query (heads, d, size) and an output (heads, size, d) beside a norm of length d, as keras-hub has them."""
    core, is_out = seen.core, names.ATTENTION_OUT.fullmatch(seen.module)
    if len(core) != 3 or not (is_out or names.ATTENTION_IN.fullmatch(seen.module)):
        return None
    for query, out in _attention_pairs(seen):
        heads, d, size = query
        if not _are_heads_first(query, out):
            continue
        near = seen.is_width(d, 2)
        if not near and not (heads * size == d and seen.is_width(d)):
            continue
        if is_out and core == out:
            return Reading("iio", "query beside out + width", weak=not near)
        if not is_out and core[1:] == (d, size):
            return Reading("oio", "query beside out + width", weak=not near)
    return None


def by_einsum(seen: Seen) -> Reading | None:
    """Kernels called einsum, as Gemma has them: heads first, and queries, keys and values side by side."""
    core = seen.core
    if "einsum" not in seen.module or len(core) not in (3, 4) or "gating" in seen.module:
        return None
    width = core[seen.width] if seen.width is not None else None
    for query, out in _attention_pairs(seen):
        if (query[0], query[1], query[2]) == (out[0], out[2], out[1]):
            width = width or out[2]
    if width is None or width not in core:
        return None
    if len(core) == 4:
        if core[0] in (2, 3) and core[2] == width:
            return Reading("boio", "einsum + width")
        return Reading("bioo", "einsum + width") if core[0] in (2, 3) and core[1] == width else None
    if names.role(seen.module) == "writes":
        return Reading("iio", "einsum + width") if core[2] == width else None
    if names.role(seen.module) == "reads" and width in core[:2]:
        return Reading("oio" if core[1] == width else "ioo", "einsum + width")
    return None


def by_gating(seen: Seen) -> Reading | None:
    """Two halves (2, ., .) of a gated layer, told by the layer (hidden, width) that follows them."""
    core = seen.core
    # Two heads of a query are no halves, nor is a window of two steps.
    other = names.ATTENTION_IN.fullmatch(seen.module) or names.ATTENTION_OUT.fullmatch(seen.module)
    if len(core) not in (3, 4) or core[-3] != 2 or "conv" in seen.module or (other and "gat" not in seen.module):
        return None
    front, (rows, columns) = core[:-3], core[-2:]
    named = "gat" in seen.module or names.role(seen.module) == "reads"
    if not named and seen.name not in names.MODULE_ARRAY:
        return None
    batch = "b" * (len(core) - 2)
    # The layer that follows may lie in a module beside.
    for scope in seen.scopes[:2]:
        beside = seen.cores(scope.weights)
        if (*front, columns, rows) in beside:
            return Reading(f"{batch}io", "beside linear", weak=not named)
        if (*front, rows, columns) in beside:
            return Reading(f"{batch}oi", "beside linear", weak=not named)
    return None


def by_gates(seen: Seen) -> Reading | None:
    """Recurrent cells keep their gates side by side, (in, 3 or 4 hidden), told by the kernel of the hidden state."""
    if len(seen.core) != 2:
        return None
    path, outputs, hidden = seen.leaf.path, seen.core[1], 0
    for inputs, recurrent in _CELLS:
        if path.rpartition("/")[2] in (inputs, recurrent) or path.endswith((f"/{inputs}", f"/{recurrent}")):
            scope = path.removesuffix(recurrent) if path.endswith(recurrent) else path.removesuffix(inputs)
            shape = seen.tree.shapes.get(scope + recurrent, ())
            if seen.stack.fits(shape) and seen.stack.core(shape)[1:] == (outputs,):
                hidden = seen.stack.core(shape)[0]
    if "/".join(map(names.clean, path.split("/")[-3:])).endswith("lstm/linear/w"):
        hidden = outputs // 4  # Haiku's LSTM has one kernel for inputs and hidden state
    if hidden and outputs in (3 * hidden, 4 * hidden):
        return Reading("io", "gates of a cell", (hidden,) * (outputs // hidden))
    return None


def by_low_rank(seen: Seen) -> Reading | None:
    """The factors of a low-rank update, `a` (inputs, rank) beside `b` (rank, outputs), of two axes or more."""
    match = _LOW_RANK.fullmatch(seen.leaf.path)
    if match is None:
        return None
    same_case = "AB" if match[2].isupper() else "ab"
    shapes = [seen.tree.shapes.get(match[1] + factor, ()) for factor in same_case]
    if not all(map(seen.stack.fits, shapes)):
        return None
    first, second = map(seen.stack.core, shapes)
    if (
        len(first) == len(second) > 2
        and first[:-2] == second[:-2]
        and first[-1] == second[-2]
        and first[-1] < min(first[-2], second[-1])
    ):
        return Reading("b" * (len(first) - 2) + "io", "low rank")  # a pair of factors for each head, or each half
    # Stored the other way round, (rank, inputs) and (outputs, rank), they agree where the layer is square.
    if len(first) < 2 or len(second) < 2 or first[-1] != second[0] or second[0] >= math.prod(second[1:]):
        return None
    axes = len(seen.core) - 1
    return Reading("i" * axes + "o" if match[2] in "aA" else "i" + "o" * axes, "low rank")
