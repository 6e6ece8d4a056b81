"""Parameters on a mesh, and the kinds of their matrices."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import jax.numpy as jnp

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.shardings import Dims, Sizes, local_shape


@dataclass(frozen=True)
class Leaf:
    """A parameter on the mesh: ``there`` is how its update comes, ``back`` how the result leaves."""

    path: str
    given: tuple[int, ...]  # the parameter's shape
    shape: tuple[int, ...]  # the same, with zeros appended where the mesh doesn't divide an axis
    layout: Layout
    there: Dims
    back: Dims
    dtype: str  # in which its matrices travel

    def of_batch(self, values: Sequence) -> tuple:
        """Of one value an axis, those of the batch axes."""
        return tuple(value for value, letter in zip(values, self.layout.axes, strict=True) if letter == "b")

    def of_matrix(self, values: Sequence) -> tuple:
        """Of one value an axis, all others."""
        return tuple(value for value, letter in zip(values, self.layout.axes, strict=True) if letter != "b")

    def matrices(self, sizes: Sizes) -> int:
        """How many matrices a device has pieces of."""
        return math.prod(self.of_batch(local_shape(self.shape, self.there, sizes))) if math.prod(self.shape) else 0

    def edges(self) -> list[int]:
        """Where to cut a fused projection into blocks, each a leaf with owners of its own; nowhere for others."""
        # Where the output axis is divided, a piece holds parts of several blocks.
        split, output = self.layout.split, self.layout.axes.index("o")
        return [] if split is None or self.there[output] or self.back[output] else list(accumulate(split))[:-1]

    def blocks(self) -> list["Leaf"]:
        """The leaves that it is cut into."""
        if not self.edges():
            return [self]
        output = self.layout.axes.index("o")
        shapes = [
            (*self.shape[:output], end - start, *self.shape[output + 1 :])
            for start, end in pairwise([0, *self.edges(), self.shape[output]])
        ]
        plain = Layout(self.layout.axes)
        return [Leaf(self.path, shape, shape, plain, self.there, self.back, self.dtype) for shape in shapes]


class Way(NamedTuple):
    """How the matrices of a kind lie at one end of their way."""

    dims: Dims
    piece: tuple[int, ...]  # the part of a matrix that a device holds
    view: tuple[int, int]  # the same as rows and columns
    divided: tuple[str, ...]  # the mesh axes that divide a matrix
    copied: tuple[str, ...]  # the other axes of the pool: along them all devices hold the same pieces


class Kind(NamedTuple):
    """What matrices must agree on to travel together: all that an owner has to know of them."""

    layout: Layout  # of one matrix, without batch axes
    shape: tuple[int, ...]
    there: Way
    back: Way
    pool: tuple[str, ...]  # the mesh axes that owners differ by; the others divide the batch axes
    dtype: str

    @property
    def bytes(self) -> int:
        """Of one matrix."""
        return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize


def kind_of(leaf: Leaf, sizes: Sizes) -> Kind:
    """The kind of a leaf's matrices. They stay among the devices that hold their part of the batch axes."""
    batch = {axis for part in leaf.of_batch(leaf.there) for axis in part}
    pool = tuple(axis for axis in sizes if axis not in batch)
    letters, shape = "".join(leaf.of_matrix(leaf.layout.axes)), leaf.of_matrix(leaf.shape)
    columns = len(letters) - len(letters.rstrip(letters[-1]))

    def way(dims: Dims) -> Way:
        dims = leaf.of_matrix(dims)
        piece = local_shape(shape, dims, sizes)
        divided = tuple(axis for axis in pool if any(axis in part for part in dims))
        copied = tuple(axis for axis in pool if axis not in divided)
        return Way(dims, piece, (math.prod(piece[:-columns]), math.prod(piece[-columns:])), divided, copied)

    return Kind(Layout(letters, leaf.layout.split), shape, way(leaf.there), way(leaf.back), pool, leaf.dtype)


def blocks_of(leaves: Iterable[Leaf]) -> list[Leaf]:
    """All leaves, with fused projections cut into blocks."""
    return list(chain.from_iterable(leaf.blocks() for leaf in leaves))


def first_numbers(blocks: Iterable[Leaf], sizes: Sizes) -> list[int]:
    """The number of the first matrix of each block, where all matrices that a device has pieces of are numbered."""
    return list(accumulate((block.matrices(sizes) for block in blocks), initial=0))


def numbered(leaves: Iterable[Leaf], sizes: Sizes) -> dict[Kind, list[int]]:
    """The matrices of each kind by number."""
    numbers: dict[Kind, list[int]] = {}
    blocks = blocks_of(leaves)
    for block, (start, end) in zip(blocks, pairwise(first_numbers(blocks, sizes)), strict=True):
        if start < end:
            numbers.setdefault(kind_of(block, sizes), []).extend(range(start, end))
    return numbers
