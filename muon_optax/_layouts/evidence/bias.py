"""A bias beside the weight: it has the shape of the output axes."""

from muon_optax._layouts.evidence.convolutions import is_transposed, looks_like_convolution
from muon_optax._layouts.evidence.tree import Reading, Seen


def by_bias(seen: Seen) -> Reading | None:
    """Reads the outputs off the bias, for three or more axes."""
    core, bias = seen.core, seen.bias
    if bias is None or not 1 <= len(bias) < len(core) or len(core) < 3:
        return None
    axes, outputs = len(core), len(bias)
    if seen.outputs_first:
        if bias == core[:outputs]:
            return Reading("o" * outputs + "i" * (axes - outputs), "its bias")
        return Reading("i" * (axes - outputs) + "o" * outputs, "its bias") if bias == core[-outputs:] else None
    if is_transposed(seen) and core[-1] == core[-2]:
        return None  # the bias fits both; the name tells
    if core[-outputs:] == bias:
        return Reading("i" * (axes - outputs) + "o" * outputs, "its bias")
    # Transposed convolutions may have their outputs before their inputs.
    if outputs == 1 and core[-2] == bias[0] and (is_transposed(seen) or looks_like_convolution(seen)):
        return Reading("i" * (axes - 2) + "oi", "its bias")
    return None
