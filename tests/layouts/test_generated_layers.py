"""Models drawn by a seed, asked layer by layer: where the rules decide, they say what Flax's own layers say."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import muon_optax as mo
from muon_optax._layouts.assigning.rules import decide
from muon_optax._layouts.paths import named_leaves
from muon_optax.flax import layouts_of

# What shapes and names do not tell: the rules may be wrong of it, and of nothing else. An Einsum's heads come first,
# and with its bias it looks like a stack of Dense; a transposed kernel looks like a plain one; several axes without a
# bias like experts; a ConvLocal like a convolution; a depthwise convolution before another one like the first of an
# image with one channel. Groups of channels are a split, which is not compared. No stack is as long as the width: every
# bias would fit twice.
UNTOLD = {"Einsum", "ConvTranspose", "ConvLocal"}
SEVERAL_AXES = {"LinearGeneral", "DenseGeneral"}
NAMES = ("first", "inner", "mixer", "net", "second")
WIDTH = 10


def nnx_layer(draw: np.random.Generator, keys: nnx.Rngs) -> nnx.Module:
    bias, out, heads = bool(draw.integers(2)), int(draw.choice([5, 6, 12])), int(draw.choice([2, 3]))
    given: dict[str, Any] = {"use_bias": bias, "rngs": keys}
    makers: tuple[Callable[[], nnx.Module], ...] = (
        lambda: nnx.Linear(WIDTH, out, **given),
        lambda: nnx.LinearGeneral(WIDTH, (heads, 5), **given),
        lambda: nnx.LinearGeneral((heads, 5), WIDTH, axis=(-2, -1), **given),
        lambda: nnx.LinearGeneral(WIDTH, (heads, 5), batch_axis={0: 3}, **given),
        lambda: nnx.Einsum("btd,ndh->btnh", (heads, WIDTH, 5), (heads, 5) if bias else None, rngs=keys),
        lambda: nnx.Einsum("bsd,ckdh->cbskh", (2, heads, WIDTH, 4), rngs=keys),
        lambda: nnx.Conv(WIDTH, out, (3, 3), **given),
        lambda: nnx.Conv(WIDTH, 12, (3, 3), feature_group_count=2, **given),
        lambda: nnx.Conv(WIDTH, WIDTH, (3, 3), feature_group_count=WIDTH, **given),
        lambda: nnx.ConvTranspose(WIDTH, out, (3, 3), transpose_kernel=bool(draw.integers(2)), **given),
        lambda: nnx.MultiHeadAttention(2, WIDTH, decode=False, normalize_qk=bias, **given),
        lambda: nnx.Embed(11, WIDTH, rngs=keys),
        lambda: nnx.LayerNorm(WIDTH, use_bias=bias, rngs=keys),
        lambda: nnx.GRUCell(WIDTH, 5, rngs=keys),
        lambda: nnx.OptimizedLSTMCell(WIDTH, 5, rngs=keys),
        lambda: nnx.LoRALinear(WIDTH, out, lora_rank=2, rngs=keys),
    )
    return makers[draw.integers(len(makers))]()


class NNXBlock(nnx.Module):
    """Layers, blocks and lists of blocks, under names that say nothing."""

    def __init__(self, draw: np.random.Generator, depth: int, keys: nnx.Rngs):
        for name in draw.permutation(NAMES)[: draw.integers(2, 5)]:
            kind = draw.integers(6) if depth else 5
            if kind == 0:
                setattr(self, name, NNXBlock(draw, depth - 1, keys))
            elif kind == 1:
                setattr(self, name, nnx.List([NNXBlock(draw, 0, keys) for _ in range(2)]))
            else:
                setattr(self, name, nnx_layer(draw, keys))


class NNXModel(nnx.Module):
    """A stack of such blocks between a norm and a head."""

    def __init__(self, seed: int, keys: nnx.Rngs):
        length = (4, 7)[seed // 2 % 2]
        block = nnx.vmap(
            lambda split: NNXBlock(np.random.default_rng(seed), 1, split),
            out_axes=nnx.StateAxes({nnx.Param: 0, nnx.LoRAParam: 0, ...: 0}),
        )
        self.layers = block(keys.fork(split=length)) if seed % 2 else NNXBlock(np.random.default_rng(seed), 2, keys)
        self.norm = nnx.RMSNorm(WIDTH, rngs=keys)
        self.head = nnx.Linear(WIDTH, 13, rngs=keys)


def linen_layer(draw: np.random.Generator) -> nn.Module:
    bias, out, heads = bool(draw.integers(2)), int(draw.choice([5, 6, 12])), int(draw.choice([2, 3]))
    given: dict[str, Any] = {"use_bias": bias}
    makers: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.Dense(out, **given),
        lambda: nn.DenseGeneral((heads, 5), **given),
        lambda: nn.Einsum((heads, WIDTH, 4), "btd,ndh->btnh", **given),
        lambda: nn.Conv(out, (3,), **given),
        lambda: nn.Conv(WIDTH, (3,), feature_group_count=WIDTH, **given),
        lambda: nn.ConvLocal(out, (3,), **given),
        lambda: nn.ConvTranspose(out, (3,), transpose_kernel=bool(draw.integers(2)), **given),
        lambda: nn.MultiHeadDotProductAttention(2, normalize_qk=bias, **given),
        lambda: nn.LayerNorm(**given),
        lambda: nn.RNN(nn.GRUCell(5)),
        lambda: nn.RNN(nn.OptimizedLSTMCell(5)),
    )
    return makers[draw.integers(len(makers))]()


class LinenBlock(nn.Module):
    """Layers of Linen with their own names, each led back to the width."""

    seed: int

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        draw = np.random.default_rng(self.seed)
        for _ in range(draw.integers(2, 5)):
            x = linen_layer(draw)(x)
            x = nn.Dense(WIDTH, use_bias=bool(draw.integers(2)))(x.reshape(*x.shape[:2], -1))
        return x, None


class LinenModel(nn.Module):
    """A scanned stack of such layers, or one of them, between a norm and a head."""

    seed: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        length = (4, 7)[self.seed // 2 % 2]
        scanned = nn.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=length)
        x, _ = (scanned if self.seed % 2 else LinenBlock)(self.seed, name="layers")(x, None)
        return nn.Dense(13, name="lm_head")(nn.LayerNorm()(x))


def of_nnx(seed: int) -> tuple[Any, Any, Callable[[str], str]]:
    model = nnx.eval_shape(lambda: NNXModel(seed, nnx.Rngs(0)))

    def kind(path: str) -> str:
        node: Any = model
        for part in path.split("/")[:-1]:
            node = node[int(part)] if part.isdigit() else getattr(node, part)
        return type(node).__name__

    return nnx.state(model, nnx.Param), layouts_of(model), kind


def of_linen(seed: int) -> tuple[Any, Any, Callable[[str], str]]:
    inputs = jax.ShapeDtypeStruct((2, 6, WIDTH), jnp.float32)
    params = jax.eval_shape(LinenModel(seed).init, jax.random.key(0), inputs)["params"]
    return params, layouts_of(LinenModel(seed), inputs), lambda path: path.split("/")[-2].rpartition("_")[0]


# Of the kernels on which nothing is wrong, the share that the rules know at least. Einsums of NNX have no names.
LEAST_KNOWN = {of_nnx: 0.83, of_linen: 0.97}


@pytest.mark.parametrize("generate", [of_nnx, of_linen], ids=["NNX", "Linen"])
def test_where_the_rules_decide_they_say_what_the_layers_say(generate: Any) -> None:
    count, wrong = Counter(), {}
    for seed in range(24):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # layouts_of's of what no rule knows, and Flax's own of forked keys
            params, exact, kind = generate(seed)
        leaves = named_leaves(params)
        biased = {leaf.path.removesuffix("/bias") for leaf in leaves}
        decisions = decide(leaves)
        for leaf in leaves:
            layer, decision, truth = kind(leaf.path), decisions[leaf.path], exact[leaf.path]
            general = layer in SEVERAL_AXES and leaf.path.rpartition("/")[0] not in biased
            one_channel = layer == "Conv" and truth is None
            if decision.unknown:
                count["unknown"] += 1
            elif _axes(decision.layout) == _axes(truth):
                count["right"] += truth is not None
            elif not (layer in UNTOLD or general or one_channel):
                wrong[f"{seed}: {leaf.path} {leaf.shape}"] = (str(decision.layout), str(truth), decision.why)
    assert not wrong
    assert count["right"] > LEAST_KNOWN[generate] * count.total()


def _axes(layout: mo.Layout | None) -> str | None:
    return None if layout is None else layout.axes
