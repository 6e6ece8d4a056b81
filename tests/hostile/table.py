"""The table of hostile inputs. Each row says what the input is, how it is made, and what is promised of it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle

import muon_optax as mo
from hostile.attempts import (
    FOREIGN,
    GENTLE,
    as_numpy,
    in_proportion,
    of_another_model,
    same_state,
    scanned,
    second_step,
)
from hostile.inputs import (
    PLAIN,
    SHAPE,
    Build,
    arrays,
    beside,
    filled,
    mixed,
    of_dtype,
    on_host,
    plain,
    powers,
    stack,
    steps,
    times,
    tree,
    weights,
    with_entry,
)
from hostile.oracles import LEARNING_RATE, muon_update
from hostile.row import SETTINGS, Contender, Inputs, Row, Train
from hostile.trees import BOTH, EMPTY, KEYS, MATRICES, MODEL, MODELS, VECTORS, Model, single_array

ADAMW, RIGHT, SAME = "trained by AdamW", "the right update", "the same numbers"
SCALE_FREE, OWN_NAN = "the same update at any scale", "NaN in its own matrix; all others keep their bits"
ROUTED = "each parameter to the right optimizer, with its fan-in and fan-out"
BATCHED = "work and memory in proportion, and no matrix product more"
KEPT = "updates in the gradient's dtype; state and parameters keep theirs"
NAN, INF = float("nan"), float("inf")


Builds = dict[str, Build]


def right(name: str, inputs: Build, promise: str = RIGHT, settings: Any = None, **training: Any) -> Row:
    return Row(name, Train(inputs, **training), promise, settings=settings or {})


def rights(promise: str, builds: Builds, **training: Any) -> list[Row]:
    return [right(name, inputs, promise, **training) for name, inputs in builds.items()]


def refused(name: str, inputs: Build, *words: str, settings: Any = None, **training: Any) -> Row:
    return Row(name, Train(inputs, **training), f"refused, naming {' and '.join(words)}", words, settings or {})


def changed(name: str, *words: str, **change: Any) -> Row:
    return Row(name, second_step(**change), f"refused, naming {' and '.join(words)}", words)


def unwanted(name: str, word: str, **settings: Any) -> Row:
    return refused(name, plain(), word, settings=settings, told=False)


# Values, shapes and dtypes of gradients.

FACTORS = {"float32": (1e-30, 1e-12, 1e20, 1e38), "bfloat16": (1e-30, 1e-12, 1e30), "float16": (1e-5, 1e3, 3e4)}
SCALES = [(factor, dtype) for dtype, factors in FACTORS.items() for factor in factors]
POISON = {"NaN": NAN, "infinity": INF, "minus infinity": -INF}
APART = np.array([1e-20, 1.0, 1e20])[:, None, None]
FLUSHED = "read right by the orthogonalizers; XLA takes the momentum for zero, which gives a zero update"
# What rounding to bfloat16 adds to a matrix of rank 1 is orthogonalized like all else.
IN_FLOAT32 = {"newton_schulz": {"dtype": jnp.float32}}
RANK_ONE = plain(lambda array: np.outer(*(1.0 + np.arange(size) for size in array.shape)))

VALUES = [
    *rights("a zero update", {f"zero, {dtype}": plain(filled(0.0), dtype) for dtype in FACTORS}),
    *rights(
        SCALE_FREE, {f"largest entry {factor:g}, {dtype}": plain(times(factor), dtype) for factor, dtype in SCALES}
    ),
    # Momenta are subnormal here: each is rounded to a few units.
    right("largest entry 1e-06, float16", plain(times(1e-6), "float16"), SCALE_FREE, exact=False),
    right("largest entry 1e-40, float32: subnormal", plain(times(1e-40)), FLUSHED, subnormal=True),
    right("all entries equal", plain(filled(0.25))),
    right("rank 1", plain(powers)),
    right("rank 1 until it is rounded to bfloat16", RANK_ONE, "the right update with products in float32", IN_FLOAT32),
    right("one entry that is not zero", plain(lambda array: with_entry(2.0)(np.zeros_like(array)))),
    right("singular values from 1 to 0.01", plain(lambda array: oracle.with_spectrum(np.logspace(0, -2, 8), *SHAPE))),
    right("matrices of one stack 1e40 apart", stack(lambda array: array * APART), "each as if it were alone"),
    *rights(OWN_NAN, {f"{name} in one entry": plain(with_entry(value), only="w") for name, value in POISON.items()}),
    right("NaN in a whole leaf", plain(filled(NAN), only="w"), OWN_NAN),
    right("NaN in one matrix of a stack", stack(with_entry(NAN), poison=True), OWN_NAN),
    right("NaN in a vector", plain(with_entry(NAN), only="b"), "NaN in that entry; all others keep their bits"),
]

EXTREME = (1, 1), (1, 12), (12, 1), (1, 10**6), (10**6, 1)

SHAPES = [
    right("a scalar: no axes", beside(None, jnp.zeros(()), jnp.ones(()), jnp.ones(())), ADAMW),
    *rights("an empty update", EMPTY),
    *rights(RIGHT, {f"matrix of shape {shape}": arrays({"w": (shape, "io")}) for shape in EXTREME}),
    right("a tree without leaves", lambda: Inputs({}, [{}, {}], {}), "an empty tree"),
    right("a tree that is one array", single_array),
    *rights(ROUTED, MODELS, told=False, compiled=True, exact=False),
]

PAIRS = ("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16"), ("float32", "float16")
EACH = {"other": "bfloat16", "w": "float16", "b": "float32"}
FLOAT32, BFLOAT16 = dict.fromkeys(PLAIN, "float32"), dict.fromkeys(PLAIN, "bfloat16")
PYTHON_FLOAT = beside(None, 1.0, 2.0, 1.0)
WIDE = {
    "float32 in 64-bit mode": plain(),
    "float64 in 64-bit mode": plain(dtype="float64"),
    "float64 gradients of float32 parameters": plain(dtype="float64", param_dtype="float32"),
    "a Python float in 64-bit mode": PYTHON_FLOAT,
}

DTYPES = [
    *rights(
        KEPT, {f"{one} gradients of {other} parameters": plain(dtype=one, param_dtype=other) for one, other in PAIRS}
    ),
    right("bfloat16, float16 and float32 in one tree", mixed(EACH, EACH, EACH), KEPT),
    right("gradients in float32 and then in bfloat16", mixed(FLOAT32, FLOAT32, BFLOAT16), KEPT),
    Row("bfloat16 under lax.scan", scanned, "a state that scan takes"),
    *rights(KEPT, WIDE, mode=partial(jax.enable_x64, True)),
]

# Leaves.

FLOAT0, INTEGERS = np.zeros(12, jax.dtypes.float0), jnp.ones(12, jnp.int32)
FOURFOLD = 4 * steps(3)[0]
FEWER_BITS = {
    "an int32 matrix": jnp.int32,
    "an int32 vector": jnp.int32,
    "a uint8 vector": jnp.uint8,
    "a bool vector": jnp.bool_,
    "an int4 vector": jnp.int4,
    "a float8_e4m3fn matrix": jnp.float8_e4m3fn,
    "a float8_e5m2 vector": jnp.float8_e5m2,
    "a float4_e2m1fn vector": jnp.float4_e2m1fn,
}
NO_ARRAYS = {
    "a string": "relu",
    "a string that names a dtype": "float32",
    "a function, as in an Equinox model that was not filtered": jax.nn.relu,
    "an array of objects": np.array([None, 1], object),
}
ON_HOST = {
    "NumPy arrays": on_host(np.array),
    "NumPy arrays in Fortran's order": on_host(np.asfortranarray),
    "NumPy views with negative strides": on_host(lambda array: array[::-1].copy()[::-1]),
    "NumPy views of every second entry": on_host(lambda array: np.repeat(array, 2, axis=-1)[..., ::2]),
    "read-only NumPy arrays": on_host(lambda array: np.frombuffer(array.tobytes(), "float32").reshape(array.shape)),
    "NumPy arrays in float64, 64-bit mode off": on_host(lambda array: array.astype(np.float64)),
}
COMPLEX, COMPLEX_MATRIX = of_dtype(jnp.complex64), of_dtype(jnp.complex64, matrix=True)
MASKED = optax.MaskedNode()


def with_extra(extra: Any) -> Build:
    return tree(lambda w, b: {"w": w, "b": b, "extra": extra}, {"w": "io", "b": None})


def of_ones(gradient: np.ndarray, layout: str | None = "io") -> Build:
    """A gradient ``extra`` that does not belong to its parameter, which is ones in float32."""
    return beside(layout, jnp.ones(gradient.shape), gradient, gradient)


LEAVES = [
    right("None in place of a parameter", with_extra(None), "stays None"),
    right("MaskedNode in place of a parameter", with_extra(MASKED), "stays a MaskedNode"),
    changed("None as the gradient of a parameter", "other", gradients=lambda tree: tree | {"other": None}),
    changed("MaskedNode as the gradient of a parameter", "other", gradients=lambda tree: tree | {"other": MASKED}),
    right("a Python float, nothing said", PYTHON_FLOAT, ADAMW, told=False),
    right("a weakly typed scalar", beside(None, *map(jnp.asarray, (0.0, 2.0, 2.0))), ADAMW),
    right("a weakly typed matrix", beside("io", *[jnp.broadcast_to(jnp.asarray(1.0), SHAPE)] * 3)),
    *rights(RIGHT, ON_HOST),
    right("a complex vector", COMPLEX, ADAMW),
    right("a complex matrix with layout None", COMPLEX_MATRIX, ADAMW),
    refused(
        "a complex matrix with a matrix's layout", of_dtype(jnp.complex64, True, layout="io"), "extra", "complex64"
    ),
    refused("a Python int", beside(None, 1, 2, 1), "extra", "int32"),
    *(
        refused(name, of_dtype(dtype, "matrix" in name, 4.0), "extra", jnp.dtype(dtype).name)
        for name, dtype in FEWER_BITS.items()
    ),
    refused("an integer parameter with its float0 gradient", beside(None, INTEGERS, FLOAT0, FLOAT0), "extra", "int32"),
    refused("a random key", beside(None, jax.random.key(0), FLOAT0[0], FLOAT0[0]), "extra", "key"),
    refused("a float0 gradient of a float parameter", of_ones(FLOAT0, None), "extra", "float0"),
    refused("an int32 gradient of a float matrix", of_ones(FOURFOLD.astype(np.int32)), "extra", "int32"),
    refused(
        "a complex gradient of a float matrix", of_ones((FOURFOLD + 1j).astype(np.complex64)), "extra", "complex64"
    ),
    *(refused(name, beside(None, *[value] * 3), "extra", type(value).__name__) for name, value in NO_ARRAYS.items()),
]

# Trees.

TREES = [
    *rights(RIGHT, KEYS),
    right("a model that can be called (Equinox), nothing said", MODEL, told=False),
    refused("two matrices of one path", MATRICES, "a/w", told=False),
    refused("a matrix and a vector of one path", BOTH, "a/w", told=False),
    right("two vectors of one path", VECTORS, told=False),
    Row("64 leaves, half of them equal matrices", in_proportion(2, 64), BATCHED),
    Row("1,000 leaves", in_proportion(100, 1_000), BATCHED),
    Row("10,000 leaves", in_proportion(1_000, 10_000), BATCHED, slow=True),
]

# Modes of JAX.

STRICT = partial(jax.numpy_dtype_promotion, "strict")
COARSE = partial(jax.default_matmul_precision, "bfloat16")
NO_NANS, NO_INFS = partial(jax.debug_nans, True), partial(jax.debug_infs, True)
MODES = [
    right("jit", plain(), SAME, compiled=True),
    right("jit, NumPy arrays", on_host(np.asfortranarray), SAME, compiled=True),
    right("jit, a Python float", PYTHON_FLOAT, SAME, compiled=True),
    right("disable_jit", plain(), SAME, mode=jax.disable_jit),
    right("jax_debug_nans, zero gradients", plain(filled(0.0)), "no NaN on the way", mode=NO_NANS),
    right("jax_debug_infs, zero gradients", plain(filled(0.0)), "none on the way", mode=NO_INFS),
    refused("jax_debug_nans, a NaN", plain(filled(NAN), only="w"), "nan", mode=NO_NANS),
    right("jax_numpy_dtype_promotion=strict", plain(), SAME, mode=STRICT),
    right("jax_numpy_dtype_promotion=strict, bfloat16", plain(dtype="bfloat16"), SAME, mode=STRICT),
    right("jax_numpy_rank_promotion=raise", stack(), SAME, mode=partial(jax.numpy_rank_promotion, "raise")),
    right("jax_enable_checks", plain(), SAME, mode=partial(jax.enable_checks, True)),
    right("jax_check_tracer_leaks, jit", plain(), SAME, mode=jax.checking_leaks, compiled=True),
    right("jax_default_matmul_precision=bfloat16", plain(), SAME, mode=COARSE),
]

# Layouts, changes between steps, states and arguments.

LAYOUTS = [
    unwanted("more axes than the matrix has", "'w'", layouts={"w": "ioo"}),
    unwanted("axes out of range", "'w'", layouts={"w": "bbbbbiboo"}),
    unwanted("no output axis", "'ii'", layouts={"w": "ii"}),
    unwanted("a number in place of a layout", "3", layouts={"w": 3}),
    unwanted("a matrix's layout for a vector", "'b'", layouts={"b": "io"}),
    unwanted("the name of no parameter", "typo", layouts={"typo": "io"}),
    unwanted("text in place of the mapping", "'io'", layouts="io"),
]


def without_other(tree: dict[str, Any]) -> dict[str, Any]:
    return {key: leaf for key, leaf in tree.items() if key != "other"}


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "a matrix appears": ("extra", lambda tree: tree | {"extra": tree["w"]}),
    "a vector appears": ("extra", lambda tree: tree | {"extra": tree["b"]}),
    "a matrix vanishes": ("other", without_other),
    "a matrix becomes None": ("other", lambda tree: tree | {"other": None}),
    "a matrix is renamed": ("other", lambda tree: without_other(tree) | {"renamed": tree["other"]}),
    "a matrix is transposed": ("other", lambda tree: tree | {"other": tree["other"].T}),
    "a matrix becomes a vector": ("other", lambda tree: tree | {"other": tree["b"]}),
    "a vector grows": ("'b'", lambda tree: tree | {"b": jnp.ones(24)}),
}
BETWEEN_STEPS = [changed(name, word, gradients=change, params=change) for name, (word, change) in CHANGES.items()]


def with_coefficients(coefficients: Any) -> Callable[..., np.ndarray]:
    return partial(muon_update, newton_schulz=partial(oracle.newton_schulz, coefficients=coefficients))


GENTLY, TEN_STEPS = ({"newton_schulz": {"coefficients": those}} for those in (GENTLE, mo.DEEPSEEK_V4))
LAST, FITS = "those count that were given last", "the checkpoint still fits"
STATES = [
    *(changed(name, "state", "init", state=state) for name, state in FOREIGN.items()),
    changed("of the same optimizer for another model", "old", state=of_another_model),
    Row("restored as NumPy arrays", second_step(state=as_numpy, owed=muon_update), SAME),
    Row("from before other coefficients", second_step(owed=with_coefficients(GENTLE)), LAST, settings=GENTLY),
    Row("from before another number of steps", same_state, FITS, settings=TEN_STEPS),
]

HALF = {"weight_decay": 0.5}


def decayed(gradients: Any, axes: str) -> np.ndarray:
    return muon_update(gradients, axes) - LEARNING_RATE * 0.5 * weights(*SHAPE)


def injected(contender: Contender) -> None:
    """The factory inside ``optax.inject_hyperparams``."""
    factory = optax.inject_hyperparams(mo.muon, static_args=("orthogonalizer", "scale", "layouts"))
    Train(plain())(contender._replace(build=lambda *_: factory(**SETTINGS)))


NESTEROV = partial(muon_update, nesterov=True)
MASK = HALF | {"weight_decay_mask": {"other": True, "w": True, "b": False}}
CALLABLE_MASK = HALF | {"weight_decay_mask": Model(w=True, b=False)}
PRESETS = {"Keller Jordan's coefficients": mo.KELLER, "coefficients of four steps": mo.polar_express(4)}
PRESETS |= {"coefficients of ten steps": mo.DEEPSEEK_V4}

ARGUMENTS = [
    unwanted("momentum 1", "1.0", momentum=1.0),
    unwanted("momentum -0.5", "-0.5", momentum=-0.5),
    unwanted("learning rate NaN", "nan", learning_rate=NAN),
    unwanted("learning rate -0.1", "-0.1", learning_rate=-0.1),
    unwanted("text as a learning rate", "fast", learning_rate="fast"),
    unwanted("infinite weight decay", "inf", weight_decay=INF),
    unwanted("a momentum in int8", "int8", momentum_dtype=jnp.int8),
    unwanted("no Newton-Schulz steps", "coeff", newton_schulz={"coefficients": ()}),
    unwanted("two coefficients a step", "coeff", newton_schulz={"coefficients": ((1.5, -0.5),)}),
    unwanted("a coefficient NaN", "coeff", newton_schulz={"coefficients": ((NAN, 0.0, 0.0),)}),
    unwanted("coefficients that diverge", "10.0", newton_schulz={"coefficients": ((10.0, 0.0, 0.0),) * 5}),
    unwanted("an unknown norm", "nuclear", newton_schulz={"norm": "nuclear"}),
    *(
        right(name, plain(), RIGHT, {"newton_schulz": {"coefficients": those}}, owed=with_coefficients(those))
        for name, those in PRESETS.items()
    ),
    right("a decay mask", plain(), "it holds for AdamW's parameters too", MASK, owed=decayed),
    right("a decay mask that can be called (Equinox)", MODEL, "read as a tree", CALLABLE_MASK, owed=decayed),
    right("Nesterov momentum", plain(), "AdamW stays as it is", {"nesterov": True}, owed=NESTEROV),
    Row("optax.inject_hyperparams", injected, SAME),
]

TABLE = {
    "values of gradients": VALUES,
    "shapes": SHAPES,
    "dtypes": DTYPES,
    "leaves": LEAVES,
    "trees": TREES,
    "modes of JAX": MODES,
    "layouts": LAYOUTS,
    "between steps": BETWEEN_STEPS,
    "states": STATES,
    "arguments": ARGUMENTS,
}
ROWS = [replace(row, topic=topic) for topic, rows in TABLE.items() for row in rows]
