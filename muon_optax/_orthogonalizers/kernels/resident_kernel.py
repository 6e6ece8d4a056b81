"""The bodies of the kernel that holds one matrix: each instruction is a loop over blocks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from muon_optax._orthogonalizers.kernels import resident_program as program
from muon_optax._orthogonalizers.kernels import tiles
from muon_optax._orthogonalizers.precision import scaled_by_power_of_two
from muon_optax._orthogonalizers.start import Norm
from muon_optax._orthogonalizers.tiling import Resident


class Held(NamedTuple):
    """What a kernel holds. Each matrix lies by itself: what may lie together is never read while another is written."""

    X: Sequence[Any]  # Two of (short, long), in the dtype of products.
    S: Sequence[Any]  # (short, short), likewise.
    sums: Any  # (8, block) float32: for the norm.
    powers: Any  # (4,) float32 scalars: of the norm.
    K: Any = None  # (short, short) float32, of which the lower blocks are kept.


def kernel(
    table: Any,
    numbers: Any,
    pairs: Any,
    tiny: Any,
    reciprocals: Any,
    given: Any,
    output: Any,
    *scratch: Any,
    bodies: Sequence[program.Body],
    shape: Resident,
    norm: Norm,
) -> None:
    """One instruction, in one step of the grid."""
    batch, phase = pl.program_id(0), pl.program_id(1)
    held = _held(scratch, bodies)

    def scalar(number: int) -> Any:
        return numbers[phase, number] * held.powers[table[phase, 1 + number]]

    for number, body in enumerate(bodies):
        step = _Step(held, shape, pairs, scalar, body)

        def run(step: _Step = step) -> None:
            kind = step.body.kind
            if kind == program.LOAD:
                _load(step, phase, given, tiny[batch], reciprocals[batch])
            elif kind == program.RETURN:
                _return(step, phase, output)
            elif kind in (program.GRAM, program.NORM):
                (_gram if kind == program.GRAM else _norm)(step, norm)
            else:
                _OTHERS[kind](step)

        pl.when(table[phase, 0] == number)(run)


def _held(scratch: Sequence[Any], bodies: Sequence[program.Body]) -> Held:
    sums, powers, first, second, *others = scratch
    slots = 1 + max(body.out for body in bodies)
    return Held((first, second), others[:slots], sums, powers, *others[slots:])


class _Step(NamedTuple):
    held: Held
    shape: Resident
    pairs: Any
    scalar: Callable[[int], Any]
    body: program.Body

    @property
    def factors(self) -> tuple[Any, Any]:
        return self.held.S[self.body.left], self.held.S[self.body.right]


def _multiply(left: jax.Array, right: jax.Array, contraction: tiles.Contraction = tiles.PLAIN) -> jax.Array:
    return jax.lax.dot_general(
        left,
        right,
        (contraction, ((), ())),
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def _block(number: Any, size: int) -> Any:
    return pl.ds(pl.multiple_of(number * size, size), size)


def _load(step: _Step, phase: Any, given: Any, tiny: Any, reciprocal: Any) -> None:
    shape, X = step.shape, step.held.X[0]
    columns = _block(phase, shape.panel)
    limits = sorted((shape.rows, shape.cols))

    def one(number: Any, carry: int) -> int:
        rows = _block(number, shape.block)
        part = given[rows, :] if shape.wide else given[:, rows]
        part = scaled_by_power_of_two(part.astype(jnp.float32), tiny != 0, reciprocal).astype(X.dtype)
        part = part if shape.wide else part.T
        if limits != [shape.short, shape.long]:
            # What lies beyond the edges of the array was never written.
            row, column = (jax.lax.broadcasted_iota(jnp.int32, part.shape, axis) for axis in (0, 1))
            inside = (row + rows.start < limits[0]) & (column + columns.start < limits[1])
            part = jnp.where(inside, part, jnp.zeros_like(part))
        X[rows, columns] = part
        return carry

    jax.lax.fori_loop(0, shape.short // shape.block, one, 0)


def _lower(step: _Step, make: Callable[[Any, Any, Any, Any], jax.Array]) -> None:
    """A symmetric matrix from its lower blocks, row by row."""
    block = step.shape.block
    S, blocks = step.held.S[step.body.out], step.shape.short // block

    def one(number: Any, carry: int) -> int:
        # The block before is mirrored while this one is multiplied. The last one lies on the diagonal, as does the
        # first: those need not be.
        before = jnp.maximum(number - 1, 0)
        rows, columns = (_block(step.pairs[before, side], block) for side in (0, 1))
        S[columns, rows] = S[rows, columns].T
        i, j = step.pairs[number, 0], step.pairs[number, 1]
        rows, columns = _block(i, block), _block(j, block)
        S[rows, columns] = make(i, j, rows, columns).astype(S.dtype)
        return carry

    jax.lax.fori_loop(0, blocks * (blocks + 1) // 2, one, 0)


def _gram(step: _Step, norm: Norm) -> None:
    X, K, sums = step.held.X[step.body.left], step.held.K, step.held.sums

    def make(i: Any, j: Any, rows: Any, columns: Any) -> jax.Array:
        result = _multiply(X[rows, :], X[columns, :], tiles.RIGHT_TRANSPOSED)
        if K is not None:
            K[rows, columns] = result
        if norm == "schatten4":
            measured = result * result * jnp.where(i == j, 1.0, 2.0)
        else:
            row, column = (jax.lax.broadcasted_iota(jnp.int32, result.shape, axis) for axis in (0, 1))
            measured = jnp.where((row == column) & (i == j), result, 0.0)
        earlier = jnp.where(i == 0, 0.0, sums[...])
        sums[...] = earlier + jnp.sum(measured.reshape(-1, *sums.shape), axis=0)
        return result

    _lower(step, make)


def _norm(step: _Step, norm: Norm) -> None:
    square = jnp.broadcast_to(jnp.sum(step.held.sums[...]), (8, 128))
    square = jnp.sqrt(square) if norm == "schatten4" else square
    inverse = 1 / jnp.where(square == 0, 1.0, square)
    powers = step.held.powers
    powers[program.ONE] = 1.0
    powers[program.INVERSE] = jnp.max(inverse)
    powers[program.INVERSE_SQUARE] = jnp.max(inverse * inverse)
    powers[program.ROOT] = jnp.max(jnp.sqrt(inverse))


def _plus_identity(step: _Step, rows: Any, columns: Any, block: jax.Array) -> jax.Array:
    row, column = (jax.lax.broadcasted_iota(jnp.int32, block.shape, axis) for axis in (0, 1))
    return block + jnp.where(row + rows.start == column + columns.start, step.scalar(1), 0.0)


def _combine(step: _Step) -> None:
    S, _ = step.factors

    def make(i: Any, j: Any, rows: Any, columns: Any) -> jax.Array:
        del i, j
        own = S[rows, columns].astype(jnp.float32)
        return _plus_identity(step, rows, columns, step.scalar(2) * own)

    _lower(step, make)


def _product(step: _Step) -> None:
    left, right = step.factors

    def make(i: Any, j: Any, rows: Any, columns: Any) -> jax.Array:
        del i, j
        result = step.scalar(0) * _multiply(left[rows, :], right[:, columns])
        result += step.scalar(2) * left[rows, columns].astype(jnp.float32)
        return _plus_identity(step, rows, columns, result)

    _lower(step, make)


def _keep(step: _Step) -> None:
    (left, right), term, K = step.factors, step.held.S[step.body.term], step.held.K

    def make(i: Any, j: Any, rows: Any, columns: Any) -> jax.Array:
        del i, j
        result = step.scalar(0) * _multiply(left[rows, :], right[:, columns])
        result += step.scalar(2) * term[rows, columns].astype(jnp.float32)
        result += step.scalar(3) * K[rows, columns]
        K[rows, columns] = result
        return result

    _lower(step, make)


def _whole(step: _Step) -> None:
    (left, right), out, shape = step.factors, step.held.S[step.body.out], step.shape
    blocks = shape.short // shape.block

    def one(number: Any, carry: int) -> int:
        rows, columns = (_block(each(number, blocks), shape.block) for each in (jax.lax.div, jax.lax.rem))
        result = step.scalar(0) * _multiply(left[rows, :], right[:, columns])
        result += step.scalar(2) * left[rows, columns].astype(jnp.float32)
        result += step.scalar(3) * right[rows, columns].astype(jnp.float32)
        out[rows, columns] = result.astype(out.dtype)
        return carry

    jax.lax.fori_loop(0, blocks**2, one, 0)


def _applied(step: _Step, rows: Any, columns: Any) -> jax.Array:
    S, X = step.held.S[step.body.left], step.held.X[step.body.right]
    product = _multiply(S[rows, :], X[:, columns])
    return step.scalar(0) * product + step.scalar(2) * X[rows, columns].astype(jnp.float32)


def _apply(step: _Step) -> None:
    out, shape = step.held.X[1 - step.body.right], step.shape

    def one(number: Any, carry: int) -> int:
        rows = _block(jax.lax.div(number, shape.panels), shape.block)
        columns = _block(jax.lax.rem(number, shape.panels), shape.panel)
        out[rows, columns] = _applied(step, rows, columns).astype(out.dtype)
        return carry

    jax.lax.fori_loop(0, shape.short // shape.block * shape.panels, one, 0)


def _return(step: _Step, phase: Any, output: Any) -> None:
    shape = step.shape
    columns = _block(phase - (pl.num_programs(1) - shape.panels), shape.panel)

    def one(number: Any, carry: int) -> int:
        rows = _block(number, shape.block)
        result = _applied(step, rows, columns)
        if shape.wide:
            output[rows, :] = result.astype(output.dtype)
        else:
            output[:, rows] = result.T.astype(output.dtype)
        return carry

    jax.lax.fori_loop(0, shape.short // shape.block, one, 0)


_OTHERS = {
    program.COMBINE: _combine,
    program.PRODUCT: _product,
    program.KEEP: _keep,
    program.WHOLE: _whole,
    program.APPLY: _apply,
}
