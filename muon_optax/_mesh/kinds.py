"""Parameters on a mesh, and the kinds of their matrices."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.dims import Dims, Sizes, local_shape

Matrix: TypeAlias = tuple[int, int]  # (leaf index, index among that leaf's matrices on one device)


class Leaf(NamedTuple):
    """A parameter, or one block of a fused projection. Its update comes as ``there`` and leaves as ``back``."""

    path: str
    start: int  # of the block, along the parameter's output axis
    shape: tuple[int, ...]
    padded: tuple[int, ...]  # the shape, with zeros appended where the mesh does not divide an axis
    layout: Layout
    there: Dims
    back: Dims
    dtype: str  # in which its matrices travel
    orthogonalizer: str = ""  # its name

    def of_batch(self, values: Sequence) -> tuple:
        """Picks from one value for each axis those of the batch axes."""
        return tuple(value for value, letter in zip(values, self.layout.axes, strict=True) if letter == "b")

    def of_matrix(self, values: Sequence) -> tuple:
        """Picks from one value for each axis those of the other axes."""
        return tuple(value for value, letter in zip(values, self.layout.axes, strict=True) if letter != "b")

    def pool(self, sizes: Sizes) -> tuple[str, ...]:
        """The mesh axes that owners of its matrices differ by: those that do not divide its batch axes."""
        # Matrices stay among the devices that hold their part of the batch axes, so they reach fewer devices.
        batch = {axis for part in self.of_batch(self.there) for axis in part}
        return tuple(axis for axis in sizes if axis not in batch)

    def pieces_of(self, array: jax.Array) -> jax.Array:
        """Turns one device's part of the leaf into pieces ``(matrices, *piece)``."""
        batch = self.of_batch(range(array.ndim))
        return jnp.moveaxis(array, batch, range(len(batch))).reshape(-1, *self.of_matrix(array.shape))

    def array_of(self, pieces: jax.Array, before: jax.Array) -> jax.Array:
        """Turns pieces into one device's part of the updated leaf. ``before`` is its part of the leaf before."""
        batch = self.of_batch(range(before.ndim))
        array = pieces.reshape(*self.of_batch(before.shape), *pieces.shape[1:])
        return jnp.moveaxis(array, range(len(batch)), batch).astype(before.dtype)


class Piece(NamedTuple):
    """The part of a matrix that one device holds, before the update or after it."""

    dims: Dims
    shape: tuple[int, ...]
    columns: int  # of the piece seen as rows and columns
    divided: tuple[str, ...]  # the mesh axes that divide a matrix
    copied: tuple[str, ...]  # the other axes of the pool: along them every device holds the same pieces


class Kind(NamedTuple):
    """Matrices that agree in these properties, and so are the same to an owner."""

    layout: Layout  # of one matrix, without batch axes
    shape: tuple[int, ...]
    there: Piece
    back: Piece
    pool: tuple[str, ...]  # the mesh axes that owners differ by; all others divide the batch axes
    dtype: str
    orthogonalizer: str = ""  # its name: only what one function takes can run together

    @property
    def batched(self) -> Layout:
        """The layout of several of its matrices, one after another."""
        return Layout("b" + self.layout.axes, self.layout.split)


def kind_of(leaf: Leaf, sizes: Sizes) -> Kind:
    """The kind of a leaf's matrices."""
    pool = leaf.pool(sizes)
    letters, shape = "".join(leaf.of_matrix(leaf.layout.axes)), leaf.of_matrix(leaf.padded)
    # Heads and head dimension are one axis on the way: a TPU fills an array's last axis up to 128.
    merged = len(letters) - len(letters.rstrip(letters[-1]))

    def piece(dims: Dims) -> Piece:
        held = local_shape(shape, dims, sizes)
        divided = tuple(axis for axis in pool if any(axis in part for part in dims))
        copied = tuple(axis for axis in pool if axis not in divided)
        return Piece(dims, held, math.prod(held[-merged:]), divided, copied)

    there, back = piece(leaf.of_matrix(leaf.there)), piece(leaf.of_matrix(leaf.back))
    return Kind(Layout(letters, leaf.layout.split), shape, there, back, pool, leaf.dtype, leaf.orthogonalizer)


def matrices_by_kind(leaves: Sequence[Leaf], sizes: Sizes) -> dict[Kind, list[Matrix]]:
    """All matrices of which one device holds pieces, by kind. Arrays without elements have none."""
    found: dict[Kind, list[Matrix]] = {}
    for number, leaf in enumerate(leaves):
        if math.prod(leaf.shape):
            own = math.prod(leaf.of_batch(local_shape(leaf.padded, leaf.there, sizes)))
            found.setdefault(kind_of(leaf, sizes), []).extend((number, position) for position in range(own))
    return found
