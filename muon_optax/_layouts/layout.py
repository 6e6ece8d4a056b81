"""The layout, which says how the axes of a parameter are read as matrices."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from muon_optax._layouts.paths import brief


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layout:
    """How a parameter is read as matrices, with one letter for each axis: ``i`` input, ``o`` output, ``b`` batch.

    A parameter of shape ``(d, heads, head_dim)`` with ``"ioo"`` is one ``d x (heads head_dim)`` matrix; with
    ``"ibo"`` it is ``heads`` matrices of ``d x head_dim``. Wherever a layout is expected the string alone will
    do; the class is for a fused projection, whose blocks along the output axis are matrices of their own.

    Args:
        axes: One letter for each axis of the parameter. At least one ``i`` (fan-in, the axes that are summed
            over) and one ``o`` (fan-out); every index of a ``b`` axis is a matrix of its own.
        split: Sizes of the blocks along the output axis, in order; they sum to that axis. ``None`` for one block.
            Only with exactly one ``o``.

    Raises:
        ValueError: For other letters, no ``i`` or no ``o``, or a split that is empty, not positive, or given with
            several output axes.
        TypeError: If ``axes`` is not a string, or ``split`` no sequence of sizes.

    Example:
        >>> from muon_optax import Layout
        >>> Layout("ioo").matrix_shapes((64, 4, 16))
        ((64, 64),)
        >>> Layout("io", split=(64, 16, 16)).matrix_shapes((64, 96))
        ((64, 64), (64, 16), (64, 16))
    """

    axes: str
    split: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Refuses what no parameter could have."""
        if not isinstance(self.axes, str):
            raise TypeError(f"A layout is a string such as 'io'; got {brief(self.axes)} of {type(self.axes).__name__}.")
        if set(self.axes) - set("iob") or not {"i", "o"} <= set(self.axes):
            raise ValueError(
                f"Layout {self.axes!r} is not allowed: use one letter an axis, 'i' (input), 'o' (output) or 'b' "
                "(batch), with at least one 'i' and one 'o', for example 'io' for a Flax Dense kernel."
            )
        if self.split is not None:
            self._check_split(self.split)

    def _check_split(self, split: tuple[int, ...]) -> None:
        # A list would make the layout unhashable; accepting it is friendlier than refusing it.
        if not isinstance(split, Iterable) or isinstance(split, str):
            raise TypeError(
                f"split={split!r} is not allowed: give the sizes of all blocks, for example (768, 256, 256); for equal "
                "ones (size,) * blocks."
            )
        sizes = tuple(split)
        if self.axes.count("o") != 1:
            raise ValueError(
                f"Layout {self.axes!r} with split={sizes}: a split needs exactly one output axis 'o'. Mark an axis "
                "that counts the blocks with 'b' instead."
            )
        if not sizes or not all(isinstance(size, int) and size > 0 for size in sizes):
            raise ValueError(f"split={sizes} is not allowed: give positive block sizes, for example (768, 256, 256).")
        object.__setattr__(self, "split", sizes)

    def __str__(self) -> str:
        """The letters, and the block sizes where there is a split."""
        return self.axes if self.split is None else f"{self.axes} split {'+'.join(map(str, self.split))}"

    def mismatch(self, shape: tuple[int, ...]) -> str | None:
        """Why a parameter of ``shape`` can't have this layout, or ``None`` if it can."""
        if len(shape) != len(self.axes):
            return f"layout {str(self)!r} has {len(self.axes)} letters for the {len(shape)} axes of shape {shape}"
        if self.split is not None and sum(self.split) != self.fan_out(shape):
            return (
                f"split {self.split} sums to {sum(self.split)}, but the output axis of shape {shape} has size "
                + str(self.fan_out(shape))
            )
        return None

    def _positions(self, letter: str) -> tuple[int, ...]:
        return tuple(axis for axis, name in enumerate(self.axes) if name == letter)

    def _sizes(self, letter: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[axis] for axis in self._positions(letter))

    def fan_in(self, shape: tuple[int, ...]) -> int:
        """Number of inputs of each matrix: the product of the ``i`` axes."""
        return math.prod(self._sizes("i", shape))

    def fan_out(self, shape: tuple[int, ...]) -> int:
        """Number of outputs of all blocks together: the product of the ``o`` axes."""
        return math.prod(self._sizes("o", shape))

    def blocks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Number of outputs of each block; one block without a split."""
        return self.split or (self.fan_out(shape),)

    def matrix_shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shape ``(*batch, fan_in, fan_out)`` of each block's matrices."""
        return tuple((*self._sizes("b", shape), self.fan_in(shape), block) for block in self.blocks(shape))

    def _order(self) -> tuple[int, ...]:
        return self._positions("b") + self._positions("i") + self._positions("o")

    def to_matrices(self, array: jax.Array) -> tuple[jax.Array, ...]:
        """``array`` as matrices ``(*batch, fan_in, fan_out)``, one for each block."""
        # Rows are always inputs, whatever the framework stores: "oi" and "io" give the same bits.
        ordered = jnp.transpose(array, self._order())
        batch = self._sizes("b", array.shape)
        matrices = ordered.reshape((*batch, self.fan_in(array.shape), self.fan_out(array.shape)))
        if self.split is None:
            return (matrices,)
        edges = [sum(self.split[:block]) for block in range(1, len(self.split))]
        return tuple(jnp.split(matrices, edges, axis=-1))

    def from_matrices(self, matrices: tuple[jax.Array, ...], shape: tuple[int, ...]) -> jax.Array:
        """The inverse of :meth:`to_matrices`: an array of ``shape``."""
        joined = matrices[0] if len(matrices) == 1 else jnp.concatenate(matrices, axis=-1)
        order = self._order()
        ordered = joined.reshape(tuple(shape[axis] for axis in order))
        return jnp.transpose(ordered, tuple(order.index(axis) for axis in range(len(order))))


def as_layout(layout: "Layout | str | None") -> Layout | None:
    """``layout`` with a string made a :class:`Layout`; ``None`` (no matrix) stays."""
    return layout if layout is None or isinstance(layout, Layout) else Layout(layout)
