"""Updates with symmetric products through the TPU compiler, for one v5e chip, on a machine without a TPU.

    pip install "jax[tpu]"                               # in an environment of its own: brings the compiler, libtpu
    python benchmarks/accelerators/symmetric.py          # a quarter of an hour, 6 GB of temporary files
    python benchmarks/accelerators/symmetric.py --quick  # a small tree
    python benchmarks/accelerators/symmetric.py --compiles v5p:2x2x1    # whether all kinds of shapes do; v6e:2x2, ...

XLA's estimate knows nothing of kernels. So a first process compiles the updates with a dump of the compiler's static
schedules, from which `_schedule.py` reads the bundles of its loops. `_kernel_cycles.py` runs through its grid: a step
takes its bundles, or what the matrix units need for its blocks, or the transfers meanwhile, whichever is longest. A
second process compiles the whole updates, adds XLA's estimates of everything else, and takes the time of compiling. The
first table checks the method on plain products, a kernel's against XLA's own, both by their schedules: they must agree
within 5%. One process at a time can hold libtpu. Nothing is run: no array is made.
"""

import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared import tpu_compiler  # before JAX, which must not look for a TPU

# isort: split
import jax
import jax.numpy as jnp
import optax

import muon_optax as mo
from benchmarks.accelerators._kernel_cycles import V5E, bound, cycles
from benchmarks.accelerators._schedule import Call, Schedule, call_of, flags, product_of, schedules, types_of
from benchmarks.accelerators.tpu_compile import TOPOLOGY, place
from benchmarks.shared.hlo import estimated_cycles, executed
from benchmarks.shared.measure import compile_afresh, compile_program
from benchmarks.shared.optimizers import Tree, layers, muon, optax_muon, training_step
from benchmarks.shared.report import ROOT, Progress, Report, Row, finish, parser
from muon_optax._orthogonalizers.kernels.apply import apply
from muon_optax._orthogonalizers.tiling import tiling

PLAIN, QUICK_PLAIN = (4096, 8192), (4096,)
CASES: dict[str, Tree] = {"1 layer of d=4096": layers(1, 4096), "4 layers of d=1024": layers(4, 1024)}
QUICK: dict[str, Tree] = {"1 layer of d=2048": layers(1, 2048)}
REFERENCE = "optax.contrib.muon"
FOUR_STEPS = {"coefficients": mo.polar_express(4, 4e-3), "norm": "schatten4"}
TARGETS = {  # of the issue that asked for the kernels: ratios to optax
    ("1 layer of d=4096", "muon, symmetric"): 0.43,
    ("1 layer of d=4096", "muon, symmetric, four steps"): 0.34,
    ("4 layers of d=1024", "muon, symmetric"): 0.65,
}
SCHEDULES = "--schedules"
# Matrices, with the dtype of products: held by one kernel and in tiles, sides that no block divides, batches, both
# orientations.
SHAPES = [
    ((512, 512), jnp.bfloat16),
    ((3, 1000, 1500), jnp.bfloat16),
    ((1000, 1500), jnp.float32),
    ((2, 1024, 4096), jnp.bfloat16),
    ((4096, 1024), jnp.bfloat16),
    ((3000, 5000), jnp.bfloat16),
    ((11008, 4096), jnp.bfloat16),
    ((16384, 2048), jnp.float32),
    ((7168, 2048), jnp.bfloat16),
    ((16384, 16384), jnp.bfloat16),
]

OPTIMIZERS: dict[str, Callable[[Tree], optax.GradientTransformation]] = {
    REFERENCE: optax_muon,
    "muon_optax.muon": lambda _: muon(),
    "muon, symmetric": lambda _: muon(mo.newton_schulz(products="symmetric")),
    "muon, four steps": lambda _: muon(mo.newton_schulz(**FOUR_STEPS)),
    "muon, symmetric, four steps": lambda _: muon(mo.newton_schulz(**FOUR_STEPS, products="symmetric")),
}

