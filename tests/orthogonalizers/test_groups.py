"""Which matrices run together, and that it makes no difference but to speed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import muon_optax as mo
from muon_optax._orthogonalizers import batching as _groups
from muon_optax._orthogonalizers import newton_schulz as _newton_schulz


def random_arrays(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def recorder(calls):
    def orthogonalizer(matrices):
        calls.append(matrices.shape)
        return matrices + 1

    return orthogonalizer


def test_small_matrices_of_one_shape_are_one_batch_and_results_keep_their_order():
    calls = []
    arrays = random_arrays((8, 16), (16, 8), (8, 16), (3, 8, 16), (8, 16))
    results = _groups.map_matrices(recorder(calls), arrays)
    assert sorted(calls) == [(3, 8, 16), (16, 8)]  # the given stack of three shares the trace of the batch
    for array, result in zip(arrays, results, strict=True):
        np.testing.assert_array_equal(result, array + 1)


def test_different_dtypes_are_not_stacked():
    calls = []
    arrays = [jnp.ones((4, 4), jnp.float32), jnp.ones((4, 4), jnp.bfloat16), jnp.ones((4, 4), jnp.float32)]
    results = _groups.map_matrices(recorder(calls), arrays)
    assert sorted(calls) == [(2, 4, 4), (4, 4)]
    assert [result.dtype for result in results] == [array.dtype for array in arrays]


@pytest.mark.parametrize("count, called", [(3, [(256, 256)] * 3), (20, [(256, 256)])], ids=["few", "many"])
def test_medium_matrices_run_in_turn_on_a_cpu(count, called):
    calls = []
    arrays = [jnp.full((256, 256), float(index)) for index in range(count)]
    results = jax.jit(lambda arrays: _groups.map_matrices(recorder(calls), arrays))(arrays)
    assert [calls.count(shape) > 0 for shape in set(called)] == [True]
    np.testing.assert_array_equal([result[0, 0] for result in results], [index + 1 for index in range(count)])


LIMITS = {
    "written out": (0, 0, 1, 100),
    "loop": (0, 0, 1, 1),
    "one batch": (10**9, 10**9, 1, 1),
    "loop of batches": (10**9, 7 * 24 * 40, 1, 1),
    "batches written out": (10**9, 7 * 24 * 40, 100, 1),
}


@pytest.fixture(params=LIMITS)
def limits(request, monkeypatch):
    monkeypatch.setattr(_groups, "_LIMITS", {"default": _groups._Limits(*LIMITS[request.param])})


@pytest.mark.parametrize("count", [2, 20])
@pytest.mark.usefixtures("limits")
def test_results_agree_however_they_are_run(count):
    arrays = random_arrays(*[(24, 40)] * count)
    orthogonalizer = mo.newton_schulz(dtype=jnp.float32)
    results = jax.jit(lambda arrays: _groups.map_matrices(orthogonalizer, arrays))(arrays)
    (stacked,) = jax.jit(lambda stack: _groups.map_stacks(orthogonalizer, [stack]))(jnp.stack(arrays))
    for array, result, from_stack in zip(arrays, results, stacked, strict=True):
        # Summation orders differ between a batch and a single matrix; five steps amplify 1e-7 a few hundred times.
        np.testing.assert_allclose(result, orthogonalizer(array), atol=5e-5)
        np.testing.assert_allclose(from_stack, orthogonalizer(array), atol=5e-5)


def multiplied_at_once(count, size, platform):
    """The sizes of the batches in which a program for the platform multiplies so many square matrices; 1 for none."""
    arrays = [jax.ShapeDtypeStruct((size, size), jnp.float32)] * count
    traced = jax.jit(lambda arrays: _groups.map_matrices(lambda m: m @ m, arrays)).trace(arrays)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    shapes = re.findall(r"dot_general.*-> tensor<([0-9x]*)xf32>", text)
    return {int(shape.split("x")[0]) if shape.count("x") == 2 else 1 for shape in shapes}


@pytest.mark.parametrize("count, together", [(7, {7}), (8, {4}), (20, {7, 6}), (22, {6, 4})])
def test_batches_are_of_nearly_one_size(monkeypatch, count, together):
    """A loop over equal batches, and a smaller one after it where they don't come out even."""
    monkeypatch.setattr(_groups, "_LIMITS", {"default": _groups._Limits(10**9, 7 * 8 * 8, batches=1, written_out=1)})
    assert multiplied_at_once(count, 8, "cpu") == together


@pytest.mark.parametrize(
    "platform, size, together",
    [
        ("cpu", 64, {16}),
        ("cpu", 128, {4}),
        ("cpu", 129, {1}),
        ("cpu", 256, {1}),
        ("tpu", 64, {32}),
        ("tpu", 512, {32}),
        ("tpu", 886, {8}),
        ("tpu", 887, {1}),
        ("tpu", 1024, {1}),
        ("cuda", 1024, {16}),
        ("cuda", 2048, {4}),
        ("cuda", 2049, {1}),
    ],
)
def test_small_matrices_run_together_and_large_ones_in_turn(platform, size, together):
    assert multiplied_at_once(32, size, platform) == together


