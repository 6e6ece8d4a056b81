"""A leaf as a rule sees it, with its shape in one layer, its bias, its names, and the scopes around it."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names
from muon_optax._layouts.tree.layer_stacks import LayerStack, Shape, without_ones
from muon_optax._layouts.tree.path_parts import is_torch, module_of
from muon_optax._layouts.tree.scope import Scope
from muon_optax._layouts.tree.tree import Tree


class Reading(NamedTuple):
    """The letters of one layer's axes, or ``None`` if it is not a matrix, and the evidence."""

    letters: str | None
    why: str
    split: Shape | None = None
    weak: bool = False  # another reading fits as well, or only a name speaks against a shape


@dataclass(frozen=True)
class Seen:
    """A leaf under the assumption of one stack. ``core`` is its shape in one layer, ``bias`` the shape of its bias."""

    tree: Tree
    leaf: NamedLeaf
    stack: LayerStack
    told: bool  # whether there is evidence for the stack

    @cached_property
    def core(self) -> Shape:
        """The shape of one layer."""
        return self.stack.core(self.leaf.shape)

    @cached_property
    def bias(self) -> Shape | None:
        """The shape of one layer's bias, where it is stacked as the weight."""
        bias = self.tree.bias_of(self.leaf.path)
        return None if bias is None or not self.stack.fits(bias) else without_ones(self.stack.core(bias))

    @cached_property
    def name(self) -> str:
        """The array's own name."""
        return names.clean(self.leaf.path.rpartition("/")[2])

    @cached_property
    def module(self) -> str:
        """The name of its module, or its own where it has none."""
        return module_of(self.leaf.path)[1]

    @cached_property
    def outputs_first(self) -> bool:
        """Whether it is stored as in PyTorch."""
        return is_torch(self.leaf.path)

    @cached_property
    def scopes(self) -> list[Scope]:
        """The scopes around its module, nearest first."""
        return self.tree.chain(module_of(self.leaf.path)[0])

    def cores(self, shapes: set[Shape]) -> set[Shape]:
        """``shapes`` of one layer, of those that are stacked as the leaf."""
        return {self.stack.core(shape) for shape in shapes if self.stack.fits(shape)}

    @cached_property
    def width(self) -> int | None:
        """The axis of the residual stream: the only one with the length of a norm, the nearest norms first."""
        for scope in self.scopes:
            lengths = self._lengths(scope.widths)
            axes = [axis for axis, size in enumerate(self.core) if size in lengths]
            if axes:
                return axes[0] if len(axes) == 1 else None
        return None

    def is_width(self, size: int, within: int | None = None) -> bool:
        """Whether a norm of the residual stream has this length, in the nearest scopes only if ``within`` says so."""
        return any(size in self._lengths(scope.widths) for scope in self.scopes[:within])

    @cached_property
    def reads_normalized(self) -> bool:
        """Whether the first axis has the length of any norm near, that of a compressed rank too."""
        return any(self.core[0] in self._lengths(scope.norms) for scope in self.scopes[:3])

    def _lengths(self, norms: set[Shape]) -> set[int]:
        # What still has two axes in one layer is a norm of each head.
        return {norm[0] for norm in norms | self.cores(norms) if len(norm) == 1}
