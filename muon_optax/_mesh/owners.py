"""Owners: which device orthogonalizes which matrix, and the stacks in which matrices travel to them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from muon_optax._mesh.kinds import Kind, Matrix, Way
from muon_optax._mesh.shardings import Sizes, count

Direction: TypeAlias = Literal["there", "back"]
Owned: TypeAlias = tuple[tuple[Matrix | None, ...], ...]  # by owner, in the order of the mesh; None stands for zeros
# A row's width where kinds have no common one: the lanes of a TPU's register.
_LANES = 128


def give_away(
    matrices: Mapping[Kind, Sequence[Matrix]], costs: Mapping[Kind, float], sizes: Sizes
) -> tuple[dict[Kind, Owned], np.ndarray]:
    """Gives every matrix an owner, with no device having more than its share and one matrix.

    The costliest go first, one to every device before any gets a second, the idlest device first.

    Returns:
        Of every kind its owners' matrices, and for all devices of the mesh what theirs cost.
    """
    load, owned = np.zeros(tuple(sizes.values())), {}
    # Matrices that stay among few devices choose first. The others even out what those leave.
    for pool in sorted({kind.pool: None for kind in matrices}, key=len):
        before = load.max(axis=tuple(at for at, axis in enumerate(sizes) if axis not in pool), keepdims=True)
        own, idlest = before.flatten(), []
        for kind in sorted((kind for kind in matrices if kind.pool == pool), key=lambda kind: -costs[kind]):
            numbers = np.zeros(own.size, int)
            for _ in matrices[kind]:
                # Rounding errors don't count, and equals keep the order of the mesh: that makes stacks regular.
                idlest = idlest or np.argsort(own.round(6), kind="stable").tolist()
                numbers[idlest[0]] += 1
                own[idlest.pop(0)] += costs[kind]
            # Which matrix goes where is free: only numbers cost.
            # Neighbors go to one owner: of scanned layers they are one slice.
            ends = np.cumsum(numbers)
            owned[kind] = tuple(tuple(matrices[kind][end - n : end]) for end, n in zip(ends, numbers, strict=True))
        load = load + (own.reshape(before.shape) - before)
    return owned, load


@dataclass(frozen=True)
class Stack:
    """Matrices that travel together in one send and one return: an array ``(owners, rows, width)`` each way."""

    sizes: Sizes
    owned: Mapping[Kind, Owned]

    @cached_property
    def held(self) -> list[tuple[int, ...]]:
        """How many matrices of each kind each owner has."""
        return list(zip(*(map(len, owned) for owned in self.owned.values()), strict=True))

    @cached_property
    def mixed(self) -> bool:
        """Whether owners differ in what they do."""
        return len(set(self.held)) > 1

    def parts(self, held: Sequence[int]) -> list[tuple[Kind, slice]]:
        """In what order an owner's matrices lie, where it has so many of each kind: a kind, and which of its own."""
        if not self.mixed:
            return [(self.kind, slice(0, held[0]))]
        # One by one: large matrices are slower in a loop, and XLA joins a slice with its use, but not across a reshape.
        return [(kind, slice(at, at + 1)) for kind, own in zip(self.owned, held, strict=True) for at in range(own)]

    @property
    def kind(self) -> Kind:
        """Any of its kinds, which agree in their pool, in the mesh axes that divide them, and in dtype."""
        return next(iter(self.owned))

    @property
    def turn_bytes(self) -> int:
        """Bytes of whole matrices on the owner that has most; in a stack of one kind, of one matrix each."""
        sizes = [math.prod(kind.shape) * jnp.dtype(kind.dtype).itemsize for kind in self.owned]
        return max(_dot(sizes, held) for held in self.held) if self.mixed else sizes[0]

    def ordered(self, direction: Direction) -> list[list[int]]:
        """The owners, for each copy in the order in which a collective over the mesh axes of the way sees them."""
        way, pool = getattr(self.kind, direction), self.kind.pool
        numbers = np.arange(len(self.held)).reshape([self.sizes[axis] for axis in pool])
        numbers = numbers.transpose([pool.index(axis) for axis in way.copied + way.divided])
        return numbers.reshape(count(way.copied, self.sizes), -1).tolist()

    def width(self, direction: Direction) -> int:
        """Elements of a row."""
        columns = {getattr(kind, direction).columns for kind in self.owned}
        divisor = math.gcd(*columns)
        return divisor if divisor >= _LANES or columns == {divisor} else _LANES

    def height(self, way: Way, direction: Direction) -> int:
        """Rows that a piece takes."""
        return -(-math.prod(way.piece) // self.width(direction))

    def rows(self, direction: Direction) -> int:
        """Rows of the owner that has most."""
        heights = [self.height(getattr(kind, direction), direction) for kind in self.owned]
        return max(_dot(heights, held) for held in self.held)


def _dot(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(map(math.prod, zip(one, other, strict=True)))


def make_stacks(owned: Mapping[Kind, Owned], sizes: Sizes) -> Iterator[Stack]:
    """A stack for each kind of which all owners have some, and mixed stacks for what is left over."""
    # One collective moves what is divided over the same mesh axes, on both ways, in one dtype.
    together: dict[object, list[Kind]] = {}
    for kind in owned:
        ways = [(way.divided, way.copied) for way in (kind.there, kind.back)]
        together.setdefault((kind.pool, *ways, kind.dtype), []).append(kind)
    for kinds in together.values():
        numbers = {kind: list(map(len, owned[kind])) for kind in kinds}
        rest = [kind for kind in kinds if min(numbers[kind]) < max(numbers[kind])]
        for kind in kinds:
            # Where one kind alone is left over, zeros fill its last turn: that needs no branches, and nobody waits.
            turns = max(numbers[kind]) if rest == [kind] else min(numbers[kind])
            if turns:
                filled = tuple((*own, *[None] * (turns - len(own)))[:turns] for own in owned[kind])
                yield Stack(sizes, {kind: filled})
        if len(rest) > 1:
            yield Stack(sizes, {kind: tuple(own[min(numbers[kind]) :] for own in owned[kind]) for kind in rest})


def make_batches(stacks: Sequence[Stack], enough: int) -> Iterator[tuple[Stack, ...]]:
    """Stacks that travel at once; those of one kind may be cut. ``enough`` bytes of matrices need not be.

    While a batch is under way, the results of those before it are in memory, and its own matrices about three times: as
    they came, orthogonalized, and packed. So batches become shorter. Where each is a third of what is left and of a
    third of all, the peak is four thirds of all, and about four batches are enough.
    """
    turns = [1 if stack.mixed else stack.held[0][0] for stack in stacks]
    left = total = sum(stack.turn_bytes * own for stack, own in zip(stacks, turns, strict=True))
    batch, size = [], 0
    # Of large matrices less is left behind than is needed on the way, so they go first.
    for stack, own in sorted(zip(stacks, turns, strict=True), key=lambda pair: -pair[0].turn_bytes):
        start = 0
        while start < own:
            room = int((max(enough, (left + total / 3) / 3) - size) // stack.turn_bytes)
            if room < 1 and batch:
                yield tuple(batch)
                left, batch, size = left - size, [], 0
                continue
            end = min(own, start + max(1, room))
            cut = {kind: tuple(each[start:end] for each in owned) for kind, owned in stack.owned.items()}
            batch.append(stack if end - start == own else replace(stack, owned=cut))
            size, start = size + (end - start) * stack.turn_bytes, end
    if batch:
        yield tuple(batch)
