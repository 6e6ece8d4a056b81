"""The kernel that holds a matrix through all steps: its instructions, what fits, and what it computes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.experimental.pallas import tpu as pltpu
from schedules import SCHEDULES

import muon_optax as mo
from muon_optax._orthogonalizers.kernels import resident_program as program
from muon_optax._orthogonalizers.kernels.resident import resident_newton_schulz
from muon_optax._orthogonalizers.precision import near_one
from muon_optax._orthogonalizers.tiling import MEMORY, Resident, resident

ROWS = 16
KINDS = list(oracle.kinds_of_matrices(ROWS, ROWS))
ALLOWED = {"bfloat16": 4e-2, "float32": 2e-2}  # As in test_symmetric_products.py.

methods = pytest.mark.parametrize("method", ["direct", "gram"])
dtypes = pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
orientations = pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
schedules = pytest.mark.parametrize("schedule", SCHEDULES)


def held(rows: int, cols: int) -> Resident:
    """In blocks of 8 x 8 and panels of 16, or of 24 where the side is cut."""
    short, long = sorted((rows, cols))
    return Resident(rows, cols, -(-short // 8) * 8, -(-long // 16) * 16, 8, 16)


def everything(instructions: program.Program) -> list[program.Body]:
    return [one.body for one in (*instructions.middle, instructions.last)]


@methods
@dtypes
@schedules
def test_no_instruction_reads_what_was_never_written_or_is_being_written(
    schedule: str, dtype: str, method: str
) -> None:
    instructions = program.program_of(SCHEDULES[schedule], jnp.dtype(dtype), method)
    written: set[int] = set()
    reads = {
        program.COMBINE: ("left",),
        program.PRODUCT: ("left", "right"),
        program.KEEP: ("left", "right", "term"),
        program.WHOLE: ("left", "right"),
        program.APPLY: ("left",),
        program.RETURN: ("left",),
    }
    lies = 0  # the slot of X
    for one in everything(instructions):
        read = {getattr(one, name) for name in reads.get(one.kind, ())}
        assert read <= written
        # A term is read block by block, before its block is written.
        multiplied = {getattr(one, name) for name in reads.get(one.kind, ()) if name != "term"}
        if one.kind in (program.APPLY, program.RETURN):
            assert one.right == lies
            lies = 1 - lies
        elif one.kind != program.NORM:
            assert one.out not in multiplied
            assert one.out < instructions.slots
            written.add(one.out)
        if one.kind == program.GRAM:
            assert one.left == lies
        if one.kind == program.KEEP:
            assert instructions.keeps


@methods
@dtypes
@schedules
@pytest.mark.parametrize("shape", [(1024, 1024), (768, 3072), (200, 1000)], ids=str)
def test_flops_are_those_of_the_instructions(shape: tuple[int, int], schedule: str, dtype: str, method: str) -> None:
    coefficients, kind = SCHEDULES[schedule], jnp.dtype(dtype)
    own = resident(*shape, kind, method)
    assert own is not None
    n, m, blocks = own.short, own.long, own.short // own.block
    lower = (blocks + 1) / (2 * blocks)
    cost = {
        program.GRAM: lower * n**2 * m,
        program.PRODUCT: lower * n**3,
        program.KEEP: lower * n**3,
        program.WHOLE: n**3,
        program.APPLY: n**2 * m,
        program.RETURN: n**2 * m,
    }
    want = sum(cost.get(one.kind, 0) for one in everything(program.program_of(coefficients, kind, method)))
    got = mo.newton_schulz(coefficients, dtype=kind, method=method, products="symmetric").flops(*shape)
    assert got == pytest.approx(2 * want, rel=1e-12)


@pytest.mark.parametrize(
    "rows, cols, dtype, method, want",
    [
        (1024, 1024, "bfloat16", "direct", Resident(1024, 1024, 1024, 1024, 256, 256)),
        (4096, 1024, "bfloat16", "gram", Resident(4096, 1024, 1024, 4096, 256, 256)),
        (300, 1000, "float32", "direct", Resident(300, 1000, 384, 1024, 128, 256)),
        (1, 7, "bfloat16", "direct", Resident(1, 7, 128, 128, 128, 128)),
        (1000, 1500, "float32", "gram", Resident(1000, 1500, 1024, 1536, 256, 256)),
        (1024, 4096, "float32", "direct", None),  # The TPU's compiler ran out of memory for the parts of its products.
        (4096, 4096, "bfloat16", "direct", None),
        (2048, 8192, "bfloat16", "gram", None),
    ],
)
def test_what_fits_is_held(rows: int, cols: int, dtype: str, method: str, want: Resident | None) -> None:
    assert resident(rows, cols, jnp.dtype(dtype), method) == want


@methods
@dtypes
@pytest.mark.parametrize("aspect", [1, 2, 8])
def test_what_is_held_fits_every_tpu(aspect: int, dtype: str, method: str) -> None:
    """Largest of its aspect: scratch as the kernel asks for it, and panels on their way, each twice."""
    kind = jnp.dtype(dtype)
    sides = [n for n in range(128, 8192, 128) if resident(n, aspect * n, kind, method)]
    largest = resident(sides[-1], aspect * sides[-1], kind, method)
    assert largest is not None
    instructions = program.program_of(mo.polar_express(8), kind, method)
    n, m = largest.short, largest.long
    scratch = 2 * n * m + instructions.slots * n * n
    used = kind.itemsize * scratch + 4 * n * n * instructions.keeps
    assert used + 2 * n * largest.panel * (kind.itemsize + 4) < MEMORY


@orientations
@methods
@pytest.mark.parametrize(
    "preset, dtype",
    [
        ("keller", "bfloat16"),
        *(
            pytest.param(preset, dtype, marks=pytest.mark.slow)
            for preset in ("polar_express", "cubic", "polar_express-8")
            for dtype in ("bfloat16", "float32")
        ),
    ],
)
def test_it_is_about_as_exact_as_xla_on_every_kind_of_matrix(preset: str, dtype: str, method: str, tall: bool) -> None:
    presets = {
        "keller": mo.KELLER,
        "polar_express": mo.polar_express(5),
        "cubic": mo.CUBIC,
        "polar_express-8": mo.polar_express(8),
    }
    coefficients, kind = presets[preset], jnp.dtype(dtype)
    given = np.stack(list(oracle.kinds_of_matrices(ROWS, 2 * ROWS).values())).astype(np.float32)
    given = given.swapaxes(-1, -2) if tall else given
    want = oracle.newton_schulz(given, coefficients)
    got = run(jnp.asarray(given), coefficients, dtype, method)
    direct = jax.jit(mo.newton_schulz(coefficients, dtype=kind, method="direct"))(given)
    errors = {
        name: (oracle.relative_error(one, exact), oracle.relative_error(other, exact))
        for name, one, other, exact in zip(KINDS, got, direct, want, strict=True)
    }
    assert {name: pair for name, pair in errors.items() if not pair[0] <= max(1.5 * pair[1], ALLOWED[dtype])} == {}
    assert np.linalg.norm(np.asarray(got, np.float64), ord=2, axis=(-2, -1)).max() <= 1.35


def run(
    given: jax.Array, coefficients: Any, dtype: str = "bfloat16", method: Any = "direct", interpret: Any = True
) -> jax.Array:
    sides = held(*given.shape[1:])
    return resident_newton_schulz(given, coefficients, jnp.dtype(dtype), method, "frobenius", sides, interpret)


@dtypes
def test_the_scale_of_a_matrix_does_not_matter(dtype: str) -> None:
    """The kernel brings the largest entry near 1 itself, also where float32's numbers are subnormal."""
    matrix = oracle.gaussian(16, 32).astype(np.float32)
    scales = np.array([1.0, 2.0**100, 2.0**-100, 2.0**-120], np.float32)[:, None, None]
    got = np.asarray(run(jnp.asarray(matrix * scales), mo.KELLER, dtype))
    for other in got[1:3]:
        assert np.array_equal(other, got[0])
    assert oracle.relative_error(got[3], got[0]) <= 2e-2
    assert near_one(jnp.asarray(matrix), jnp.float32).max() <= 2


@pytest.mark.slow
@methods
def test_on_a_tpu_that_is_simulated_no_two_accesses_race(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Memory that nobody wrote is NaN there, beyond the edges of an array too."""
    given = jnp.asarray(oracle.gaussian(2, 20, 40), jnp.float32)
    simulate = partial(run, given, mo.polar_express(3), method=method)
    got = simulate(interpret=pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan"))
    assert np.array_equal(got, simulate())
    assert "RACE" not in "".join(capfd.readouterr())
