"""The dtype policy: float32 sums, coefficients that are never rounded, exact scaling at any size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jaxpr import matrix_products
from tolerances import RTOL

from muon_optax._orthogonalizers import precision as _precision
from muon_optax._orthogonalizers.precision import accumulation_dtype, blend, multiply, rounded

# What NumPy says of them.
CPUS = {"Haswell": {"found": ["X86_V3"]}, "Sapphire Rapids": {"found": ["X86_V3", "AVX512_SPR"]}, "unknown": {}}

FLOATS = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}

near_one = jax.jit(_precision.near_one, static_argnums=1)


def values(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random signs and sizes in [0.5, 2), rounded to ``dtype``: 2^k times them is exact as long as 2^k is normal."""
    rng = np.random.default_rng(0)
    return (rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 2.0, shape)).astype(FLOATS[dtype])


@pytest.mark.parametrize("dtype", FLOATS)
def test_near_one_multiplies_by_a_power_of_two(dtype: str) -> None:
    given = 1000 * oracle.gaussian(3, 5, 8).astype(np.float32).astype(FLOATS[dtype]).astype(np.float32)
    largest = np.abs(given).max(axis=(-2, -1), keepdims=True)
    want = given * 2.0 ** -np.floor(np.log2(largest))
    got = near_one(jnp.asarray(given), jnp.float32)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)
    assert ((np.abs(got).max(axis=(-2, -1)) >= 1) & (np.abs(got).max(axis=(-2, -1)) < 2)).all()


@pytest.mark.parametrize("result", FLOATS)
@pytest.mark.parametrize(
    "dtype, powers",
    [
        ("float32", range(-100, 101)),
        ("bfloat16", range(-100, 101)),
        ("float16", range(-4, 13)),
        ("float32", (-125, -124, 125, 126)),  # near the ends of its range
    ],
    ids=["float32", "bfloat16", "float16", "float32-edges"],
)
def test_any_power_of_two_gives_the_same_bits(dtype: str, powers: tuple[int, ...], result: str) -> None:
    given = values((6, 4), dtype)
    stack = np.stack([given * np.asarray(2.0**power, given.dtype) for power in powers])
    got = np.asarray(near_one(jnp.asarray(stack), FLOATS[result]), np.float32)
    alone = np.asarray(near_one(jnp.asarray(given)[None], FLOATS[result]), np.float32)
    np.testing.assert_array_equal(got, np.broadcast_to(alone, got.shape))


def test_the_largest_numbers_of_float32_come_near_one() -> None:
    given = np.array([[1.5 * 2.0**127, -(2.0**126)]], np.float32)
    np.testing.assert_array_equal(near_one(jnp.asarray(given), jnp.float32), [[3.0, -1.0]])


@pytest.mark.parametrize("power", [-100, -60, -50, 51, 57, 100])
def test_small_entries_beside_large_ones_stay_at_any_scale(power: int) -> None:
    # As the gradient of a saturated unit is; at every scale the small entry is a normal float32 number.
    small = 2.0**-20 if power < -50 else 2.0**-70
    given = np.array([[1.0, 0.5], [small, 0.75]], np.float32)
    np.testing.assert_array_equal(near_one(jnp.asarray(given * np.float32(2.0**power)), jnp.float32), given)


@pytest.mark.parametrize("dtype, tiny", [("float32", 2.0**-149), ("bfloat16", 2.0**-133), ("float16", 2.0**-24)])
def test_subnormal_numbers_are_read(dtype: str, tiny: float) -> None:
    units = np.array([[1.0, -3.0, 0.0], [7.0, 2.0, -5.0]])
    given = (units * tiny).astype(FLOATS[dtype])
    np.testing.assert_array_equal(given.astype(np.float64), units * tiny)  # these are subnormal and exact
    np.testing.assert_array_equal(near_one(jnp.asarray(given), jnp.float32), units / 4)


def test_subnormal_numbers_beside_normal_ones_are_read() -> None:
    given = np.array([[2.0**-149, 2.0**-126], [-(2.0**-130), 2.0**-110]], np.float32)
    np.testing.assert_array_equal(near_one(jnp.asarray(given), jnp.float32), given.astype(np.float64) * 2.0**110)


@pytest.mark.parametrize("dtype", FLOATS)
def test_zero_stays_zero(dtype: str) -> None:
    got = near_one(jnp.zeros((2, 3, 4), FLOATS[dtype]), FLOATS[dtype])
    assert got.dtype == FLOATS[dtype]
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.zeros((2, 3, 4)))


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_matrix_harms_no_other(poison: float) -> None:
    given = oracle.gaussian(3, 4, 5).astype(np.float32)
    poisoned = given.copy()
    poisoned[1, 2, 3] = poison
    got, want = (np.asarray(near_one(jnp.asarray(array), jnp.float32)) for array in (poisoned, given))
    assert not np.isfinite(got[1, 2, 3])
    np.testing.assert_array_equal(got[[0, 2]], want[[0, 2]])


