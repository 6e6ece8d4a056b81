"""Work and travel of one update of Llama-7B for each device, from 1 to 1024 of them; nothing is run.

    python benchmarks/mesh/mesh_scaling.py        # of muon_optax alone, seconds
    pip install "jax[tpu]" matplotlib             # in an environment of its own
    python benchmarks/mesh/mesh_scaling.py --tpu  # and of optax, from compiled programs; writes the plot

Parameters are divided over all devices (FSDP). The figures of muon_optax are those of its plans, which tests compare
with compiled programs; those of optax.contrib.muon are of one layer through the compiler for TPUs, times 32.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared import tpu_compiler  # before JAX, which must not look for a TPU

# isort: split
import jax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import muon_optax as mo
from benchmarks.mesh._cases import fsdp, llama_7b
from benchmarks.mesh._programs import OPTAX, compile_step
from benchmarks.shared.measure import compile_afresh
from benchmarks.shared.palette import COLORS
from benchmarks.shared.report import ROOT, Progress, Report, Row, finish, parser

IMAGE = ROOT / "docs" / "images" / "mesh_scaling.png"
DEVICES = [2**power for power in range(11)]
TOPOLOGIES = {4: "v5e:2x2", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16"}
LAYERS = 32

NOTES = [
    "Llama-7B, every matrix divided over all devices along its first axis that they divide evenly; momentum and "
    "parameters in float32, products and what travels in bfloat16. Figures are of one device, the one that does most.",
    "muon_optax: as muon_optax.plan predicts. From 224 devices on there are more devices than matrices.",
    "optax: optax.contrib.muon with one layer, compiled for a TPU v5e of so many chips, times 32: it orthogonalizes "
    "each matrix by itself, so that work and travel are proportional to the layers.",
    "Even share: the work of one device by itself divided by the devices. Bound: what a device sends if every matrix "
    "travels there and back once in bfloat16, all devices sending as much.",
]


def predicted(devices: int) -> Row:
    """Of muon_optax."""
    case = fsdp(llama_7b(LAYERS), devices)
    plan = case.plan()
    layouts = mo.assign_layouts(case.params).values()
    elements = sum(leaf.size for leaf, layout in zip(jax.tree.leaves(case.params), layouts, strict=True) if layout)
    return {
        "model": f"Llama-7B, {LAYERS} layers",
        "devices": devices,
        "TFLOP": 1e-12 * plan.flops,
        "even share, TFLOP": 1e-12 * plan.ideal_flops,
        "MB sent": 1e-6 * plan.bytes,
        "bound, MB": 4e-6 * elements * (devices - 1) / devices**2,
        "collectives": sum(plan.collectives.values()),
    }


def compiled(devices: int | None) -> Row:
    """Of optax.contrib.muon: one layer compiled for so many chips, times all layers. Without devices, unknown."""
    figures = {}
    if devices is not None:
        jax.clear_caches()
        chips = tpu_compiler.devices_of(TOPOLOGIES[devices], "mesh_scaling --tpu")
        figures = compile_step(OPTAX, fsdp(llama_7b(1), devices), chips).figures
    columns = {
        "optax, TFLOP": ("GFLOP", 1e-3),
        "optax, MB sent": ("MB sent", 1),
        "optax, collectives": ("collectives", 1),
    }
    return {column: LAYERS * unit * figures[name] if figures else None for column, (name, unit) in columns.items()}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Work and travel over the devices."""
    work, travel = (figure := Figure(figsize=(9, 3.6), layout="constrained")).subplots(1, 2)
    draw(work, rows, "even share, TFLOP", ":", "even share", "black")
    draw(work, rows, "TFLOP", "o-", "muon_optax, planned", COLORS["muon"])
    draw(work, rows, "optax, TFLOP", "s--", "optax.contrib.muon, compiled", COLORS["optax.contrib.muon"])
    draw(travel, rows, "bound, MB", ":", "every matrix there and back", "black")
    draw(travel, rows, "MB sent", "o-", "muon_optax, planned", COLORS["muon"])
    draw(travel, rows, "optax, MB sent", "s--", "optax.contrib.muon, compiled", COLORS["optax.contrib.muon"])
    work.set(ylabel="TFLOP on a device")
    travel.set(ylabel="MB sent by a device")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def draw(axes: Axes, rows: Sequence[Row], column: str, line: str, label: str, color: str | None = None) -> None:
    known = [(row["devices"], row[column]) for row in rows if row[column]]
    if known:
        axes.plot(*zip(*known, strict=True), line, label=label, color=color, markersize=4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="devices, FSDP")
    axes.legend(fontsize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--tpu", action="store_true", help="compile optax for TPUs and write the plot of the docs")
    options.add_argument("--image", type=Path, help="file of the plot (default that of the docs with --tpu, else none)")
    given = options.parse_args(arguments)
    compile_afresh()
    counts = DEVICES[:4] if given.quick else DEVICES
    device = "TPU v5e compiler" if given.tpu else "plans"
    report = Report("mesh_scaling", device, NOTES, versions=tpu_compiler.versions() if given.tpu else {})
    with Progress(len(counts), report.name) as step:
        for devices in counts:
            report.rows.append(predicted(devices) | compiled(devices if given.tpu and devices in TOPOLOGIES else None))
            step(f"{devices} devices")
    image = given.image or (IMAGE if given.tpu else None)
    if image:
        plot(report.rows, image)
    finish(report, given.output)


if __name__ == "__main__":
    main()