def test_a_tpu_takes_thirty_two_matrices_of_512_at_once():
    assert multiplied_at_once(32, 512, "tpu") == {32}
    assert multiplied_at_once(33, 512, "tpu") == {17, 16}


@pytest.mark.parametrize("size, batch, together", [(8, 2, {2, 1}), (1, 6, {6})], ids=["pairs", "one by one"])
def test_a_batch_is_filled(monkeypatch, size, batch, together):
    monkeypatch.setattr(
        _groups, "_LIMITS", {"default": _groups._Limits(10**9, batch * size**2, batches=1, written_out=1)}
    )
    assert multiplied_at_once(5 if size > 1 else 6, size, "cpu") == together


def products_of(function, platform, count, size):
    arrays = [jax.ShapeDtypeStruct((size, size), jnp.float32)] * count

    def product(matrix):
        return matrix @ matrix

    text = jax.jit(lambda arrays: function(product, arrays)).trace(arrays)
    return text.lower(lowering_platforms=(platform,)).as_text().count("call @product")


@pytest.mark.parametrize(
    "platform, count, products",
    [
        ("cpu", 2, 2),
        ("cpu", 16, 16),
        ("cpu", 17, 1),
        ("tpu", 64, 64),
        ("tpu", 65, 1),
        ("cuda", 16, 16),
        ("cuda", 17, 1),
    ],
)
def test_a_few_large_matrices_are_written_out(platform, count, products):
    """One product a matrix, or one in a loop over all."""
    assert products_of(_groups.map_matrices, platform, count, 2049) == products


@pytest.mark.parametrize(
    "platform, count, size, products",
    [("cpu", 32, 128, 1), ("tpu", 64, 512, 1), ("cuda", 32, 1024, 2), ("cuda", 256, 1024, 16), ("cuda", 272, 1024, 1)],
)
def test_a_few_batches_are_written_out_on_a_gpu(platform, count, size, products):
    """One product a batch; elsewhere, and for many batches, one in a loop over all of them."""
    assert products_of(_groups.map_matrices, platform, count, size) == products


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("count", [2, 65])
def test_large_matrices_of_a_stack_are_looped_over(platform, count):
    assert products_of(lambda f, arrays: _groups.map_stacks(f, [jnp.stack(arrays)]), platform, count, 2049) == 1


def test_a_stack_of_small_matrices_is_one_call():
    calls = []
    jax.jit(lambda stack: _groups.map_stacks(recorder(calls), [stack])).trace(jnp.ones((8, 16, 16)))
    assert calls == [(8, 16, 16)]


@pytest.mark.parametrize("shape", [(0, 4, 6), (3, 0, 6), (1, 0, 0)], ids=str)
def test_empty_stacks_come_back(shape):
    (result,) = _groups.map_stacks(mo.newton_schulz(), [jnp.zeros(shape)])
    assert result.shape == shape


def test_the_program_grows_with_shapes_and_not_with_layers():
    transform = mo.orthogonalize_via_newton_schulz()

    def dots(layers):
        shapes = ((32, 32), (32, 96)) * layers
        tree = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        text = jax.jit(transform.update).lower(tree, transform.init(tree)).as_text()
        return len(re.findall("dot_general", text))

    assert dots(2) == dots(12) <= 2 * 15


def test_matrices_of_one_shape_share_a_trace() -> None:
    """A jit around the orthogonalizer keeps what was traced, for all platforms' branches and all matrices."""
    shapes = {"q": (16, 16), "up": (16, 48), "down": (48, 16)}
    params = {f"{layer}/{name}": jnp.ones(shape) for layer in range(12) for name, shape in shapes.items()}
    traced = []

    def orthogonalizer(matrices: jax.Array) -> jax.Array:
        traced.append(matrices.shape)
        return mo.newton_schulz()(matrices)

    transform = mo.orthogonalize(orthogonalizer)
    text = jax.jit(transform.update).lower(params, transform.init(params)).as_text()
    assert len(traced) == len(set(traced)) <= 6  # alone and in a batch, for each of three shapes
    assert len(text.splitlines()) <= 1200


@pytest.mark.parametrize("settings, traces", [({}, 1), ({"norm": "schatten4"}, 2)], ids=["equal", "other"])
def test_optimizers_with_equal_settings_share_a_trace(
    settings: dict, traces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a sweep, which differ in rates."""
    made, traced = _newton_schulz.direct_newton_schulz, []

    def recorded(*arguments):
        traced.append(arguments)
        return made(*arguments)

    monkeypatch.setattr(_newton_schulz, "direct_newton_schulz", recorded)
    params = {"kernel": jnp.ones((7, 10 + traces))}
    for rate, given in ((0.1, {}), (0.2, settings)):
        optimizer = mo.muon(rate, orthogonalizer=mo.newton_schulz(**given), layouts={"kernel": "io"})
        jax.eval_shape(optimizer.update, params, optimizer.init(params), params)
    assert len(traced) == traces
