"""Does Muon need fewer steps than AdamW? Trains byte-level GPTs with every contender, each at its best settings.

    python benchmarks/training/convergence.py              # the grid: hours on two CPU cores; run again to go on
    python benchmarks/training/convergence.py --budget 30  # begins no run after 30 minutes
    python benchmarks/training/convergence.py --report     # tables and pictures from what is there
    python benchmarks/training/convergence.py --quick      # a tiny model, the same path end to end
    python benchmarks/training/convergence.py --digits     # small images: files of their own, minutes

Every run becomes one line of convergence.csv as it ends; what stands there is not run again. A rate is bracketed by
short runs and refined by long ones, until it lies inside its range; the best settings get three seeds.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared.report import RESULTS, ROOT, Progress, Report, device_name, finish, parser
from benchmarks.training._curves import by_settings
from benchmarks.training._digits import MODELS
from benchmarks.training._grid import Plan, Run, forecast, missing
from benchmarks.training._pictures import draw_curves, draw_rates, draw_widths
from benchmarks.training._records import OtherText, append, curve_field, read, refuse_other_text
from benchmarks.training._tables import comparison, rates, reused, schedules
from benchmarks.training._training import EVALUATIONS, Curve, parameters, task, train

SIZES = {"quick": ("tiny",), "cpu": ("1M", "0.3M", "3M"), "full": ("base",)}
DIGITS = {"quick": ("digits ConvNet",), "cpu": tuple(MODELS), "full": tuple(MODELS)}
IMAGES = ROOT / "docs" / "images"
ABOUT = {
    "convergence": "The model, text and schedule of examples/train_gpt.py at several widths: clipping, warm-up over a "
    "twentieth of the steps, cosine to a tenth, batches of 16 x 128 bytes. Runs of a seed share initialization and "
    "batches.",
    "convergence_digits": "Scikit-learn's digits, 1,400 images of 8 x 8 for training and 397 held out, each moved by "
    "up to one pixel in training; batches of 64. Schedule and clipping as in examples/train_gpt.py. Runs of a seed "
    "share initialization and batches.",
}
NOTES = [
    "Short runs bracket the rate, long ones refine it until the best lies between two others, and the best settings "
    "get three seeds: mean (least to most). Before that AdamW's decay and b2 are tried as well.",
    "Steps to AdamW's loss: until the validation loss, straight between its measurements, reaches the mean loss that "
    "AdamW ends with at its best settings. Along one schedule, or by whole schedules of fewer steps. "
    "AdamW apart: what Muon does not train has a rate of its own.",
]
STEPS = {"quick": 20, "cpu": 300, "full": 3000}
DIGITS_STEPS = 300
DIGITS_PARTS = (0.3, 0.4, 0.5, 0.6, 0.7)  # the vision transformer reaches AdamW's loss in less than half of its steps


def bind(cores: "multiprocessing.Queue[int]") -> None:
    """Gives this process a core before JAX starts its threads: it then starts one. XLA's own flag leaves more."""
    if not cores.empty():
        os.sched_setaffinity(0, {cores.get()})


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes that train: one takes all cores, several take one each, where the system can bind them."""
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    if workers > 1 and hasattr(os, "sched_setaffinity"):
        for core in sorted(os.sched_getaffinity(0))[:workers]:
            cores.put(core)
    return ProcessPoolExecutor(workers, context, bind, (cores,))


def environment(size: str) -> dict[str, str]:
    """The columns that say what a run was made with, the sha256 of its data among them."""
    versions = Report("convergence", device_name(), []).versions
    own = {name: versions[name] for name in ("muon_optax", "python", "jax", "optax")}
    return {**own, "device": device_name(), "text": task(size).sha256[:12]}


def work(run: Run) -> float:
    """What a run's time goes with, roughly."""
    return run.steps * parameters(run.size)


