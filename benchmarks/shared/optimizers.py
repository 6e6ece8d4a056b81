"""Trees of parameters, and the optimizers that are compared on them doing the same work."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import muon_optax as mo

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1

Tree = dict[str, Any]
Coefficients = tuple[tuple[float, float, float], ...]


def _kernels(shapes: dict[str, tuple[int, ...]], dtype: Any) -> Tree:
    return {name: {"kernel": jax.ShapeDtypeStruct(shape, dtype)} for name, shape in shapes.items()}


def square_leaves(count: int, d: int, dtype: Any = jnp.float32) -> Tree:
    """``count`` matrices of ``d x d``."""
    return _kernels({f"dense_{index}": (d, d) for index in range(count)}, dtype)


def layers(count: int, d: int, dtype: Any = jnp.float32) -> Tree:
    """The matrices of Transformer layers: four of ``d x d``, one of ``d x 4d``, one of ``4d x d``."""
    shapes = dict.fromkeys(("query", "key", "value", "out"), (d, d)) | {"up": (d, 4 * d), "down": (4 * d, d)}
    return {f"layer_{index}": _kernels(shapes, dtype) for index in range(count)}


def gpt2(count: int, d: int, dtype: Any = jnp.float32, vocabulary: int = 50257, context: int = 1024) -> Tree:
    """GPT-2: ``count`` layers with biases and norms, and the embeddings; small is (12, 768), medium (24, 1024)."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    def dense(fan_in: int, fan_out: int) -> Tree:
        return {"kernel": array(fan_in, fan_out), "bias": array(fan_out)}

    def norm() -> Tree:
        return {"scale": array(d), "bias": array(d)}

    def layer() -> Tree:
        attention = {"c_attn": dense(d, 3 * d), "c_proj": dense(d, d)}
        mlp = {"c_fc": dense(d, 4 * d), "c_proj": dense(4 * d, d)}
        return {"ln_1": norm(), "attn": attention, "ln_2": norm(), "mlp": mlp}

    blocks = {f"h_{index}": layer() for index in range(count)}
    return {
        "wte": {"embedding": array(vocabulary, d)},
        "wpe": {"embedding": array(context, d)},
        **blocks,
        "ln_f": norm(),
    }


