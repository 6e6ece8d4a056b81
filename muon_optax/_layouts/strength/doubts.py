"""Readings that go wrong in models that nobody here has seen. They are weak, whatever told them."""

import re
from collections.abc import Callable

from muon_optax._layouts.decision import Decision
from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.strength.neighbors import Neighbors
from muon_optax._layouts.strength.read import Read
from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.path_parts import is_torch, module_of

_OF_FRAMEWORKS = frozenset({"kernel", "w", "weight"})
_OF_CELLS = re.compile("weight_[ih]h")  # PyTorch's recurrent layers, with all gates on the output axis
_TABLE = re.compile("emb(ed(der|ding)?)?s?")  # of anything: words and places have names of their own
_COMPARED = ("query beside", "einsum + width", "low rank")  # evidence that compares the axes of several projections


def is_unnamed_expert(read: Read) -> bool:
    """Experts of a router whose names don't say whether they read or write the residual stream."""
    return read.why == "router" and roles.side_of(read.module) is None


def has_heads_outside_attention(read: Read) -> bool:
    """Several axes of inputs or outputs that are no window, where nothing is called attention."""
    if len(read.letters) < 3 or read.is_convolution or read.why.startswith(_COMPARED):
        return False
    biased = read.why == "its bias" and any(map(roles.side_of, read.near))
    return not biased and not read.is_in_attention


def has_many_axes(read: Read) -> bool:
    """More axes than heads and their size need, and neither a window nor a bias of attention."""
    biased = read.why == "its bias" and read.is_in_attention
    return len(read.letters) > 3 and not read.is_convolution and not biased


def has_one_channel(read: Read) -> bool:
    """A window over a single channel, where nothing is called a convolution: it may be a filter for each channel."""
    window = read.letters[-1] == "o" and read.sizes[-2] == 1
    return window and read.is_convolution and not read.is_called_convolution


def has_window_by_shape(read: Read) -> bool:
    """A square window alone, which weights for every place of an image have too."""
    return read.why == "convolution" and read.window[0] > 1 and not read.is_called_convolution


def may_be_transposed(read: Read) -> bool:
    """A square convolution of PyTorch with an even window, in which a bias can't tell inputs from outputs."""
    behind = read.letters[:2] in ("oi", "io") and read.is_convolution and len(read.window) > 0
    return behind and read.sizes[0] == read.sizes[1] and all(size % 2 == 0 for size in read.window)


def has_window_or_stack(read: Read) -> bool:
    """Three axes, two of them inputs, in a layer without a convolution's or a projection's name."""
    named = read.is_called_convolution or read.is_in_attention or any(map(roles.side_of, read.near))
    return read.letters == "iio" and not named


def is_square_by_name(read: Read) -> bool:
    """A square array whose inputs a name tells that is no framework's."""
    square = len(read.letters) == 2 and read.sizes[0] == read.sizes[1]
    return square and read.why.startswith("name: ") and re.split("[ ,]+", read.why)[1] not in _OF_FRAMEWORKS


def may_be_last(read: Read, near: Neighbors) -> bool:
    """A layer of its own kind, whose outputs neither a norm nor a later layer near it takes."""
    if read.letters.count("o") != 1 or "b" in read.layout.axes or read.layout.split or read.why == "low rank":
        return False
    cell = read.why == "gates of a cell" or _OF_CELLS.match(read.leaf.path.rpartition("/")[2])
    inside = cell or roles.side_of(read.module) == "reads" or roles.role_of(read.module) == "router"
    return not inside and not any("lora" in part for part in read.near) and near.stands_alone(read)


def speaks_against_its_width(read: Read, near: Neighbors) -> bool:
    """A projection, by its name, whose other side has the width of a norm."""
    side = roles.side_of(read.module)
    if side is None or len(read.letters) != 2 or not read.why.startswith("name"):
        return False
    reads, writes = read.layout.fan_in(read.leaf.shape) in near.widths, read.outputs in near.widths
    return (side == "reads" and writes and not reads) or (side == "writes" and reads and not writes)


# Each with what the user is told.
DOUBTS: tuple[tuple[Callable[[Read], bool], str], ...] = (
    (is_unnamed_expert, "experts without a name"),
    (has_heads_outside_attention, "heads outside attention"),
    (has_many_axes, "many axes"),
    (has_one_channel, "one channel"),
    (has_window_by_shape, "window by shape"),
    (may_be_transposed, "may be transposed"),
    (has_window_or_stack, "window or stack"),
    (is_square_by_name, "square"),
)
DOUBTS_BY_NEIGHBORS: tuple[tuple[Callable[[Read, Neighbors], bool], str], ...] = (
    (may_be_last, "may be the last layer"),
    (speaks_against_its_width, "name against width"),
)


class Doubts:
    """The doubts about the decisions on one tree."""

    def __init__(self, neighbors: Neighbors) -> None:
        self._near = neighbors

    def judged(self, leaf: NamedLeaf, decision: Decision) -> Decision:
        """The decision, weak if there is a doubt about it."""
        if decision.strength != "strong":
            return decision
        if decision.layout is None:
            return decision._replace(strength="weak") if self._may_be_layer(leaf, decision.why) else decision
        read = Read(leaf, decision.layout, decision.why.rpartition(", ")[2])
        typed = decision.why == "layer type"  # tells the axes, and not what the layer is for
        doubts = [text for applies, text in DOUBTS if not typed and applies(read)]
        doubts += [text for applies, text in DOUBTS_BY_NEIGHBORS if applies(read, self._near)]
        return decision._replace(why=f"{decision.why}; {doubts[0]}", strength="weak") if doubts else decision

    def _may_be_layer(self, leaf: NamedLeaf, why: str) -> bool:
        """Whether a norm's or a table's name holds what a layer may be: two long axes."""
        if len(leaf.shape) < 2 or 1 in leaf.shape[-2:]:
            return False
        if why == "norm":
            own = names.clean(leaf.path.rpartition("/")[2])
            return own in names.NORM_FIELD and self._near.layers.isdisjoint(leaf.shape)
        table = is_torch(leaf.path) and _TABLE.fullmatch(module_of(leaf.path)[1]) is not None
        return table and why.startswith("embedding") and len(leaf.shape) == 2 and leaf.shape[0] <= leaf.shape[1]
