"""Move a run of train_gpt.py that began with optax.contrib.muon to muon_optax, by its checkpoint.

    python examples/from_optax_muon.py      # half a run with Optax's Muon, saved; then its checkpoint, moved
    python examples/train_gpt.py --resume --optimizer muon --output runs/from_optax_muon     # goes on

What to copy is `move`: restore the state into the structure that Optax's `init` makes, carry it over, save the result.
The same dimension numbers serve both: muon_optax takes them as layouts.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from _bookkeeping import RunError, open_checkpoints, read_text, save
from flax import nnx
from train_gpt import GPT, PRESETS, Preset, make_optimizer, sample_batch

import muon_optax as mo

Numbers = optax.contrib.MuonDimensionNumbers


def dimension_numbers(parameters: nnx.State) -> nnx.State:
    """The matrices of the GPT as Optax is told them; `None` leaves embedding, head and norms to its Adam."""

    def numbers(path: tuple, leaf: jax.Array) -> Numbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim < 2 or name.startswith(("embedding", "head")):
            return None
        if leaf.ndim == 2:
            return Numbers()
        return Numbers((0, 1), 2) if "/out/" in name else Numbers(0, (1, 2))

    return jax.tree_util.tree_map_with_path(numbers, parameters)


def optaxs_muon(preset: Preset) -> optax.GradientTransformation:
    """What the run began with: train_gpt's clipping, schedule and decay around Optax's Muon."""
    peak, warmup = preset.rates["muon"], max(1, preset.steps // 20)
    rate = optax.warmup_cosine_decay_schedule(peak / warmup, peak, warmup, max(2, preset.steps), 0.1 * peak)
    muon = optax.contrib.muon(
        rate,
        weight_decay=0.1,
        consistent_rms=0.2,
        adam_b2=0.95,
        adam_weight_decay=0.1,
        muon_weight_dimension_numbers=dimension_numbers,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def train(graph: nnx.GraphDef, state: tuple, preset: Preset, text: jax.Array, steps: int) -> tuple[tuple, list[list]]:
    """The first steps of the run, and their losses."""
    optimizer = optaxs_muon(preset)

    def loss(parameters: nnx.State, tokens: jax.Array) -> jax.Array:
        logits, targets = nnx.merge(graph, parameters)(tokens[:, :-1]), tokens[:, 1:].astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state: tuple, tokens: jax.Array) -> tuple[tuple, jax.Array]:
        parameters, optimizer_state = state
        value, gradients = jax.value_and_grad(loss)(parameters, tokens)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, parameters)
        return (optax.apply_updates(parameters, updates), optimizer_state), value

    rows = []
    for made in range(steps):
        state, value = step(state, sample_batch(text, preset, 0, made))
        rows.append([made, float(value), None])
    return state, rows


def move(folder: Path, parameters: nnx.State, preset: Preset) -> tuple[nnx.State, optax.OptState]:
    """Parameters and Optax's state from `folder`, as train_gpt's optimizer goes on with them."""
    before, optimizer = optaxs_muon(preset), make_optimizer("muon", preset)
    like = parameters, jax.eval_shape(before.init, parameters)
    with ocp.StandardCheckpointer() as checkpointer:
        parameters, earlier = checkpointer.restore(folder.absolute(), like)
    # strict: momentum or moments without a place in the fresh state would be refused by path.
    state, report = mo.carry_over(earlier, optimizer.init(parameters), strict=True)
    print(report)
    return parameters, state


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Move a run of optax.contrib.muon to muon_optax.")
    parser.add_argument("--preset", choices=[*PRESETS], default="small", help="the model and its training")
    parser.add_argument("--made", type=int, help="steps made by Optax's Muon; by default half of all")
    parser.add_argument("--output", type=Path, default=Path("runs/from_optax_muon"), help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    preset = PRESETS[arguments.preset]
    made = preset.steps // 2 if arguments.made is None else arguments.made
    if not 0 < made < preset.steps:
        parser.error(f"--made {made}: give at least 1 and less than the run's {preset.steps} steps")
    text, _, sha256 = read_text(None, preset.context)
    configuration = {"preset": arguments.preset, "optimizer": "muon", "seed": 0, "text": sha256[:16]}
    configuration |= preset._asdict()
    try:
        checkpoints, _ = open_checkpoints(arguments.output, configuration, resume=False)
    except RunError as error:
        parser.error(str(error))

    graph, parameters = nnx.split(GPT(preset, nnx.Rngs(0)))
    start = jax.tree.map(jnp.copy, parameters), optaxs_muon(preset).init(parameters)
    state, rows = train(graph, start, preset, text, made)
    folder = arguments.output / "before"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), state)

    save(checkpoints, made, move(folder, parameters, preset), configuration, {"muon": rows})
    print(f"moved after step {made - 1}, at a loss of {rows[-1][1]:.3f}: train_gpt.py --resume goes on")


if __name__ == "__main__":
    main()
