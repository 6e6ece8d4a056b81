"""Measurements of a step against float64 NumPy, inside jit and out, and the errors that name a leaf."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import oracle
import pytest
import trees
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxpr import matrix_products
from places import ROOT
from snippets import run, snippets

import muon_optax as mo
from muon_optax import diagnostics
from muon_optax._diagnostics import finite

PAGE = ROOT / "docs" / "diagnostics.md"
FLOATS = ["float32", "bfloat16", "float16", "float8_e5m2", "float8_e4m3fn"]
EPSILON = {name: float(ml_dtypes.finfo(name).eps) for name in FLOATS}
# Rounding of a float32 sum of a few hundred terms and of two divisions.
CLOSE = 1e-6

# Every way in which a leaf is several matrices, or one that is stored otherwise: (layout, shape).
SEEN_AS = {
    "wide": ("io", (8, 24)),
    "tall": ("io", (24, 8)),
    "outputs first": ("oi", (24, 8)),
    "heads as one": ("ioo", (12, 3, 8)),
    "heads apart": ("ibo", (12, 3, 8)),
    "stack of stacks": ("bbio", (2, 3, 5, 7)),
    "split": (mo.Layout("io", split=(16, 4, 2)), (8, 22)),
    "stack of splits": (mo.Layout("boi", split=(3, 9)), (4, 12, 5)),
    "one row": ("io", (1, 9)),
}
seen_as = pytest.mark.parametrize("layout, shape", SEEN_AS.values(), ids=SEEN_AS.keys())


def leaf(values: Any, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    return {"w": jnp.asarray(np.asarray(values), dtype)}


def matrices_of(array: Any, layout: mo.Layout | str) -> list[np.ndarray]:
    """All matrices of a leaf, those of stacks and splits one by one, in float64."""
    layout = layout if isinstance(layout, mo.Layout) else mo.Layout(layout)
    blocks = [np.asarray(block, np.float64) for block in layout.to_matrices(jnp.asarray(array))]
    return [matrix for block in blocks for matrix in block.reshape(-1, *block.shape[-2:])]


def root_mean_square(values: Any) -> float:
    return float(np.sqrt(np.mean(np.abs(np.asarray(values, np.complex128)) ** 2)))


def spread(matrices: list[np.ndarray]) -> float:
    """The orthogonality error by singular values in place of Gram matrices."""
    squares = [np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in matrices if np.any(matrix)]
    return root_mean_square(np.concatenate([square / np.mean(square) - 1 for square in squares]))


counts_in_jit = jax.jit(diagnostics.nonfinite_counts)
rms_in_jit = jax.jit(diagnostics.update_rms)


def error_in_jit(array: jax.Array, layout: mo.Layout | str) -> float:
    return float(jax.jit(lambda tree: diagnostics.orthogonality_error(tree, {"w": layout}))({"w": array})["w"])


# What is not finite


@pytest.mark.parametrize("dtype", [*FLOATS, "complex64"])
@pytest.mark.parametrize("shape", [(), (7,), (5, 6), (2, 3, 4, 5)], ids=str)
def test_counts_of_nan_and_infinity(dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(len(shape)).choice([1.0, -2.0, 0.0, np.nan, np.inf, -np.inf], shape)
    tree = leaf(values, dtype) | {"finite": jnp.ones(shape, dtype), "nan": jnp.full(shape, jnp.nan, dtype)}
    # float8_e4m3fn has no infinity: what the conversion made of it is what counts.
    expected = np.sum(~np.isfinite(np.asarray(tree["w"]).astype(np.complex128)))
    counts = counts_in_jit(tree)
    assert {path: (int(count), count.dtype) for path, count in counts.items()} == {
        "finite": (0, jnp.int32),
        "nan": (np.prod(shape), jnp.int32),
        "w": (expected, jnp.int32),
    }


def test_a_complex_number_is_finite_if_both_its_parts_are() -> None:
    values = jnp.array([1 + 1j, complex(jnp.nan, 0), complex(0, jnp.inf), complex(jnp.inf, jnp.nan)])
    assert int(counts_in_jit(values)[""]) == 3


@pytest.mark.parametrize("measure", [diagnostics.nonfinite_counts, diagnostics.update_rms], ids=lambda f: f.__name__)
def test_leaves_that_are_no_floating_numbers_are_left_out(measure: Callable[[Any], dict[str, jax.Array]]) -> None:
    tree = {
        "array": jnp.full((2, 2), 3.0),
        "numpy": np.full(3, 3.0, np.float16),
        "number": 3.0,
        "empty": jnp.zeros((0, 4)),
        "integer": jnp.ones(2, jnp.int32),
        "four bits": jnp.ones(2, jnp.int4),
        "boolean": jnp.array([True]),
        "key": jax.random.key(0),
        "no gradient": np.zeros(2, jax.dtypes.float0),
        "count": 3,
        "none": None,
        "masked": optax.MaskedNode(),
        "function": jax.nn.relu,
        "name": "relu",
    }
    assert list(measure(tree)) == ["array", "empty", "number", "numpy"]
    diagnostics.raise_if_nonfinite(tree)
    expected = 3.0 if measure is diagnostics.update_rms else 0
    measured = {path: value.item() for path, value in measure(tree).items()}
    assert measured == pytest.approx({"array": expected, "empty": 0, "number": expected, "numpy": expected})


@pytest.mark.parametrize("build", trees.KINDS.values(), ids=trees.KINDS.keys())
def test_paths_are_those_of_the_layouts(build: Callable[..., Any]) -> None:
    tree = build(jnp.full((12, 8), jnp.nan), jnp.ones((8, 12)))
    paths = list(mo.assign_layouts(tree))
    assert list(diagnostics.nonfinite_counts(tree)) == paths
    assert {path: int(count) for path, count in counts_in_jit(tree).items() if count} == {
        next((path for path in paths if path.endswith(("down", "0"))), paths[0]): 96
    }
    assert list(diagnostics.update_rms(tree)) == paths
    assert list(diagnostics.orthogonality_error(tree)) == paths
    assert list(diagnostics.predicted_update_rms(tree)) == paths


def test_counts_do_not_wrap_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_LARGEST_COUNT", 100)
    exact = [jnp.full((10, 10), jnp.nan), jnp.full(100, jnp.nan), jnp.full((100, 1), jnp.nan)]
    too_large = [jnp.full((11, 10), jnp.nan), jnp.full((20, 20), jnp.nan), jnp.full((3, 400), jnp.nan)]
    assert [int(diagnostics.nonfinite_counts(array)[""]) for array in exact] == [100] * 3
    assert [int(diagnostics.nonfinite_counts(array)[""]) for array in too_large] == [99, 100, 99]


def test_vmap_measures_each_example_and_scan_each_step() -> None:
    stack = jnp.asarray(oracle.gaussian(4, 6, 8), jnp.float32).at[2, 0, 3].set(jnp.nan)

    def measure(matrix: jax.Array) -> tuple[dict[str, jax.Array], ...]:
        return (
            diagnostics.nonfinite_counts({"w": matrix}),
            diagnostics.update_rms({"w": matrix}),
            diagnostics.orthogonality_error({"w": matrix}),
        )

    _, scanned = jax.lax.scan(lambda carry, matrix: (carry, measure(matrix)), None, stack)
    alone = [[float(value["w"]) for value in measure(matrix)] for matrix in stack]
    assert [row[0] for row in alone] == [0, 0, 1, 0]
    for measured in (jax.vmap(measure)(stack), scanned):
        np.testing.assert_allclose(np.stack([value["w"] for value in measured], axis=1), alone, rtol=1e-5)


COLLIDING = {"a/b": jnp.ones(2), "a": {"b": jnp.ones(3)}}


@pytest.mark.parametrize("measure", [diagnostics.nonfinite_counts, diagnostics.update_rms], ids=lambda f: f.__name__)
def test_two_leaves_of_one_path_are_refused(measure: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="Two leaves have the path 'a/b': rename one, and both can be reported"):
        measure(COLLIDING)
    diagnostics.raise_if_nonfinite(COLLIDING)


# How large updates are


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (300,), (12, 40), (3, 5, 7)], ids=str)
def test_rms_equals_numpy(dtype: str, shape: tuple[int, ...]) -> None:
    tree = leaf(oracle.gaussian(*shape), dtype)
    measured = rms_in_jit(tree)["w"]
    assert (measured.shape, measured.dtype) == ((), jnp.float32)
    np.testing.assert_allclose(measured, root_mean_square(tree["w"]), rtol=CLOSE)


@pytest.mark.parametrize(
    "dtype, sizes", [("float32", (1e-34, 1e-30, 1e-19, 1e19, 1e30, 5e37)), ("float16", (1e-6, 6e3))]
)
def test_rms_neither_overflows_nor_underflows(dtype: str, sizes: tuple[float, ...]) -> None:
    for size in sizes:
        tree = leaf(size * oracle.gaussian(20, 30), dtype)
        np.testing.assert_allclose(rms_in_jit(tree)["w"], root_mean_square(tree["w"]), rtol=CLOSE, err_msg=str(size))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rms_of_the_largest_and_smallest_numbers_of_a_dtype(dtype: str) -> None:
    limits = ml_dtypes.finfo(dtype)
    for number in (float(limits.max), float(limits.smallest_normal)):
        np.testing.assert_allclose(rms_in_jit(leaf(np.full((4, 5), number), dtype))["w"], number, rtol=CLOSE)


def test_rms_of_a_few_large_numbers_among_small_ones() -> None:
    values = np.full(10_000, 1e-30)
    values[7] = 1e30
    np.testing.assert_allclose(rms_in_jit(leaf(values))["w"], 1e28, rtol=CLOSE)


@pytest.mark.parametrize(
    "values, expected",
    [
        ([0.0, 0.0], 0.0),
        ([], 0.0),
        ([1.0, np.nan], np.nan),
        ([1.0, np.inf], np.inf),
        ([1.0, -np.inf], np.inf),
        ([np.inf, np.nan], np.nan),
        ([3 + 4j, 0], 5 / 2**0.5),
        ([complex(3e30, 4e30)], 5e30),
    ],
    ids=str,
)
def test_rms_of_special_values(values: list[complex], expected: float) -> None:
    np.testing.assert_allclose(rms_in_jit(jnp.array(values))[""], expected, rtol=CLOSE)


def test_rms_of_zeros_that_xla_knows() -> None:
    assert float(jax.jit(lambda: diagnostics.update_rms(leaf(np.zeros((16, 64)))))()["w"]) == 0


def test_float64_leaves_are_measured_in_float64() -> None:
    values = oracle.gaussian(6, 9)
    with jax.enable_x64(True):
        tree = {"w": jnp.asarray(1e200 * values), "complex": jnp.asarray(values * 1j)}
        measured = rms_in_jit(tree)
        assert {value.dtype for value in measured.values()} == {jnp.dtype(jnp.float64)}
        np.testing.assert_allclose(measured["w"], 1e200 * root_mean_square(values), rtol=1e-14)
        np.testing.assert_allclose(measured["complex"], root_mean_square(values), rtol=1e-14)
        error = diagnostics.orthogonality_error({"w": tree["w"]})["w"]
        assert error.dtype == jnp.float64
        np.testing.assert_allclose(error, spread([values]), rtol=1e-13)


# How large they should be


@pytest.mark.parametrize("scale", oracle.SCALES)
@seen_as
def test_prediction_equals_the_rms_of_orthogonal_matrices(
    layout: mo.Layout | str, shape: tuple[int, ...], scale: str
) -> None:
    predicted = diagnostics.predicted_update_rms(leaf(np.zeros(shape)), {"w": layout}, scale=scale, learning_rate=0.3)
    orthogonal = [
        0.3 * oracle.SCALES[scale](*matrix.shape) * oracle.polar_factor(matrix)
        for matrix in matrices_of(oracle.gaussian(*shape), layout)
    ]
    expected = root_mean_square(np.concatenate([matrix.ravel() for matrix in orthogonal]))
    assert list(predicted) == ["w"]
    assert isinstance(predicted["w"], float)
    np.testing.assert_allclose(predicted["w"], expected, rtol=1e-13)


def one_update(scale: str, layout: mo.Layout | str, shape: tuple[int, ...], orthogonalizer: Any) -> float:
    """The measured RMS of muon's update, divided by the predicted one, both within one jitted step."""
    optimizer = mo.muon(0.3, weight_decay=0, scale=scale, layouts={"w": layout}, orthogonalizer=orthogonalizer)

    @jax.jit
    def step(params: Any) -> jax.Array:
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        predicted = diagnostics.predicted_update_rms(params, {"w": layout}, scale=scale, learning_rate=0.3)
        return diagnostics.update_rms(updates)["w"] / predicted["w"]

    return float(step(leaf(oracle.gaussian(*shape))))


