"""What QK-clip costs a training step in Flax NNX: a layer of attention with and without it.

    python benchmarks/training/clip_qk_cost.py          # a minute on two CPU cores
    python benchmarks/training/clip_qk_cost.py --quick  # seconds

The layer is that of examples/clip_qk.py, wider.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import muon_optax as mo
from benchmarks.shared.measure import compile_afresh, time_interleaved
from benchmarks.shared.report import ROOT, Progress, Report, device_name, finish, parser

SIZES = {"quick": (32, 2, 16, 2), "full": (512, 8, 256, 8)}  # width, heads, positions, sequences
RATE, THRESHOLD = 1e-3, 100.0
WITHOUT, MAXIMA, CLIPPED = "muon", "muon, maxima returned", "muon, maxima returned, clip_qk"
NOTES = [
    "A step: forward, backward and update of one layer of attention and nothing else, float32, parameters and state "
    "donated. In a model with feed-forward layers the share is smaller.",
    "ms: median over interleaved rounds. Ratio: median of the rounds' ratios to Muon without maxima.",
]


def attention(width: int, heads: int) -> nnx.Module:
    """The example's layer, at another width."""
    spec = importlib.util.spec_from_file_location("clip_qk_example", ROOT / "examples" / "clip_qk.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    vars(example).update(WIDTH=width, HEADS=heads)
    return example.Attention(nnx.Rngs(0))


def training_step(name: str, size: tuple[int, int, int, int]) -> Callable[[], Any]:
    """Steps one after another."""
    width, heads, time, batch = size
    graph, params = nnx.split({"attention": attention(width, heads)})
    muon = mo.muon(RATE)
    optimizer = optax.chain(muon, mo.clip_qk(THRESHOLD)) if name == CLIPPED else optax.with_extra_args_support(muon)

    def loss_of(params: nnx.State, x: jax.Array) -> tuple[jax.Array, dict]:
        outputs, maxima = nnx.merge(graph, params)["attention"](x)
        return jnp.mean(jnp.square(outputs - x)), {"attention": maxima}

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: nnx.State, state: optax.OptState, x: jax.Array) -> tuple:
        gradients, maxima = jax.grad(loss_of, has_aux=True)(params, x)
        extra = {"max_logits": maxima} if name == CLIPPED else {}
        updates, state = optimizer.update(gradients, state, params, **extra)
        # Without a use for them XLA takes the maxima out of the program.
        return optax.apply_updates(params, updates), state, None if name == WITHOUT else maxima

    x = jax.random.normal(jax.random.key(0), (batch, time, width))
    state = optimizer.init(params)

    def run() -> tuple:
        nonlocal params, state
        params, state, maxima = step(params, state, x)
        return params, maxima

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, help="interleaved rounds of timing (default 15, with --quick 3)")
    given = options.parse_args(arguments)
    compile_afresh()
    width, heads, time, batch = size = SIZES["quick" if given.quick else "full"]
    rounds = given.rounds or (3 if given.quick else 15)
    report = Report("clip_qk_cost", device_name(), [*NOTES, f"{rounds} rounds."])
    runs = {name: training_step(name, size) for name in (WITHOUT, MAXIMA, CLIPPED)}
    with Progress(rounds, report.name) as step:
        times = time_interleaved(runs, rounds, step)
    for name in runs:
        ratios = [one / other for one, other in zip(times[name], times[WITHOUT], strict=True)]
        title = f"width {width}, {heads} heads, {batch} x {time} positions"
        report.rows.append({"case": title, "optimizer": name, "ms": median(times[name]), "ratio": median(ratios)})
    finish(report, given.output)


if __name__ == "__main__":
    main()
