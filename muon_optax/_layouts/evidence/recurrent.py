"""Recurrent cells, whose gates lie side by side. The kernel of the hidden state shows how many there are."""

from muon_optax._layouts.tree import names
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
    if "/".join(map(names.clean, path.split("/")[-3:])).endswith("lstm/linear/w"):
        hidden = outputs // 4  # Haiku's LSTM has one kernel for inputs and hidden state
    if hidden and outputs in (3 * hidden, 4 * hidden):
        return Reading("io", "gates of a cell", (hidden,) * (outputs // hidden))
    return None