@pytest.mark.parametrize("scale", oracle.SCALES)
def test_muons_updates_have_the_predicted_size(scale: str) -> None:
    for name, (layout, shape) in SEEN_AS.items():
        assert one_update(scale, layout, shape, mo.polar_factor()) == pytest.approx(1, rel=2e-6), name


@pytest.mark.parametrize("coefficients", [mo.KELLER, mo.YOU_JIACHENG], ids=["KELLER", "YOU_JIACHENG"])
def test_newton_schulz_keeps_to_its_range_of_the_predicted_size(coefficients: Any) -> None:
    # Singular values of this matrix lie between 0.03 and 0.3 of its norm.
    low, high = mo.coefficient_range(coefficients, 0.03)
    ratio = one_update("moonlight", "io", (16, 48), mo.newton_schulz(coefficients, dtype=jnp.float32))
    assert low <= ratio <= high
    assert abs(ratio - 1) > 1e-3


def test_lost_rank_shows_as_the_root_of_its_share() -> None:
    update = mo.polar_factor()(jnp.asarray(oracle.with_spectrum([3.0, 2.0, 1.0], 12, 20), jnp.float32))
    ratio = diagnostics.update_rms(update)[""] / diagnostics.predicted_update_rms(update, scale="naive")[""]
    assert float(ratio) == pytest.approx((3 / 12) ** 0.5, rel=1e-5)