def train_all(plan: Plan, sizes: Sequence[str], path: Path, workers: int, budget: float) -> None:
    """Makes what is missing, the most telling first, until the grid is complete or the budget spent."""
    shared, records = environment(sizes[0]), read(path)
    refuse_other_text(records.values(), shared["text"])
    finals = {run: one.final for run, one in records.items()}
    began, done, every = time.monotonic(), 0.0, max(1, plan.steps // EVALUATIONS)
    flying: dict[Future[Curve], Run] = {}
    left = forecast(plan, sizes, finals)
    with pool(workers) as processes, Progress(len(left), "convergence") as bar:
        while True:
            waiting = [run for run in missing(plan, sizes, finals) if run not in flying.values()]
            while waiting and len(flying) < workers and time.monotonic() - began < 60 * budget:
                run = waiting.pop(0)
                flying[processes.submit(train, run, every)] = run
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                run, curve = flying.pop(future), future.result()
                append(path, run, columns(curve), {"date": datetime.now(UTC).strftime("%F %H:%M"), **shared})
                finals[run] = float(columns(curve)["final_loss"])  # as a later process reads it
                done += work(run)
                ahead = sum(map(work, forecast(plan, sizes, finals)))
                minutes = (time.monotonic() - began) / done * ahead / 60
                bar(f"{run.size} {run.contender} {run.rate:g}: {finals[run]:.3f}, {minutes:.0f} min left")


def write_report(plan: Plan, sizes: Sequence[str], path: Path, folder: Path, images: Path) -> None:
    """Tables and pictures, from the file alone."""
    records = read(path)
    groups = by_settings(records)
    left = forecast(plan, sizes, {run: one.final for run, one in records.items()})
    devices = " and ".join(sorted({one.line["device"] for one in records.values()}))
    report = Report(path.stem, devices, [])
    revisions = ", ".join(sorted({one.line["muon_optax"] for one in records.values()}))
    report.notes = [ABOUT[path.stem], *NOTES, f"{len(records)} runs of {path.name}, made with muon_optax {revisions}."]
    report.left_out = [f"about {len(left)} runs that the grid has and the file has not"] if left else []
    report.rows = (
        comparison(groups, plan.steps)
        + comparison(groups, 2 * plan.steps)
        + reused(groups, plan.steps)
        + schedules(groups, plan.steps)
    )
    for steps in (plan.steps, plan.short):
        report.rows += rates(groups, steps)
    ran = [size for size in sizes if any(run.size == size and run.steps == plan.short for run in records)]
    draw_curves(groups, ran if plan.plain else sizes[:1], plan.steps, images / f"{path.stem}_curves.png")
    draw_rates(groups, ran, plan.steps, plan.short, images / f"{path.stem}_rates.png")
    scaled = {run.size for run in records if "scale" in run.contender and run.steps == plan.short}
    if len(scaled) > 1:  # one width says nothing of widths
        draw_widths(groups, [size for size in sizes if size in scaled], plan.short, images / f"{path.stem}_widths.png")
    finish(report, folder)


def columns(curve: Curve) -> dict[str, str]:
    """What was measured, as it is written."""
    return {
        "seconds_a_step": f"{curve.seconds:.4f}",
        "cpu_seconds_a_step": f"{curve.cpu_seconds:.4f}",
        "final_loss": f"{curve.losses[-1]:.4f}",
        "curve": curve_field(curve.steps, curve.losses),
    }


def chosen(given: argparse.Namespace) -> tuple[str, Sequence[str], Plan]:
    """The name of the files, the sizes and the plan that the command line asks for."""
    grid = "quick" if given.quick else "full" if given.full else "cpu"
    if given.digits:
        steps = given.steps or (STEPS["quick"] if given.quick else DIGITS_STEPS)
        return "convergence_digits", DIGITS[grid], Plan.of(steps, DIGITS_PARTS)._replace(plain=True)
    plan = Plan.of(given.steps or STEPS[grid])
    # With tiny models one size, and what compiles twice: AdamW and Muon.
    return "convergence", SIZES[grid], plan._replace(tiers=4) if given.quick else plan


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(__doc__ or "")
    options.add_argument("--workers", type=int, default=2, help="processes, a core each; 1 takes all (default 2)")
    options.add_argument("--steps", type=int, help=f"of a run of full length (default {STEPS})")
    options.add_argument("--budget", type=float, default=float("inf"), help="minutes after which no run begins")
    options.add_argument("--report", action="store_true", help="only write tables and pictures from what is there")
    options.add_argument("--digits", action="store_true", help=f"images in place of text ({DIGITS_STEPS} steps)")
    given = options.parse_args(arguments)
    name, sizes, plan = chosen(given)
    path = given.output / f"{name}.csv"
    if not given.report:
        try:
            train_all(plan, sizes, path, given.workers, given.budget)
        except (OtherText, ValueError) as error:
            print(f"convergence.py: error: {error}", file=sys.stderr)
            return 2
    if given.report and not read(path):
        print(f"convergence.py: error: no runs in {path}: run without --report first", file=sys.stderr)
        return 2
    images = IMAGES if given.output == RESULTS else given.output
    if given.report or given.quick:
        write_report(plan, sizes, path, given.output, images)
    return 0


if __name__ == "__main__":
    sys.exit(main())
