"""Whole updates of the parameters: muon_optax.muon beside optax.contrib.muon and optax.adamw, in one process.

    python benchmarks/optimizer_step.py             # minutes on two CPU cores; all trees on an accelerator
    python benchmarks/optimizer_step.py --quick     # seconds
    python benchmarks/optimizer_step.py --case "6 layers of d=384" --rounds 15

Without an installed muon_optax, put PYTHONPATH=. in front.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from _measure import Program, compile_afresh, compile_program, summarize_times, time_interleaved
from _optimizers import (
    Tree,
    adamw,
    experts,
    gpt2,
    layers,
    muon,
    optax_muon,
    orthogonalization_gflop,
    square_leaves,
    state_bytes,
    tiny_leaves,
    training_step,
)
from _report import Progress, Report, Row, device_name, finish, is_cpu, parser, within

import muon_optax as mo

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
REFERENCE = "optax.contrib.muon"

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


def contestants(params: Tree) -> dict[str, optax.GradientTransformation]:
    """Everyone who updates ``params``."""
    dtype = jax.tree.leaves(params)[0].dtype
    optimizers = {"muon_optax.muon": muon()}
    if dtype == jnp.float32:
        optimizers["muon_optax.muon, float32 products"] = muon(mo.newton_schulz(dtype=jnp.float32))
    optimizers[REFERENCE] = optax_muon(params)
    if dtype == jnp.float32 and not is_cpu():
        optimizers[f"{REFERENCE}, highest"] = _multiplying_exactly(optimizers[REFERENCE])
    return optimizers | {"optax.adamw": adamw()}


def _multiplying_exactly(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    def update(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return optimizer.update(*arguments)

    return optax.GradientTransformation(optimizer.init, update)


class Training:
    """Calls a compiled step again and again: it consumes the state and the parameters that it is given."""

    def __init__(self, run: Callable[..., Any], gradients: Tree, state: Any, params: Tree) -> None:
        self._run, self._gradients, self._state = run, gradients, state
        self._params = jax.tree.map(jnp.copy, params)

    def __call__(self) -> Tree:
        self._params, self._state = self._run(self._gradients, self._state, self._params)
        return self._params


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


def draw(shapes: Tree, seed: int) -> Tree:
    """Normal values of the shapes and dtypes of ``shapes``."""
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    normal = [0.02 * jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, normal)


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
