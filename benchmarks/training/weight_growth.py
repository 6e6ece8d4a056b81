"""Weights in bfloat16 with and without decay: how far they grow, and how much of each update rounding loses.

    python benchmarks/training/weight_growth.py          # 2000 steps, a minute; writes the plot of the docs
    python benchmarks/training/weight_growth.py --quick  # 100 steps, seconds; writes the plot beside the table

A network of three matrices learns the noisy labels of another one of its shape, by mo.muon with all matrices
orthogonalized and by optax.adamw.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import muon_optax as mo
from benchmarks.shared.palette import COLORS
from benchmarks.shared.report import ROOT, Progress, Report, device_name, finish, parser

IMAGE = ROOT / "docs" / "images" / "weight_growth.png"
STEPS, QUICK_STEPS = 2000, 100
LEARNING_RATE = 0.05  # of both: with Moonlight's scale their updates are of one size
INPUTS, WIDTH, CLASSES, BATCH = 32, 64, 16, 64
SHAPES = {"up": (INPUTS, WIDTH), "middle": (WIDTH, WIDTH), "down": (WIDTH, CLASSES)}


class Case(NamedTuple):
    """The optimizer, the dtype of parameters, gradients and momenta, and the decay."""

    optimizer: str
    dtype: str
    decay: float

    def __str__(self) -> str:
        name = {"muon": "Muon", "adamw": "AdamW"}[self.optimizer]
        return f"{name}, {self.dtype}, decay {self.decay:g}"

    @property
    def line(self) -> str:
        """Dashed without decay, dotted in float32."""
        return ":" if self.dtype == "float32" else "-" if self.decay else "--"


CASES = (
    Case("muon", "bfloat16", 0.0),
    Case("muon", "float32", 0.0),
    Case("muon", "bfloat16", 0.1),
    Case("adamw", "bfloat16", 0.0),
    Case("adamw", "bfloat16", 0.1),
)
MUON_DECAY = 0.1


class Growth(NamedTuple):
    """After each step, ``(steps,)``: over all matrices together, but for the norm."""

    loss: np.ndarray
    rms: np.ndarray
    lost: np.ndarray  # of the entries with an update other than zero, the share that it left as they were
    norm: np.ndarray  # the largest singular value of any matrix, divided by its scale


def bound(decay: float) -> float:
    """What the weights cannot outgrow, as a multiple of the scale: of ``norm``, and 1 / 0.2 of that of ``rms``.

    ``W <- (1 - r d) W - r s O`` with singular values of ``O`` up to ``o`` keeps those of ``W`` below ``s o / d``, once
    they are. Without decay there is none.
    """
    return mo.coefficient_range(mo.KELLER, 0.0)[1] / decay


def scale(shape: tuple[int, int]) -> float:
    """Moonlight's."""
    return 0.2 * max(shape) ** 0.5


def draw(seed: int, dtype: str) -> dict[str, jax.Array]:
    """A network with random weights."""
    keys = jax.random.split(jax.random.key(seed), len(SHAPES))
    return {
        name: (jax.random.normal(key, shape) * shape[0] ** -0.5).astype(dtype)
        for key, (name, shape) in zip(keys, SHAPES.items(), strict=True)
    }


def logits(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """``(batch, classes)`` in float32. Normalized before each activation: no unit dies, however large the weights."""
    for name in ("up", "middle"):
        x = x.astype(params[name].dtype) @ params[name]
        x = jax.nn.gelu(jax.nn.standardize(x.astype(jnp.float32)))
    return (x.astype(params["down"].dtype) @ params["down"]).astype(jnp.float32)


def loss(params: dict[str, jax.Array], teacher: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Cross entropy on a batch that is drawn afresh, with labels drawn from the teacher's distribution."""
    inputs, labels = jax.random.split(key)
    x = jax.random.normal(inputs, (BATCH, INPUTS))
    targets = jax.random.categorical(labels, 2 * logits(teacher, x))
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), targets).mean()


def train(case: Case, steps: int) -> Growth:
    """Trains from the same start on the same batches, whatever the case."""
    optimizer = (
        mo.muon(LEARNING_RATE, weight_decay=case.decay, layouts=dict.fromkeys(SHAPES, "io"))
        if case.optimizer == "muon"
        else optax.adamw(LEARNING_RATE, b2=0.95, weight_decay=case.decay)
    )
    teacher = draw(1, "float32")

    def step(carry: Any, key: jax.Array) -> tuple[Any, Growth]:
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, teacher, key)
        updates, state = optimizer.update(gradients, state, params)
        moved = optax.apply_updates(params, updates)
        return (moved, state), Growth(value, rms(moved), lost(updates, params, moved), norm(moved))

    @jax.jit
    def run(params: dict[str, jax.Array]) -> Growth:
        keys = jax.random.split(jax.random.key(2), steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    return Growth(*map(np.asarray, run(draw(0, case.dtype))))


def joined(params: dict[str, jax.Array]) -> jax.Array:
    return jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(params)])


