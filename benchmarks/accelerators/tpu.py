"""All that a TPU is asked, in at most six minutes: are symmetric products right, and how fast are they and the updates.

    python benchmarks/accelerators/tpu.py          # on one TPU; tables in benchmarks/results, to paste
    python benchmarks/accelerators/tpu.py --quick  # tiny shapes on any device, under a minute
    python benchmarks/accelerators/tpu.py --sections updates --seconds 120

It ends with 1 where there is no TPU, where something failed, and where products differ by more than rounding. What no
longer fits into the time is listed in the tables.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

import muon_optax as mo
from benchmarks.accelerators._budget import Budget, Contender
from benchmarks.accelerators._contenders import orthogonalizing, updating
from benchmarks.shared.measure import compile_afresh
from benchmarks.shared.optimizers import (
    Tree,
    adamw,
    gpt2,
    layers,
    muon,
    optax_muon,
    optax_newton_schulz,
    square_leaves,
)
from benchmarks.shared.report import Report, device_name, finish, parser

SECONDS = 320  # of six minutes: the rest is for starting, and for the compilation that time runs out in
SHARES = {"orthogonalization": 0.55, "updates": 0.45}
# In each section what decides most comes first, since its time may end.
SHAPES = [(4096, 4096), (1024, 4096), (1024, 1024), (4096, 16384), (2048, 2048), (1000, 3000), (4096, 1024)]
UPDATES = {
    "1 layer of d=4096": layers(1, 4096),
    "4 layers of d=1024": layers(4, 1024),
    "GPT-2 small": gpt2(12, 768),
}
QUICK_SHAPES = [(16, 64), (24, 16)]
QUICK_UPDATES = {"2 leaves of 16 x 16": square_leaves(2, 16)}
XLA, SYMMETRIC, OPTAX = 'products="xla"', 'products="symmetric"', "optax.contrib"
# Of entries, over their root mean square. Two ways of rounding to bfloat16 end up to 0.2 apart, and a block that is
# wrong ends several apart.
LARGEST_DIFFERENCE = 0.5
FOUR_STEPS = mo.polar_express(4, 4e-3)

NOTES = [
    "ms: median over interleaved rounds after a warm-up; ratio: median of those to the section's reference.",
    "orthogonalization: one float32 matrix, KELLER in bfloat16, or polar_express(4, 4e-3) by the Schatten 4-norm; the "
    f"ratio is to newton_schulz({XLA}), and so is the difference of {SYMMETRIC}: of the entry that differs most, over "
    f"the root mean square. Above {LARGEST_DIFFERENCE} it is an error.",
    "updates: optimizer.update and optax.apply_updates, with state and parameters donated, as in optimizer_step.py; "
    "the ratio is to optax.contrib.muon. Parameters, gradients and momenta in float32.",
    "compile s: once, from an empty cache.",
]


def orthogonalizers(four_steps: bool) -> dict[str, mo.Orthogonalizer]:
    """The same iteration by either products."""
    arguments = {"coefficients": FOUR_STEPS, "norm": "schatten4"} if four_steps else {}
    return {
        XLA: mo.newton_schulz(products="xla", **arguments),
        SYMMETRIC: mo.newton_schulz(products="symmetric", **arguments),
    }


def orthogonalization(budget: Budget, shapes: Sequence[tuple[int, int]], rounds: int) -> list[str]:
    """Both products on each shape, beside Optax's; the cases in which they differ."""
    different = []
    for rows, cols in shapes:
        for schedule, four_steps in (("KELLER", False), ("four steps", True)):
            comparison = Comparison((rows, cols))
            ways = orthogonalizers(four_steps)
            contenders = {
                XLA: partial(comparison.reference, ways[XLA]),
                SYMMETRIC: partial(comparison.other, ways[SYMMETRIC]),
            }
            if not four_steps:
                contenders[OPTAX] = partial(orthogonalizing, optax_newton_schulz(mo.KELLER, jnp.bfloat16), (rows, cols))
            case = f"{rows} x {cols}, {schedule}"
            for row in budget.compare("orthogonalization", case, contenders, XLA, rounds):
                # Written so that a difference that is NaN is not taken for a small one.
                if not row.get("difference", 0.0) <= LARGEST_DIFFERENCE:
                    row["result"] = "differs"
                    different.append(case)
    return different


class Comparison:
    """One matrix by XLA's products, kept for what others make of it."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self._shape, self._expected = shape, None

    def reference(self, function: Callable[[jax.Array], jax.Array]) -> Contender:
        """XLA's products."""
        contender = orthogonalizing(function, self._shape)
        self._expected = contender.run()
        return contender

    def other(self, function: Callable[[jax.Array], jax.Array]) -> Contender:
        """Those of ``function``, with their difference where XLA's are known."""
        contender = orthogonalizing(function, self._shape)
        if self._expected is None:  # it failed, which is a row of its own
            return contender
        difference = largest_difference(contender.run(), self._expected)
        return contender._replace(costs=contender.costs | {"difference": difference})


def largest_difference(matrix: jax.Array, expected: jax.Array) -> float:
    """Of the entry that differs most, over the root mean square of what is expected."""
    return float(jnp.max(jnp.abs(matrix - expected)) / jnp.sqrt(jnp.mean(expected**2)))


def updates(budget: Budget, trees: dict[str, Tree], rounds: int) -> None:
    """Whole updates by either products, beside Optax's."""
    for case, params in trees.items():
        optimizers = {"optax.contrib.muon": optax_muon(params)}
        for name, four_steps in (("muon", False), ("muon, four steps", True)):
            optimizers |= {f"{name}, {way}": muon(one) for way, one in orthogonalizers(four_steps).items()}
        optimizers["optax.adamw"] = adamw()
        contenders = {name: partial(updating, optimizer, params) for name, optimizer in optimizers.items()}
        budget.compare("updates", case, contenders, "optax.contrib.muon", rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--sections", nargs="+", choices=SHARES, default=list(SHARES), help="default: all")
    options.add_argument("--seconds", type=float, default=SECONDS, help="time that the sections share")
    given = options.parse_args(arguments)
    if jax.default_backend() != "tpu" and not given.quick:
        sys.exit(
            f"tpu.py needs a TPU, and JAX has {device_name()}. Without one, tpu_compile.py estimates cycles by the "
            "TPU's compiler, and tpu.py --quick shows on any device that it runs."
        )
    compile_afresh()
    quick, rounds = given.quick, 3 if given.quick else 7

    report = Report("tpu", device_name(), [*NOTES, f"{rounds} rounds."])
    if jax.default_backend() != "tpu":
        report.notes.append(f"Not a TPU: {SYMMETRIC} is left to XLA here, and the rows are of one program.")
    shares = {section: share for section, share in SHARES.items() if section in given.sections}
    budget = Budget(report, given.output, given.seconds, shares)
    different = []
    # On a host of several chips the kernels run only where one is known to compute alone.
    alone = jax.make_mesh((1,), ("device",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    with jax.set_mesh(alone):
        if "orthogonalization" in shares:
            different = orthogonalization(budget, QUICK_SHAPES if quick else SHAPES, rounds)
        if "updates" in shares:
            updates(budget, QUICK_UPDATES if quick else UPDATES, rounds)
    finish(report, given.output)
    if different:
        sys.exit(f"{SYMMETRIC} differs from {XLA} by more than rounding: {'; '.join(different)}")
    if budget.failures:
        sys.exit(f"{budget.failures} failed for another reason than memory: see the column result")


if __name__ == "__main__":
    main()
