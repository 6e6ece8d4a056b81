"""Gates side by side in one array: those of a recurrent cell, and the two halves of a gated layer."""

from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.seen import Reading, Seen

_CELLS = (("dense_i/kernel", "dense_h/kernel"), ("w_i", "w_h"), ("kernel", "recurrent_kernel"))


def by_recurrent_gates(seen: Seen) -> Reading | None:
    """A recurrent cell keeps gates side by side, (in, 3 or 4 hidden). The hidden state's kernel shows how many."""
    if len(seen.core) != 2:
        return None
    path, outputs, hidden = seen.leaf.path, seen.core[1], 0
    for inputs, recurrent in _CELLS:
        if path.rpartition("/")[2] in (inputs, recurrent) or path.endswith((f"/{inputs}", f"/{recurrent}")):
            scope = path.removesuffix(recurrent) if path.endswith(recurrent) else path.removesuffix(inputs)
            shape = seen.tree.shapes.get(scope + recurrent, ())
            if seen.stack.fits(shape) and seen.stack.core(shape)[1:] == (outputs,):
                hidden = seen.stack.core(shape)[0]
    if "/".join(map(names.clean, path.split("/"))).endswith("lstm/linear/w"):
        hidden = outputs // 4  # Haiku's LSTM has one kernel for inputs and hidden state
    if hidden and outputs in (3 * hidden, 4 * hidden):
        return Reading("io", "gates of a cell", (hidden,) * (outputs // hidden))
    return None


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