NOTES = [
    "Compiled for one chip and not run. One step is the optimizer's update and optax.apply_updates, momentum included, "
    "with state and parameters donated; parameters, gradients and momenta in float32, products in bfloat16.",
    "cycles: the compiler's estimates of all that one step executes, and of the kernels by their static schedule. "
    "The ratio is to optax.contrib.muon, at most: what was asked for. At the bound: if the kernels took no more than "
    "the matrix units need for their blocks.",
    "Plain products: those of n x n matrices in bfloat16, by XLA, and by a kernel of the same tiles as the others, "
    "which reads its matrices whole. Bound: what the matrix units need. At 8192 XLA cuts the contraction in 16 pieces, "
    "and its estimate adds the way of the sums to memory and back, which its schedule does meanwhile.",
    "Four steps: polar_express(4, 4e-3) with the Schatten-4 norm.",
    "compile CPU s: of all threads, tracing included, in a process without dumps.",
]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument(SCHEDULES, action="store_true", help="compile the kernels alone, as the first process does")
    options.add_argument("--only", default="", help="the cases that have this in their name")
    options.add_argument("--compiles", metavar="TOPOLOGY", help="only compile shapes of all kinds, for this TPU")
    given = options.parse_args(arguments)
    if given.compiles:
        compile_shapes(given.compiles, SHAPES[:3] if given.quick else SHAPES)
        return
    cases, sizes = (QUICK, QUICK_PLAIN) if given.quick else (CASES, PLAIN)
    cases = {case: params for case, params in cases.items() if given.only in case}
    compile_afresh()
    if given.schedules:
        compile_kernels(cases, sizes)
        return
    known = read_kernels(Path(__file__), ["--only", given.only, *["--quick"] * given.quick])
    chip = jax.sharding.SingleDeviceSharding(tpu_compiler.devices_of(TOPOLOGY, "symmetric")[0])
    report = Report("symmetric", "TPU v5e compiler", NOTES, versions=tpu_compiler.versions())
    with Progress(len(sizes) + len(cases) * len(OPTIMIZERS), report.name) as step:
        report.rows += plain_products(sizes, chip, known, step)
        for case, params in cases.items():
            report.rows += updates(case, place(params, chip), known, step)
    finish(report, given.output)


def read_kernels(script: Path, arguments: Sequence[str]) -> dict[Call, Schedule]:
    """The schedules of all kernels, from a process that ends before this one takes the compiler."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LIBTPU_INIT_ARGS": flags(Path(folder)), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(script), SCHEDULES, *arguments]
        subprocess.run(command, env=environment, check=True)
        return schedules(Path(folder))


def compile_kernels(cases: Mapping[str, Tree], sizes: Sequence[int]) -> None:
    """Compiles all that has kernels, for the dump."""
    chip = jax.sharding.SingleDeviceSharding(tpu_compiler.devices_of(TOPOLOGY, "symmetric")[0])
    for size in sizes:
        for function in (plain_kernel, plain_product):
            jax.jit(function).lower(*plain_operands(size, chip)).compile()
    for params in cases.values():
        placed = place(params, chip)
        for name, optimizer_for in OPTIMIZERS.items():
            if "symmetric" in name:
                step, arguments = update_of(optimizer_for(placed), placed)
                jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()


def update_of(optimizer: optax.GradientTransformation, params: Tree) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step and its operands: parameters, state, gradients. It gives the first two back, in this order.

    JAX pairs donated arrays with results of their shape in the order in which they come. Another order would put new
    momenta where parameters were, and XLA would copy.
    """
    state = place(jax.eval_shape(optimizer.init, params), jax.tree.leaves(params)[0].sharding)
    update = training_step(optimizer)

    def step(params: Tree, state: Any, gradients: Tree) -> tuple[Tree, Any]:
        return update(gradients, state, params)

    return step, (params, state, params)


def compile_shapes(topology: str, shapes: Sequence[tuple[tuple[int, ...], jax.typing.DTypeLike]]) -> None:
    """Prints what each takes, by both methods and norms; ends with the compiler's error if one doesn't compile."""
    chip = jax.sharding.SingleDeviceSharding(tpu_compiler.devices_of(topology, "symmetric --compiles")[0])
    for shape, dtype in shapes:
        matrices = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=chip)
        for method, norm in (("direct", "frobenius"), ("gram", "schatten4")):
            started = time.process_time()
            orthogonalizer = mo.newton_schulz(dtype=dtype, method=method, norm=norm, products="symmetric")
            text = jax.jit(orthogonalizer).lower(matrices).compile().as_text()
            kernels = sum(times for _, times in kernels_of(text))
            seconds = time.process_time() - started
            print(f"{topology}, {shape}, {jnp.dtype(dtype).name}, {method}: {kernels} kernels, {seconds:.1f} CPU s")


