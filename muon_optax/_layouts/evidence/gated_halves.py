"""The two halves of a gated layer, stored as one array."""

from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.seen import Reading, Seen


def by_gated_halves(seen: Seen) -> Reading | None:
    """Gate and up are one array (2, a, b). The next layer's shape (hidden, width) shows which axis is the input."""
    core = seen.core
    # Two heads of a query are not halves, nor is a window of two steps.
    other = roles.reads_attention(seen.module) or roles.writes_attention(seen.module)
    if len(core) not in (3, 4) or core[-3] != 2 or "conv" in seen.module or (other and "gat" not in seen.module):
        return None
    front, (rows, columns) = core[:-3], core[-2:]
    named = "gat" in seen.module or roles.side_of(seen.module) == "reads"
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
