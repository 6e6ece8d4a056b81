"""Matrices in their parameter's own axes, and statistics of each, for the family's sums and norms."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.typed import gather, relocate_like

Shape = tuple[int, ...]


def axes_of(layout: Layout, letters: str) -> tuple[int, ...]:
    """The axes of the parameter that ``letters`` name."""
    return tuple(axis for axis, letter in enumerate(layout.axes) if letter in letters)


def split_blocks(array: jax.Array, layout: Layout) -> list[jax.Array]:
    """The blocks of a split, or the array alone. Nothing is transposed, since sums run where shards lie."""
    if layout.split is None:
        return [array]
    edges = [sum(layout.split[:block]) for block in range(1, len(layout.split))]
    # Shards of the output axis may hold parts of two blocks.
    return jnp.split(gather(array), edges, axis=layout.axes.index("o"))


def join_blocks(blocks: Sequence[jax.Array], layout: Layout, like: jax.Array) -> jax.Array:
    """The inverse of :func:`split_blocks`, lying as ``like``."""
    joined = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=layout.axes.index("o"))
    return relocate_like(joined, like)


def join_statistics(parts: Sequence[jax.Array]) -> jax.Array:
    """One array of a leaf's statistics: as it is without a split, else the numbers of all blocks, one after another."""
    # One array a leaf, as wrappers of states expect: blocks of a split may have statistics along different axes.
    return parts[0] if len(parts) == 1 else jnp.concatenate([part.ravel() for part in parts])


def split_statistics(joined: jax.Array, shapes: Sequence[Shape]) -> list[jax.Array]:
    """The inverse of :func:`join_statistics`."""
    if len(shapes) == 1:
        return [joined]
    edges = [sum(map(math.prod, shapes[:block])) for block in range(1, len(shapes))]
    return [part.reshape(shape) for part, shape in zip(jnp.split(joined, edges), shapes, strict=True)]


def reduced(shape: Shape, axes: Sequence[int]) -> Shape:
    """``shape`` with size 1 on ``axes``, as a sum that keeps its axes has."""
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


# Compiled whole: `init` runs outside jit, where each operation would be a program for each shape.
@partial(jax.jit, static_argnames="layout")
def frobenius_norm(array: jax.Array, layout: Layout) -> jax.Array:
    """The norm of each matrix, broadcastable to ``array``."""
    axes = axes_of(layout, "io")
    largest = jnp.max(jnp.abs(array), axis=axes, keepdims=True, initial=0)
    # Divided first: squares of 1e-30 would vanish and squares of 1e30 would overflow.
    scaled = array / jnp.where(largest == 0, 1, largest)
    return largest * jnp.sqrt(jnp.sum(scaled**2, axis=axes, keepdims=True))


def nonzero(norm: jax.Array) -> jax.Array:
    """``norm`` as a divisor, without zeros, so a zero matrix stays zero."""
    return jnp.where(norm == 0, 1, norm)