def test_weight_decay_moves_the_size_by_no_more_than_was_said() -> None:
    params, gradients = (leaf(oracle.gaussian(16, 24, seed=seed)) for seed in (0, 1))
    optimizer = mo.muon(0.3, weight_decay=0.1, orthogonalizer=mo.polar_factor())
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    ratio = diagnostics.update_rms(updates)["w"] / diagnostics.predicted_update_rms(params, learning_rate=0.3)["w"]
    bound = 0.1 / (0.2 * 24**0.5) * float(np.linalg.norm(params["w"], 2))
    assert 1e-3 < abs(float(ratio) - 1) <= bound


def test_the_prediction_takes_a_function_abstract_shapes_and_a_traced_learning_rate() -> None:
    params = {"w": jax.ShapeDtypeStruct((4, 16), jnp.bfloat16), "bias": jax.ShapeDtypeStruct((16,), jnp.bfloat16)}
    assert diagnostics.predicted_update_rms(params, scale=lambda fan_in, fan_out: fan_out / fan_in) == {"w": 1.0}
    assert diagnostics.predicted_update_rms(params, layouts={"w": None}) == {}
    traced = jax.jit(lambda rate: diagnostics.predicted_update_rms(params, learning_rate=rate))(jnp.float32(0.5))
    assert (float(traced["w"]), traced["w"].dtype) == (pytest.approx(0.1), jnp.float32)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_an_empty_matrix_has_no_size_and_no_error(shape: tuple[int, int]) -> None:
    assert diagnostics.predicted_update_rms(leaf(np.zeros(shape)), scale="mup") == {"w": 0.0}
    assert float(diagnostics.orthogonality_error(leaf(np.zeros(shape)))["w"]) == 0


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"scale": "adam"}, ValueError, "The scale 'adam' is not known: use one of 'naive', 'keller'"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate=-1.0 is not allowed: use a number >= 0, or the value of"),
        (
            {"learning_rate": optax.constant_schedule(0.1)},
            TypeError,
            "is not a number; use a number >= 0, or the value of a schedule at the step",
        ),
        ({"layouts": {"nothing": "io"}}, ValueError, "'nothing', which matches no parameter"),
        ({"layouts": {"w": "bio"}}, ValueError, "'w': layout 'bio' has 3 letters for the 2 axes"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        diagnostics.predicted_update_rms(leaf(np.ones((2, 3))), **arguments)


# How near to orthogonal


@pytest.mark.parametrize("shape", [(12, 12), (12, 40), (40, 12)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("spectrum", oracle.spectra(12))
def test_error_equals_that_of_the_singular_values(spectrum: str, shape: tuple[int, int]) -> None:
    matrix = oracle.with_spectrum(oracle.spectra(12)[spectrum], *shape)
    # Differences from 1 of entries that were rounded to float32.
    np.testing.assert_allclose(error_in_jit(jnp.float32(matrix), "io"), spread([matrix]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
@seen_as
def test_error_of_stacks_and_splits_is_taken_over_all_singular_values(
    layout: mo.Layout | str, shape: tuple[int, ...], dtype: str
) -> None:
    array = jnp.asarray(oracle.gaussian(*shape), dtype)
    expected = spread(matrices_of(array, layout))
    np.testing.assert_allclose(error_in_jit(array, layout), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_error_of_equal_singular_values_and_lost_rank(rank: int) -> None:
    matrix = jnp.float32(oracle.with_spectrum(np.ones(rank), 8, 24))
    assert error_in_jit(matrix, "io") == pytest.approx((8 / rank - 1) ** 0.5, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_error_does_not_depend_on_the_scale(dtype: str) -> None:
    array = jnp.asarray(oracle.gaussian(10, 16), dtype)
    powers = (-2, 10) if dtype == "float16" else (-100, -60, 60, 100)
    expected = error_in_jit(array, "io")
    assert [error_in_jit(array * jnp.asarray(2.0**power, dtype), "io") for power in powers] == [expected] * len(powers)
    assert error_in_jit(-3 * array, "io") == pytest.approx(expected, rel=4 * EPSILON[dtype])


def test_zero_matrices_are_left_out_and_others_are_not() -> None:
    stack = np.zeros((3, 6, 9), np.float32)
    assert error_in_jit(jnp.asarray(stack), "bio") == 0
    stack[1] = oracle.gaussian(6, 9)
    assert error_in_jit(jnp.asarray(stack), "bio") == pytest.approx(spread([stack[1]]), rel=1e-5)
    split = np.concatenate([stack[1], stack[0]], axis=1)
    layout = mo.Layout("io", split=(9, 9))
    assert error_in_jit(jnp.asarray(split), layout) == pytest.approx(spread([stack[1]]), rel=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_error_of_a_leaf_that_is_not_finite_is_nan_and_of_the_others_is_not(bad: float) -> None:
    tree = {"bad": np.ones((3, 4, 5), np.float32), "good": np.eye(5, dtype=np.float32)}
    tree["bad"][2, 1, 1] = bad
    errors = jax.jit(partial(diagnostics.orthogonality_error, layouts={"bad": "bio"}))(tree)
    assert (bool(jnp.isnan(errors["bad"])), float(errors["good"])) == (True, 0.0)


def test_leaves_without_a_layout_have_no_error_and_no_warning() -> None:
    tree = {"w": jnp.eye(3), "bias": jnp.ones(3), "unknown": jnp.ones((2, 3, 4)), "masked": optax.MaskedNode()}
    assert list(diagnostics.orthogonality_error(tree)) == ["w"]
    assert list(diagnostics.orthogonality_error(tree, {"w": None, "unknown": "bio"})) == ["unknown"]


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)], ids=["wide", "tall"])
def test_the_cost_is_one_exact_product_with_the_short_side_outside(shape: tuple[int, int]) -> None:
    (product,) = matrix_products(lambda matrix: diagnostics.orthogonality_error({"w": matrix}), shape)
    assert (product.multiplications, product.is_exact, product.operands[0]) == (16 * 16 * 48, True, "float32")
    sixteen_bits = lambda matrix: diagnostics.orthogonality_error({"w": matrix.astype(jnp.bfloat16)})  # noqa: E731
    (product,) = matrix_products(sixteen_bits, shape)
    assert (product.operands, product.result) == (("bfloat16", "bfloat16"), "float32")


# The ranges in the table of docs/diagnostics.md: size over prediction, error.
TABLE = {
    "DEEPSEEK_V4": (mo.DEEPSEEK_V4, (0.995, 1.005), (0.0005, 0.0035)),
    "YOU_JIACHENG": (mo.YOU_JIACHENG, (0.99, 1.01), (0.03, 0.15)),
    "polar_express": (mo.polar_express(), (1.005, 1.035), (0.165, 0.235)),
    "KELLER": (mo.KELLER, (0.86, 0.96), (0.29, 0.395)),
    "CUBIC": (mo.CUBIC, (1.02, 1.07), (0.33, 0.435)),
}


@pytest.mark.parametrize("coefficients, sizes, errors", TABLE.values(), ids=TABLE.keys())
def test_documented_sizes_and_errors_of_gaussian_matrices(coefficients: Any, sizes: Any, errors: Any) -> None:
    for shape in ((64, 64), (128, 512)):
        updates = leaf(mo.newton_schulz(coefficients)(jnp.float32(oracle.gaussian(*shape))))
        predicted = diagnostics.predicted_update_rms(updates, scale="naive")
        assert sizes[0] <= diagnostics.update_rms(updates)["w"] / predicted["w"] <= sizes[1], shape
        assert errors[0] <= diagnostics.orthogonality_error(updates)["w"] <= errors[1], shape


@pytest.mark.parametrize("dtype, limit", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.0025)], ids=["float32", "bfloat16"])
def test_documented_error_of_the_polar_factor(dtype: Any, limit: float) -> None:
    updates = mo.polar_factor()(jnp.float32(oracle.gaussian(64, 64))).astype(dtype)
    assert limit / 100 < float(diagnostics.orthogonality_error(updates)[""]) < limit


# Wherever it runs

MODES = {
    "strict promotion of dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "no promotion of ranks": lambda: jax.numpy_rank_promotion("raise"),
    "debug NaNs": lambda: jax.debug_nans(True),
    "debug infinities": lambda: jax.debug_infs(True),
    "checks": lambda: jax.enable_checks(True),
    "no jit": lambda: jax.disable_jit(True),
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
def test_every_measure_in_every_mode_of_jax(mode: Callable[[], Any]) -> None:
    tree = {"w": jnp.ones((2, 4, 6), jnp.bfloat16), "zero": jnp.zeros((4, 6)), "empty": jnp.zeros((0, 3))}
    bad = leaf([[1.0, np.nan], [0.0, np.inf]])

    def measure(tree: Any) -> list[dict[str, jax.Array]]:
        errors = diagnostics.orthogonality_error(tree, {"w": "bio"})
        return [diagnostics.nonfinite_counts(tree), diagnostics.update_rms(tree), errors]

    with mode():
        counts, sizes, errors = jax.jit(measure)(tree)
        with pytest.raises(FloatingPointError, match=r"'w' of shape .* holds 1 NaN and 1 infinite of 4"):
            diagnostics.raise_if_nonfinite(bad)
        assert int(counts_in_jit(bad)["w"]) == 2
    assert {path: int(count) for path, count in counts.items()} == {"empty": 0, "w": 0, "zero": 0}
    assert {path: float(size) for path, size in sizes.items()} == {"empty": 0, "w": 1, "zero": 0}
    assert {path: float(error) for path, error in errors.items()} == pytest.approx({"empty": 0, "w": 3**0.5, "zero": 0})


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["Auto", "Explicit"])
@pytest.mark.parametrize(
    "spec",
    [("data", "model"), *(pytest.param(one, marks=pytest.mark.slow) for one in (("model",), (None, "data")))],
    ids=str,
)
def test_sharded_leaves_are_measured_like_whole_ones(kind: AxisType, spec: tuple[str | None, ...]) -> None:
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
    whole = leaf(oracle.gaussian(16, 32))
    sharded = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(*spec)))
    for measure in (diagnostics.update_rms, diagnostics.orthogonality_error):
        np.testing.assert_allclose(jax.jit(measure)(sharded)["w"], measure(whole)["w"], rtol=1e-5)
    bad = jax.device_put(whole["w"].at[9, 30].set(jnp.inf), NamedSharding(mesh, PartitionSpec(*spec)))
    assert int(counts_in_jit(bad)[""]) == 1
    with pytest.raises(
        FloatingPointError, match=re.escape("holds 0 NaN and 1 infinite of 512 elements, the first at index (9, 30).")
    ):
        diagnostics.raise_if_nonfinite(bad)


# Outside jit


def test_the_message_of_an_error() -> None:
    bad = jnp.array([-jnp.inf, jnp.nan, jnp.nan])
    tree = {
        "decoder": [{"kernel": jnp.ones((2, 3))}, {"kernel": jnp.ones((3, 4)).at[1, 1:].set(bad)}],
        "head": jnp.full(5, -jnp.inf),
        "step": jnp.array(3),
    }
    with pytest.raises(FloatingPointError) as raised:
        diagnostics.raise_if_nonfinite(tree, "gradients", step=jnp.array(7))
    assert str(raised.value) == (
        "gradients at step 7: 'decoder/1/kernel' of shape (3, 4) holds 2 NaN and 1 infinite of 12 elements, the first "
        "at index (1, 1). 2 of 3 leaves are affected: 'decoder/1/kernel' 3, 'head' 5. To skip such steps wrap the "
        "optimizer in optax.apply_if_finite; to find the operation repeat the step under jax_debug_nans."
    )


@pytest.mark.parametrize(
    "tree, message",
    [
        (
            jnp.float32(jnp.nan),
            "tree: the array itself (the tree is one leaf) of shape () holds 1 NaN and 0 infinite of 1",
        ),
        (
            {"loss": float("inf")},
            "tree: 'loss' of shape () holds 0 NaN and 1 infinite of 1 elements, the first at index ()",
        ),
        (
            {"a": np.array([1.0, np.nan])},
            "'a' of shape (2,) holds 1 NaN and 0 infinite of 2 elements, the first at ind",
        ),
        (jnp.ones((2, 2, 2), jnp.bfloat16).at[1, 0, 1].set(-jnp.inf), "the first at index (1, 0, 1). 1 of"),
        ([jnp.ones(1)] * 3 + [jnp.full(2, jnp.nan)] * 20, "20 of 23 leaves are affected: '3' 2, '4' 2, '5' 2, '6' 2, "),
        ([jnp.full(1, jnp.nan)] * 9, "'7' 1 and 1 more. To skip"),
        ([jnp.full(1, jnp.nan)] * 8, "'7' 1. To skip"),
    ],
)
def test_what_errors_say(tree: Any, message: str) -> None:
    with pytest.raises(FloatingPointError, match=re.escape(message)):
        diagnostics.raise_if_nonfinite(tree)


def test_numpy_arrays_are_judged_in_their_own_precision() -> None:
    diagnostics.raise_if_nonfinite({"w": np.array([1e300]), "loss": 1e300, "none": None})
    assert diagnostics.nonfinite_counts({"w": np.array([1e300, np.inf])})["w"] == 1
    with pytest.raises(FloatingPointError, match=r"tree: 'w' .* holds 0 NaN and 1 infinite of 3 elements, .* \(1,\)"):
        diagnostics.raise_if_nonfinite({"w": np.array([1e300, np.inf, -1e300])})


@pytest.mark.parametrize("transformation", [jax.jit, jax.vmap])
def test_traced_values_are_refused(transformation: Callable[..., Any]) -> None:
    message = "inside jit or vmap the value of 'w' is not known. Return what muon_optax.diagnostics.nonfinite_counts"
    with pytest.raises(TypeError, match=f"gradients: {message} gives there, or call"):
        transformation(lambda array: diagnostics.raise_if_nonfinite({"w": array}, "gradients"))(jnp.ones(3))


def test_constants_within_jit_are_refused_and_values_within_grad_are_not() -> None:
    constant = jnp.ones(3)
    with pytest.raises(TypeError, match="tree: inside jit or vmap the value of 'w' is not known"):
        jax.jit(lambda: diagnostics.raise_if_nonfinite({"w": constant}))()

    def checked_sum(array: jax.Array) -> jax.Array:
        diagnostics.raise_if_nonfinite(array / array)
        return array.sum()

    assert jax.grad(checked_sum)(constant).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(
        FloatingPointError, match=r"holds 2 NaN and 0 infinite of 3 elements, the first at index \(1,\)"
    ):
        jax.grad(checked_sum)(constant.at[1:].set(0))


@partial(jax.jit, donate_argnums=0)
def descend(params: Any, gradients: Any, *, rate: float = 0.5) -> tuple[Any, jax.Array]:
    params = jax.tree.map(lambda value, gradient: value - rate * gradient, params, gradients)
    return params, jnp.log(params["b"].sum())


def test_a_checked_step_says_whether_values_came_in_or_began_there() -> None:
    step = diagnostics.finite_or_raise(descend, first_step=10)
    good = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    params, loss = step({"a": jnp.ones((2, 2)), "b": jnp.full(2, 3.0)}, good, rate=1.0)
    assert (params["b"].tolist(), float(loss)) == ([2.0, 2.0], pytest.approx(np.log(4)))
    with pytest.raises(
        FloatingPointError, match=r"^arguments of descend at step 11: 'gradients/b' .* 1 NaN .* index \(1,"
    ):
        step(params, good | {"b": jnp.array([0.0, jnp.nan])})
    assert not params["b"].is_deleted()  # refused before it was donated
    with pytest.raises(
        FloatingPointError, match=r"^results of descend at step 12: '1' of shape \(\) holds 0 NaN and 1 inf"
    ):
        step(params, gradients=good, rate=2.0)
    # In the order of the signature, not of the names.
    bad = good | {"b": jnp.array([jnp.inf, 0.0])}
    with pytest.raises(
        FloatingPointError, match=r"at step 13: 'params/b' .*: 'params/b' 1, 'gradients/b' 1, 'rate' 1\."
    ):
        step(gradients=bad, params=bad, rate=float("nan"))


def test_a_checked_update_of_an_optimizer() -> None:
    optimizer = mo.muon(0.1)
    params = trees.with_vectors()
    update = diagnostics.finite_or_raise(jax.jit(optimizer.update), "muon")
    updates, state = update(trees.with_vectors(1), optimizer.init(params), params)
    trees.assert_trees_equal(
        updates, jax.jit(optimizer.update)(trees.with_vectors(1), optimizer.init(params), params)[0]
    )
    # Finite gradients whose momentum is not, which apply_if_finite lets pass.
    large = jax.tree.map(lambda value: jnp.full_like(value, 3e38), params)
    with pytest.raises(FloatingPointError, match=r"^results of muon at step 1: '0/down' of shape"):
        update(large, state, params)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(TypeError, match="function=3 is not a function: give the training step"):
        diagnostics.finite_or_raise(3)
    assert diagnostics.finite_or_raise(descend).__name__ == "descend"


# The recipe


def test_a_bad_step_is_skipped_and_one_too_many_is_named() -> None:
    optimizer = optax.apply_if_finite(mo.muon(0.1), max_consecutive_errors=2)
    params = trees.with_vectors()
    good = trees.with_vectors(1)
    bad = good | {"up": good["up"].at[3, 4].set(jnp.nan)}
    update = jax.jit(optimizer.update)

    def step(gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(good, optimizer.init(params), params)
    skipped, after = step(bad, state, params)
    trees.assert_trees_equal(skipped, params)
    trees.assert_trees_equal(after.inner_state, state.inner_state)
    assert (bool(after.last_finite), int(after.notfinite_count), int(after.total_notfinite)) == (False, 1, 1)
    expected, _ = step(good, state, params)
    resumed, after = step(good, after, skipped)
    trees.assert_trees_equal(resumed, expected)
    assert (bool(after.last_finite), int(after.notfinite_count), int(after.total_notfinite)) == (True, 0, 1)
    for _ in range(3):
        resumed, after = step(bad, after, resumed)
    assert int(after.notfinite_count) == 3
    with pytest.raises(FloatingPointError, match=r"params at step 6: 'up' .* 96 NaN .* of 96 .* 1 of 4 leaves"):
        diagnostics.raise_if_nonfinite(resumed, "params", step=6)


@pytest.mark.slow
def test_the_page_reports_the_step_and_the_leaf_where_a_nan_loss_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the page saves a picture
    namespace = run([part for part in snippets(PAGE.read_text("utf-8")) if part.reason is None], PAGE)
    assert [np.isfinite(loss) for loss in namespace["losses"]] == [step != 5 for step in range(8)]
    (report,) = namespace["reports"]
    assert report.startswith(
        "activations at step 5: 'normalized' of shape (32, 16) holds 16 NaN and 0 infinite of 512 elements, the first "
        "at index (31, 0). 2 of 3 leaves are affected: 'normalized' 16, 'outputs' 4."
    )
    assert namespace["operation"] == "invalid value (nan) encountered in div"
    assert namespace["message"].startswith("results of careless_step at step 5: '0/down/kernel' of shape (16, 4)")
    sizes, errors = namespace["measures"]["size"], namespace["measures"]["orthogonality"]
    assert list(sizes) == list(errors) == ["down/kernel", "up/kernel"]
    assert all(0.6 < float(size) < 1.2 for size in sizes.values())
    assert all(0.05 < float(error) < 1 for error in errors.values())
