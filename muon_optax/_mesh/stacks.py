"""The stacks in which matrices travel to their owners and back, and the batches of stacks in memory at once."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from muon_optax._mesh.dims import Sizes, count
from muon_optax._mesh.kinds import Kind, Matrix, Piece
from muon_optax._mesh.owners import Owned, by_device

Held: TypeAlias = tuple[int, ...]  # the number of matrices that one owner has, for each kind of a stack
# A row's width where kinds have no common one: the lanes of a TPU's register.
_LANES = 128
# Zeros save a branch and two collectives. They may add this share to the work of the busiest device.
ZEROS = 0.02


class Way:
    """One of a stack's two ways, to its owners or back. It describes the array ``(owners, rows, width)`` that travels.

    ``owners[copy][i]`` is the number of the owner at position ``i`` along ``divided``, in the order of the mesh, for
    that copy. There are as many owners as ``devices`` along the divided axes times ``copies``.
    """

    def __init__(self, pieces: Mapping[Kind, Piece], held: Sequence[Held], sizes: Sizes) -> None:
        self.pieces = pieces
        # All kinds of a stack agree in these, so one collective along each moves them all.
        kind, piece = next(iter(pieces.items()))
        self.divided, self.copied = piece.divided, piece.copied
        self.devices, self.copies = count(self.divided, sizes), count(self.copied, sizes)
        # Each copy serves a share of the owners, in the order in which a collective along the divided axes sees them.
        order = [kind.pool.index(axis) for axis in self.copied + self.divided]
        numbers = np.arange(len(held)).reshape([sizes[axis] for axis in kind.pool]).transpose(order)
        self.owners: list[list[int]] = numbers.reshape(self.copies, self.devices).tolist()
        # A row is as wide as all pieces, or as the widest panel that all consist of, if that fills a register.
        columns = {piece.columns for piece in pieces.values()}
        divisor = math.gcd(*columns)
        self.width = divisor if columns == {divisor} else max(divisor, _LANES)
        # Collectives need equal parts, so every owner gets as many rows as the one that has most.
        self.rows = max(dot([self.height(kind) for kind in pieces], own) for own in held)
        # The bytes that a device packs, or receives.
        self.bytes = self.devices * self.rows * self.width * jnp.dtype(kind.dtype).itemsize

    def height(self, kind: Kind) -> int:
        """The number of rows that a piece fills."""
        return -(-math.prod(self.pieces[kind].shape) // self.width)


class Stack:
    """Matrices that travel together. Kinds agree in pool and dtype, and on each way in the axes that divide them."""

    def __init__(self, sizes: Sizes, owned: Mapping[Kind, Owned]) -> None:
        self.sizes, self.owned = sizes, owned
        first = next(iter(owned))
        self.pool, self.dtype = first.pool, first.dtype
        # The number of matrices of each kind, by owner. In a mixed stack owners differ, and each runs its own branch.
        self.held: list[Held] = list(zip(*(map(len, owners) for owners in owned.values()), strict=True))
        self.mixed = len(set(self.held)) > 1
        self.there = Way({kind: kind.there for kind in owned}, self.held, sizes)
        self.back = Way({kind: kind.back for kind in owned}, self.held, sizes)
        # A turn is one matrix of each owner, if all hold one kind. A mixed stack is not cut into turns.
        self.turns = 1 if self.mixed else self.held[0][0]
        # The bytes of whole matrices, on the owner that has most.
        matrices = [math.prod(kind.shape) * jnp.dtype(kind.dtype).itemsize for kind in owned]
        self.bytes = max(dot(matrices, own) for own in self.held)

    def held_by_device(self) -> list[Held]:
        """The value of ``held`` for each device of the mesh."""
        return [self.held[owner] for owner in by_device(range(len(self.held)), self.pool, self.sizes).flat]

    def cut(self, start: int, end: int) -> "Stack":
        """A stack of the turns from ``start`` to ``end``."""
        if (start, end) == (0, self.turns):
            return self
        return Stack(self.sizes, {kind: tuple(own[start:end] for own in each) for kind, each in self.owned.items()})

    def contents(self, held: Held) -> list[tuple[Kind, slice]]:
        """An owner's matrices in the order of their rows, as (kind, slice of the owner's matrices of that kind)."""
        if not self.mixed:
            return [(kind, slice(0, own)) for kind, own in zip(self.owned, held, strict=True)]
        # One by one, since large matrices are slower in a loop. XLA fuses a slice with its use, not across a reshape.
        return [(kind, slice(at, at + 1)) for kind, own in zip(self.owned, held, strict=True) for at in range(own)]

    def alike(self, owners: Iterable[int]) -> Iterator[tuple[Held, list[int]]]:
        """Groups neighbors among ``owners`` that hold equally many of each kind. Groups keep the program short."""
        for held, same in groupby(owners, self.held.__getitem__):
            yield held, list(same)

    def runs(self, kind: Kind, turns: slice, owners: Sequence[int]) -> Iterator[tuple[Matrix | None, int]]:
        """Runs of matrices that follow each other in one leaf, as (first matrix, or ``None`` for zeros; length)."""
        matrices = [matrix for owner in owners for matrix in self.owned[kind][owner][turns]]
        for key, same in groupby(enumerate(matrices), lambda pair: pair[1] and (pair[1][0], pair[1][1] - pair[0])):
            run = [matrix for _, matrix in same]
            yield (None if key is None else run[0]), len(run)


def dot(one: Sequence[int], other: Sequence[int]) -> int:
    """The sum of products."""
    return sum(map(math.prod, zip(one, other, strict=True)))


def make_stacks(
    owned: Mapping[Kind, Owned], flops: Mapping[Kind, float], loads: np.ndarray, sizes: Sizes
) -> Iterator[Stack]:
    """Makes a stack for each kind of which all owners have some, and mixed stacks for the rest.

    ``flops`` has the FLOPs of one matrix of each kind, ``loads`` those of each device of the mesh.
    """
    # One collective moves matrices that are divided over the same mesh axes, on both ways, in one dtype.
    together: dict[object, list[Kind]] = {}
    for kind in owned:
        ways = [(piece.divided, piece.copied) for piece in (kind.there, kind.back)]
        together.setdefault((kind.pool, *ways, kind.dtype), []).append(kind)
    work = loads
    for kinds in together.values():
        numbers = {kind: np.array(list(map(len, owned[kind]))) for kind in kinds}
        turns = {kind: own.min() for kind, own in numbers.items()}
        rest = [kind for kind in kinds if turns[kind] < numbers[kind].max()]
        if len(rest) == 1:
            # Zeros that fill a last turn need no branches, but they cost as much as matrices. Only devices that would
            # otherwise wait may orthogonalize them.
            (kind,) = rest
            most = numbers[kind].max()
            filled = work + flops[kind] * by_device(most - numbers[kind], kind.pool, sizes)
            if filled.max() <= (1 + ZEROS) * loads.max():
                work, turns[kind], rest = filled, most, []
        for kind in kinds:
            if turns[kind]:
                padded = tuple((*own, *[None] * turns[kind])[: turns[kind]] for own in owned[kind])
                yield Stack(sizes, {kind: padded})
        if rest:
            yield Stack(sizes, {kind: tuple(own[turns[kind] :] for own in owned[kind]) for kind in rest})


def make_batches(stacks: Sequence[Stack], enough: int) -> Iterator[tuple[Stack, ...]]:
    """Splits stacks into batches that travel in turn. A total of at most ``enough`` bytes stays one batch."""
    # Before a batch of b bytes, L of all T bytes are left. Memory then holds T - L of results, and b three times: as
    # they came, orthogonalized, and packed. b = (L + T / 3) / 3 makes that T - L + L + T / 3 = 4/3 of T in every batch.
    # L + T / 3 falls from 4/3 of T by a third each time, and is at 1/3 of T after log(4) / log(3/2) = 3.4 batches.
    left = total = sum(stack.bytes for stack in stacks)
    batch, size = [], 0
    # Large matrices go first, since they need more on the way than they leave behind.
    for stack in sorted(stacks, key=lambda stack: -stack.bytes // stack.turns):
        start, turn = 0, stack.bytes // stack.turns
        while start < stack.turns:
            room = int((max(enough, (left + total / 3) / 3) - size) // turn)
            if room < 1 and batch:
                yield tuple(batch)
                left, batch, size = left - size, [], 0
                continue
            end = min(stack.turns, start + max(1, room))
            batch.append(stack.cut(start, end))
            size, start = size + (end - start) * turn, end
    if batch:
        yield tuple(batch)