def test_float64_at_any_scale() -> None:
    with jax.enable_x64(True):
        given = oracle.gaussian(4, 6)
        stack = np.stack([given, 1e-200 * given, 1e200 * given, 1e300 * given])
        got = near_one(jnp.asarray(stack), jnp.float64)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, np.stack([given / np.abs(given).max()] * 4), rtol=RTOL["float64"])
        np.testing.assert_array_equal(near_one(jnp.zeros((2, 3)), jnp.float64), np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_products_are_summed_in_float32(dtype: str) -> None:
    # bfloat16 sums of ones would stop at 256, float16 ones at 2048.
    row = np.ones((1, 4097), np.float32)
    row[0, -1] = 2.0**-4
    left = jnp.asarray(row, FLOATS[dtype])
    product = multiply(left, left.T)
    assert product.dtype == jnp.float32
    assert float(product[0, 0]) == 4096 + 2.0**-8


@pytest.mark.parametrize("dtype, asks", [("float32", True), ("bfloat16", False), ("float16", False)])
def test_products_ask_for_full_precision_where_it_matters(dtype: str, asks: bool) -> None:
    """CPU multiplies float32 exactly anyway; a TPU or a TF32 GPU does so only where it is told to.

    Products of 16-bit numbers are exact in float32, and a TPU that is told so multiplies them in several passes.
    """
    (product,) = matrix_products(lambda *pair: multiply(*(each.astype(dtype) for each in pair)), (2, 3, 3), (2, 3, 3))
    assert product.operands == (dtype, dtype)
    assert product.is_exact == asks


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_blend_rounds_no_coefficient(dtype: str) -> None:
    matrices = values((8, 8), dtype)
    product = oracle.gaussian(8, 8).astype(np.float32)
    got = blend(3.4445, jnp.asarray(matrices), jnp.asarray(product))
    assert got.dtype == jnp.float32
    # Half a unit of float32; with 3.4375, which 3.4445 becomes in bfloat16, it would be 2e-3.
    np.testing.assert_allclose(got, 3.4445 * matrices.astype(np.float64) + product, rtol=0, atol=2e-6)


@pytest.mark.parametrize("platform, kept", [("cuda", True), ("rocm", True), ("cpu", False), ("tpu", False)])
def test_only_on_gpus_a_rounded_matrix_is_kept_from_its_readers(platform: str, kept: bool) -> None:
    """XLA for GPUs would hand them the number before rounding; elsewhere a barrier would cost a fusion."""

    def widened(matrices: jax.Array) -> jax.Array:
        return rounded(matrices, jnp.bfloat16).astype(jnp.float32)

    text = jax.jit(widened).trace(jnp.ones((4, 4))).lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == kept


def test_what_is_not_rounded_is_not_kept() -> None:
    trace = jax.jit(lambda matrices: rounded(matrices, jnp.float32)).trace(jnp.ones((4, 4)))
    assert "optimization_barrier" not in trace.lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("dtype", FLOATS)
def test_rounding_has_a_derivative_and_maps_over_a_batch(dtype: str) -> None:
    matrices = jnp.asarray(oracle.gaussian(3, 4, 5), jnp.float32)
    one = jax.vmap(lambda matrix: rounded(matrix, FLOATS[dtype]))(matrices)
    np.testing.assert_array_equal(one, matrices.astype(FLOATS[dtype]))
    gradient = jax.grad(lambda matrix: rounded(matrix, FLOATS[dtype]).astype(jnp.float32).sum())(matrices)
    np.testing.assert_array_equal(gradient, np.ones_like(matrices))


@pytest.mark.parametrize("dtype, want", [(name, jnp.float32) for name in FLOATS] + [("float64", jnp.float64)])
def test_accumulation_dtype(dtype: str, want: jax.typing.DTypeLike) -> None:
    with jax.enable_x64(True):
        assert accumulation_dtype(dtype) == want


@pytest.fixture(params=CPUS)
def cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine of which NumPy says this."""
    said = {"SIMD Extensions": CPUS[request.param]}
    monkeypatch.setattr(np, "show_config", lambda mode: said)
    monkeypatch.setattr(_precision, "cpu_multiplies_bfloat16", _precision.cpu_multiplies_bfloat16.__wrapped__)
    return request.param


@pytest.mark.parametrize("size", [4, 80])
def test_bfloat16_is_widened_where_the_cpu_emulates_it(cpu: str, size: int) -> None:
    matrices = jnp.ones((96, size, size), jnp.bfloat16)  # a long batch does not make matrices large
    traced = jax.jit(lambda left: multiply(left, left)).trace(matrices)
    operands = {platform: product_operands(traced, platform) for platform in ("cpu", "tpu")}
    widened = cpu != "Sapphire Rapids" and size == 80
    assert operands == {"cpu": "f32" if widened else "bf16", "tpu": "bf16"}


def product_operands(traced: jax.stages.Traced, platform: str) -> str:
    """The dtype of what the one matrix product takes there."""
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    (found,) = re.findall(r"dot_general.*: \(tensor<[\dx]*x(\w+)>", text)
    return found


def test_products_of_bfloat16_are_those_of_the_rounded_numbers(cpu: str) -> None:
    left, right = (jnp.asarray(oracle.gaussian(2, 64, 80, seed=seed), jnp.bfloat16) for seed in (0, 1))
    got = jax.jit(lambda left, right: multiply(left, jnp.swapaxes(right, -1, -2)))(left, right)
    want = np.asarray(left, np.float64) @ np.swapaxes(np.asarray(right, np.float64), -1, -2)
    assert got.dtype == jnp.float32
    assert oracle.relative_error(got, want) <= RTOL["float32"]
