"""Attention: queries beside outputs or keys, heads behind or in front, kernels called einsum."""

from muon_optax._layouts.tree import roles
from muon_optax._layouts.tree.layer_stacks import Shape
from muon_optax._layouts.tree.seen import Reading, Seen


def by_attention(seen: Seen) -> Reading | None:
    """A query (d, heads, size) and an output (heads, size, d) agree in heads. Keys and values share a size with it."""
    core, is_in = seen.core, roles.reads_attention(seen.module)
    is_out = roles.writes_attention(seen.module)
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
        return Reading("ioo", "query beside key", weak=seen.width != 0)
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
    """A query is (heads, d, size) and an output (heads, size, d), near a norm of length d, as in keras-hub."""
    core, is_out = seen.core, roles.writes_attention(seen.module)
    if len(core) != 3 or not (is_out or roles.reads_attention(seen.module)):
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
    """A kernel called einsum has its heads first, or queries, keys and values side by side, as in Gemma."""
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
    if roles.side_of(seen.module) == "writes":
        return Reading("iio", "einsum + width") if core[2] == width else None
    if roles.side_of(seen.module) == "reads" and width in core[:2]:
        return Reading("oio" if core[1] == width else "ioo", "einsum + width")
    return None