def train_gpt(count: int, d: int, heads: int, dtype: Any = jnp.float32) -> Tree:
    """The parameters of ``examples/train_gpt.py``; its preset "small" is (4, 128, 2)."""
    inward, norm = (d, heads, d // heads), jax.ShapeDtypeStruct((d,), dtype)
    shapes = dict.fromkeys(("query", "key", "value"), inward) | {"out": (*inward[1:], d)}
    blocks = _kernels(shapes | {"up": (d, 4 * d), "down": (4 * d, d)}, dtype)
    norms = {name: {"scale": norm} for name in ("attention_norm", "mlp_norm")}
    head_norm = jax.ShapeDtypeStruct((d // heads,), dtype)
    head_norms = {name: {"scale": head_norm} for name in ("query_norm", "key_norm")}
    return {
        "embedding": {"embedding": jax.ShapeDtypeStruct((256, d), dtype)},
        "blocks": {str(index): blocks | norms | head_norms for index in range(count)},
        "norm": {"scale": norm},
        "head": {"kernel": jax.ShapeDtypeStruct((d, 256), dtype)},
    }


def experts(count: int, d: int, hidden: int, dtype: Any = jnp.float32) -> Tree:
    """A mixture of experts, stacked: arrays of layout ``bio``."""
    shapes = {"gate": (count, d, hidden), "up": (count, d, hidden), "down": (count, hidden, d)}
    return {"experts": _kernels(shapes, dtype)}


def tiny_leaves(count: int, dtype: Any = jnp.float32) -> Tree:
    """``count`` matrices of four small shapes, as adapters have."""
    shapes = ((8, 8), (8, 32), (32, 8), (16, 16))
    return _kernels({f"adapter_{index}": shapes[index % len(shapes)] for index in range(count)}, dtype)


def orthogonalization_gflop(params: Tree) -> float:
    """GFLOP of five quintic steps of the direct method on every matrix of the tree: what a case's size is judged by."""
    layouts = mo.assign_layouts(params).values()
    shapes = [
        shape
        for leaf, layout in zip(jax.tree.leaves(params), layouts, strict=True)
        if layout is not None
        for shape in layout.matrix_shapes(leaf.shape)
    ]
    return sum(map(direct_gflop, shapes))


def direct_gflop(shape: tuple[int, ...]) -> float:
    """GFLOP of five quintic steps of the direct method on matrices ``(*batch, rows, cols)``."""
    *batch, rows, cols = shape
    short, long = sorted((rows, cols))
    return 5 * 2e-9 * math.prod(batch) * short**2 * (2 * long + short)


def muon(orthogonalizer: Callable[[jax.Array], jax.Array] | None = None) -> optax.GradientTransformation:
    """``muon_optax.muon`` with defaults."""
    return mo.muon(LEARNING_RATE, weight_decay=WEIGHT_DECAY, orthogonalizer=orthogonalizer)


def optax_muon(params: Tree, **arguments: Any) -> optax.GradientTransformation:
    """``optax.contrib.muon`` on the matrices that ``muon_optax.muon`` takes, with its scale and decay.

    By itself it takes every 2-D leaf, embeddings and stacked biases too, and no other: it would do other work.
    """
    return optax.contrib.muon(
        LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        adam_b2=0.95,
        adam_weight_decay=WEIGHT_DECAY,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimension_numbers(params),
        **arguments,
    )


def dimension_numbers(params: Tree) -> Tree:
    """The layouts of ``muon_optax`` in Optax's words."""

    def positions(layout: mo.Layout, letter: str) -> tuple[int, ...]:
        return tuple(axis for axis, name in enumerate(layout.axes) if name == letter)

    numbers = [
        layout and optax.contrib.MuonDimensionNumbers(positions(layout, "i"), positions(layout, "o"))
        for layout in mo.assign_layouts(params).values()
    ]
    return jax.tree.unflatten(jax.tree.structure(params), numbers)


def optax_newton_schulz(coefficients: Coefficients, dtype: jnp.dtype) -> Callable[[jax.Array], jax.Array]:
    """The orthogonalization of ``optax.contrib``, by its public transform: with ``beta=0``, momentum is the input."""
    repeated = len(set(coefficients)) == 1  # then Optax unrolls the steps, else it scans over them
    transform = optax.contrib.scale_by_muon(
        ns_coeffs=coefficients[0] if repeated else coefficients,
        ns_steps=len(coefficients),
        beta=0.0,
        nesterov=False,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1),
    )

    def orthogonalizer(matrices: jax.Array) -> jax.Array:
        rounded = matrices.astype(dtype)
        with jax.default_matmul_precision("highest"):
            # The state is made here, so that XLA knows its zeros and nothing but the orthogonalization remains.
            updates, _ = transform.update(rounded, transform.init(rounded))
        return updates.astype(matrices.dtype)

    return orthogonalizer


def adamw() -> optax.GradientTransformation:
    """``optax.adamw`` for every leaf."""
    return optax.adamw(LEARNING_RATE, b2=0.95, weight_decay=WEIGHT_DECAY)


def training_step(optimizer: optax.GradientTransformation) -> Callable[[Tree, Any, Tree], tuple[Tree, Any]]:
    """``(gradients, state, params) -> (params, state)``: the optimizer's update, and that of the parameters."""

    def step(gradients: Tree, state: Any, params: Tree) -> tuple[Tree, Any]:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def state_bytes(optimizer: optax.GradientTransformation, params: Tree) -> int:
    """Bytes of the optimizer's state."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, params)))