def rms(params: dict[str, jax.Array]) -> jax.Array:
    return jnp.sqrt(jnp.mean(joined(params) ** 2))


def lost(updates: dict[str, jax.Array], params: dict[str, jax.Array], moved: dict[str, jax.Array]) -> jax.Array:
    # On the bits: within one program XLA may compare the sum as it was before it was rounded.
    meant = joined(updates) != 0
    return jnp.sum(meant & (bits(params) == bits(moved))) / jnp.maximum(jnp.sum(meant), 1)


def bits(params: dict[str, jax.Array]) -> jax.Array:
    integers = {2: jnp.int16, 4: jnp.int32}
    leaves = jax.tree.leaves(params)
    raw = (jax.lax.bitcast_convert_type(leaf, integers[leaf.dtype.itemsize]) for leaf in leaves)
    return jnp.concatenate([leaf.ravel() for leaf in raw])


def norm(params: dict[str, jax.Array]) -> jax.Array:
    norms = {name: jnp.linalg.norm(leaf.astype(jnp.float32), 2) for name, leaf in params.items()}
    return jnp.stack([norms[name] / scale(shape) for name, shape in SHAPES.items()]).max()


def plot(results: dict[Case, Growth], path: Path) -> None:
    """Two panels over the steps: RMS of the weights, and the share of the update that is lost."""
    weights, entries = (figure := Figure(figsize=(11, 3.6), layout="constrained")).subplots(1, 2)
    for case, growth in results.items():
        line, color = case.line, COLORS[case.optimizer]
        steps = np.arange(1, growth.rms.size + 1)
        weights.plot(steps, growth.rms, line, color=color, label=str(case))
        # The mean of 20 steps, which differ by the batch.
        smooth = np.convolve(growth.lost, np.full(20, 1 / 20), "valid")
        entries.plot(steps[19:], smooth, line, color=color, label=str(case))
    limit = 0.2 * bound(MUON_DECAY)
    label = f"Muon's bound for decay {MUON_DECAY:g}: {limit:.2f}"
    weights.axhline(limit, color="black", linewidth=1, label=label)
    weights.set(xlabel="step", ylabel="RMS of the weights", yscale="log", yticks=(0.2, 0.5, 1, 2))
    weights.yaxis.set_major_formatter("{x:g}")
    weights.minorticks_off()
    entries.set(xlabel="step", ylabel="share of updates lost to rounding")
    figure.legend(*weights.get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    figure.suptitle("One seed", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--image", type=Path, help="file of the plot (default that of the docs, with --quick none)")
    given = options.parse_args(arguments)
    steps = QUICK_STEPS if given.quick else STEPS
    notes = [
        f"{INPUTS} x {WIDTH} x {WIDTH} x {CLASSES} network, batches of {BATCH} labels of a random teacher; "
        f"learning rate {LEARNING_RATE}, AdamW's b2 0.95, the same start and batches; {steps} steps.",
        "RMS: of all matrices together. Lost: of the entries with an update other than zero, those that it left as "
        "they were. Norm: the largest singular value of a matrix over its scale 0.2 max(fan_in, fan_out)^0.5. Lost "
        "and loss: means of the last 100 steps.",
    ]
    report, results = Report("weight_growth", device_name(), notes), {}
    with Progress(len(CASES), report.name) as step:
        for case in CASES:
            growth = results[case] = train(case, steps)
            report.rows.append(
                {
                    "steps": f"{steps} steps",
                    "optimizer": case.optimizer,
                    "weights": case.dtype,
                    "decay": case.decay,
                    "RMS at first": float(growth.rms[0]),
                    "RMS at half": float(growth.rms[steps // 2 - 1]),
                    "RMS at last": float(growth.rms[-1]),
                    "lost": float(growth.lost[-100:].mean()),
                    "loss": float(growth.loss[-100:].mean()),
                    "norm at last": float(growth.norm[-1]),
                    "bound of the norm": bound(case.decay) if case.decay and case.optimizer == "muon" else None,
                }
            )
            step(str(case))
    plot(results, given.image or (given.output / "weight_growth.png" if given.quick else IMAGE))
    finish(report, given.output)


if __name__ == "__main__":
    main()
