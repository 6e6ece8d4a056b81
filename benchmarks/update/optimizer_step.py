"""Whole updates of the parameters: muon_optax.muon beside optax.contrib.muon and optax.adamw, in one process.

python benchmarks/update/optimizer_step.py          # minutes on two CPU cores; all trees on an accelerator
python benchmarks/update/optimizer_step.py --quick  # seconds
python benchmarks/update/optimizer_step.py --case "6 layers of d=384" --rounds 15
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax
import jax.numpy as jnp

from benchmarks.shared.measure import Program, compile_afresh, compile_program, summarize_times, time_interleaved
from benchmarks.shared.optimizers import (
    Tree,
    experts,
    gpt2,
    layers,
    orthogonalization_gflop,
    square_leaves,
    state_bytes,
    tiny_leaves,
    training_step,
)
from benchmarks.shared.report import Progress, Report, Row, device_name, finish, is_cpu, parser, within
from benchmarks.shared.updates import REFERENCE, Training, contestants, draw

QUICK: dict[str, Tree] = {
    "1 layer of d=16": layers(1, 16),
    "4 experts of 16 x 32": experts(4, 16, 32),
}
ON_CPU: dict[str, Tree] = {
    "32 leaves of 64 x 64": square_leaves(32, 64),
    "6 layers of d=384": layers(6, 384),
    "48 layers of d=64": layers(48, 64),
    "GPT-2 small's shapes, 1 layer": gpt2(1, 768, vocabulary=2048),
    "8 experts of 256 x 512": experts(8, 256, 512),
    "64 tiny leaves": tiny_leaves(64),
}
ON_ACCELERATORS: dict[str, Tree] = ON_CPU | {
    "GPT-2 small": gpt2(12, 768),
    "GPT-2 medium": gpt2(24, 1024),
    "1 layer of d=4096": layers(1, 4096),
    "64 experts of 2048 x 1408": experts(64, 2048, 1408),
    "6 layers of d=384, bfloat16": layers(6, 384, jnp.bfloat16),
    "GPT-2 small, bfloat16": gpt2(12, 768, jnp.bfloat16),
}
CASES = QUICK | ON_ACCELERATORS

NOTES = [
    "One step is the optimizer's update and optax.apply_updates, with state and parameters donated. Gradients and "
    "momenta have the parameters' dtype: float32, or what the case says.",
    "Same work: optax.contrib.muon gets muon_optax's partition as muon_weight_dimension_numbers (by itself it sends "
    "all 2-D leaves, embeddings too, to Muon and all others to AdamW), Moonlight's scale and the same decay. What "
    "differs: its Nesterov average is bias-corrected, and it multiplies in the parameters' dtype where muon_optax "
    "multiplies in bfloat16 by default; compare it with the row that multiplies in float32.",
    "float32 products: muon_optax's are exact; optax.contrib.muon uses the backend's default, which is less on GPUs "
    'and TPUs; "highest" is under jax.default_matmul_precision("highest").',
    "optax.adamw updates every leaf by AdamW: the price of an update without orthogonalization.",
    "ms: median over interleaved rounds; the ratio is the median of the rounds' ratios to optax.contrib.muon: below 1 "
    "is faster.",
    "products, product GFLOP: as traced; XLA GFLOP: cost_analysis of the compiled program (- where it has a loop).",
    "trace s and compile s: once, from an empty cache, muon_optax first: what XLA keeps in a process, it pays for.",
]


def measure(case: str, params: Tree, rounds: int, step: Callable[[str], None]) -> list[Row]:
    """A row for each optimizer."""
    optimizers = contestants(params)
    programs: dict[str, Program] = {}
    for name, optimizer in optimizers.items():
        state = jax.eval_shape(optimizer.init, params)
        programs[name] = compile_program(training_step(optimizer), params, state, params, donate=(1, 2))
        step(f"{case}, {name}")
    values, gradients = draw(params, 0), draw(params, 1)
    runs = {
        name: Training(programs[name].run, gradients, optimizer.init(values), values)
        for name, optimizer in optimizers.items()
    }
    times = time_interleaved(runs, rounds, step)
    return [
        {"case": case, "optimizer": name}
        | summarize_times(times[name], times[REFERENCE])
        | programs[name].costs
        | {"state MB": 1e-6 * state_bytes(optimizer, params)}
        for name, optimizer in optimizers.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--case", nargs="+", choices=CASES, help="trees; the default depends on the device")
    options.add_argument("--rounds", type=int, help="interleaved rounds of timing (default 7, with --quick 3)")
    options.add_argument("--max-gflop", type=float, help="leaves out larger trees (default on a CPU: 200)")
    given = options.parse_args(arguments)
    compile_afresh()

    default = QUICK if given.quick else ON_CPU if is_cpu() and not given.full else ON_ACCELERATORS
    limit = given.max_gflop or (200.0 if is_cpu() and not given.full else None)
    fitting, left_out = within({name: orthogonalization_gflop(CASES[name]) for name in given.case or default}, limit)
    rounds = given.rounds or (3 if given.quick else 7)

    report = Report("optimizer_step", device_name(), [*NOTES, f"{rounds} rounds."], left_out=left_out)
    with Progress(sum(len(contestants(CASES[name])) + rounds for name in fitting), report.name) as step:
        for name in fitting:
            report.rows += measure(name, CASES[name], rounds, step)
    finish(report, given.output)


if __name__ == "__main__":
    main()
