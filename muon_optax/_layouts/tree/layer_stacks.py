"""Which axes of an array count layers: in front, or behind the first axis as MaxText has them."""

from typing import NamedTuple

Shape = tuple[int, ...]


class LayerStack(NamedTuple):
    """The axes that count layers: ``sizes``, from axis ``start`` on."""

    start: int
    sizes: Shape

    def fits(self, shape: Shape) -> bool:
        """Whether ``shape`` has these axes, and others besides."""
        end = self.start + len(self.sizes)
        return len(shape) > len(self.sizes) and shape[self.start : end] == self.sizes

    def core(self, shape: Shape) -> Shape:
        """``shape`` of one layer."""
        return shape[: self.start] + shape[self.start + len(self.sizes) :]

    def whole(self, letters: str) -> str:
        """A layer's letters with a ``b`` for each stacked axis."""
        return letters[: self.start] + "b" * len(self.sizes) + letters[self.start :]


UNSTACKED = LayerStack(0, ())


class LayerStacks(NamedTuple):
    """The stacks that fit, and the evidence for them: ``"norms"``, ``"biases"``, ``"shapes"``, or none."""

    options: tuple[LayerStack, ...] = ()
    by: str = ""


def without_ones(bias: Shape) -> Shape:
    """Equinox's convolutions have a bias (out, 1, 1)."""
    while len(bias) > 1 and bias[-1] == 1:
        bias = bias[:-1]
    return bias
