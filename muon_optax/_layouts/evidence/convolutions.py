"""Convolutions, found by name or by a square window. Filters for single channels are not matrices."""

import math
import re

from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.seen import Reading, Seen
from muon_optax._layouts.tree.windows import LARGEST_WINDOW, has_trailing_window

_DEPTHWISE = re.compile(r".*(depthwise|dwconv|dw_conv|conv_?dw).*")
_MAYBE_DEPTHWISE = re.compile(r"(.*_)?dw(_.*|\d*)")
_COLORS = 4  # the most channels of an image, and with one more a mask
_FEW = 8  # steps of a window without an axis for the group
_OUTPUTS_FIRST = re.compile(r".*conv\d_?d_transpose.*")  # Keras and Haiku; Linen's ConvTranspose has them last


def is_transposed(seen: Seen) -> bool:
    """Whether a name near is a transposed convolution's."""
    near = seen.leaf.path.lower().split("/")[-3:]
    return any(word in part for part in near for word in ("transp", "deconv", "conv_tr"))


def _may_be_transposed(seen: Seen) -> bool:
    """Whether an even window, as upsampling has, and no bias leave open which axis PyTorch stored first."""
    _, inputs, *window = seen.core
    upsamples = all(size % 2 == 0 for size in window)
    return seen.outputs_first and seen.bias is None and upsamples and inputs > _COLORS


def _by_name(seen: Seen) -> bool:
    return names.CONVOLUTION.search(seen.module) is not None and not names.ATTENTION.fullmatch(seen.module)


def _has_window(seen: Seen) -> bool:
    # Only a framework's own kernel: a raw array may have as many experts as layers.
    core = seen.core
    window = core[-2:] if seen.outputs_first else core[:-2]
    square = len(core) > 3 and len(set(window)) == 1 and window[0] <= LARGEST_WINDOW
    attention = roles.side_of(seen.module) is not None and names.ATTENTION.fullmatch(seen.leaf.path.lower())
    dense = "einsum" in seen.module or ("proj" in seen.module and not seen.told)
    return square and not attention and not dense and seen.name in ("kernel", "w", "weight")


def looks_like_convolution(seen: Seen) -> bool:
    """Whether the name or a square window says so."""
    return len(seen.core) > 2 and (_by_name(seen) or _has_window(seen))


def by_depthwise(seen: Seen) -> Reading | None:
    """A depthwise convolution has one filter for each channel, so there is no matrix to orthogonalize."""
    core, axes = seen.core, len(seen.core)
    if _DEPTHWISE.fullmatch(seen.module) or _DEPTHWISE.fullmatch(seen.name):
        return Reading(None, "depthwise")
    if axes == 2 and "conv" in seen.module and "point" not in seen.module and min(core) <= _FEW:
        return Reading(None, "depthwise")  # a window for each channel, without an axis for the group
    named = any(_MAYBE_DEPTHWISE.fullmatch(name) for name in (seen.module, seen.name))
    if named and core[-2] == 1 < math.prod(core[:-2]):
        return Reading(None, "depthwise")
    if seen.outputs_first and core[1] == 1 < min(core[0], math.prod(core[2:])):
        return _one_channel(seen)
    if seen.outputs_first:
        return None
    if not looks_like_convolution(seen):
        return _filters_by_bias(seen)
    # Patches of a gray image or a spectrogram have a single channel, and no later convolution shows it.
    patches = any("patch" in part for part in seen.leaf.path.lower().split("/")[-3:])
    if core[-2] == 1 and not is_transposed(seen) and not patches:
        return None if seen.tree.is_first_of_convolutions(seen.leaf) else Reading(None, "depthwise")
    return None


def _filters_by_bias(seen: Seen) -> Reading | None:
    """A kernel (*window, 1, channels) in a module without a name. A dense layer would not read an axis of length 1."""
    core = seen.core
    filters = core[-2] == 1 < math.prod(core[:-2]) and seen.bias == core[-1:]
    if not filters or roles.side_of(seen.module) is not None or seen.name not in names.MODULE_ARRAY:
        return None
    return None if seen.tree.is_first_of_convolutions(seen.leaf) else Reading(None, "depthwise", weak=True)


def _one_channel(seen: Seen) -> Reading | None:
    """PyTorch's (channels, 1, *window) is a filter for each channel, or the first layer of a one-channel signal."""
    if seen.tree.is_first_of_convolutions(seen.leaf):
        return None
    if seen.core[0] in seen.tree.outputs:
        return Reading(None, "depthwise")
    if not _by_name(seen) and seen.tree.is_first_of_convolutions(seen.leaf, in_block=True):
        return None  # networks side by side, such as discriminators
    if _by_name(seen) or seen.tree.is_repeated_kernel(seen.leaf):
        return Reading(None, "depthwise", weak=True)
    # A signal of one channel and a filter for each channel look the same where nothing stands before or behind.
    return Reading("o" + "i" * (len(seen.core) - 1), "one channel", weak=True)


def by_convolution(seen: Seen) -> Reading | None:
    """A convolution sums over its window and its input channels."""
    axes = len(seen.core)
    attention = roles.side_of(seen.module) is not None and names.ATTENTION.fullmatch(seen.leaf.path.lower())
    if has_trailing_window(seen.core) and not is_transposed(seen) and not attention and seen.width is None:
        return Reading("o" + "i" * (axes - 1), "window behind", weak=_may_be_transposed(seen))
    if seen.name == "weight" and axes > 2 and math.prod(seen.core[2:]) == 1 and not is_transposed(seen):
        return Reading("o" + "i" * (axes - 1), "window of one")
    if not looks_like_convolution(seen):
        return None
    if seen.outputs_first:
        if is_transposed(seen):
            # Inputs come first in PyTorch's, outputs in Equinox's.
            return Reading("io" + "i" * (axes - 2), "convolution", weak=True) if seen.tree.is_torch else None
        return Reading("o" + "i" * (axes - 1), "convolution", weak=_may_be_transposed(seen))
    # Haiku's transposed convolutions and Keras' are (*window, out, in).
    if is_transposed(seen) and (_OUTPUTS_FIRST.fullmatch(seen.module) or seen.name == "w"):
        return Reading("i" * (axes - 2) + "oi", "convolution")
    return Reading("i" * (axes - 1) + "o", "convolution")
