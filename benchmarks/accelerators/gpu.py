"""All that a GPU is asked, in at most six minutes: methods and dtypes, grouping limits, updates, share of a GPT-2 step.

    python benchmarks/accelerators/gpu.py          # on one GPU; tables in benchmarks/results
    python benchmarks/accelerators/gpu.py --quick  # tiny shapes on any device, under a minute
    python benchmarks/accelerators/gpu.py --sections grouping --seconds 120
    python benchmarks/accelerators/gpu.py --after benchmarks/results/EARLIER.json --output /tmp/rest

What no longer fits into the time is listed in the tables. A second run measures that first: --after leaves out the
cases that earlier runs on the same GPU finished. Files of one day have one name, so it writes elsewhere.
"""

import sys
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax
import jax.numpy as jnp
import optax

import muon_optax as mo
from benchmarks.accelerators._budget import Budget, Contender, measured_cases
from benchmarks.accelerators._contenders import costs, orthogonalizing, updating
from benchmarks.accelerators._gpt2 import loss_gradient
from benchmarks.shared.measure import Program, compile_afresh, compile_program
from benchmarks.shared.optimizers import (
    Tree,
    adamw,
    gpt2,
    layers,
    muon,
    optax_newton_schulz,
    square_leaves,
    training_step,
)
from benchmarks.shared.report import Report, device_name, finish, parser
from benchmarks.shared.updates import REFERENCE, Training, contestants, draw
from benchmarks.shared.ways_to_run import REFERENCE as ONE_BY_ONE
from benchmarks.shared.ways_to_run import Case, Way, propose_limits, running, step_with, ways
from muon_optax._orthogonalizers.batching import _LIMITS, _Limits

SECONDS = 320  # of six minutes: the rest is for starting, and for the compilation that time runs out in
SHARES = {"grouping": 0.3, "orthogonalization": 0.25, "updates": 0.2, "step share": 0.25}
# In each section what decides most comes first, since its time may end.
SHAPES = [
    (1024, 4096),
    (4096, 4096),
    (1024, 1024),
    (2048, 2048),
    (512, 2048),
    (2048, 8192),
    (512, 512),
    (8192, 8192),
    (4096, 16384),
    (8192, 32768),
]
GROUPS = [
    Case(32, 256, 256),
    Case(12, 768, 3072),
    Case(24, 768, 768),
    Case(8, 2048, 2048),
    Case(8, 1024, 4096),
    Case(16, 1024, 1024),
    Case(32, 64, 64),
    Case(24, 512, 512),
    Case(128, 256, 256),
    Case(4, 4096, 4096),
]
UPDATES = {"GPT-2 small": gpt2(12, 768), "GPT-2 medium": gpt2(24, 1024), "6 layers of d=384": layers(6, 384)}
# Others take half a minute and more to compile; optimizer_step.py has them.
UPDATERS = ("muon_optax.muon", REFERENCE, "optax.adamw")
MUON_IN_FOUR = "muon_optax.muon, four steps"
# Parameters, heads, batch and length of the text.
MODELS = {"GPT-2 small": (gpt2(12, 768), 12, 8, 1024), "GPT-2 medium": (gpt2(24, 1024), 16, 8, 1024)}
QUICK_GROUPS = [Case(3, 16, 16)]
QUICK_UPDATES = {"2 leaves of 16 x 16": square_leaves(2, 16)}
QUICK_MODELS = {"GPT-2, 1 layer of 16": (gpt2(1, 16, vocabulary=64, context=16), 2, 2, 16)}
OPTAX, FLOAT32, ALONE = "optax.contrib bfloat16", "auto float32", "forward and backward"
FOUR_STEPS = "four steps, bfloat16"
FLOAT32_ELEMENTS = 2**22  # larger ones take the compiler half a minute

NOTES = [
    "ms: median over interleaved rounds after a warm-up; ratio: median of those to the section's reference.",
    "orthogonalization: float32 matrices in and out, KELLER, products in the named dtype (float32 in full precision); "
    f"{FOUR_STEPS}: polar_express(4, 4e-3) by the Schatten 4-norm. The ratio is to {OPTAX}.",
    "grouping: one step of Muon on matrices of one shape, as in grouping.py; the ratio is to one by one.",
    "updates: optimizer.update and optax.apply_updates, as in optimizer_step.py; the ratio is to optax.contrib.muon.",
    "step share: forward and backward on random tokens, the model's products in bfloat16, then the update, in two "
    "programs; the ratio is to the first alone, the optimizer's share is 1 - 1 / ratio, costs are the second's.",
    "State and parameters are donated wherever there are any. compile s: once, from an empty cache.",
]


def orthogonalization(budget: Budget, shapes: Sequence[tuple[int, int]], rounds: int) -> None:
    """Methods and dtypes over shapes, beside Optax's."""
    everyone = {
        OPTAX: optax_newton_schulz(mo.KELLER, jnp.bfloat16),
        "direct bfloat16": mo.newton_schulz(method="direct"),
        "gram bfloat16": mo.newton_schulz(method="gram"),
        FOUR_STEPS: mo.newton_schulz(mo.polar_express(4, 4e-3), norm="schatten4"),
        "auto float16": mo.newton_schulz(dtype=jnp.float16),
        FLOAT32: mo.newton_schulz(dtype=jnp.float32),
    }
    for rows, cols in shapes:
        prepare = partial(orthogonalizing, shape=(rows, cols))
        names = [name for name in everyone if name != FLOAT32 or rows * cols <= FLOAT32_ELEMENTS]
        contenders = {name: partial(prepare, everyone[name]) for name in names}
        budget.compare("orthogonalization", f"{rows} x {cols}", contenders, OPTAX, rounds)


