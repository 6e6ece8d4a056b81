"""Train a small byte-level GPT with AdamW and with Muon, from one start on the same batches; compare them.

    python examples/train_gpt.py                # both optimizers: a few minutes on two CPU cores
    python examples/train_gpt.py --resume       # continue an interrupted run: equal losses to the last digit
    python examples/train_gpt.py --diagnostics  # and show which layers stand out

The text is Python's standard library, unless --text names a file or a folder. The --output folder receives metrics.csv,
loss.png, sample.txt and checkpoints/, with --diagnostics also a picture and a table of what was measured of each
layer. Nothing is overwritten: --resume continues a run, anything else needs another folder.
The exit status is 0 when all is done; 2 after one line that says what to put right; 130 after Ctrl-C and 143 after
SIGTERM, upon which the step is finished and a checkpoint written. A second Ctrl-C ends the run at once. However a run
ends, killed or out of room, the last checkpoint stays good.

Here are the model and the training loop; _bookkeeping.py has the text, the checkpoints and the report.
"""

import argparse
import logging
import signal
import sys
from collections import namedtuple
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _bookkeeping import (
    TITLES,
    RunError,
    explained,
    open_checkpoints,
    read_text,
    refuse_spoilt,
    report,
    restore,
    save,
    time_in_turn,
    write_metrics,
    write_recording,
    write_sample,
)
from flax import nnx
from tqdm import tqdm

import muon_optax as mo

Preset = namedtuple("Preset", "layers width heads context batch steps rates dtype")
PRESETS = {
    "tiny": Preset(1, 32, 2, 32, 4, 20, {"adamw": 3e-3, "muon": 2e-2}, "float32"),
    "small": Preset(4, 128, 2, 128, 16, 600, {"adamw": 3e-3, "muon": 1e-2}, "float32"),
    "base": Preset(12, 768, 12, 1024, 16, 3000, {"adamw": 6e-4, "muon": 2e-3}, "bfloat16"),
}
# The rates of "small" are of a sweep by --optimizer NAME --learning-rate RATE. Validation losses: AdamW 2e-3 1.414,
# 3e-3 1.382, 5e-3 1.395; Muon 5e-3 1.291, 1e-2 1.293, 2e-2 1.311, 3e-2 1.309. "tiny" serves tests; "base" is not tuned.


