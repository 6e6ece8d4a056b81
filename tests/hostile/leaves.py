"""Hostile leaves and trees, and the modes of JAX that users switch on."""

import enum
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hostile.attempts import between_steps, complex_matrix, in_proportion, one_batch
from hostile.gradients import RIGHT
from hostile.row import Row
from hostile.trees import SHAPE, Build, beside, filled, nest, of_dtype, on_host, plain, stack, steps, tree

ADAMW = "trained by AdamW"
SAME = "the same numbers"

leaf = partial(Row, "leaves")
untrainable = partial(leaf, promise="refused, naming path and dtype", refused=True)


def in_place_of_a_parameter(placeholder: Any) -> Build:
    return tree(lambda w, b: {"w": w, "b": b, "extra": placeholder}, {"w": "io", "b": None})


def as_a_gradient(name: str, placeholder: Any) -> Row:
    attempt = between_steps(lambda gradient: gradient | {"other": placeholder}, lambda params: params)
    promise = "refused, naming the path"
    return leaf(f"{name} as the gradient of a parameter", promise, attempt=attempt, refused=True, words=("other",))


def of_fewer_bits(name: str, dtype: Any, matrix: bool = False) -> Row:
    words = ("extra", jnp.dtype(dtype).name)
    return untrainable(name, inputs=of_dtype(dtype, matrix, factor=4.0), words=words, parts=False)


def gradient_of_ones(name: str, gradient: Any, word: str, layout: str | None = "io") -> Row:
    """A gradient ``extra`` that does not belong to its parameter, which is ones in float32."""
    shape = np.shape(gradient)
    inputs = beside(layout, lambda: jnp.ones(shape), lambda: [gradient] * 2)
    return untrainable(name, inputs=inputs, words=("extra", word), parts=layout is not None)


def no_array(name: str, value: Any) -> Row:
    words = ("extra", type(value).__name__)
    inputs = beside(None, lambda: value, lambda: [value] * 2)
    return leaf(name, "refused, naming path and type", inputs, refused=True, words=words, parts=False)


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def weak_ones() -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(1.0), SHAPE)


def float0() -> np.ndarray:
    return np.zeros(12, jax.dtypes.float0)


PYTHON_FLOAT = beside(None, lambda: 1.0, lambda: [2.0, 1.0])
FOURFOLD = 4 * steps(seed=3)[0]

LEAVES = [
    leaf("None in place of a parameter", "stays None", in_place_of_a_parameter(None)),
    leaf("MaskedNode in place of a parameter", "stays a MaskedNode", in_place_of_a_parameter(optax.MaskedNode())),
    as_a_gradient("None", None),
    as_a_gradient("MaskedNode", optax.MaskedNode()),
    leaf("a Python float, nothing said", ADAMW, PYTHON_FLOAT, told=False),
    leaf("a weakly typed scalar", ADAMW, beside(None, lambda: jnp.asarray(0.0), lambda: [jnp.asarray(2.0)] * 2)),
    leaf("a weakly typed matrix", RIGHT, beside("io", weak_ones, lambda: [weak_ones()] * 2)),
    leaf("NumPy arrays", RIGHT, on_host(np.array)),
    leaf("NumPy arrays in Fortran's order", RIGHT, on_host(np.asfortranarray)),
    leaf("NumPy views with negative strides", RIGHT, on_host(lambda array: array[::-1].copy()[::-1])),
    leaf("NumPy views of every second entry", RIGHT, on_host(lambda array: np.repeat(array, 2, axis=-1)[..., ::2])),
    leaf("read-only NumPy arrays", "the right update; nothing is written to them", on_host(read_only)),
    leaf(
        "NumPy arrays in float64, 64-bit mode off",
        "read as float32",
        on_host(lambda array: array.astype(np.float64)),
    ),
    leaf("a complex vector", ADAMW, of_dtype(jnp.complex64)),
    leaf("a complex matrix with layout None", ADAMW, of_dtype(jnp.complex64, matrix=True)),
    untrainable("a complex matrix with a matrix's layout", attempt=complex_matrix, words=("extra", "complex64")),
    untrainable("a Python int", inputs=beside(None, lambda: 1, lambda: [2, 1]), words=("extra", "int32"), parts=False),
    of_fewer_bits("an int32 matrix", jnp.int32, matrix=True),
    of_fewer_bits("an int32 vector", jnp.int32),
    of_fewer_bits("a uint8 vector", jnp.uint8),
    of_fewer_bits("a bool vector", jnp.bool_),
    of_fewer_bits("an int4 vector", jnp.int4),
    of_fewer_bits("a float8_e4m3fn matrix", jnp.float8_e4m3fn, matrix=True),
    of_fewer_bits("a float8_e5m2 vector", jnp.float8_e5m2),
    of_fewer_bits("a float4_e2m1fn vector", jnp.float4_e2m1fn),
    untrainable(
        "an integer parameter with its float0 gradient",
        inputs=beside(None, lambda: jnp.ones(12, jnp.int32), lambda: [float0()] * 2),
        words=("extra", "int32"),
        parts=False,
    ),
    untrainable(
        "a random key",
        inputs=beside(None, lambda: jax.random.key(0), lambda: [np.zeros((), jax.dtypes.float0)] * 2),
        words=("extra", "key"),
        parts=False,
    ),
    gradient_of_ones("a float0 gradient of a float parameter", float0(), "float0", layout=None),
    gradient_of_ones("an int32 gradient of a float matrix", FOURFOLD.astype(np.int32), "int32"),
    gradient_of_ones("a complex gradient of a float matrix", (FOURFOLD + 1j).astype(np.complex64), "complex64"),
    no_array("a string", "relu"),
    no_array("a string that names a dtype", "float32"),
    no_array("a function, as in an Equinox model that was not filtered", jax.nn.relu),
    no_array("an array of objects", np.array([None, 1], object)),
]