def plain_operands(size: int, chip: jax.sharding.Sharding) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    matrix = jax.ShapeDtypeStruct((1, size, size), jnp.bfloat16, sharding=chip)
    return matrix, matrix


def plain_kernel(left: jax.Array, right: jax.Array) -> jax.Array:
    """A product of matrices that are both read whole."""
    side, scalars = tiling(right.shape[-1]), jnp.asarray([[1.0, 0.0]], jnp.float32)
    return apply(left, right, scalars, jnp.bfloat16, wide=True, short=side, long=side, whole=True)


def plain_product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, preferred_element_type=jnp.float32).astype(jnp.bfloat16)


def plain_products(
    sizes: Sequence[int], chip: jax.sharding.Sharding, known: Mapping[Call, Schedule], step: Callable[[str], None]
) -> list[Row]:
    """A row for each size: what the method is worth."""
    rows = []
    for size in sizes:
        own, by_xla = (
            compile_program(function, *plain_operands(size, chip), platform="tpu").text
            for function in (plain_kernel, plain_product)
        )
        figures = {
            "XLA, estimated": float(estimated_cycles(by_xla)),
            "XLA, by schedule": scheduled_product(by_xla, size, known[product_of((1, size, size))]),
            "kernel": cycles_of(own, known),
            "bound": size**3 / V5E.multiplications,
        }
        ratio = {"kernel over XLA, by schedule": figures["kernel"] / figures["XLA, by schedule"]}
        rows.append({"case": "plain products, cycles", "n": size} | figures | ratio)
        step(f"plain product of {size}")
    return rows


def scheduled_product(text: str, size: int, schedule: Schedule) -> float:
    """Cycles of XLA's own product, by its schedule: its iterations, each at least what the matrix units need."""
    bounds = re.search(r'"iteration_bounds":\[([^]]*)\]', text)
    if bounds is None:
        raise ValueError(f"XLA's product is written in a way that is not known: {text[-1000:]}")
    iterations = math.prod(int(bound.strip('"')) for bound in bounds[1].split(","))
    return schedule.once + max(iterations * sum(schedule.loops), size**3 / V5E.multiplications)


def updates(case: str, params: Tree, known: Mapping[Call, Schedule], step: Callable[[str], None]) -> list[Row]:
    """A row for each optimizer."""
    rows: list[Row] = []
    for name, optimizer_for in OPTIMIZERS.items():
        function, arguments = update_of(optimizer_for(params), params)
        started = time.process_time()
        program = compile_program(function, *arguments, donate=(0, 1), platform="tpu")
        processor = time.process_time() - started
        figures = {"cycles": cycles_of(program.text, known), "compile CPU s": processor}
        at_bound = cycles_at_bound(program.text)
        first = rows[0] if rows else figures
        rows.append(
            {"case": case, "optimizer": name, "cycles": figures["cycles"]}
            | {"ratio to optax": figures["cycles"] / first["cycles"], "at the bound": at_bound / first["cycles"]}
            | {"at most": TARGETS.get((case, name))}
            | {"compile CPU s": processor, "CPU s over optax": processor / first["compile CPU s"]}
            | {"kernels": sum(times for _, times in kernels_of(program.text))}
            | {"temporary MB": program.costs["temporary MB"]}
        )
        step(f"{case}, {name}")
    return rows


def cycles_of(text: str, known: Mapping[Call, Schedule]) -> float:
    """Of a compiled program: XLA's estimates, and the kernels."""
    return estimated_cycles(text) + sum(times * cycles(call, known[call]) for call, times in kernels_of(text))


def cycles_at_bound(text: str) -> float:
    """The same if the kernels took what the matrix units need."""
    return estimated_cycles(text) + sum(times * bound(call) for call, times in kernels_of(text))


def kernels_of(text: str) -> list[tuple[Call, int]]:
    """The kernels that a program calls, and how often."""
    types = types_of(text)
    return [(call, times) for line, times in executed(text) if (call := call_of(line, types))]


if __name__ == "__main__":
    main()
