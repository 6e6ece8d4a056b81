"""A mixture of experts in Flax NNX, its experts spread over 8 virtual CPU devices, and what Muon does with idle ones.

    python examples/train_moe.py

A model of bytes, on the source text of Python's standard library. A router sends each byte to one of 16 experts. Their
kernels lie in two arrays, (experts, inputs, outputs), of which every device keeps two experts: by its layout "bio" each
is a matrix of its own, orthogonalized where it lies.

No term of the loss balances the experts. Some get no byte at a step, and their gradient is exactly zero. Plain Muon
moves them on at full speed: their momentum is small, and orthogonalization gives it full size.
`mo.hold_idle_matrices` keeps them where they are. Both are trained here from one start, on the same batches.
"""

import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding

import muon_optax as mo

WIDTH, HEADS, HIDDEN, EXPERTS, CAPACITY = 64, 4, 128, 16, 128
BATCH, CONTEXT = 16, 32


class Experts(nnx.Module):
    """Sends each token to the expert with the largest probability, at most CAPACITY tokens to each."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.lecun_normal(batch_axis=0)
        self.router = nnx.Linear(WIDTH, EXPERTS, use_bias=False, rngs=rngs)
        self.up = nnx.Param(init(rngs.params(), (EXPERTS, WIDTH, HIDDEN)))
        self.down = nnx.Param(init(rngs.params(), (EXPERTS, HIDDEN, WIDTH)))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of (tokens, WIDTH): the experts' outputs, and how many tokens each expert got."""
        probabilities = jax.nn.softmax(self.router(x))
        chosen = jax.nn.one_hot(jnp.argmax(probabilities, axis=-1), EXPERTS)
        # A token's place in its expert's queue; those past CAPACITY get no expert, and only the residual goes on.
        place = jnp.sum(chosen * (jnp.cumsum(chosen, axis=0) - 1), axis=-1).astype(jnp.int32)
        dispatch = chosen[:, :, None] * jax.nn.one_hot(place, CAPACITY)[:, None, :]
        hidden = nnx.gelu(jnp.einsum("tec,td,edf->ecf", dispatch, x, self.up[...]))
        outputs = jnp.einsum("ecf,efd->ecd", hidden, self.down[...])
        # Scaled by its probability, through which alone the router learns.
        combine = dispatch * jnp.max(probabilities, axis=-1)[:, None, None]
        return jnp.einsum("tec,ecd->td", combine, outputs), dispatch.sum(axis=(0, 2))


class Model(nnx.Module):
    """Bytes (batch, time) in; logits of the next byte and the tokens of each expert out."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        linear = partial(nnx.LinearGeneral, use_bias=False, rngs=rngs)
        heads = HEADS, WIDTH // HEADS
        self.embedding = nnx.Embed(256, WIDTH, rngs=rngs)
        self.position = nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.attention_norm, self.experts_norm = nnx.RMSNorm(WIDTH, rngs=rngs), nnx.RMSNorm(WIDTH, rngs=rngs)
        self.query, self.key, self.value = linear(WIDTH, heads), linear(WIDTH, heads), linear(WIDTH, heads)
        self.out = linear(heads, WIDTH, axis=(-2, -1))
        self.experts = Experts(rngs)
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 256, use_bias=False, rngs=rngs)

    def __call__(self, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.embedding(text) + self.position(jnp.arange(CONTEXT))
        y = self.attention_norm(x)
        x = x + self.out(jax.nn.dot_product_attention(self.query(y), self.key(y), self.value(y), is_causal=True))
        y, tokens = self.experts(self.experts_norm(x).reshape(-1, WIDTH))
        return self.head(self.norm(x + y.reshape(x.shape))), tokens


class Run(NamedTuple):
    """What a run did at each step."""

    losses: np.ndarray  # (steps,), in nats per byte
    tokens: np.ndarray  # (steps, EXPERTS), that each expert got
    sizes: np.ndarray  # (steps, EXPERTS), root mean square of the update of each expert's "up" kernel


def place(mesh: Mesh, path: tuple, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
    """Kernels of experts divided by expert, all else everywhere."""
    del leaf
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    stacked = name.startswith(("experts/up", "experts/down"))
    return NamedSharding(mesh, jax.P("expert") if stacked else jax.P())


def train(optimizer_of: Callable, steps: int, mesh: Mesh) -> Run:
    """Trains on the mesh. `optimizer_of` gets the plan; every run sees the same start and batches."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Model(nnx.Rngs(0))))
    places = jax.tree_util.tree_map_with_path(partial(place, mesh), shapes)
    plan = mo.plan(shapes, places)
    optimizer = optimizer_of(plan)
    params = jax.jit(lambda: nnx.split(Model(nnx.Rngs(0)))[1], out_shardings=places)()
    state = mo.init_sharded(optimizer, params, plan)
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    text = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8)

    def loss_of(params: nnx.State, text: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, tokens = nnx.merge(graph, params)(text[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean(), tokens

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params: nnx.State, state: optax.OptState, text: jax.Array) -> tuple:
        (loss, tokens), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, text)
        updates, state = optimizer.update(gradients, state, params)
        size = jnp.sqrt(jnp.mean(jnp.square(updates["experts"]["up"][...]), axis=(1, 2)))
        return optax.apply_updates(params, updates), state, (loss, tokens, size)

    seen = []
    for number in range(steps):
        starts = np.random.default_rng(number).integers(len(text) - CONTEXT, size=(BATCH, 1))
        batch = text[starts + np.arange(CONTEXT + 1)].astype(np.int32)
        params, state, figures = step(params, state, jax.device_put(batch, NamedSharding(mesh, jax.P("expert"))))
        seen.append(jax.device_get(figures))
    return Run(*map(np.stack, zip(*seen, strict=True)))


def optimizers(steps: int) -> dict[str, Callable]:
    """The two that are compared; each gets the plan of the mesh."""
    rate = optax.cosine_decay_schedule(5e-3, steps)
    # The router is a matrix as any other, inputs by experts, and Muon trains it. For AdamW: layouts={"*router*": None}.
    plain = partial(mo.muon, rate, weight_decay=0.1)
    return {
        "muon": lambda plan: plain(shardings=plan),
        "hold_idle_matrices(muon)": lambda plan: mo.hold_idle_matrices(plain(shardings=plan)),
    }


def main(steps: int = 120, devices: int = 8) -> dict[str, Run]:
    if jax.config.jax_num_cpu_devices < 0:
        jax.config.update("jax_num_cpu_devices", devices)
    mesh = jax.make_mesh((devices,), ("expert",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    shapes = nnx.state(nnx.eval_shape(lambda: Model(nnx.Rngs(0))))
    print(mo.summarize(shapes), "", sep="\n")
    print(mo.plan(shapes, jax.tree_util.tree_map_with_path(partial(place, mesh), shapes)), "", sep="\n")
    runs = {}
    for name, optimizer_of in optimizers(steps).items():
        runs[name] = run = train(optimizer_of, steps, mesh)
        idle, last = run.tokens == 0, run.losses[-10:].mean()
        print(f"{name}: loss in nats per byte")
        print(f"  {run.losses[0]:.3f} at first, {last:.3f} over the last ten of {steps} steps")
        print(f"  experts without a token: {idle.sum(axis=1).mean():.1f} of {EXPERTS} a step")
        for title, those in (("busy", ~idle), ("idle", idle)):
            if those.any():
                print(f"  root mean square of the update of {title} experts: {run.sizes[those].mean():.2e}")
    return runs


if __name__ == "__main__":
    main()
