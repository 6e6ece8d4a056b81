"""Small real models in every framework, for tables of layouts and for training; no test by itself.

Each function takes sizes, so that a test can make all of them differ and make them coincide: as many layers as heads,
as many inputs as heads, as many experts as layers.
"""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tolerances import RTOL

import muon_optax as mo

Table = dict[str, str | None]


def shown(tree: Any, layouts: Any = None) -> Table:
    """What ``assign_layouts`` says, with layouts as strings."""
    return {path: layout and str(layout) for path, layout in mo.assign_layouts(tree, layouts).items()}


def under(prefix: str, table: Mapping[str, str | None]) -> Table:
    return {f"{prefix}/{path}": layout for path, layout in table.items()}


def squared(prediction: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((prediction - target) ** 2)


def clipped_muon() -> optax.GradientTransformation:
    """As people write it: clipping first, although it cannot change Muon's own first update. Two steps compile fast."""
    return optax.chain(optax.clip_by_global_norm(1.0), mo.muon(1e-2, orthogonalizer=mo.newton_schulz(mo.KELLER[:2])))


# Flax NNX


class NNXBlock(nnx.Module):
    def __init__(self, width: int, heads: int, bias: bool, norms: bool, rngs: nnx.Rngs):
        # Heads of one element would be normalized to their signs, which nothing can train.
        features = width if width > heads else 5 * heads
        options = {"qkv_features": features, "use_bias": bias, "normalize_qk": norms}
        self.attn = nnx.MultiHeadAttention(heads, width, **options, decode=False, deterministic=True, rngs=rngs)
        self.norm1 = nnx.RMSNorm(width, use_scale=norms, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, use_scale=norms, use_bias=norms and bias, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, use_bias=bias, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, use_bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attn(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class NNXTransformer(nnx.Module):
    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int, bias: bool, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.positions = nnx.Param(0.02 * rngs.params.normal((length, width)))
        self.blocks = nnx.List([NNXBlock(width, heads, bias, True, rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed(tokens) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class NNXScannedTransformer(nnx.Module):
    """The blocks stacked by ``nnx.vmap`` and run by ``nnx.scan``."""

    def __init__(self, width: int, heads: int, layers: int, bias: bool, norms: bool, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def stack(rngs: nnx.Rngs) -> NNXBlock:
            return NNXBlock(width, heads, bias, norms, rngs)

        self.blocks = stack(rngs)
        self.head = nnx.Linear(width, 2, use_bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x: jax.Array, block: NNXBlock) -> jax.Array:
            return block(x)

        return self.head(run(x, self.blocks))


class NNXRecurrent(nnx.Module):
    def __init__(self, inputs: int, hidden: int, rngs: nnx.Rngs):
        self.gru = nnx.RNN(nnx.GRUCell(inputs, hidden, rngs=rngs))
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(hidden, hidden, rngs=rngs))
        self.simple = nnx.RNN(nnx.SimpleCell(hidden, hidden, rngs=rngs))
        self.classifier = nnx.Linear(hidden, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.classifier(self.simple(self.lstm(self.gru(x))))


class NNXOthers(nnx.Module):
    """LoRA, einsums with and without a bias, convolutions under names that say nothing."""

    def __init__(self, rngs: nnx.Rngs, bias: bool = True):
        self.lora = nnx.LoRALinear(6, 8, lora_rank=2, rngs=rngs)
        self.per_head = nnx.Einsum("nta,hab->nthb", (5, 8, 4), (5, 4) if bias else None, rngs=rngs)
        self.split = nnx.Einsum("ntx,xhb->nthb", (20, 2, 3), (2, 3), rngs=rngs)
        self.down = nnx.Conv(1, 4, (2, 2), use_bias=False, rngs=rngs)
        self.mix = nnx.Conv(4, 6, (1, 1), use_bias=False, rngs=rngs)
        self.smooth = nnx.Conv(6, 6, (3, 3), feature_group_count=6, use_bias=False, rngs=rngs)
        self.up = nnx.ConvTranspose(6, 3, (2, 2), rngs=rngs)
        self.logits = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.gelu(self.per_head(self.lora(x))).reshape(*x.shape[:2], -1)
        x = self.split(x).reshape(x.shape[0], x.shape[1], 6, 1)
        return self.logits(self.up(self.smooth(nnx.gelu(self.mix(self.down(x))))))


# Flax Linen


class LinenVision(nn.Module):
    """Convolutions of every kind, batch normalization, then attention and general dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = nn.Conv(8, (3, 5))(x)
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(12, (3, 3), use_bias=False, name="down")(x))
        x = nn.Conv(12, (3, 3), feature_group_count=12, name="depthwise")(nn.gelu(x))
        x = nn.Conv(10, (1, 1), use_bias=False, name="mix")(x)
        x = nn.gelu(nn.ConvTranspose(6, (2, 2))(x))
        x = x.reshape(x.shape[0], -1, 6)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        x = x + nn.MultiHeadDotProductAttention(num_heads=6, use_bias=False, name="as_many_heads_as_inputs")(x)
        x = nn.DenseGeneral((3, 5))(x)
        x = nn.DenseGeneral(7, axis=(-2, -1))(nn.gelu(x))
        return nn.Dense(2, name="classifier")(x.mean(1))


class LinenBlock(nn.Module):
    heads: int
    bias: bool = True
    norms: bool = True
    boxed: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        width = x.shape[-1]
        box = (
            {"kernel_init": nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))} if self.boxed else {}
        )
        attention = nn.MultiHeadDotProductAttention(num_heads=self.heads, use_bias=self.bias)
        x = x + attention(nn.RMSNorm(use_scale=self.norms)(x))
        y = nn.LayerNorm(use_scale=self.norms, use_bias=self.norms and self.bias)(x)
        y = nn.gelu(nn.Dense(4 * width, use_bias=self.bias, name="up", **box)(y))
        return x + nn.Dense(width, use_bias=self.bias, name="down", **box)(y), None


class LinenStack(nn.Module):
    """Blocks in a Python loop, or stacked by ``nn.scan``."""

    layers: int
    heads: int
    bias: bool = True
    norms: bool = True
    boxed: bool = False
    scan: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = {"heads": self.heads, "bias": self.bias, "norms": self.norms, "boxed": self.boxed}
        if self.scan:
            metadata = {nn.PARTITION_NAME: "layers"}
            scanned = nn.scan(
                LinenBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.layers,
                metadata_params=metadata,
            )
            x, _ = scanned(**options, name="blocks")(x)
        else:
            for layer in range(self.layers):
                x, _ = LinenBlock(**options, name=f"block_{layer}")(x)
        return nn.Dense(2, name="head")(nn.LayerNorm(use_scale=self.norms, use_bias=self.norms and self.bias)(x))


class LinenMoE(nn.Module):
    """Every token through every expert, weighed by the router: the arrays are raw parameters."""

    experts: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, init = x.shape[-1], nn.initializers.lecun_normal(batch_axis=0)
        wi = self.param("wi", init, (self.experts, width, 3 * width))
        wo = self.param("wo", init, (self.experts, 3 * width, width))
        weights = nn.softmax(nn.Dense(self.experts, name="router")(x))
        hidden = nn.gelu(jnp.einsum("ntd,edf->netf", x, wi))
        return jnp.einsum("nte,netf,efd->ntd", weights, hidden, wo)


class LinenMoEBlock(nn.Module):
    experts: int
    norms: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        return x + LinenMoE(self.experts, name="moe")(nn.RMSNorm(use_scale=self.norms)(x)), None


class LinenScannedMoE(nn.Module):
    layers: int
    experts: int
    norms: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scanned = nn.scan(LinenMoEBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
        x, _ = scanned(self.experts, self.norms, name="layers")(x)
        return nn.Dense(2, name="head")(x)


# Haiku


def haiku_vision(x: jax.Array) -> jax.Array:
    x = jax.nn.gelu(hk.Conv2D(4, (3, 5))(x))
    x = jax.nn.gelu(hk.Conv2D(4, 1, with_bias=False, name="mix")(x))
    x = jax.nn.gelu(hk.DepthwiseConv2D(1, 3)(x))
    x = jax.nn.gelu(hk.Conv2DTranspose(6, 3)(x))
    x = x.reshape(x.shape[0], -1, 6)
    initializer = hk.initializers.VarianceScaling(1.0)
    y = hk.LayerNorm(-1, True, True)(x)
    x = x + hk.MultiHeadAttention(2, 3, w_init=initializer)(y, y, y)
    return hk.Linear(2, name="classifier")(hk.nets.MLP([5, 7])(x).mean(1))


def haiku_recurrent(tokens: jax.Array, hidden: int) -> jax.Array:
    x = hk.Embed(11, 6)(tokens)
    gru, lstm = hk.GRU(hidden), hk.LSTM(hidden)
    x, _ = hk.dynamic_unroll(gru, x, gru.initial_state(x.shape[0]), time_major=False)
    x, _ = hk.dynamic_unroll(lstm, x, lstm.initial_state(x.shape[0]), time_major=False)
    return hk.Linear(2, name="head")(x.mean(1))


def haiku_stack(x: jax.Array, layers: int, norms: bool) -> jax.Array:
    def block(x: jax.Array) -> jax.Array:
        y = jax.nn.gelu(hk.Linear(3 * x.shape[-1])(hk.RMSNorm(-1, create_scale=norms)(x)))
        return x + hk.Linear(x.shape[-1])(y)

    return hk.Linear(2, name="head")(hk.experimental.layer_stack(layers)(block)(x))


# Equinox


class EquinoxBlock(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    before: eqx.nn.LayerNorm  # names that say nothing of norms: the types do
    between: eqx.nn.RMSNorm
    mlp: eqx.nn.MLP

    def __init__(self, width: int, heads: int, key: jax.Array):
        first, second = jax.random.split(key)
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        self.attention = eqx.nn.MultiheadAttention(heads, width, **biases, key=first)
        self.before, self.between = eqx.nn.LayerNorm(width), eqx.nn.RMSNorm(width)
        self.mlp = eqx.nn.MLP(width, width, 3 * width, 1, key=second)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.vmap(self.before)(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.between)(x))


class EquinoxTransformer(eqx.Module):
    """Blocks in a tuple, or stacked by ``eqx.filter_vmap`` and scanned."""

    tokens: eqx.nn.Embedding
    blocks: tuple[EquinoxBlock, ...] | EquinoxBlock
    head: eqx.nn.Linear
    scan: bool = eqx.field(static=True)

    def __init__(self, width: int, heads: int, layers: int, scan: bool, key: jax.Array):
        first, second, third = jax.random.split(key, 3)
        keys = jax.random.split(second, layers)
        make = lambda key: EquinoxBlock(width, heads, key)  # noqa: E731
        self.tokens = eqx.nn.Embedding(11, width, key=first)
        self.blocks = eqx.filter_vmap(make)(keys) if scan else tuple(map(make, keys))
        self.head = eqx.nn.Linear(width, 2, key=third)
        self.scan = scan

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = jax.vmap(self.tokens)(tokens)
        if self.scan:
            arrays, rest = eqx.partition(self.blocks, eqx.is_array)
            x, _ = jax.lax.scan(lambda x, block: (eqx.combine(block, rest)(x), None), x, arrays)
        else:
            for block in self.blocks:
                x = block(x)
        return self.head(x.mean(0))


class RawAttention(eqx.Module):
    """A user's own module, with raw arrays in place of layers."""

    wq: jax.Array
    bq: jax.Array
    wo: jax.Array
    weight: jax.Array
    bias: jax.Array

    def __init__(self, width: int, heads: int, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.wq = jax.random.normal(keys[0], (width, heads, 3)) * width**-0.5
        self.bq = jnp.zeros((heads, 3))
        self.wo = jax.random.normal(keys[1], (heads, 3, width)) * (3 * heads) ** -0.5
        self.weight = jax.random.normal(keys[2], (5, width)) * width**-0.5
        self.bias = jnp.zeros(5)

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        del key
        y = jnp.einsum("d,dhk->hk", x, self.wq) + self.bq
        return self.weight @ (x + jnp.einsum("hk,hkd->d", jax.nn.gelu(y), self.wo)) + self.bias


class EquinoxVision(eqx.Module):
    layers: eqx.nn.Sequential
    gru: eqx.nn.GRUCell
    lstm: eqx.nn.LSTMCell
    raw: RawAttention
    classifier: eqx.nn.Linear

    def __init__(self, heads: int, key: jax.Array):
        keys = jax.random.split(key, 9)
        gelu = eqx.nn.Lambda(jax.nn.gelu)
        self.layers = eqx.nn.Sequential(
            [
                eqx.nn.Conv2d(1, 4, 3, key=keys[0]),
                eqx.nn.GroupNorm(2, 4),
                gelu,
                eqx.nn.Conv2d(4, 8, 3, groups=4, key=keys[1]),
                eqx.nn.ConvTranspose2d(8, 6, 2, key=keys[2]),
                gelu,
                eqx.nn.Lambda(lambda x: x.mean((1, 2))),
                eqx.nn.Linear(6, 7, use_bias=False, key=keys[3]),
                RawAttention(7, heads, keys[4]),
            ]
        )
        self.gru, self.lstm = eqx.nn.GRUCell(5, 6, key=keys[5]), eqx.nn.LSTMCell(6, 6, key=keys[6])
        self.raw = RawAttention(6, heads, keys[7])
        self.classifier = eqx.nn.Linear(5, 2, key=keys[8])

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = self.gru(self.layers(x), jnp.ones(6))
        hidden, _ = self.lstm(hidden, (jnp.zeros(6), jnp.zeros(6)))
        return self.classifier(self.raw(hidden))


# Plain dicts, as research code has them


def plain_mlp(width: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda key, *shape: jax.random.normal(key, shape) * shape[-2] ** -0.5  # noqa: E731
    return {
        "emb": normal(keys[0], 11, width),
        "W1": normal(keys[1], width, 4 * width),
        "b1": jnp.zeros(4 * width),
        "W2": normal(keys[2], 4 * width, width),
        "b2": jnp.zeros(width),
        "ln_f": {"g": jnp.ones(width), "b": jnp.zeros(width)},
        "unembed": normal(keys[3], width, 11),
    }


def plain_scanned(width: int, layers: int, *, norms: bool = True, flat: bool = False) -> dict[str, Any]:
    """Attention and MLP of all layers in one array each; ``flat`` without a scope of their own."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    normal = lambda *shape: jax.random.normal(next(keys), shape) * shape[-2] ** -0.5  # noqa: E731
    blocks: dict[str, Any] = {
        name: normal(layers, inputs * width, outputs * width)
        for name, inputs, outputs in (
            ("wq", 1, 1),
            ("wk", 1, 1),
            ("wv", 1, 1),
            ("wo", 1, 1),
            ("w_up", 1, 3),
            ("w_down", 3, 1),
        )
    }
    if norms:
        blocks |= {
            "ln1": jnp.ones((layers, width)),
            "ln2": jnp.ones((layers, width)),
            "b_up": jnp.zeros((layers, 3 * width)),
        }
    others = {"wte": normal(11, width), "lm_head": normal(width, 11)} | ({"ln_f": jnp.ones(width)} if norms else {})
    return others | blocks if flat else {**others, "layers": blocks}


def run_plain_scanned(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """The forward pass of :func:`plain_scanned`, whatever it has of norms and scopes."""
    outside = {"wte", "lm_head", "ln_f"}
    blocks = params.get("layers") or {name: value for name, value in params.items() if name not in outside}
    norm = lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)  # noqa: E731

    def run(x: jax.Array, block: dict[str, jax.Array]) -> tuple[jax.Array, None]:
        y = norm(x) * block.get("ln1", 1.0)
        weights = jax.nn.softmax((y @ block["wq"]) @ jnp.swapaxes(y @ block["wk"], -1, -2))
        x = x + weights @ (y @ block["wv"]) @ block["wo"]
        y = jax.nn.gelu(norm(x) * block.get("ln2", 1.0) @ block["w_up"] + block.get("b_up", 0.0))
        return x + y @ block["w_down"], None

    x, _ = jax.lax.scan(run, params["wte"][tokens], blocks)
    return norm(x) * params.get("ln_f", 1.0) @ params["lm_head"]


# Shared by the tests of all frameworks


def assert_updated_as_layers(stacked: Any, layers: int) -> None:
    """The update of a stack of layers is the stack of the updates of its layers.

    Inside ``optax.partition`` the norms and biases that tell a stack are masked away from the kernels.
    """
    optimizer = mo.muon(1e-2, orthogonalizer=mo.newton_schulz(dtype=jnp.float32))
    gradients = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32) ** 1.5).reshape(x.shape), stacked)
    update = jax.jit(lambda gradients, params: optimizer.update(gradients, optimizer.init(params), params)[0])
    together = jax.tree.leaves(update(gradients, stacked))
    for layer in range(layers):
        alone = update(*(jax.tree.map(itemgetter(layer), tree) for tree in (gradients, stacked)))
        for expected, result in zip(jax.tree.leaves(alone), together, strict=True):
            np.testing.assert_allclose(result[layer], expected, rtol=0, atol=RTOL["float32"] * abs(expected).max())
