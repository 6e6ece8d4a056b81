"""How much longer a training step takes with Muon than with AdamW, by width and batch, beside Keller Jordan's formula.

python benchmarks/training/step_share.py          # minutes on two CPU cores
python benchmarks/training/step_share.py --quick  # seconds
"""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared.measure import compile_afresh, time_interleaved
from benchmarks.shared.report import Progress, Report, Row, device_name, finish, parser
from benchmarks.training._curves import Seeds
from benchmarks.training._grid import Run
from benchmarks.training._training import SIZES, programs
from benchmarks.training.family import training_step

STEPS = 5  # of Newton-Schulz, by default
WIDTHS, SEQUENCES = (64, 128, 256), (4, 16, 64)
NOTES = [
    "The main job's model at other widths and batches: forward, backward, clipping and update, float32 parameters, "
    "Muon's products in bfloat16.",
    "ms: median over interleaved rounds. More time: median of the rounds' ratios to AdamW, less 1. By formula: T m / B "
    "for T steps of Newton-Schulz, width m and B tokens a batch, a bound on Muon's share of the FLOPs of the matrices "
    "that it trains (https://kellerjordan.github.io/posts/muon/).",
]


def measure(width: int, sequences: int, rounds: int, step: Progress) -> Row:
    """One row: both optimizers at one width and batch."""
    size = f"width {width}, {sequences} sequences"
    SIZES[size] = preset = SIZES["1M"]._replace(width=width, batch=sequences)
    runs = {
        name: training_step(size, Seeds(Run(size, name, 1e-3, 1e-3, 0.1, 0.95, 1000, 0), []))
        for name in ("adamw", "muon")
    }
    times = time_interleaved(runs, rounds, lambda _: step(size))
    programs.cache_clear()
    more = median(muon / adamw - 1 for muon, adamw in zip(times["muon"], times["adamw"], strict=True))
    tokens = preset.batch * preset.context
    return {
        "table": f"Width {width}",
        "tokens a batch": tokens,
        "AdamW, ms": median(times["adamw"]),
        "Muon, ms": median(times["muon"]),
        "more time, %": round(100 * more, 1),
        "T m / B, %": round(100 * STEPS * width / tokens, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, help="interleaved rounds of timing (default 5, with --quick 2)")
    given = options.parse_args(arguments)
    compile_afresh()
    cases = [(16, 2)] if given.quick else list(product(WIDTHS, SEQUENCES))
    rounds = given.rounds or (2 if given.quick else 5)
    report = Report("step_share", device_name(), [*NOTES, f"{rounds} rounds."])
    with Progress(len(cases) * rounds, report.name) as step:
        report.rows = [measure(width, sequences, rounds, step) for width, sequences in cases]
    finish(report, given.output)


if __name__ == "__main__":
    main()