def sample_batch(text: np.ndarray, preset: Preset, seed: int, step: int) -> np.ndarray:
    """The batch of a step: of seed and step alone. Each optimizer and a resumed run see the same."""
    starts = np.random.default_rng((seed, step)).integers(len(text) - preset.context, size=preset.batch)
    return text[starts[:, None] + np.arange(preset.context + 1)]


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions: turns channel pairs of (batch, time, heads, head_dim), the later the further."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class Block(nnx.Module):
    """Causal attention with normalized queries and keys, then a perceptron; each adds to its input."""

    def __init__(self, preset: Preset, rngs: nnx.Rngs) -> None:
        width, heads = preset.width, (preset.heads, preset.width // preset.heads)
        norm = partial(nnx.RMSNorm, dtype=preset.dtype, rngs=rngs)
        linear = partial(nnx.LinearGeneral, use_bias=False, dtype=preset.dtype, rngs=rngs)
        self.attention_norm, self.query_norm, self.key_norm = norm(width), norm(heads[1]), norm(heads[1])
        self.query, self.key, self.value = linear(width, heads), linear(width, heads), linear(width, heads)
        self.out = linear(heads, width, axis=(-2, -1))
        self.mlp_norm, self.up, self.down = norm(width), linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.attention_norm(x)
        query, key = rotate(self.query_norm(self.query(y))), rotate(self.key_norm(self.key(y)))
        x = x + self.out(jax.nn.dot_product_attention(query, key, self.value(y), is_causal=True))
        return x + self.down(jnp.square(nnx.relu(self.up(self.mlp_norm(x)))))


class GPT(nnx.Module):
    """Bytes in, float32 logits of the next byte out. Nothing is marked for Muon: the library knows the matrices."""

    def __init__(self, preset: Preset, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(256, preset.width, dtype=preset.dtype, rngs=rngs)
        self.blocks = nnx.List([Block(preset, rngs) for _ in range(preset.layers)])
        self.norm = nnx.RMSNorm(preset.width, dtype=preset.dtype, rngs=rngs)
        self.head = nnx.Linear(preset.width, 256, use_bias=False, dtype=preset.dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embedding(tokens.astype(jnp.int32))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).astype(jnp.float32)


def make_optimizer(name: str, preset: Preset, diagnostics: bool = False) -> optax.GradientTransformation:
    """Muon or AdamW, both with clipping, warm-up, cosine decay to a tenth, and weight decay of all but the norms.

    With diagnostics it measures itself at every twentieth part of the run; without, the program is the same as ever.
    """
    peak, warmup = preset.rates[name], max(1, preset.steps // 20)
    rate = optax.warmup_cosine_decay_schedule(peak / warmup, peak, warmup, max(2, preset.steps), 0.1 * peak)
    adamw = optax.adamw(rate, b2=0.95, weight_decay=0.1, mask=partial(jax.tree.map, lambda leaf: leaf.ndim > 1))
    chosen = mo.muon(rate, weight_decay=0.1) if name == "muon" else adamw
    every = max(1, preset.steps // 20) if diagnostics else None
    return mo.diagnostics.record(optax.chain(optax.clip_by_global_norm(1.0), chosen), every, learning_rate=rate)


def catch_signals() -> list[int]:
    """A list that receives SIGINT (Ctrl-C) and SIGTERM. Each does what it always does when it comes again."""
    signals: list[int] = []

    def receive(number: int, _: Any) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, receive)
    return signals


def run(arguments: argparse.Namespace, preset: Preset) -> None:
    """Trains what was asked for, then compares."""
    output, seed, limit = arguments.output, arguments.seed, preset.steps
    print(f"Python {sys.version.split()[0]}, JAX {jax.__version__}, {jax.devices()[0].device_kind}")
    text, held_out, sha256 = read_text(arguments.text, preset.context)
    configuration = {key: getattr(arguments, key) for key in ("preset", "optimizer", "seed", "diagnostics")}
    configuration |= {"text": sha256[:16], **preset._asdict()}
    checkpoints, histories = open_checkpoints(output, configuration, arguments.resume)
    histories = histories or {name: [] for name in TITLES if arguments.optimizer in (name, "both")}
    graph, parameters = nnx.split(GPT(preset, nnx.Rngs(seed)))
    print(mo.summarize(parameters))

    def loss(parameters: nnx.State, tokens: jax.Array) -> jax.Array:
        logits, targets = nnx.merge(graph, parameters)(tokens[:, :-1]), tokens[:, 1:].astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def step(optimizer: optax.GradientTransformation, state: tuple, tokens: jax.Array) -> tuple:
        parameters, optimizer_state = state
        value, gradients = jax.value_and_grad(loss)(parameters, tokens)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        counts = mo.diagnostics.nonfinite_counts({"gradients": gradients, "loss": value, "parameters": parameters})
        return (parameters, optimizer_state), value, counts

    def start(name: str) -> tuple:  # a copy, since steps take over the memory of what they are given
        return jax.tree.map(jnp.copy, parameters), optimizers[name].init(parameters)

    def checkpoint(made: int, state: tuple) -> None:
        rows = [[name, *row] for name, rows in histories.items() for row in rows]
        with explained(output):
            write_metrics(output, "optimizer step training_loss validation_loss", rows)
            save(checkpoints, made, state, configuration, histories)

    windows = np.stack([sample_batch(held_out, preset, 0, k) for k in range(8)])  # the same for every run
    evaluate = jax.jit(lambda parameters: jax.lax.map(partial(loss, parameters), windows).mean())
    optimizers = {"sgd": optax.sgd(1e-3)} | {
        name: make_optimizer(name, preset, arguments.diagnostics) for name in histories
    }
    steps = {name: jax.jit(partial(step, optimizer), donate_argnums=0) for name, optimizer in optimizers.items()}
    signals = catch_signals()
    logging.disable()  # Orbax logs pages of what fails; RunError says it in one line
    for index, (name, rows) in enumerate(histories.items()):
        state, first, recent = start(name), min(len(rows), limit), []
        if rows:
            state = restore(checkpoints, index * limit + first, state)
        with tqdm(total=limit, initial=first, desc=TITLES[name], unit="step") as bar:
            for made in range(first, limit):
                validation = float(evaluate(state[0])) if made % max(1, limit // 20) == 0 else None
                state, value, counts = steps[name](state, sample_batch(text, preset, seed, made))
                rows.append([made, float(value), validation])
                recent = [*recent[-1:], (made, counts)]  # a step that spoils the state shows in its loss or in the next
                due = signals or made + 1 == limit or (made + 1) % max(1, limit // 10) == 0
                if due or not np.isfinite(value):
                    refuse_spoilt(TITLES[name], value, recent)
                speed = (bar.format_dict["rate"] or 0) * preset.batch * preset.context
                bar.set_postfix({"loss": f"{value:.3f}", "tokens/s": f"{speed:,.0f}"}, refresh=False)
                bar.update()
                if made + 1 == limit:
                    rows.append([limit, None, float(evaluate(state[0]))])
                if due:
                    checkpoint(index * limit + made + 1, state)
                    if signals:
                        by = signal.Signals(signals[0]).name
                        print(f"{TITLES[name]} stopped by {by} after step {made}, all saved: --resume goes on")
                        sys.exit(128 + signals[0])
        if arguments.diagnostics:
            write_recording(output, name, mo.diagnostics.recorded(state))
    seconds = time_in_turn(steps, {name: start(name) for name in steps}, windows[0])
    report(histories, seconds, preset.rates, output)
    logits = jax.jit(lambda parameters, tokens: nnx.merge(graph, parameters)(tokens)[0, -1])
    write_sample(output, TITLES[name], partial(logits, state[0]), held_out[: preset.context], seed)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns 2, after one line of explanation, where its user can put something right."""
    parser = argparse.ArgumentParser(description="Train a small byte-level GPT with AdamW and with Muon.")
    parser.add_argument("--optimizer", choices=["muon", "adamw", "both"], default="both")
    parser.add_argument("--preset", choices=[*PRESETS], default="small", help="the model and its training")
    parser.add_argument("--steps", type=int, help="in place of the preset's")
    parser.add_argument("--learning-rate", type=float, help="the peak, in place of the preset's")
    parser.add_argument("--text", help="a file or a folder, in place of the standard library's source")
    parser.add_argument("--output", type=Path, default=Path("runs/train_gpt"), help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--diagnostics", action="store_true", help="measure each layer, and show which stand out")
    parser.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    arguments = parser.parse_args(argv)
    preset, steps, rate, errors = PRESETS[arguments.preset], arguments.steps, arguments.learning_rate, sys.stderr
    try:
        if arguments.seed < 0 or (steps is not None and steps < 1):
            raise RunError(f"--steps {steps} --seed {arguments.seed}: give at least 1 and at least 0")
        if rate is not None and not 0 < rate <= 1:
            raise RunError(f"--learning-rate is {rate}: give a number above 0 and at most 1")
        rates = {name: rate or chosen for name, chosen in preset.rates.items()}
        run(arguments, preset._replace(steps=steps or preset.steps, rates=rates))
    except (RunError, OSError) as error:
        print(f"train_gpt.py: error: {error}", file=errors)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
