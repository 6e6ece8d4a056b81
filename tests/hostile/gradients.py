"""Hostile gradients: their values, their shapes and their dtypes."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle

import muon_optax as mo
from hostile.attempts import made, scanned
from hostile.contenders import optax_muon, our_muon
from hostile.row import Inputs, Row
from hostile.trees import (
    PLAIN,
    SHAPE,
    arrays,
    beside,
    filled,
    plain,
    rank_one,
    rank_one_of_powers,
    stack,
    steps,
    times,
    weights,
    with_entry,
)

RIGHT = "the right update"
SCALE_FREE = "the same update at any scale"
OWN_NAN = "NaN in its own matrix; all others keep their bits"
EMPTY = "an empty update"
ROUTED = "each parameter to the right optimizer, with its fan-in and fan-out"
KEPT = "updates in the gradient's dtype; state and parameters keep theirs"

FACTORS = {
    "float32": (1e-30, 1e-12, 1e20, 1e38),
    "bfloat16": (1e-30, 1e-12, 1e30),
    "float16": (1e-5, 1e3, 3e4),
}
POISON = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}

value = partial(Row, "values of gradients")
VALUES = [
    *(value(f"zero, {dtype}", "a zero update", plain(filled(0.0), dtype)) for dtype in FACTORS),
    *(
        value(f"largest entry {factor:g}, {dtype}", SCALE_FREE, plain(times(factor), dtype))
        for dtype, factors in FACTORS.items()
        for factor in factors
    ),
    # Momenta and scaled updates are subnormal here: each is rounded to a few units.
    value("largest entry 1e-06, float16", SCALE_FREE, plain(times(1e-6), "float16"), parts=False),
    value(
        "largest entry 1e-40, float32: subnormal",
        "read right by the orthogonalizers; XLA takes the momentum for zero, which gives a zero update",
        plain(times(1e-40)),
        subnormal=True,
    ),
    value("all entries equal", RIGHT, plain(filled(0.25))),
    value("rank 1", RIGHT, plain(rank_one_of_powers)),
    # What rounding to bfloat16 adds to a matrix of rank 1 is orthogonalized like all else.
    value(
        "rank 1 until it is rounded to bfloat16",
        "the right update with products in float32",
        attempt=made(lambda: our_muon(orthogonalizer=mo.newton_schulz(dtype=jnp.float32)), optax_muon, plain(rank_one)),
    ),
    value("one entry that is not zero", RIGHT, plain(lambda array: with_entry(2.0)(np.zeros_like(array)))),
    value(
        "singular values from 1 to 0.01",
        RIGHT,
        plain(lambda array: oracle.with_spectrum(np.logspace(0, -2, 8), *array.shape)),
    ),
    value(
        "matrices of one stack 1e40 apart",
        "each as if it were alone",
        stack(lambda array: array * np.array([1e-20, 1.0, 1e20])[:, None, None]),
    ),
    *(value(f"{name} in one entry", OWN_NAN, plain(with_entry(poison), only="w")) for name, poison in POISON.items()),
    value("NaN in a whole leaf", OWN_NAN, plain(filled(np.nan), only="w")),
    value("NaN in one matrix of a stack", OWN_NAN, stack(with_entry(np.nan), poison=True)),
    value("NaN in a vector", "NaN in that entry; all others keep their bits", plain(with_entry(np.nan), only="b")),
]

ATTENTION = {f"block/attn/{name}/kernel": ((12, 3, 4), "ioo") for name in ("query", "key", "value")}
TRANSFORMER = {
    "embed/embedding": ((20, 12), None),
    **ATTENTION,
    **{path.replace("kernel", "bias"): ((3, 4), None) for path in ATTENTION},
    "block/attn/out/kernel": ((3, 4, 12), "iio"),
    "block/attn/out/bias": ((12,), None),
    "block/norm/scale": ((12,), None),
    "block/up/kernel": ((12, 24), "io"),
    "block/up/bias": ((24,), None),
    "block/down/kernel": ((24, 12), "io"),
    "lm_head/kernel": ((12, 20), None),
}
SCANNED = {
    "blocks/norm/scale": ((3, 12), None),
    "blocks/up/kernel": ((3, 12, 24), "bio"),
    "blocks/up/bias": ((3, 24), None),
    "blocks/down/kernel": ((3, 24, 12), "bio"),
    "blocks/down/bias": ((3, 12), None),
}
OUTPUTS_FIRST = {"up/weight": ((32, 8), "oi"), "down/weight": ((8, 32), "oi")}
OUTPUTS_FIRST |= {"up/bias": ((32,), None), "down/bias": ((8,), None)}
CONVOLUTION = {"conv/kernel": ((3, 3, 4, 8), "iiio"), "conv/bias": ((8,), None)}
EXPERTS = {"experts/up": ((3, 8, 12), "bio"), "experts/down": ((3, 12, 8), "bio"), "router/kernel": ((8, 3), "io")}
MODELS = {
    "Flax's transformer, nothing said": TRANSFORMER,
    "Flax's layers stacked by nn.scan, nothing said": SCANNED,
    "weights stored (out, in) as in PyTorch and Equinox, nothing said": OUTPUTS_FIRST,
    "a convolution (height, width, in, out), nothing said": CONVOLUTION,
    "experts in raw arrays (expert, in, out), nothing said": EXPERTS,
}


def of_ones(*shape: int, layout: str | None) -> Any:
    return beside(layout, lambda: jnp.ones(shape), lambda: [jnp.ones(shape)] * 2)


def single_array() -> Inputs:
    param, *gradients = (jnp.asarray(array, jnp.float32) for array in (weights(*SHAPE), *steps()))
    return Inputs(param, gradients, {"": "io"})


shape = partial(Row, "shapes")
SHAPES = [
    shape("a scalar: no axes", "trained by AdamW", beside(None, lambda: jnp.zeros(()), lambda: [jnp.ones(())] * 2)),
    shape("vector of shape (0,)", EMPTY, of_ones(0, layout=None)),
    shape("matrix of shape (0, 4)", EMPTY, of_ones(0, 4, layout="io")),
    shape("matrix of shape (4, 0)", EMPTY, of_ones(4, 0, layout="io")),
    shape("a stack of no matrices, (0, 3, 4)", EMPTY, of_ones(0, 3, 4, layout="bio")),
    shape("a stack of empty matrices, (3, 0, 4)", EMPTY, of_ones(3, 0, 4, layout="bio")),
    *(
        shape(f"matrix of shape ({rows}, {cols})", RIGHT, arrays({"w": ((rows, cols), "io")}))
        for rows, cols in ((1, 1), (1, 12), (12, 1), (1, 10**6), (10**6, 1))
    ),
    shape("a tree without leaves", "an empty tree", lambda: Inputs({}, [{}, {}], {})),
    shape("a tree that is one array", RIGHT, single_array),
    *(shape(name, ROUTED, arrays(leaves), told=False, compiled=True, parts=False) for name, leaves in MODELS.items()),
]


def mixed() -> Inputs:
    given = plain()()
    dtypes = {"other": "bfloat16", "w": "float16", "b": "float32"}
    params, *gradients = (
        {name: leaf.astype(dtypes[name]) for name, leaf in tree.items()} for tree in (given.params, *given.gradients)
    )
    return Inputs(params, gradients, PLAIN)


def coarser_at_the_second_step() -> Inputs:
    given = plain()()
    return given._replace(gradients=[given.gradients[0], plain(dtype="bfloat16")().gradients[1]])


dtype = partial(Row, "dtypes")
wide = partial(dtype, promise=KEPT, mode=partial(jax.enable_x64, True))
DTYPES = [
    *(
        dtype(f"{gradient} gradients of {param} parameters", KEPT, plain(dtype=gradient, param_dtype=param))
        for gradient, param in (
            ("bfloat16", "float32"),
            ("float16", "float32"),
            ("float32", "bfloat16"),
            ("float32", "float16"),
        )
    ),
    dtype("bfloat16, float16 and float32 in one tree", KEPT, mixed),
    dtype("gradients in float32 and then in bfloat16", KEPT, coarser_at_the_second_step),
    dtype("bfloat16 under lax.scan", "a state that scan takes", attempt=scanned(plain(dtype="bfloat16"))),
    wide("float32 in 64-bit mode", inputs=plain()),
    wide("float64 in 64-bit mode", inputs=plain(dtype="float64")),
    wide("float64 gradients of float32 parameters", inputs=plain(dtype="float64", param_dtype="float32")),
    wide("a Python float in 64-bit mode", inputs=beside(None, lambda: 1.0, lambda: [2.0, 1.0])),
]
