"""Budgets that a change must not exceed, read from the compiled programs: no clock is asked."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import muon_optax as mo
from benchmarks.shared.hlo import count_lines
from benchmarks.shared.optimizers import experts, gpt2, layers, muon, optax_muon, square_leaves, training_step
from muon_optax._orthogonalizers.gram_newton_schulz import gram_products
from muon_optax._orthogonalizers.newton_schulz import direct_products

ROWS, COLS = 128, 512


def compiled_update(optimizer: optax.GradientTransformation, params: Any) -> jax.stages.Compiled:
    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(optimizer.update).lower(params, state, params).compile()


@cache
def compiled_step(factory: Callable[[Any], optax.GradientTransformation], tree: str) -> jax.stages.Compiled:
    params = TREES[tree]
    optimizer = factory(params)
    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(training_step(optimizer), donate_argnums=(1, 2)).lower(params, state, params).compile()


def our_muon(params: Any) -> optax.GradientTransformation:
    del params
    return muon()


TREES = {
    "32 x (64 x 64)": square_leaves(32, 64),
    "2 layers of d=128": layers(2, 128),
    "GPT-2's shapes": gpt2(1, 128, vocabulary=256),
    "4 experts of 64 x 128": experts(4, 64, 128),
    "6 layers": layers(6, 16),
    "48 layers": layers(48, 16),
}


@cache
def compiled_newton_schulz(dtype: str, method: str) -> jax.stages.Compiled:
    orthogonalizer = mo.newton_schulz(dtype=jnp.dtype(dtype), method=method)
    return jax.jit(orthogonalizer).lower(jax.ShapeDtypeStruct((ROWS, COLS), jnp.float32)).compile()


def formula(dtype: str, method: str) -> float:
    """Multiplications over ``ROWS ** 3``."""
    aspect = COLS / ROWS
    return gram_products(mo.KELLER, aspect, dtype) if method == "gram" else direct_products(mo.KELLER, aspect)


@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_compiled_program_does_the_work_of_the_formula(dtype: str, method: str) -> None:
    flops = compiled_newton_schulz(dtype, method).cost_analysis()["flops"]
    # The rest is elementwise: polynomials of the Gram matrix, rounding, normalization.
    assert 1 <= flops / (2 * ROWS**3 * formula(dtype, method)) <= 1.05


@pytest.mark.parametrize(
    "dtype, method, products",
    [("float32", "direct", 15), ("bfloat16", "direct", 15), ("float32", "gram", 19), ("bfloat16", "gram", 17)],
)
def test_xla_keeps_as_many_products_as_were_written(dtype: str, method: str, products: int) -> None:
    """XLA could multiply twice what two others need, or merge what is equal; it does neither."""
    assert compiled_newton_schulz(dtype, method).as_text().count(" dot(") == products


@pytest.mark.parametrize("tree", ["2 layers of d=128", "GPT-2's shapes", "4 experts of 64 x 128"])
def test_temporary_memory_is_at_most_optax(tree: str) -> None:
    ours, theirs = (
        compiled_step(factory, tree).memory_analysis().temp_size_in_bytes for factory in (our_muon, optax_muon)
    )
    assert ours <= theirs


def test_many_equal_leaves_make_a_short_program() -> None:
    compiled = compiled_update(mo.orthogonalize_via_newton_schulz(), TREES["32 x (64 x 64)"])
    # 733 to 815, by JAX and by the machine's instructions; each matrix by itself would be thousands.
    assert count_lines(compiled.as_text()) <= 1000


def test_a_whole_step_on_many_equal_leaves_is_a_fifth_of_optax() -> None:
    """Momentum, decay and the update of each leaf by itself are half of what remains."""
    ours, theirs = (
        count_lines(compiled_step(factory, "32 x (64 x 64)").as_text()) for factory in (our_muon, optax_muon)
    )
    assert ours <= theirs / 5


def test_another_leaf_of_a_known_shape_adds_a_few_lines() -> None:
    """What it adds is its way into its batch and out of it; the orthogonalization is there already."""
    few, many = (
        count_lines(compiled_update(mo.orthogonalize_via_newton_schulz(), TREES[tree]).as_text())
        for tree in ("6 layers", "48 layers")
    )
    assert (many - few) / (6 * 42) <= 16


@pytest.mark.parametrize(
    "measure",
    [
        mo.diagnostics.update_rms,
        mo.diagnostics.orthogonality_error,
        mo.scale_by_hyperball(0.1).init,
        mo.scale_by_normuon().init,
        mo.quantized_trace(0.9).init,
        mo.quantized_trace(0.9, bits=4).init,
    ],
    ids=["update_rms", "orthogonality_error", "hyperball", "normuon", "8 bits", "4 bits"],
)
def test_outside_jit_a_shape_is_compiled_at_most_twice(measure: Callable[[Any], Any]) -> None:
    params = {f"layer_{rows}/kernel": jnp.asarray(np.ones((rows, 7), np.float32)) for rows in range(20, 30)}
    compiled = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        compiled.extend([seconds] * event.endswith("backend_compile_duration"))

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        measure(params)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # A few programs more are of no shape: counters, scalars.
    assert len(params) <= len(compiled) <= 2 * len(params) + 5
