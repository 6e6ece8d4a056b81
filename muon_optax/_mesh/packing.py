"""Pieces in the rows of a stack, and whole matrices from their pieces."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import jax
import jax.numpy as jnp

from muon_optax._mesh.dims import Dims, Sizes, count
from muon_optax._mesh.stacks import Held, Stack, Way


def open_rows(stack: Stack, held: Held, rows: jax.Array) -> list[tuple[jax.Array, str]]:
    """An owner's blocks ``(matrices, rows, cols)`` from all senders' rows, each with its orthogonalizer's name."""
    blocks = []
    for (kind, turns), pieces in zip(stack.contents(held), read(stack, stack.there, held, rows), strict=True):
        by_sender = pieces.reshape(-1, turns.stop - turns.start, *kind.there.shape)
        whole = jax.vmap(partial(join, dims=kind.there.dims, sizes=stack.sizes), in_axes=1)(by_sender)
        blocks += [(matrices, kind.orthogonalizer) for matrices in kind.batched.to_matrices(whole)]
    return blocks


def close_rows(stack: Stack, held: Held, blocks: Iterator[jax.Array]) -> jax.Array:
    """The inverse of :func:`open_rows`, without names: all receivers' rows ``(receivers, rows, width)``."""
    pieces = []
    for kind, _ in stack.contents(held):
        own = tuple(islice(blocks, len(kind.layout.blocks(kind.shape))))
        whole = kind.batched.from_matrices(own, (len(own[0]), *kind.shape)).astype(kind.dtype)
        by_receiver = jax.vmap(partial(divide, dims=kind.back.dims, sizes=stack.sizes), out_axes=1)(whole)
        pieces.append(by_receiver.reshape(-1, *kind.back.shape))
    return write(stack, stack.back, held, pieces, stack.back.devices)


def write(stack: Stack, way: Way, held: Held, pieces: Sequence[jax.Array], lead: int) -> jax.Array:
    """Writes the pieces ``(lead times matrices, *piece)`` of each kind below each other, as ``(lead, rows, width)``."""
    rows = []
    for (kind, _), own in zip(stack.contents(held), pieces, strict=True):
        columns = way.pieces[kind].columns
        if columns % way.width:
            # Kinds without a common width share a stack as a row of elements.
            flat = own.reshape(len(own), -1)
            own = jnp.pad(flat, [(0, 0), (0, -flat.shape[1] % way.width)])
        else:
            # Panels of columns need no transposition, since a TPU's registers hold 8 x 128 of their elements as is.
            panels = jnp.split(own.reshape(len(own), -1, columns), columns // way.width, axis=2)
            own = jnp.concatenate(panels, axis=1)
        rows.append(own.reshape(lead, -1, way.width))
    empty = way.rows - sum(own.shape[1] for own in rows)
    if empty:
        rows.append(jnp.zeros((lead, empty, way.width), stack.dtype))
    return jnp.concatenate(rows, axis=1)


def read(stack: Stack, way: Way, held: Held, rows: jax.Array) -> list[jax.Array]:
    """The inverse of :func:`write`."""
    pieces, end = [], 0
    for kind, turns in stack.contents(held):
        piece, height = way.pieces[kind], way.height(kind)
        start, end = end, end + (turns.stop - turns.start) * height
        own = rows[:, start:end].reshape(-1, height, way.width)
        if piece.columns % way.width:
            own = own.reshape(len(own), -1)[:, : math.prod(piece.shape)]
        else:
            own = jnp.concatenate(jnp.split(own, piece.columns // way.width, axis=1), axis=2)
        pieces.append(own.reshape(-1, *piece.shape))
    return pieces


def join(pieces: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """Joins the pieces ``(devices, *piece)`` of an array, with devices in the order of the mesh."""
    # Collectives see devices in the order of the mesh; an axis may be divided in another, such as ("model", "data").
    outer, inner = _axes(dims, sizes)
    shape = [size * count(part, sizes) for size, part in zip(pieces.shape[1:], dims, strict=True)]
    grid = pieces.reshape(*(sizes[axis] for axis in outer), *pieces.shape[1:])
    return jnp.transpose(grid, [[*outer, *range(len(dims))].index(axis) for axis in inner]).reshape(shape)


def divide(whole: jax.Array, dims: Dims, sizes: Sizes) -> jax.Array:
    """The inverse of :func:`join`."""
    outer, inner = _axes(dims, sizes)
    piece = [size // count(part, sizes) for size, part in zip(whole.shape, dims, strict=True)]
    grid = whole.reshape([piece[axis] if isinstance(axis, int) else sizes[axis] for axis in inner])
    return jnp.transpose(grid, [inner.index(axis) for axis in [*outer, *range(len(dims))]]).reshape(-1, *piece)


def _axes(dims: Dims, sizes: Sizes) -> tuple[list[str], list[str | int]]:
    """The mesh axes that divide an array, in the order of the mesh, and their places among the array's own axes."""
    inner = [axis for number, part in enumerate(dims) for axis in (*part, number)]
    return [axis for axis in sizes if axis in inner], inner
