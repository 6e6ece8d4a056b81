"""The instructions of a kernel that holds one matrix: what each step of its grid multiplies, and where that goes."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from string import ascii_lowercase
from typing import NamedTuple

import jax

from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.kernels.iteration import is_rounded
from muon_optax._orthogonalizers.restarts import restart_steps
from muon_optax._orthogonalizers.step import center
from muon_optax._orthogonalizers.tiling import Iteration

# Kinds of instructions. S are symmetric matrices in slots, X the matrix in two, K the last one that was kept in
# float32, s and the other letters numbers.
KINDS = {
    "load": "the next panel of X comes in",
    "gram": "S = X X^T, and the sums for the norm",
    "norm": "the powers of the norm, from those sums",
    "combine": "S = t I + u S'",
    "product": "S = s S' S'' + t I + u S'; lower blocks are multiplied, and mirrored",
    "keep": "S = K = s S' S'' + u S''' + v K; likewise",
    "whole": "S = s S' S'' + u S' + v S''; all blocks are multiplied",
    "apply": "X = s S X + u X, into the other slot",
    "return": "the same of the next panel, which goes out",
}
LOAD, GRAM, NORM, COMBINE, PRODUCT, KEEP, WHOLE, APPLY, RETURN = range(len(KINDS))

# Powers of the norm that a number is multiplied by: what is not yet divided by it is divided so.
ONE, INVERSE, INVERSE_SQUARE, ROOT = range(4)

Scalar = tuple[float, int]  # A number, and its power.
ZERO: Scalar = (0.0, ONE)


class Body(NamedTuple):
    """What is done, and in which slots; those that it has no use for are 0."""

    kind: int
    left: int = 0
    right: int = 0
    out: int = 0
    term: int = 0


class Instruction(NamedTuple):
    """A body with its numbers."""

    body: Body
    s: Scalar = (1.0, ONE)
    t: Scalar = ZERO
    u: Scalar = ZERO
    v: Scalar = ZERO


class Program(NamedTuple):
    """The instructions between the panels that come in and those that go out."""

    middle: tuple[Instruction, ...]
    last: Instruction  # Repeated for every panel.

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The different ones, in order."""
        return tuple(dict.fromkeys((LOADING.body, *(one.body for one in (*self.middle, self.last)))))

    @property
    def slots(self) -> int:
        """Symmetric matrices held."""
        return 1 + max(body.out for body in self.bodies)

    @property
    def keeps(self) -> bool:
        """Whether one more is held in float32."""
        return any(body.kind == KEEP for body in self.bodies)

    @property
    def name(self) -> str:
        """The first letters of the bodies' kinds, and for each instruction a letter that tells its body."""
        numbers = [self.bodies.index(one.body) for one in (*self.middle, self.last)]
        kinds = "".join(list(KINDS)[body.kind][0] for body in self.bodies)
        return f"{kinds}_{''.join(ascii_lowercase[number] for number in numbers)}"


LOADING = Instruction(Body(LOAD))


def program_of(coefficients: Coefficients, dtype: jax.typing.DTypeLike, method: Iteration) -> Program:
    """As ``iteration.direct`` or ``iteration.gram``, for a wide matrix."""
    segments = (
        pairwise((0, *restart_steps(coefficients, dtype), len(coefficients)))
        if method == "gram"
        else ((index, index + 1) for index in range(len(coefficients)))
    )
    middle: list[Instruction] = []
    for number, (first, end) in enumerate(segments):
        middle.append(Instruction(Body(GRAM, left=number % 2, out=_GRAM)))
        if number == 0:
            middle.append(Instruction(Body(NORM)))
        middle += _segment(coefficients[first:end], dtype, number)
    last = middle.pop()
    return Program(tuple(middle), last._replace(body=last.body._replace(kind=RETURN)))


# Where a segment begins: its Gram matrix. A factor goes into another slot than those that it is made of.
_GRAM = 0


def _segment(
    steps: Sequence[tuple[float, float, float]], dtype: jax.typing.DTypeLike, number: int
) -> Iterator[Instruction]:
    """The steps on one Gram matrix, and their product with ``X``."""
    inverse, square, root = (INVERSE, INVERSE_SQUARE, ROOT) if number == 0 else (ONE, ONE, ONE)
    A, Q, B, half = _GRAM, 1, 2, 3
    q = 1.0
    for index, (a, b, c) in enumerate(steps):
        d, made = a + center(b, c), Q if index == 0 else B
        identity = (-center(b, c), ONE)
        if c:
            yield Instruction(Body(PRODUCT, A, A, made), s=(c, square), t=identity, u=(b, inverse))
        else:
            yield Instruction(Body(COMBINE, A, out=made), t=identity, u=(b, inverse))
        if index + 1 < len(steps):
            # What rounding took off the kept matrix is added back, as in gram_newton_schulz.
            kept = is_rounded(dtype) and c != 0
            u, v = ((d - a, inverse), (a, inverse)) if kept else ((d, inverse), ZERO)
            yield Instruction(Body(KEEP, made, A, half, term=A), s=(1.0, inverse), u=u, v=v)
        if index > 0:
            # A is not read again: it was, for half.
            yield Instruction(Body(WHOLE, B, Q, A), u=(q, ONE), v=(d, ONE))
            Q, A = A, Q
        if index + 1 < len(steps):
            yield Instruction(Body(KEEP, half, made, A, term=half), v=(d, ONE))
        q, inverse, square = d * q, ONE, ONE
    yield Instruction(Body(APPLY, Q, number % 2), s=(1.0, root), u=(q, root))
