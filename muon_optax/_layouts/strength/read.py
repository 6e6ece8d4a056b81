"""A matrix as the rules read it."""

from typing import NamedTuple

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.layer_stacks import Shape
from muon_optax._layouts.tree.path_parts import module_of
from muon_optax._layouts.tree.windows import LARGEST_WINDOW

_NEAR = 4  # components that may name experts or attention


class Read(NamedTuple):
    """A matrix as the rules read it."""

    leaf: NamedLeaf
    layout: Layout
    why: str = ""  # without what told the stack

    @property
    def letters(self) -> str:
        """The letters of one matrix."""
        return self.layout.axes.replace("b", "")

    @property
    def sizes(self) -> Shape:
        """The sizes of one matrix."""
        return tuple(size for size, letter in zip(self.leaf.shape, self.layout.axes, strict=True) if letter != "b")

    @property
    def outputs(self) -> int:
        """The fan-out."""
        return self.layout.fan_out(self.leaf.shape)

    @property
    def channels(self) -> int:
        """The inputs that another layer may give: of a convolution without its window."""
        position = self.letters.index("o")
        return self.sizes[position - 1 if position == len(self.letters) - 1 else 1 if position == 0 else 0]

    @property
    def window(self) -> Shape:
        """The axes beside inputs and outputs, if the array is a convolution's."""
        return self.sizes[2:] if "o" in self.letters[:2] else self.sizes[:-2]

    @property
    def module(self) -> str:
        """The name of its module."""
        return module_of(self.leaf.path)[1]

    @property
    def near(self) -> list[str]:
        """The array's name and those around it."""
        return list(map(names.clean, self.leaf.path.split("/")[-_NEAR:]))

    @property
    def is_called_convolution(self) -> bool:
        """Whether a name near says so."""
        return any(map(names.CONVOLUTION.search, self.near))

    @property
    def is_in_attention(self) -> bool:
        """Whether any name around says so."""
        path = self.leaf.path.lower()
        return "attn" in path or "attention" in path

    @property
    def is_convolution(self) -> bool:
        """Whether a name, the evidence or a window says so."""
        if self.is_called_convolution or any(word in self.why for word in ("convolution", "window", "one channel")):
            return True
        if self.letters.count("o") > 1:
            return False
        small = max(self.window, default=0) <= LARGEST_WINDOW and not any(map(roles.role_of, self.near))
        return small if len(self.window) < 2 else len(set(self.window)) == 1
