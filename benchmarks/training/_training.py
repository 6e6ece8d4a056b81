"""One run of the convergence benchmark: trains the main job's model on its text, or a model of the digits."""

import contextlib
import io
import math
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.shared.report import ROOT
from benchmarks.training._contenders import CONTENDERS, Settings
from benchmarks.training._digits import MODELS, digits, image_loss, sample_images
from benchmarks.training._grid import Run

sys.path.append(str(ROOT / "examples"))
from _bookkeeping import read_text
from train_gpt import GPT, PRESETS, Preset, sample_batch

EVALUATIONS = 20  # in a run of full length
WINDOWS = 8  # batches of the validation loss, as many as in the main job

# The main job's model, and the same with narrower and wider layers.
SIZES: dict[str, Preset] = {
    "tiny": PRESETS["tiny"],
    "0.3M": PRESETS["small"]._replace(width=72),
    "1M": PRESETS["small"],
    "3M": PRESETS["small"]._replace(width=240, heads=4),
    "base": PRESETS["base"],
}


class Numbers(NamedTuple):
    """A run's settings, traced: one compiled step serves every rate, decay and length."""

    rate: jax.Array
    adamw_rate: jax.Array
    decay: jax.Array
    b2: jax.Array
    steps: jax.Array


def numbers_of(run: Run) -> Numbers:
    """As arrays, which one compiled step takes."""
    return Numbers(*map(jnp.float32, run[2:6]), jnp.int32(run.steps))


class Curve(NamedTuple):
    """The validation loss along a run, and what a step took."""

    steps: list[int]
    losses: list[float]
    seconds: float  # a step, on the clock: tells of the machine's other work as well
    cpu_seconds: float  # a step, of all threads


class Text(NamedTuple):
    """Bytes for training and for validation, and the sha256 of all."""

    training: np.ndarray
    held_out: np.ndarray
    sha256: str


@cache
def text() -> Text:
    """The source of Python's standard library, divided as the main job divides it."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it read; here many processes read it
        return Text(*read_text(None, PRESETS["base"].context))


def next_byte_loss(model: Any, tokens: jax.Array) -> jax.Array:
    """Cross entropy in nats per byte."""
    logits, targets = model(tokens[:, :-1]), tokens[:, 1:].astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


class Task(NamedTuple):
    """What a size trains."""

    model: Callable[[nnx.Rngs], nnx.Module]
    batch: Callable[[int, int], Any]  # (seed, step) -> what the step trains on
    held_out: Any  # batches, stacked
    loss: Callable[[Any, Any], jax.Array]  # (model, batch)
    sha256: str  # of the data


@cache
def task(size: str) -> Task:
    """Text, or the digits for the models that are named after them."""
    if size in MODELS:
        data = digits()
        held_out = jax.tree.map(lambda array: array[None], data.held_out)
        return Task(MODELS[size], partial(sample_images, data.training), held_out, image_loss, data.sha256)
    preset = SIZES[size]
    windows = np.stack([sample_batch(text().held_out, preset, 0, index) for index in range(WINDOWS)])
    batch = partial(sample_batch, text().training, preset)
    return Task(partial(GPT, preset), batch, windows, next_byte_loss, text().sha256)


def schedule(peak: jax.typing.ArrayLike, steps: jax.typing.ArrayLike) -> optax.Schedule:
    """The main job's: linear warm-up over a twentieth of the steps, then a cosine down to a tenth.

    As ``optax.warmup_cosine_decay_schedule``, which takes no traced peak and no traced number of steps.
    """
    warmup = jnp.maximum(1, steps // 20)

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        rising = (1 + (warmup - 1) * count / warmup) / warmup
        falling = 0.55 + 0.45 * jnp.cos(jnp.pi * jnp.clip((count - warmup) / (steps - warmup), 0, 1))
        return peak * jnp.where(count < warmup, rising, falling)

    return rate


def optimizer(contender: str, numbers: Numbers, params: Any) -> optax.GradientTransformation:
    """Clipping as in the main job, then the contender."""
    rates = [schedule(peak, numbers.steps) for peak in (numbers.rate, numbers.adamw_rate)]
    settings = Settings(*rates, numbers.decay, numbers.b2)
    return optax.chain(optax.clip_by_global_norm(1.0), CONTENDERS[contender](settings, params))


def abstract(trained: Task) -> tuple[Any, Any]:
    """The model's graph and its parameters' shapes."""
    return nnx.split(nnx.eval_shape(lambda: trained.model(nnx.Rngs(0))))


class Programs(NamedTuple):
    """What a size and a contender compile to."""

    start: Any  # (key, numbers) -> state
    step: Any  # (state, numbers, batch) -> state
    evaluate: Any  # state -> loss


@cache
def programs(size: str, contender: str) -> Programs:
    """Cached: the runs of a process that differ in numbers alone share them."""
    trained = task(size)
    graph, _ = abstract(trained)

    def loss(params: Any, batch: Any) -> jax.Array:
        return trained.loss(nnx.merge(graph, params), batch)

    @jax.jit
    def start(key: jax.Array, numbers: Numbers) -> tuple[Any, Any]:
        params = nnx.split(trained.model(nnx.Rngs(key)))[1]
        return params, optimizer(contender, numbers, params).init(params)

    def step(state: tuple[Any, Any], numbers: Numbers, batch: Any) -> tuple[Any, Any]:
        params, optimizer_state = state
        gradients = jax.grad(loss)(params, batch)
        made = optimizer(contender, numbers, params)
        updates, optimizer_state = made.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state

    @jax.jit
    def evaluate(params: Any) -> jax.Array:
        return jax.lax.map(partial(loss, params), trained.held_out).mean()

    return Programs(start, jax.jit(step, donate_argnums=0), evaluate)


@cache
def parameters(size: str) -> int:
    """How many a size has."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(task(size))[1]))


def train(run: Run, every: int) -> Curve:
    """Makes a run, and measures the validation loss every so many steps and at the end.

    A loss that is not finite ends it: the last one is then infinite.
    """
    batch, compiled = task(run.size).batch, programs(run.size, run.contender)
    numbers = numbers_of(run)
    state = compiled.start(jax.random.key(run.seed), numbers)
    at, losses = [0], [float(compiled.evaluate(state[0]))]
    state = compiled.step(state, numbers, batch(run.seed, 0))  # compiles, perhaps
    spent, cpu = 0.0, 0.0
    for first in range(0, run.steps, every):
        last = min(first + every, run.steps)
        jax.block_until_ready(state)
        began, cpu_began = time.perf_counter(), time.process_time()
        for made in range(max(1, first), last):
            state = compiled.step(state, numbers, batch(run.seed, made))
        jax.block_until_ready(state)
        spent, cpu = spent + time.perf_counter() - began, cpu + time.process_time() - cpu_began
        at.append(last)
        losses.append(float(compiled.evaluate(state[0])))
        if not math.isfinite(losses[-1]):
            losses[-1] = math.inf
            break
    timed = max(1, at[-1] - 1)
    return Curve(at, losses, spent / timed, cpu / timed)
