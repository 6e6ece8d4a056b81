"""Orthogonalization alone: muon_optax.newton_schulz beside the one of optax.contrib, in one process.

python benchmarks/update/orthogonalize.py          # minutes on two CPU cores; all presets on an accelerator
python benchmarks/update/orthogonalize.py --quick  # seconds
python benchmarks/update/orthogonalize.py --preset gpt2-small llama-7b --full
"""

import itertools
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax
import jax.numpy as jnp
import numpy as np

import muon_optax as mo
from benchmarks.shared.measure import Program, compile_afresh, compile_program, summarize_times, time_interleaved
from benchmarks.shared.optimizers import Coefficients, direct_gflop, optax_newton_schulz
from benchmarks.shared.report import Progress, Report, Row, device_name, finish, is_cpu, parser, within

Shape = tuple[int, ...]

PRESETS: dict[str, tuple[Shape, ...]] = {
    "quick": ((32, 96), (4, 32, 16)),
    "cpu": ((384, 384), (384, 1536), (768, 768)),
    "gpt2-small": ((768, 768), (768, 2304), (768, 3072), (3072, 768)),
    "gpt2-medium": ((1024, 1024), (1024, 3072), (1024, 4096), (4096, 1024)),
    "llama-7b": ((4096, 4096), (4096, 11008), (11008, 4096)),
    "moe-small": ((8, 256, 512),),
    "moe": ((64, 2048, 1408),),
    "many-tiny": ((256, 32, 32), (64, 64, 64)),
}
ON_CPU = ("cpu", "moe-small", "many-tiny")
ON_ACCELERATORS = ("gpt2-small", "gpt2-medium", "llama-7b", "moe", "many-tiny")
SCHEDULES: dict[str, Coefficients] = {"keller": mo.KELLER, "polar_express(5)": mo.polar_express(5)}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
REFERENCE = "optax.contrib"
SMALLEST = 1e-3  # singular value of the test matrices; the largest is 1

NOTES = [
    f"Matrices: singular values from 1 to {SMALLEST:g}, evenly on a log scale, between random orthonormal bases, in "
    "float32; so the polar factor and the float64 run of a polynomial are known without being computed.",
    "dtype is that of the products. All take and return float32. float32 is multiplied in full precision by all: "
    "optax.contrib would use the backend's default, which is less on GPUs and TPUs.",
    "optax.contrib is optax.contrib.scale_by_muon without momentum. It rounds coefficients to the dtype of products.",
    "error (polar): relative Frobenius error against the polar factor; error (float64): against the float64 run of the "
    "same polynomial. Of a batch, the first matrix.",
    "ms: median over interleaved rounds; the ratio is the median of the rounds' ratios to optax.contrib with the same "
    "dtype and coefficients: below 1 is faster.",
    "products and product GFLOP are counted in the traced program; XLA GFLOP by the compiled program's cost_analysis, "
    "elementwise work included (- where it has a loop, which XLA counts once).",
    "trace s and compile s: once, from an empty cache. A program that is compiled first pays for what XLA keeps in a "
    "process, such as tuned kernels: that is muon_optax.",
]


class Sample(NamedTuple):
    """Matrices of one singular value decomposition."""

    left: np.ndarray  # (rows, n) float64, orthonormal columns, n = min(rows, cols)
    singular_values: np.ndarray  # (n,)
    right: np.ndarray  # (n, cols) float64, orthonormal rows

    @classmethod
    def draw(cls, rows: int, cols: int) -> "Sample":
        """Random bases, the same at each call."""
        rng, size = np.random.default_rng(0), min(rows, cols)
        bases = [np.linalg.qr(rng.standard_normal((side, size)))[0] for side in (rows, cols)]
        return cls(bases[0], np.geomspace(1, SMALLEST, size), bases[1].T)

    def matrix(self) -> np.ndarray:
        """``U S V^T``."""
        return (self.left * self.singular_values) @ self.right

    def polar_factor(self) -> np.ndarray:
        """``U V^T``."""
        return self.left @ self.right

    def newton_schulz(self, coefficients: Coefficients) -> np.ndarray:
        """``U p(S / ||S||) V^T``."""
        x = self.singular_values / np.linalg.norm(self.singular_values)
        for a, b, c in coefficients:
            x = a * x + b * x**3 + c * x**5
        return (self.left * x) @ self.right


