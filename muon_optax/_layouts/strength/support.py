"""Whether the shapes of a tree bear out what a name says; what stands on a name alone is weak."""

import re
from collections import defaultdict
from collections.abc import Set

from muon_optax._layouts.decision import Decision
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.path_parts import is_torch, module_of
from muon_optax._layouts.tree.tree import Tree

# Flax and Keras call nothing else so, and store the inputs first.
_DEFINED = "kernel"
# Evidence that is of shapes, or of a layer's type.
_BORNE_OUT = ("its bias", "low rank", "layer type", "gates of a cell", "numbered layers")
_WRAPPER = re.compile(r"base(_layer)?|default|lora_\w+")
_NEAR = 3  # components that may hold a projection's name: "q_proj/base_layer"


class Support:
    """The orientations, ``"io"`` or ``"oi"``, that shapes show for each array name of a tree."""

    def __init__(self, tree: Tree, leaves: list[NamedLeaf], decisions: list[Decision], widths: Set[int]) -> None:
        self.tree = tree
        self.shown: defaultdict[str, set[str]] = defaultdict(set)
        self.unread: set[str] = set()  # scopes of what no rule knows
        for leaf, decision in zip(leaves, decisions, strict=True):
            orientation = _orientation(decision.layout)
            if decision.layout is not None and orientation and _shows(leaf, decision.layout, decision.why, widths):
                self.shown[_name(leaf)].add(orientation)
            if decision.unknown:
                self.unread.add(module_of(leaf.path)[0])

    def judged(self, leaf: NamedLeaf, decision: Decision) -> Decision:
        """The decision, marked weak if a name alone says which axis is the input, or that it is a layer at all."""
        if decision.layout is None or decision.strength != "strong" or self._is_borne_out(leaf, decision):
            return decision
        return decision._replace(strength="weak")

    def _is_borne_out(self, leaf: NamedLeaf, decision: Decision) -> bool:
        why = decision.why.rpartition(", ")[2]
        orientation = _orientation(decision.layout)
        if why == "width":
            # Blocks of a small size look like heads, but no output takes them back.
            return any(around.outs for around in self.tree.chain(module_of(leaf.path)[0])[:2])
        if not orientation or _name(leaf) == _DEFINED or any(map(why.startswith, _BORNE_OUT)):
            return True
        if module_of(leaf.path)[0] in self.unread:
            return why == "bias of siblings"
        if why == "router" and _side_near(leaf) is not None:
            return True  # the router's inputs are the width
        if is_torch(leaf.path) and not _is_called_a_layer(leaf):
            return False  # PyTorch calls the rows of a table so too
        gated = why == "name: linear" and f"{leaf.path.rpartition('/')[0]}/gating_einsum" in self.tree.shapes
        return why == "bias of siblings" or gated or orientation in self.shown[_name(leaf)]


def _name(leaf: NamedLeaf) -> str:
    return names.clean(leaf.path.rpartition("/")[2])


def _orientation(layout: Layout | None) -> str:
    """The letters of one matrix of two axes, or nothing."""
    letters = "" if layout is None else layout.axes.replace("b", "")
    return letters if len(letters) == 2 else ""


def _shows(leaf: NamedLeaf, layout: Layout, why: str, widths: Set[int]) -> bool:
    """Whether a bias or the width of a norm says which of two different sides is the input."""
    inputs, outputs = layout.fan_in(leaf.shape), layout.fan_out(leaf.shape)
    if inputs == outputs:
        return False
    if "its bias" in why or "low rank" in why:
        return True
    side, read, written = _side_near(leaf), inputs in widths, outputs in widths
    return (side == "reads" and read and not written) or (side == "writes" and written and not read)


def _is_called_a_layer(leaf: NamedLeaf) -> bool:
    """Whether the array or its module, also in the wrapper of an adapter, has a layer's name or a number."""
    near = map(names.clean, reversed(leaf.path.split("/")[-_NEAR - 1 :]))
    own = next((name for name in near if name not in names.MODULE_ARRAY and not _WRAPPER.fullmatch(name)), "0")
    return own.isdigit() or names.is_layer(own) or roles.role_of(own) is not None


def _side_near(leaf: NamedLeaf) -> str | None:
    """Whether a projection of the leaf's name, or of one around it, reads the residual stream or writes it."""
    for name in map(names.clean, leaf.path.split("/")[-_NEAR:]):
        side = "reads" if roles.role_of(name) == "router" else roles.side_of(name)
        if side is not None:
            return side
    return None
