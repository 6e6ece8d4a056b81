"""Stacks: the matrices that travel together, and the batches in which stacks follow each other."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from muon_optax._mesh.kinds import Kind, Way
from muon_optax._mesh.shardings import Sizes, count

Direction: TypeAlias = Literal["there", "back"]
# Width of a stack whose kinds have no common width: the lanes of a TPU's register.
_LANES = 128


@dataclass(frozen=True)
class Stack:
    """Matrices that travel together, in one send and one return: an array ``(owners, rows, width)`` each way.

    ``owned`` has for each owner, and of each kind, the numbers of its matrices; -1 stands for zeros. Owners are counted
    in the order of the mesh.
    """

    sizes: Sizes
    kinds: tuple[Kind, ...]
    owned: tuple[tuple[tuple[int, ...], ...], ...]

    @cached_property
    def held(self) -> list[tuple[int, ...]]:
        """How many matrices of each kind each owner has."""
        return [tuple(map(len, numbers)) for numbers in self.owned]

    def way(self, direction: Direction) -> Way:
        """How the matrices lie: all kinds of a stack are divided over the same mesh axes."""
        return getattr(self.kinds[0], direction)

    def devices(self, direction: Direction) -> tuple[int, int]:
        """How many divide a matrix, and how many copies of its pieces there are."""
        way = self.way(direction)
        return count(way.divided, self.sizes), count(way.copied, self.sizes)

    def order(self, direction: Direction) -> list[list[int]]:
        """For each copy its owners, in the order in which a collective over the mesh axes of the way sees them."""
        way, pool = self.way(direction), self.kinds[0].pool
        numbers = np.arange(len(self.owned)).reshape([self.sizes[axis] for axis in pool])
        ordered = numbers.transpose([pool.index(axis) for axis in way.copied + way.divided])
        return ordered.reshape(self.devices(direction)[::-1]).tolist()

    def width(self, direction: Direction) -> int:
        """Elements of a row."""
        columns = {getattr(kind, direction).view[1] for kind in self.kinds}
        divisor = math.gcd(*columns)
        return divisor if divisor >= _LANES or columns == {divisor} else _LANES

    def height(self, kind: Kind, direction: Direction) -> int:
        """Rows that a piece takes."""
        return -(-math.prod(getattr(kind, direction).view) // self.width(direction))

    def rows(self, direction: Direction) -> int:
        """Rows of the owner that has most."""
        heights = [self.height(kind, direction) for kind in self.kinds]
        return max(sum(map(math.prod, zip(held, heights, strict=True))) for held in self.held)

    def bytes(self, direction: Direction) -> int:
        """Of what a device packs: its pieces of all matrices that owners of one copy have."""
        elements = self.devices(direction)[0] * self.rows(direction) * self.width(direction)
        return elements * jnp.dtype(self.kinds[0].dtype).itemsize


class _Turns(NamedTuple):
    """A stack before matrices have numbers: ``held`` are ``(kinds, owners)``, for each of some equal turns."""

    kinds: tuple[Kind, ...]
    held: np.ndarray
    turns: int

    @property
    def bytes(self) -> int:
        """Of the matrices of the owner that has most, in one turn."""
        return max(np.array([kind.bytes for kind in self.kinds]) @ self.held)


def make_batches(
    numbers: Mapping[Kind, Sequence[int]], owned: Mapping[Kind, np.ndarray], sizes: Sizes, enough: int
) -> Iterator[tuple[Stack, ...]]:
    """The stacks of all matrices, batch by batch.

    Args:
        numbers: The matrices of each kind.
        owned: How many of them each owner has.
        sizes: Devices along each mesh axis.
        enough: Bytes of matrices on a device that need not be cut into several batches.
    """
    waiting = {kind: iter(own) for kind, own in numbers.items()}
    for batch in _cut(list(_stacks(owned)), enough):
        stacks = []
        for kinds, held, turns in batch:
            taken = [
                tuple(tuple(next(waiting[kind], -1) for _ in range(turns * each)) for kind, each in zip(kinds, own))
                for own in held.T.tolist()
            ]
            stacks.append(Stack(sizes, kinds, tuple(taken)))
        yield tuple(stacks)


def _stacks(owned: Mapping[Kind, np.ndarray]) -> Iterator[_Turns]:
    """A stack for each kind of which all owners have some, and mixed stacks for what is left over."""
    together: dict[object, list[Kind]] = {}
    for kind in owned:
        ways = [(way.divided, way.copied) for way in (kind.there, kind.back)]
        together.setdefault((kind.pool, *ways, kind.dtype), []).append(kind)
    for kinds in together.values():
        rest = [kind for kind in kinds if owned[kind].min() < owned[kind].max()]
        for kind in kinds:
            # One kind needs no branches: zeros fill its last turn, and nobody waits for them.
            turns = owned[kind].max() if rest == [kind] else owned[kind].min()
            if turns:
                yield _Turns((kind,), np.ones((1, owned[kind].size), int), int(turns))
        if len(rest) > 1:
            yield _Turns(tuple(rest), np.array([owned[kind] - owned[kind].min() for kind in rest]), 1)


def _cut(stacks: Sequence[_Turns], enough: int) -> Iterator[list[_Turns]]:
    """Stacks with the turns that travel in one batch.

    While a batch is under way, the results of those before it are in memory, and its own matrices about three times: as
    they came, orthogonalized, and packed. So batches become shorter. Where each is a third of what is left and of a
    third of all, the peak is four thirds of all, and about four batches are enough.
    """
    left = total = sum(stack.turns * stack.bytes for stack in stacks)
    batch, size = [], 0
    # Of large matrices less is left behind than is needed on the way, so they go first.
    for stack in sorted(stacks, key=lambda stack: -stack.bytes):
        turns = stack.turns
        while turns:
            limit = max(enough, (left + total / 3) / 3)
            fitting = min(turns, int((limit - size) // stack.bytes))
            if fitting < 1 and batch:
                yield batch
                left, batch, size = left - size, [], 0
                continue
            fitting = max(1, fitting)
            batch.append(stack._replace(turns=fitting))
            size += fitting * stack.bytes
            turns -= fitting
    if batch:
        yield batch
