"""A bias beside the weight, which has the shape of the output axes."""

from muon_optax._layouts.evidence.convolutions import is_transposed, looks_like_convolution
from muon_optax._layouts.evidence.experts import is_expert
from muon_optax._layouts.tree import roles
from muon_optax._layouts.tree.seen import Reading, Seen


def by_bias(seen: Seen) -> Reading | None:
    """For three or more axes, the output axes are those that have the shape of the bias."""
    core, bias = seen.core, seen.bias
    if bias is None or not 1 <= len(bias) < len(core) or len(core) < 3:
        return None
    axes, outputs = len(core), len(bias)
    if seen.outputs_first:
        if bias == core[:outputs] and outputs > 1 and seen.name != "weight":
            return Reading("b" * (outputs - 1) + "o" + "i" * (axes - outputs), "its bias")  # PyTorch's experts
        if outputs == 1 and bias[0] == core[1] != core[0]:
            return Reading("io" + "i" * (axes - 2), "its bias")  # PyTorch's transposed convolutions
        if bias == core[:outputs]:
            # Haliax's layers have several output axes. Where no norm says so, the first may as well count layers.
            weak = outputs > 1 and seen.width != axes - 1
            return Reading("o" * outputs + "i" * (axes - outputs), "its bias", weak=weak)
        return Reading("i" * (axes - outputs) + "o" * outputs, "its bias") if bias == core[-outputs:] else None
    if is_transposed(seen) and core[-1] == core[-2]:
        return None  # the bias fits both, and the name decides
    if core[-outputs:] == bias:
        if len(core) == 3 and outputs == 2 and _counts_networks(seen):
            return Reading("iob", "its bias", weak=True)
        return Reading("i" * (axes - outputs) + "o" * outputs, "its bias")
    if len(core) == 3 and core[0] > 1 < core[-1] and bias == (core[0] * core[-1],):
        return Reading("bio", "its bias")  # blocks on a diagonal, whose outputs lie one after another
    if outputs == 1 and bias[0] == core[0] and bias[0] not in core[1:]:
        return Reading("o" + "i" * (axes - 1), "its bias")
    if len(core) == 3 and core[-1] > 1 and bias == (core[0], core[-1]):
        return _by_blocks_or_heads(seen)
    # Transposed convolutions may have their outputs before their inputs.
    if outputs == 1 and core[-2] == bias[0] and (is_transposed(seen) or looks_like_convolution(seen)):
        return Reading("i" * (axes - 2) + "oi", "its bias")
    return None


def _by_blocks_or_heads(seen: Seen) -> Reading | None:
    """A kernel (n, a, b) with a bias (n, b): n blocks on a diagonal, or n heads that all read a inputs."""
    blocks, inputs, _ = seen.core
    if roles.reads_attention(seen.module):
        return Reading("oio", "its bias", weak=not seen.is_width(inputs))
    whole = any(blocks * inputs in shape for scope in seen.scopes[:3] for shape in scope.shapes)
    return Reading("bio", "its bias", weak=not whole and not is_expert(seen.leaf))


def _counts_networks(seen: Seen) -> bool:
    """Whether the last axis of (inputs, outputs, n) counts networks: a layer near, biased alike, gives or takes."""
    inputs, outputs, networks = seen.core
    if roles.reads_attention(seen.module):
        return False  # heads may be as wide as the model
    fitting = (pair for pair in seen.scopes[0].pairs if seen.stack.fits(pair.weight) and seen.stack.fits(pair.bias))
    near = ((seen.stack.core(pair.weight), seen.stack.core(pair.bias)) for pair in fitting)
    kernels = [weight for weight, bias in near if len(weight) == 3 and weight[1:] == bias and bias[1] == networks]
    return any((outputs == kernel[0] or inputs == kernel[1]) and kernel != seen.core for kernel in kernels)
