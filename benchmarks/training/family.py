"""Do the parts of the family train as well as Muon? Loss, seconds a step and bytes of state, beside plain Muon.

    python benchmarks/training/family.py              # trains what is missing, measures, writes the table
    python benchmarks/training/family.py --budget 30  # begins no run after 30 minutes
    python benchmarks/training/family.py --report     # trains nothing
    python benchmarks/training/family.py --quick      # a tiny model, two parts, the same path end to end

The runs are those of convergence.py, in the same file: parts whose updates are as large as Muon's train at Muon's best
settings, recipes with a rate of their own are tuned as Muon is, and all of them get three seeds.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax

from benchmarks.shared.measure import time_interleaved
from benchmarks.shared.report import Progress, Report, Row, device_name, finish, parser
from benchmarks.training._curves import Seeds, best, by_settings
from benchmarks.training._grid import PARTS, RECIPES, Plan
from benchmarks.training._records import OtherText, read
from benchmarks.training._tables import settings
from benchmarks.training._training import SIZES, numbers_of, programs, sample_batch, text
from benchmarks.training.convergence import train_all

NOTES = [
    "Model, text and schedule as in the convergence benchmark. Final loss: mean (least to most) over seeds. Change: of "
    "the mean, in percent of Muon's.",
    "A row holds if its loss is at most 2% above Muon's.",
    "ms: a whole training step, median over interleaved rounds; the ratio is the median of the rounds' ratios to Muon. "
    "State: what the optimizer keeps between steps, in bytes, counted from the shapes.",
]
LEFT_OUT = [
    "clip_qk: it needs the largest logits of each head, which this model does not return; see examples/clip_qk.py",
    "orthogonalize_block_periodic: on one device it is orthogonalize",
]
QUICK = ("muon, 8-bit momentum", "normuon")


def chosen_settings(groups: Sequence[Seeds], plan: Plan, size: str) -> dict[str, Seeds]:
    """Of Muon, then of each contender that ran with several seeds, the best settings at full length."""
    full = [group for group in groups if group.run.steps == plan.steps and group.final.count == len(plan.seeds)]
    found: dict[str, Seeds] = {}
    for (of_size, _), group in best(full).items():
        name = group.run.contender
        if of_size == size and (name not in found or group.final.mean < found[name].final.mean):
            found[name] = group
    return {name: found[name] for name in ("muon", *plan.family) if name in found}


def training_step(size: str, group: Seeds) -> Callable[[], object]:
    """One whole step after another of a contender, from the first batch on."""
    run, compiled = group.run, programs(size, group.run.contender)
    numbers = numbers_of(run)
    batch = sample_batch(text().training, SIZES[size], run.seed, 0)
    state = compiled.start(jax.random.key(run.seed), numbers)

    def step() -> object:
        nonlocal state
        state = compiled.step(state, numbers, batch)
        return state

    return step


def state_bytes(size: str, group: Seeds) -> int:
    """What the optimizer keeps."""
    start = programs(size, group.run.contender).start
    _, state = jax.eval_shape(start, jax.random.key(0), numbers_of(group.run))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def rows(chosen: dict[str, Seeds], size: str, times: dict[str, list[float]]) -> list[Row]:
    """Muon first, then the lowest loss."""
    muon = chosen["muon"]
    found = []
    for name, group in sorted(chosen.items(), key=lambda item: (item[0] != "muon", item[1].final.mean)):
        change = 100 * (group.final.mean / muon.final.mean - 1)
        ratios = [one / other for one, other in zip(times[name], times["muon"], strict=True)]
        found.append(
            {"table": f"{size}, {group.run.steps} steps", "contender": name}
            | settings(group.run)
            | {"seeds": group.final.count, "final loss": group.final.text(4)}
            | {"change, %": f"{change:+.1f}", "within 2%": "yes" if change <= 2 else "no"}
            | {"ms": median(times[name]), "ratio to Muon": median(ratios), "state bytes": state_bytes(size, group)}
        )
    return found


def write_report(plan: Plan, size: str, path: Path, folder: Path, rounds: int) -> None:
    """The table of what has run."""
    chosen = chosen_settings(by_settings(read(path)), plan, size)
    absent = [name for name in plan.family if name not in chosen]
    report = Report("family", device_name(), [*NOTES, f"{rounds} rounds."])
    report.left_out = LEFT_OUT + [f"{name}: not run with every seed" for name in absent]
    runs = {name: training_step(size, group) for name, group in chosen.items()}
    with Progress(rounds, "family") as step:
        report.rows = rows(chosen, size, time_interleaved(runs, rounds, step))
    finish(report, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, measures, writes."""
    options = parser(__doc__ or "")
    options.add_argument("--workers", type=int, default=2, help="processes, a core each; 1 takes all (default 2)")
    options.add_argument("--steps", type=int, help="of a run of full length (default 300, with --quick 20)")
    options.add_argument("--budget", type=float, default=float("inf"), help="minutes after which no run begins")
    options.add_argument("--report", action="store_true", help="train nothing, use what is there")
    given = options.parse_args(arguments)
    size, steps = ("tiny", 20) if given.quick else ("1M", 300)
    plan = Plan.of(given.steps or steps)._replace(family=QUICK if given.quick else (*PARTS, *RECIPES))
    path = given.output / "convergence.csv"
    try:
        if not given.report:
            train_all(plan, (size,), path, given.workers, given.budget)
    except (OtherText, ValueError) as error:
        print(f"family.py: error: {error}", file=sys.stderr)
        return 2
    if "muon" not in chosen_settings(by_settings(read(path)), plan, size):
        print(f"family.py: error: no runs of Muon with {plan.steps} steps in {path}", file=sys.stderr)
        return 2
    write_report(plan, size, path, given.output, 3 if given.quick else 7)
    return 0


if __name__ == "__main__":
    sys.exit(main())
