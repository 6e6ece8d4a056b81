"""What symmetric products save the busiest device of a mesh, by the TPU compiler on a machine without a TPU.

    pip install "jax[tpu]"                           # in an environment of its own: brings the compiler, libtpu
    python benchmarks/accelerators/shares.py         # half an hour
    python benchmarks/accelerators/shares.py --only Llama

Matrices come and go by a plan, whose products say which device has which. The Newton-Schulz of every shape is compiled
for one chip, in bfloat16 as matrices travel, with XLA's products and with symmetric ones. Its cycles, found as in
`symmetric.py`, take the place of FLOPs in the plan: the busiest device is the one with the most of them.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared import tpu_compiler  # before JAX, which must not look for a TPU

# isort: split
import jax
import jax.numpy as jnp

import muon_optax as mo
from benchmarks.accelerators._schedule import Call, Schedule
from benchmarks.accelerators.symmetric import SCHEDULES, cycles_at_bound, cycles_of, kernels_of, read_kernels
from benchmarks.accelerators.tpu_compile import TOPOLOGY
from benchmarks.mesh._cases import ON_TPU, Case
from benchmarks.shared.measure import compile_afresh, compile_program
from benchmarks.shared.report import Progress, Report, Row, finish, parser
from muon_optax._mesh.owners import flops_by_device

CASES: dict[str, tuple[Case, float]] = {  # with the ratio asked for
    "Llama-7B on 256 chips": (ON_TPU["v5e:16x16"]["Llama-7B, FSDP"], 0.75),
    "1T MoE on 1,024 chips": (ON_TPU["v5p:8x8x16"]["1T MoE, expert-parallel, update only"], 0.75),
}
ORTHOGONALIZERS = {"xla": mo.newton_schulz(), "symmetric": mo.newton_schulz(products="symmetric")}

NOTES = [
    "Compiled for one v5e chip and not run: matrix by matrix, in bfloat16. Cycles are of the products and all else in "
    "the orthogonalizer; what travels, momentum and parameters are the same with either products and are not counted.",
    "Busiest device: of the plan for these products, with cycles in place of FLOPs.",
    "At the bound: if the kernels took no more than the matrix units need for their blocks.",
]

AT_BOUND = "symmetric, at the bound"
Shape = tuple[int, int]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument(SCHEDULES, action="store_true", help="compile the kernels alone, as the first process does")
    options.add_argument("--only", default="", help="the cases that have this in their name")
    given = options.parse_args(arguments)
    cases = {name: case for name, case in CASES.items() if given.only in name}
    shapes = sorted({shape for case, _ in cases.values() for shape in shapes_of(case)})
    compile_afresh()
    if given.schedules:
        chip = jax.sharding.SingleDeviceSharding(tpu_compiler.devices_of(TOPOLOGY, "shares")[0])
        for shape in shapes:
            jax.jit(ORTHOGONALIZERS["symmetric"]).lower(_matrix(shape, chip)).compile()
        return
    known = read_kernels(Path(__file__), ["--only", given.only])
    chip = jax.sharding.SingleDeviceSharding(tpu_compiler.devices_of(TOPOLOGY, "shares")[0])
    report = Report("shares", "TPU v5e compiler", NOTES, versions=tpu_compiler.versions())
    with Progress(len(shapes), report.name) as step:
        rows = {shape: by_shape(shape, chip, known, step) for shape in shapes}
    report.rows += [*rows.values(), *(busiest(name, *case, rows) for name, case in cases.items())]
    finish(report, given.output)


def shapes_of(case: Case) -> set[Shape]:
    """The shapes of the matrices that devices own."""
    return {shape for kind in case.plan().owned for shape in kind.layout.matrix_shapes(kind.shape)}


def _matrix(shape: Shape, chip: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=chip)


def by_shape(
    shape: Shape, chip: jax.sharding.Sharding, known: Mapping[Call, Schedule], step: Callable[[str], None]
) -> Row:
    """Cycles of one matrix."""
    texts = {
        name: compile_program(function, _matrix(shape, chip), platform="tpu").text
        for name, function in ORTHOGONALIZERS.items()
    }
    cycles = {name: cycles_of(text, known) for name, text in texts.items()}
    step(f"{shape}")
    return {
        "case": "one matrix, cycles",
        "rows": shape[0],
        "cols": shape[1],
        **cycles,
        "ratio": cycles["symmetric"] / cycles["xla"],
        AT_BOUND: cycles_at_bound(texts["symmetric"]),
        "at the bound": cycles_at_bound(texts["symmetric"]) / cycles["xla"],
        "kernels": sum(times for _, times in kernels_of(texts["symmetric"])),
    }


def busiest(name: str, case: Case, asked: float, rows: Mapping[Shape, Row]) -> Row:
    """Cycles of the device that has most."""
    most = {}
    for products, orthogonalizer in (*ORTHOGONALIZERS.items(), (AT_BOUND, ORTHOGONALIZERS["symmetric"])):
        plan = case.plan(orthogonalizer=orthogonalizer)
        cycles = {
            kind: sum(rows[shape][products] for shape in kind.layout.matrix_shapes(kind.shape)) for kind in plan.owned
        }
        most[products] = float(flops_by_device(plan.owned, cycles, plan.placement.sizes).max())
    ratio = most["symmetric"] / most["xla"]
    least = most[AT_BOUND] / most["xla"]
    return {"case": "busiest device, cycles", "model": name, **most, "ratio": ratio, "at the bound": least} | {
        "at most": asked
    }


if __name__ == "__main__":
    main()
