"""The parts of an update of muon_optax.muon, each compiled and timed on its own, beside the whole update.

python benchmarks/update/step_parts.py          # the main job and GPT-2 small's shapes, minutes on two CPU cores
python benchmarks/update/step_parts.py --quick  # seconds
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax
import jax.numpy as jnp
import optax

import muon_optax as mo
from benchmarks.shared.measure import compile_afresh, compile_program, time_interleaved
from benchmarks.shared.optimizers import (
    LEARNING_RATE,
    WEIGHT_DECAY,
    Tree,
    adamw,
    gpt2,
    muon,
    square_leaves,
    train_gpt,
    training_step,
)
from benchmarks.shared.report import Progress, Report, Row, device_name, finish, is_cpu, parser
from benchmarks.shared.updates import Training, draw

WHOLE = "whole update"
CASES = {
    "quick": {"2 leaves of 16 x 16": square_leaves(2, 16)},
    "cpu": {
        "train_gpt small": train_gpt(4, 128, 2),
        # A twelfth of the vocabulary too: the shares are those of the whole model.
        "GPT-2 small, a twelfth": gpt2(1, 768, vocabulary=50257 // 12, context=1024 // 12),
    },
    "accelerator": {"train_gpt small": train_gpt(4, 128, 2), "GPT-2 small": gpt2(12, 768)},
}
NOTES = [
    "Each part is a program of its own over all its leaves: momentum, orthogonalization, scale, decay and rate over "
    "Muon's matrices, AdamW over the other leaves, apply over all. State and parameters are donated.",
    "of the whole: median of the rounds' ratios to the whole update, one program. Alone, a part reads and writes all "
    "its leaves, which the compiler saves in the whole by fusing: the sum can exceed 1, and each is an upper bound.",
]


class Part(NamedTuple):
    """A transform and the leaves that it works on."""

    transform: optax.GradientTransformation
    params: Tree


def parts(params: Tree) -> dict[str, Part]:
    """The transforms that ``muon_optax.muon`` chains, in their order."""
    resolved = mo.assign_layouts(params)
    leaves, layouts = jax.tree.leaves(params), dict(resolved)
    matrices = {path: leaf for (path, layout), leaf in zip(layouts.items(), leaves, strict=True) if layout is not None}
    others = {path: leaf for path, leaf in zip(layouts, leaves, strict=True) if path not in matrices}
    known = {path: layouts[path] for path in matrices}
    chain = {
        "momentum": optax.trace(0.95, nesterov=True),
        "orthogonalization": mo.orthogonalize(mo.newton_schulz(), layouts=known),
        "scale": mo.scale_by_shape("moonlight", layouts=known),
        "decay": optax.add_decayed_weights(WEIGHT_DECAY),
        "rate": optax.scale_by_learning_rate(LEARNING_RATE),
    }
    found = {name: Part(transform, matrices) for name, transform in chain.items()}
    return found | ({"AdamW's leaves": Part(adamw(), others)} if others else {})


def running(function: Callable[..., Any], state: Any, params: Tree) -> Training:
    """Calls of ``function(gradients, state, params) -> (params, state)``, each on what the one before left."""
    gradients, values = draw(params, 1), draw(params, 0)
    program = compile_program(function, gradients, state, values, donate=(1, 2))
    return Training(program.run, gradients, state, values)


def part_alone(part: Part) -> Training:
    """The part's updates take the place of the parameters, whose memory they get."""

    def step(gradients: Tree, state: Any, updates: Tree) -> tuple[Tree, Any]:
        return part.transform.update(gradients, state, updates)

    return running(step, part.transform.init(draw(part.params, 0)), part.params)


def apply_alone(params: Tree) -> Training:
    """``optax.apply_updates`` of every leaf."""

    def step(updates: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        return optax.apply_updates(params, updates), state

    return running(step, jnp.zeros(()), params)


def measure(case: str, params: Tree, rounds: int, step: Callable[[str], None]) -> list[Row]:
    """A row for each part, and the whole."""
    runs = {name: part_alone(part) for name, part in parts(params).items()}
    runs["apply"] = apply_alone(params)
    runs[WHOLE] = running(training_step(muon()), muon().init(draw(params, 0)), params)
    times = time_interleaved(runs, rounds, step)
    ratios = {name: median(own / whole for own, whole in zip(times[name], times[WHOLE], strict=True)) for name in runs}
    together = sum(ratio for name, ratio in ratios.items() if name != WHOLE)
    return [
        {"case": case, "part": name, "ms": median(times[name]), "of the whole": ratios[name]}
        | {"of the parts": None if name == WHOLE else ratios[name] / together}
        for name in runs
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="interleaved rounds of timing (default 9, with --quick 3)")
    given = options.parse_args(arguments)
    compile_afresh()
    cases = CASES["quick" if given.quick else "cpu" if is_cpu() and not given.full else "accelerator"]
    rounds = given.rounds or (3 if given.quick else 9)
    report = Report("step_parts", device_name(), [*NOTES, f"{rounds} rounds."])
    with Progress(len(cases) * rounds, report.name) as step:
        for case, params in cases.items():
            report.rows += measure(case, params, rounds, step)
            report.write(given.output)  # what is done stays, should the run be stopped
    finish(report, given.output)


if __name__ == "__main__":
    main()