def grouping(budget: Budget, cases: Sequence[Case], rounds: int) -> _Limits | None:
    """Matrices of one shape, batch against one by one; the limits that this proposes."""
    ratios = {}
    for case in cases:
        contenders = {name: partial(_prepared_group, case, way) for name, way in ways(case).items()}
        measured = budget.compare("grouping", str(case), contenders, ONE_BY_ONE, rounds)
        ratios[case] = {row["contender"]: row["ratio"] for row in measured if row["ratio"] is not None}
    return propose_limits(ratios, _LIMITS["default"])


def _prepared_group(case: Case, way: Way) -> Contender:
    arrays = [jax.ShapeDtypeStruct((case.rows, case.cols), jnp.float32)] * case.matrices
    program = compile_program(partial(step_with, way), arrays, arrays, arrays, donate=(1, 2))
    return Contender(running(case, program), costs(program.costs))


def updates(budget: Budget, trees: dict[str, Tree], rounds: int) -> None:
    """Whole updates beside Optax's."""
    for case, params in trees.items():
        known = contestants(params)
        optimizers = {name: known[name] for name in UPDATERS} | {
            MUON_IN_FOUR: muon(mo.newton_schulz(mo.polar_express(4, 4e-3), norm="schatten4"))
        }
        contenders = {name: partial(updating, optimizer, params) for name, optimizer in optimizers.items()}
        budget.compare("updates", case, contenders, REFERENCE, rounds)


def step_share(budget: Budget, models: dict[str, tuple[Tree, int, int, int]], rounds: int) -> None:
    """Forward, backward and update, beside forward and backward alone."""
    for case, (params, heads, batch, length) in models.items():
        vocabulary = params["wte"]["embedding"].shape[0]
        tokens = jax.random.randint(jax.random.key(2), (batch, length + 1), 0, vocabulary)

        gradient = _Gradient(params, tokens, heads)
        contenders = {ALONE: gradient.alone} | {
            name: partial(gradient.with_update, optimizer)
            for name, optimizer in {"muon_optax.muon": muon(), "optax.adamw": adamw()}.items()
        }
        measured = budget.compare("step share", f"{case}, {batch} x {length} tokens", contenders, ALONE, rounds)
        for row in measured:
            row["share"] = None if row["ratio"] is None else 1 - 1 / row["ratio"]


class _Gradient:
    """A model's forward and backward pass, compiled once for all contenders: on a GPU that takes longest."""

    def __init__(self, params: Tree, tokens: jax.Array, heads: int) -> None:
        self._params, self._tokens, self._heads = params, tokens, heads

    @cached_property
    def _program(self) -> Program:
        return compile_program(partial(loss_gradient, heads=self._heads), self._params, self._tokens)

    def alone(self) -> Contender:
        run = partial(self._program.run, draw(self._params, 0), self._tokens)
        return Contender(run, costs(self._program.costs))

    def with_update(self, optimizer: optax.GradientTransformation) -> Contender:
        gradient, params = self._program, self._params
        update = compile_program(
            training_step(optimizer), params, jax.eval_shape(optimizer.init, params), params, donate=(1, 2)
        )

        def step(tokens: jax.Array, state: Any, params: Tree) -> tuple[Tree, Any]:
            return update.run(gradient.run(params, tokens), state, params)

        values = draw(params, 0)
        return Contender(Training(step, self._tokens, optimizer.init(values), values), costs(update.costs))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--sections", nargs="+", choices=SHARES, default=list(SHARES), help="default: all")
    options.add_argument("--seconds", type=float, default=SECONDS, help="time that the sections share")
    options.add_argument(
        "--after", type=Path, nargs="+", default=[], help="results of earlier runs: their cases are left out"
    )
    given = options.parse_args(arguments)
    compile_afresh()
    quick, rounds = given.quick, 3 if given.quick else 7

    report = Report("gpu", device_name(), [*NOTES, f"{rounds} rounds."])
    shares = {section: share for section, share in SHARES.items() if section in given.sections}
    known = set().union(*map(measured_cases, given.after))
    budget = Budget(report, given.output, given.seconds, shares, known)
    if "grouping" in shares:
        limits = grouping(budget, QUICK_GROUPS if quick else GROUPS, rounds)
        report.notes.append(
            f"Proposed for a GPU's row of _LIMITS: `{limits}`" if limits else "No limits: too little time."
        )
    if "orthogonalization" in shares:
        orthogonalization(budget, [(16, 64)] if quick else SHAPES, rounds)
    if "updates" in shares:
        updates(budget, QUICK_UPDATES if quick else UPDATES, rounds)
    if "step share" in shares:
        step_share(budget, QUICK_MODELS if quick else MODELS, rounds)
    finish(report, given.output)
    if budget.failures:
        sys.exit(f"{budget.failures} failed for another reason than memory: see the column result")


if __name__ == "__main__":
    main()
