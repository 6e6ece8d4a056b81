"""Whole updates through the TPU compiler, for one v5e chip, on a machine without a TPU: its estimate of their cycles.

    pip install "jax[tpu]"                                 # in an environment of its own: brings the compiler, libtpu
    python benchmarks/accelerators/tpu_compile.py          # minutes
    python benchmarks/accelerators/tpu_compile.py --quick  # a small tree

One process at a time can hold libtpu. Nothing is run: no array is made.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared import tpu_compiler  # before JAX, which must not look for a TPU

# isort: split
import jax
import optax

import muon_optax as mo
from benchmarks.shared.hlo import estimated_cycles
from benchmarks.shared.measure import compile_afresh, compile_program
from benchmarks.shared.optimizers import Tree, adamw, layers, muon, optax_muon, state_bytes, training_step
from benchmarks.shared.report import Progress, Report, Row, finish, parser

TOPOLOGY = "v5e:2x2"  # the smallest that the compiler knows; programs are for its first chip
QUICK: dict[str, Tree] = {"1 layer of d=128": layers(1, 128)}
CASES: dict[str, Tree] = {"4 layers of d=1024": layers(4, 1024), "1 layer of d=4096": layers(1, 4096)}
REFERENCE = "optax.contrib.muon"

# From the parameters, because optax.contrib.muon needs to know them.
OPTIMIZERS: dict[str, Callable[[Tree], optax.GradientTransformation]] = {
    "optax.adamw": lambda _: adamw(),
    REFERENCE: optax_muon,
    "muon_optax.muon": lambda _: muon(),
    'muon, method="direct"': lambda _: muon(mo.newton_schulz(method="direct")),
    "muon, polar_express(5)": lambda _: muon(mo.newton_schulz(mo.polar_express(5))),
    "muon, polar_express(4, 4e-3), schatten4": lambda _: muon(
        mo.newton_schulz(mo.polar_express(4, 4e-3), norm="schatten4")
    ),
    "muon, CUBIC": lambda _: muon(mo.newton_schulz(mo.CUBIC)),
}
ON_QUICK = ("optax.adamw", REFERENCE, "muon_optax.muon")

NOTES = [
    "Compiled for one chip and not run. One step is the optimizer's update and optax.apply_updates, momentum included, "
    "with state and parameters donated; parameters, gradients and momenta in float32.",
    "cycles: the sum of the compiler's own estimates over all that one step executes, loops by their trip counts; a "
    "v5e's matrix unit does 131,072 bfloat16 operations a cycle at its peak. The ratio is to optax.contrib.muon.",
    "Same work: optax.contrib.muon has Moonlight's scale and the same decay. It multiplies float32 in the TPU's "
    "default precision, which is one pass of bfloat16.",
    "products, product GFLOP: as traced; XLA GFLOP: cost_analysis of the compiled program (- where it has a loop).",
    "compile CPU s: of all threads, tracing included; it says more than compile s where other programs run.",
]


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser(__doc__).parse_args(arguments)
    compile_afresh()
    chip = jax.sharding.SingleDeviceSharding(tpu_compiler.devices_of(TOPOLOGY, "tpu_compile")[0])
    cases = QUICK if given.quick else CASES
    optimizers = {name: OPTIMIZERS[name] for name in (ON_QUICK if given.quick else OPTIMIZERS)}

    report = Report("tpu_compile", "TPU v5e compiler", NOTES, versions=tpu_compiler.versions())
    with Progress(len(cases) * len(optimizers), report.name) as step:
        for case, params in cases.items():
            report.rows += measure(case, place(params, chip), optimizers, step)
    finish(report, given.output)


def place(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Abstract arrays like those of ``tree``, on a device."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def measure(
    case: str,
    params: Tree,
    optimizers: dict[str, Callable[[Tree], optax.GradientTransformation]],
    step: Callable[[str], None],
) -> list[Row]:
    """A row for each optimizer."""
    rows, cycles = [], {}
    chip = jax.tree.leaves(params)[0].sharding
    for name, optimizer_for in optimizers.items():
        optimizer = optimizer_for(params)
        state = place(jax.eval_shape(optimizer.init, params), chip)
        started = time.process_time()
        program = compile_program(training_step(optimizer), params, state, params, donate=(1, 2), platform="tpu")
        processor = {"compile CPU s": time.process_time() - started}
        cycles[name] = estimated_cycles(program.text)
        state_size = {"state MB": 1e-6 * state_bytes(optimizer, params)}
        rows.append({"case": case, "optimizer": name, "cycles": cycles[name]} | program.costs | processor | state_size)
        step(f"{case}, {name}")
    return [
        {"case": case, "optimizer": row["optimizer"], "cycles": row["cycles"]}
        | {"ratio to optax": row["cycles"] / cycles[REFERENCE]}
        | row
        for row in rows
    ]


if __name__ == "__main__":
    main()
