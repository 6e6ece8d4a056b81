"""What a device holds of parameters: pieces of matrices, and how they become rows of a stack and back."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import jax
import jax.numpy as jnp

from muon_optax._mesh.kinds import Kind, Leaf
from muon_optax._mesh.shardings import Dims, Sizes, count
from muon_optax._mesh.stacks import Direction, Stack

# So many panels are cut and joined as slices: a TPU's registers hold 8 x 128 elements of a panel as they are, and it is
# spared a transposition. More would make a long program.
_FEW_PANELS = 48


def runs(numbers: Sequence[int], firsts: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Matrices of one leaf that follow each other: the leaf (-1 for zeros), the first number, how many."""

    def belongs(position: int) -> tuple[int, int]:
        number = numbers[position]
        return (block_of(number, firsts), number - position) if number >= 0 else (-1, 0)

    for (leaf, _), same in groupby(range(len(numbers)), belongs):
        positions = list(same)
        yield leaf, numbers[positions[0]], len(positions)


def block_of(number: int, firsts: Sequence[int]) -> int:
    """The block that a matrix is of."""
    return bisect_right(firsts, number) - 1


def as_stack(leaf: Leaf, array: jax.Array) -> jax.Array:
    """A leaf's local array as ``(matrices, *piece)``."""
    batch = [position for position, letter in enumerate(leaf.layout.axes) if letter == "b"]
    return jnp.moveaxis(array, batch, range(len(batch))).reshape(-1, *leaf.of_matrix(array.shape))


def from_stack(leaf: Leaf, stack: jax.Array, before: jax.Array) -> jax.Array:
    """The inverse of :func:`as_stack`, in the dtype and with the batch axes that the array had before."""
    batch = [position for position, letter in enumerate(leaf.layout.axes) if letter == "b"]
    spread = stack.reshape(*leaf.of_batch(before.shape), *stack.shape[1:])
    return jnp.moveaxis(spread, range(len(batch)), batch).astype(before.dtype)


def write(stack: Stack, direction: Direction, pieces: Mapping[Kind, jax.Array], lead: int) -> jax.Array:
    """Pieces ``(lead, matrices, *piece)`` of each kind, one below the other as ``(lead, rows, width)``."""
    width, dtype = stack.width(direction), stack.kinds[0].dtype
    parts = [_to_rows(own, getattr(kind, direction).view, width) for kind, own in pieces.items()]
    empty = stack.rows(direction) - sum(part.shape[1] for part in parts)
    return jnp.concatenate([*parts, jnp.zeros((lead, empty, width), dtype)], axis=1)


def read(stack: Stack, direction: Direction, held: Sequence[int], rows: jax.Array) -> dict[Kind, jax.Array]:
    """The inverse of :func:`write`, for so many matrices of each kind."""
    pieces, end = {}, 0
    for kind, matrices in zip(stack.kinds, held, strict=True):
        if matrices:
            height, way = stack.height(kind, direction), getattr(kind, direction)
            own = rows[:, end : end + matrices * height].reshape(-1, matrices, height, rows.shape[-1])
            pieces[kind] = _from_rows(own, way.view).reshape(-1, matrices, *way.piece)
            end += matrices * height
    return pieces


def _to_rows(pieces: jax.Array, view: tuple[int, int], width: int) -> jax.Array:
    """Panels of ``width`` columns one below the other; if that divides no columns, the elements in order."""
    (rows, columns), lead = view, pieces.shape[:2]
    panels = columns // width
    if columns % width:
        elements = pieces.reshape(*lead, -1)
        cut = jnp.pad(elements, [(0, 0), (0, 0), (0, -elements.shape[-1] % width)])
    elif panels <= _FEW_PANELS:
        cut = jnp.concatenate(jnp.split(pieces.reshape(*lead, rows, columns), panels, axis=-1), axis=-2)
    else:
        cut = jnp.swapaxes(pieces.reshape(*lead, rows, panels, width), -2, -3)
    return cut.reshape(lead[0], -1, width)


def _from_rows(cut: jax.Array, view: tuple[int, int]) -> jax.Array:
    """The inverse of :func:`_to_rows`, of ``(lead, matrices, height, width)``."""
    (rows, columns), (*lead, _, width) = view, cut.shape
    panels = columns // width
    if columns % width:
        return cut.reshape(*lead, -1)[..., : rows * columns]
    if panels <= _FEW_PANELS:
        return jnp.concatenate(jnp.split(cut, panels, axis=-2), axis=-1)
    return jnp.swapaxes(cut.reshape(*lead, panels, rows, width), -2, -3)


def join(pieces: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """Pieces ``(devices, *piece)``, devices in the order of the mesh, as the whole that they are divided from."""
    major, minor = _axes(dims, sizes)
    shape = [size * count(part, sizes) for size, part in zip(pieces.shape[1:], dims, strict=True)]
    grid = pieces.reshape(*(sizes[axis] for axis in major), *pieces.shape[1:])
    return jnp.transpose(grid, [[*major, *range(len(dims))].index(axis) for axis in minor]).reshape(shape)


def divide(whole: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """The inverse of :func:`join`."""
    major, minor = _axes(dims, sizes)
    piece = [size // count(part, sizes) for size, part in zip(whole.shape, dims, strict=True)]
    grid = whole.reshape([piece[axis] if isinstance(axis, int) else sizes[axis] for axis in minor])
    order = [minor.index(axis) for axis in [*major, *range(len(dims))]]
    return jnp.transpose(grid, order).reshape(-1, *piece)


def _axes(dims: Dims, sizes: Sizes) -> tuple[list[str], list[str | int]]:
    """The mesh axes that divide an array, in the order of the mesh; and where they stand among the array's own axes."""
    present = {axis for part in dims for axis in part}
    return [axis for axis in sizes if axis in present], [
        axis for number, part in enumerate(dims) for axis in (*part, number)
    ]
