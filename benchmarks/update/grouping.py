"""Matrices of one shape, orthogonalized one by one or together: the source of the limits in batching.py.

    python benchmarks/update/grouping.py          # on this device, a minute
    python benchmarks/update/grouping.py --quick  # seconds
    pip install "jax[tpu]"                        # in an environment of its own: brings libtpu
    python benchmarks/update/grouping.py --tpu    # through the compiler for TPUs, many minutes; needs no TPU

One process at a time can hold libtpu.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

if "--tpu" in sys.argv:
    from benchmarks.shared import tpu_compiler  # before JAX, which must not look for a TPU
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.shared.hlo import estimated_cycles
from benchmarks.shared.measure import Program, compile_afresh, compile_program, time_interleaved
from benchmarks.shared.report import Progress, Report, Row, device_name, finish, is_cpu, parser
from benchmarks.shared.ways_to_run import REFERENCE, Case, Way, running, step_with, ways

TOPOLOGY = "v5e:2x2"  # the smallest that the compiler knows; programs are for its first chip


QUICK = [Case(6, 16, 16), Case(4, 24, 48)]
ON_CPU = [Case(32, 64, 64), Case(128, 64, 64), Case(32, 128, 128), Case(16, 64, 256), Case(16, 256, 256)]
ON_TPU = [
    Case(32, 64, 64),
    Case(32, 256, 256),
    Case(24, 512, 512),
    Case(12, 768, 768),
    Case(16, 1024, 1024),
    Case(24, 1024, 1024),
    Case(8, 1024, 4096),
    Case(24, 1024, 4096),
]
ON_GPU = [*ON_TPU, Case(8, 2048, 2048), Case(4, 4096, 4096)]

NOTES = [
    "One step: momentum with Nesterov, orthogonalization, decay and the update of the parameters, all in float32 and "
    "with momenta and parameters donated; products in bfloat16. What differs is how the matrices are orthogonalized.",
    "one by one: written out for each matrix. loop: over the stack of them. one batch: all at once. batches of n: a "
    "loop over batches of n matrices. as muon_optax: what map_matrices does with them on this platform.",
    "ratio: to one by one. compile CPU s: of all threads, tracing included; it says more than compile s where other "
    "programs run.",
]


def compiled(case: Case, way: Way, sharding: jax.sharding.Sharding | None) -> tuple[Program, float]:
    """The program, and the seconds of CPU time that it took."""
    array = jax.ShapeDtypeStruct((case.rows, case.cols), jnp.float32, sharding=sharding)
    arguments = ([array] * case.matrices,) * 3
    started = time.process_time()
    program = compile_program(
        partial(step_with, way), *arguments, donate=(1, 2), platform=None if sharding is None else "tpu"
    )
    return program, time.process_time() - started


def cycles_of(programs: dict[str, Program]) -> dict[str, Row]:
    """The TPU compiler's estimates."""
    cycles = {name: estimated_cycles(program.text) for name, program in programs.items()}
    return {name: {"cycles": own, "ratio": own / cycles[REFERENCE]} for name, own in cycles.items()}


def times_of(case: Case, programs: dict[str, Program], rounds: int, step: Callable[[str], None]) -> dict[str, Row]:
    """Milliseconds on this device."""
    runs = {name: running(case, program) for name, program in programs.items()}
    times = time_interleaved(runs, rounds, step)
    return {
        name: {"ms": sorted(own)[len(own) // 2]}
        | {"ratio": sorted(a / b for a, b in zip(own, times[REFERENCE], strict=True))[len(own) // 2]}
        for name, own in times.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--tpu", action="store_true", help="compile for a TPU v5e")
    options.add_argument("--rounds", type=int, help="interleaved rounds of timing (default 15, with --quick 3)")
    given = options.parse_args(arguments)
    compile_afresh()
    rounds = given.rounds or (3 if given.quick else 15)
    cases = QUICK if given.quick else ON_TPU if given.tpu else ON_CPU if is_cpu() and not given.full else ON_GPU
    if given.tpu:
        chip = jax.sharding.SingleDeviceSharding(tpu_compiler.devices_of(TOPOLOGY, "grouping --tpu")[0])
        report = Report("grouping", "TPU v5e compiler", [*NOTES, "Not run."], versions=tpu_compiler.versions())
    else:
        chip = None
        report = Report("grouping", device_name(), [*NOTES, f"ms: median of {rounds} interleaved rounds."])

    total = sum(len(ways(case)) + (0 if given.tpu else rounds) for case in cases)
    with Progress(total, report.name) as step:
        for case in cases:
            programs, seconds = {}, {}
            for name, way in ways(case).items():
                programs[name], seconds[name] = compiled(case, way, chip)
                step(f"{case}, {name}")
            figures = cycles_of(programs) if given.tpu else times_of(case, programs, rounds, step)
            report.rows += [
                {"group": str(case), "run": name} | figures[name] | costs(program) | {"compile CPU s": seconds[name]}
                for name, program in programs.items()
            ]
    finish(report, given.output)


def costs(program: Program) -> Row:
    """Of the program's costs those in which the ways differ."""
    return {name: program.costs[name] for name in ("temporary MB", "XLA lines", "compile s")}


if __name__ == "__main__":
    main()