mode = partial(Row, "modes of JAX")
STRICT = partial(jax.numpy_dtype_promotion, "strict")

MODES = [
    mode("jit", SAME, plain(), compiled=True),
    mode("jit, NumPy arrays", SAME, on_host(np.asfortranarray), compiled=True),
    mode("jit, a Python float", SAME, PYTHON_FLOAT, compiled=True),
    mode("disable_jit", SAME, plain(), mode=jax.disable_jit),
    mode("jax_debug_nans, zero gradients", "no NaN on the way", plain(filled(0.0)), mode=partial(jax.debug_nans, True)),
    mode("jax_debug_infs, zero gradients", "none on the way", plain(filled(0.0)), mode=partial(jax.debug_infs, True)),
    mode(
        "jax_debug_nans, a NaN",
        "JAX's own error",
        plain(filled(np.nan), only="w"),
        mode=partial(jax.debug_nans, True),
        refused=True,
        words=("nan",),
    ),
    mode("jax_numpy_dtype_promotion=strict", SAME, plain(), mode=STRICT),
    mode("jax_numpy_dtype_promotion=strict, bfloat16", SAME, plain(dtype="bfloat16"), mode=STRICT),
    mode("jax_numpy_rank_promotion=raise", SAME, stack(), mode=partial(jax.numpy_rank_promotion, "raise")),
    mode("jax_enable_checks", SAME, plain(), mode=partial(jax.enable_checks, True)),
    mode("jax_check_tracer_leaks, jit", SAME, plain(), mode=jax.checking_leaks, compiled=True),
    mode(
        "jax_default_matmul_precision=bfloat16",
        SAME,
        plain(),
        mode=partial(jax.default_matmul_precision, "bfloat16"),
    ),
]


class Part(enum.IntEnum):
    KERNEL = 1
    BIAS = 2


class Layer(NamedTuple):
    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclass
class Model:
    """A tree that can be called, as an Equinox module is."""

    w: Any
    b: Any

    def __call__(self, x: Any) -> Any:
        raise TypeError("the model was called in place of being read as a tree")


def keyed(first: Any, second: Any) -> Build:
    """A dict of two keys, a matrix and a vector."""
    return tree(lambda w, b: {first: w, second: b}, {str(first): "io", str(second): None})


LEVELS = 300
DEEP = {"/".join(("d",) * LEVELS + (name,)): layout for name, layout in (("w", "io"), ("b", None))}

kind = partial(Row, "trees")
same_path = partial(kind, promise="refused, naming the path", refused=True, words=("a/w",), told=False)

TREES = [
    kind("integers as keys", RIGHT, keyed(1, 2)),
    kind("tuples as keys", RIGHT, keyed(("a", 1), ("b", 2))),
    kind("members of an enum as keys", RIGHT, keyed(Part.KERNEL, Part.BIAS)),
    kind("an empty key", RIGHT, keyed("", "b")),
    kind("keys with a slash", RIGHT, keyed("a/w", "a/b")),
    kind("keys with a line break, and beyond ASCII", RIGHT, keyed("层\nw", "ß")),
    kind("keys with the characters of globs", "an exact path counts first", keyed("a[0]*?", "a0xy")),
    kind(
        "a NamedTuple in a list in a tuple",
        RIGHT,
        tree(lambda w, b: ([Layer(w, b)],), {"0/0/kernel": "io", "0/0/bias": None}),
    ),
    kind("a model that can be called (Equinox), nothing said", RIGHT, tree(Model, {"w": "io", "b": None}), told=False),
    kind("a model that can be called (Equinox), with layouts", RIGHT, tree(Model, {"w": "io", "b": None})),
    kind(f"{LEVELS} levels deep", RIGHT, tree(lambda w, b: nest({"w": w, "b": b}, LEVELS), DEEP)),
    same_path(
        "two matrices of one path",
        inputs=tree(lambda w, b: {"a/w": w, "a": {"w": w}, "b": b}, {"a/w": "io", "b": None}),
    ),
    same_path("a matrix and a vector of one path", inputs=tree(lambda w, b: {"a/w": b, "a": {"w": w}}, {"a/w": "io"})),
    kind(
        "two vectors of one path",
        RIGHT,
        tree(lambda w, b: {"w": w, "a/b": b, "a": {"b": b}}, {"w": "io", "a/b": None}),
        told=False,
    ),
    kind("32 equal matrices", "as many matrix products as for one", attempt=one_batch(32)),
    kind("1,000 leaves", "at most ten times the operations and bytes of 100", attempt=in_proportion(100, 1_000)),
    kind(
        "10,000 leaves",
        "at most ten times the operations and bytes of 1,000",
        attempt=in_proportion(1_000, 10_000),
        slow=True,
    ),
]
