"""Whole updates through the TPU compiler, for one v5e chip, on a machine without a TPU: its estimate of their cycles.

    pip install "jax[tpu]"                       # in an environment of its own: brings the compiler, libtpu
    PYTHONPATH=. python benchmarks/tpu_compile.py            # minutes
    PYTHONPATH=. python benchmarks/tpu_compile.py --quick    # a small tree

One process at a time can hold libtpu. Nothing is run: no array is made.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

# Before JAX is imported: it must not look for a TPU, and libtpu must not ask a cloud which TPU this machine has.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-4",
    TPU_WORKER_HOSTNAMES="localhost",
)

import jax
import jax.experimental.topologies
import optax
from _hlo import estimated_cycles
from _measure import compile_afresh, compile_program
from _optimizers import Tree, adamw, layers, muon, optax_muon, state_bytes, training_step
from _report import Progress, Report, Row, finish, parser

import muon_optax as mo

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
]


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser(__doc__).parse_args(arguments)
    compile_afresh()
    chip = first_chip()
    cases = QUICK if given.quick else CASES
    optimizers = {name: OPTIMIZERS[name] for name in (ON_QUICK if given.quick else OPTIMIZERS)}

    libtpu = {"libtpu": importlib.metadata.version("libtpu")}
    report = Report("tpu_compile", "TPU v5e compiler", NOTES, versions=libtpu)
    with Progress(len(cases) * len(optimizers), report.name) as step:
        for case, params in cases.items():
            report.rows += measure(case, place(params, chip), optimizers, step)
    finish(report, given.output)


def first_chip() -> jax.sharding.Sharding:
    """On the first chip of the topology; ends the program with the reason if there is no compiler for it."""
    if importlib.util.find_spec("libtpu") is None:
        raise SystemExit('tpu_compile needs libtpu, the TPU compiler: pip install "jax[tpu]". It needs no TPU.')
    try:
        topology = jax.experimental.topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise
        raise SystemExit(
            "Another process holds libtpu, and one at a time can: wait until it ends. If there is none, it left "
            "/tmp/libtpu_lockfile behind: remove that."
        ) from error
    return jax.sharding.SingleDeviceSharding(topology.devices[0])


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
        program = compile_program(training_step(optimizer), params, state, params, donate=(1, 2), platform="tpu")
        cycles[name] = estimated_cycles(program.text)
        state_size = {"state MB": 1e-6 * state_bytes(optimizer, params)}
        rows.append({"case": case, "optimizer": name, "cycles": cycles[name]} | program.costs | state_size)
        step(f"{case}, {name}")
    return [
        {"case": case, "optimizer": row["optimizer"], "cycles": row["cycles"]}
        | {"ratio to optax": row["cycles"] / cycles[REFERENCE]}
        | row
        for row in rows
    ]


if __name__ == "__main__":
    main()
