"""What a device holds of parameters: pieces of units, and how they become rows of a box."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._mesh.routes.model import Kind, Leaf, Routes, piece_shape, row_view
from muon_optax._mesh.shardings import Dims

Pieces: TypeAlias = dict[int, jax.Array]  # (units, *piece) by the number of the first unit
Sizes: TypeAlias = Mapping[str, int]
# So many panels are cut and joined as slices: a TPU's registers hold 8 x 128 elements of a panel as they are, and it is
# spared a transposition. More would make a long program.
_FEW_PANELS = 48


def count(axes: Sequence[str], sizes: Sizes) -> int:
    return math.prod(sizes[axis] for axis in axes)


def ranges(routes: Routes, numbers: Sequence[int]) -> Iterator[tuple[int, int, int | None]]:
    """Positions from start to end that hold units of one leaf one after the other, and the first unit, or no units."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end < len(numbers) and _continues(routes, numbers[end - 1], numbers[end]):
            continue
        yield start, end, numbers[start] if numbers[start] >= 0 else None
        start = end


def _continues(routes: Routes, before: int, here: int) -> bool:
    if before < 0 or here < 0:
        return before == here
    return here == before + 1 and routes.units[here].leaf == routes.units[before].leaf


def gathered(routes: Routes, kind: Kind, numbers: Sequence[int], arrays: Sequence[jax.Array]) -> jax.Array:
    """This device's pieces of units of one kind, ``(units, *piece)``, with zeros for none."""
    parts = []
    for start, end, first in ranges(routes, numbers):
        if first is None:
            parts.append(jnp.zeros((end - start, *piece_shape(kind, "there", routes.sizes)), kind.dtype))
            continue
        leaf = routes.leaves[routes.units[first].leaf]
        stack = as_stack(leaf, arrays[routes.units[first].leaf])
        units = [routes.units[number] for number in numbers[start:end]]
        if units[0].block is None:
            # Units of one leaf in their order: a part of its stack.
            parts.append(stack[units[0].position : units[0].position + len(units)])
            continue
        edges, output = [0, *accumulate(leaf.layout.split or ())], 1 + kind.layout.axes.index("o")
        for unit in units:
            whole, block = stack[unit.position : unit.position + 1], unit.block or 0
            parts.append(jax.lax.slice_in_dim(whole, edges[block], edges[block + 1], axis=output))
    return jnp.concatenate([part.astype(kind.dtype) for part in parts])


def as_stack(leaf: Leaf, array: jax.Array) -> jax.Array:
    """A leaf's local array with its batch axes in front, as one."""
    stacks = [position for position, letter in enumerate(leaf.layout.axes) if letter == "b"]
    return jnp.moveaxis(array, stacks, range(len(stacks))).reshape(-1, *leaf.unstacked(array.shape))


def from_pieces(leaf: Leaf, pieces: Sequence[jax.Array], array: jax.Array) -> jax.Array:
    """This device's part of a leaf from its pieces of all the leaf's units, in their order."""
    stacks = [position for position, letter in enumerate(leaf.layout.axes) if letter == "b"]
    batch = leaf.stacked(array.shape)
    apart = sum(map(len, pieces)) // math.prod(batch)  # one, or the blocks of a split that had owners of their own
    if apart > 1:
        blocks = [block for part in pieces for block in part]
        output = leaf.unstacked(leaf.layout.axes).index("o")
        groups = [blocks[first : first + apart] for first in range(0, len(blocks), apart)]
        pieces = [jnp.concatenate(group, axis=output)[None] for group in groups]
    stack = jnp.concatenate(pieces)
    return jnp.moveaxis(stack.reshape(*batch, *stack.shape[1:]), range(len(stacks)), stacks).astype(array.dtype)


def to_rows(pieces: jax.Array, kind: Kind, width: int) -> jax.Array:
    """Pieces ``(*devices, *piece)`` as rows of a box: panels of ``width`` columns one below the other.

    If the columns are no multiple of the width, the elements in order.
    """
    lead = pieces.shape[: pieces.ndim - len(kind.shape)]
    rows, columns = row_view(kind, pieces.shape[len(lead) :])
    if columns % width == 0:
        panels = columns // width
        matrix = pieces.reshape(*lead, rows, columns)
        if panels <= _FEW_PANELS:
            return jnp.concatenate(jnp.split(matrix, panels, axis=-1), axis=-2)
        return jnp.swapaxes(matrix.reshape(*lead, rows, panels, width), -2, -3).reshape(*lead, rows * panels, width)
    elements = pieces.reshape(*lead, rows * columns)
    padding = [(0, 0)] * len(lead) + [(0, -elements.shape[-1] % width)]
    return jnp.pad(elements, padding).reshape(*lead, -1, width)


def from_rows(rows: jax.Array, kind: Kind, piece: tuple[int, ...]) -> jax.Array:
    """The inverse of :func:`to_rows`: ``(*devices, *piece)``."""
    lead, width = rows.shape[:-2], rows.shape[-1]
    _, columns = row_view(kind, piece)
    if columns % width == 0:
        panels = columns // width
        if panels <= _FEW_PANELS:
            return jnp.concatenate(jnp.split(rows, panels, axis=-2), axis=-1).reshape(*lead, *piece)
        return jnp.swapaxes(rows.reshape(*lead, panels, -1, width), -2, -3).reshape(*lead, *piece)
    return rows.reshape(*lead, -1)[..., : math.prod(piece)].reshape(*lead, *piece)


def _grid(dims: Dims, sizes: Sizes) -> tuple[tuple[int, ...], list[int]]:
    """The sizes of the mesh axes that ``dims`` name, in the order of the mesh, and for each axis its place in there."""
    present = {axis for part in dims for axis in part}
    ordered = [axis for axis in sizes if axis in present]
    return tuple(sizes[axis] for axis in ordered), [ordered.index(axis) for part in dims for axis in part]


def join(pieces: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """Pieces ``(devices, *piece)``, devices in the order of the mesh, as the whole that they are divided from."""
    grid, places = _grid(dims, sizes)
    spread = pieces.reshape(*grid, *pieces.shape[1:])
    order, taken = [], 0
    for axis, part in enumerate(dims):
        order += [*places[taken : taken + len(part)], len(grid) + axis]
        taken += len(part)
    shape = [size * count(part, sizes) for size, part in zip(pieces.shape[1:], dims, strict=True)]
    return jnp.transpose(spread, order).reshape(shape)


def divide(whole: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """The inverse of :func:`join`."""
    grid, places = _grid(dims, sizes)
    shape, at, order, taken = [], 0, [0] * len(grid), 0
    rest = []
    for size, part in zip(whole.shape, dims, strict=True):
        for axis in part:
            order[places[taken]] = at
            shape.append(sizes[axis])
            taken, at = taken + 1, at + 1
        shape.append(size // count(part, sizes))
        rest.append(at)
        at += 1
    spread = jnp.transpose(whole.reshape(shape), order + rest)
    return spread.reshape(math.prod(grid), *(spread.shape[len(grid) :]))