def contestants(coefficients: Coefficients, dtype: jnp.dtype) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Everyone who orthogonalizes with these coefficients, the reference last."""
    ours = {
        f"muon_optax {method}": mo.newton_schulz(coefficients, dtype=dtype, method=method)
        for method in ("gram", "direct", "auto")
    }
    return ours | {REFERENCE: optax_newton_schulz(coefficients, dtype)}


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """``||value - reference|| / ||reference||``."""
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def measure(shape: Shape, schedules: Sequence[str], rounds: int, step: Callable[[str], None]) -> list[Row]:
    """A row for each dtype, schedule and contestant."""
    sample = Sample.draw(*shape[-2:])
    polar, matrices = sample.polar_factor(), jnp.asarray(np.broadcast_to(sample.matrix(), shape), jnp.float32)
    programs: dict[tuple[str, str, str], Program] = {}
    errors = {}
    for dtype, schedule in itertools.product(DTYPES, schedules):
        expected = sample.newton_schulz(SCHEDULES[schedule])
        for name, orthogonalizer in contestants(SCHEDULES[schedule], DTYPES[dtype]).items():
            program = compile_program(orthogonalizer, matrices)
            result = np.asarray(program.run(matrices), np.float64).reshape(-1, *shape[-2:])[0]
            programs[dtype, schedule, name] = program
            errors[dtype, schedule, name] = {
                "error (polar)": relative_error(result, polar),
                "error (float64)": relative_error(result, expected),
            }
            step(f"{show(shape)} {dtype} {schedule} {name}")
    times = time_interleaved({key: partial(program.run, matrices) for key, program in programs.items()}, rounds, step)
    return [
        {"shape": show(shape), "dtype": dtype, "coefficients": schedule, "program": name}
        | summarize_times(times[dtype, schedule, name], times[dtype, schedule, REFERENCE])
        | errors[dtype, schedule, name]
        | program.costs
        for (dtype, schedule, name), program in programs.items()
    ]


def show(shape: Shape) -> str:
    """``8 x (256 x 512)`` for a stack."""
    *batch, rows, cols = shape
    return f"{math.prod(batch)} of {rows} x {cols}" if batch else f"{rows} x {cols}"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--preset", nargs="+", choices=PRESETS, help="shapes; the default depends on the device")
    options.add_argument("--rounds", type=int, help="interleaved rounds of timing (default 7, with --quick 3)")
    options.add_argument("--max-gflop", type=float, help="leaves out larger shapes (default on a CPU: 30)")
    given = options.parse_args(arguments)
    compile_afresh()

    default = ("quick",) if given.quick else ON_CPU if is_cpu() and not given.full else ON_ACCELERATORS
    shapes = {show(shape): shape for preset in given.preset or default for shape in PRESETS[preset]}
    limit = given.max_gflop or (30.0 if is_cpu() and not given.full else None)
    fitting, left_out = within({name: direct_gflop(shape) for name, shape in shapes.items()}, limit)
    rounds = given.rounds or (3 if given.quick else 7)
    schedules = ["keller"] if given.quick else list(SCHEDULES)

    report = Report("orthogonalize", device_name(), [*NOTES, f"{rounds} rounds."], left_out=left_out)
    programs = len(schedules) * sum(len(contestants(mo.KELLER, dtype)) for dtype in DTYPES.values())
    with Progress(len(fitting) * (programs + rounds), report.name) as step:
        for name in fitting:
            report.rows += measure(shapes[name], schedules, rounds, step)
    finish(report, given.output)


if __name__ == "__main__":
    main()
