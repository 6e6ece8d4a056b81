"""The exact polar factor: against float64, of any rank, at any scale."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tolerances import RTOL

import muon_optax as mo

polar = jax.jit(mo.polar_factor())


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4), (2, 3, 5, 8), (1, 7), (7, 1), (1, 1)], ids=str)
def test_equals_the_oracle(shape: tuple[int, ...]) -> None:
    given = oracle.gaussian(*shape).astype(np.float32)
    # A small singular value s leaves an error of eps / s, and the smallest of these is about 0.02.
    assert oracle.relative_error(polar(given), oracle.polar_factor(given)) <= 5e-6


@pytest.mark.parametrize("spectrum", oracle.spectra(8))
def test_every_singular_value_becomes_one_or_stays_zero(spectrum: str) -> None:
    singular_values = oracle.spectra(8)[spectrum]
    given = oracle.with_spectrum(singular_values, 8, 12).astype(np.float32)
    got = np.linalg.svd(np.asarray(polar(given), np.float64), compute_uv=False)
    # In float32, max(rows, cols) eps = 1.4e-6 of the norm is no direction any more.
    present = int((singular_values > 1.5e-6 * np.linalg.norm(singular_values)).sum())
    np.testing.assert_allclose(got, [1.0] * present + [0.0] * (8 - present), atol=1e-5)


def test_the_size_of_a_batch_does_not_decide_which_directions_are_there() -> None:
    """In float32, 3 eps = 3.6e-7 of the largest singular value is no direction any more; 300 eps would be 3.6e-5."""
    alone = oracle.with_spectrum([1.0, 2e-5], 2, 3).astype(np.float32)
    got = np.linalg.svd(np.asarray(polar(np.stack([alone] * 300)), np.float64), compute_uv=False)
    np.testing.assert_allclose(got, np.ones((300, 2)), atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_deficient_matrix_gives_its_partial_isometry(rank: int) -> None:
    given = oracle.with_spectrum(np.linspace(1.0, 0.5, rank), 8, 12).astype(np.float32)
    want = oracle.with_spectrum(np.ones(rank), 8, 12)
    assert oracle.relative_error(polar(given), want) <= 5e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_zero_gives_zero_in_its_own_dtype(dtype: str) -> None:
    got = polar(jnp.zeros((2, 4, 6), dtype))
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.zeros((2, 4, 6)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rounded_once(dtype: str) -> None:
    given = jnp.asarray(oracle.gaussian(5, 9), dtype)
    got = polar(given)
    assert got.dtype == dtype
    want = oracle.polar_factor(np.asarray(given, np.float64))
    assert oracle.relative_error(got, want) <= float(jnp.finfo(dtype).eps)


def test_float64() -> None:
    with jax.enable_x64(True):
        given = oracle.gaussian(6, 9)
        got = jax.jit(mo.polar_factor())(given)
        assert oracle.relative_error(got, oracle.polar_factor(given)) <= 10 * RTOL["float64"]


@pytest.mark.parametrize("power", [-100, -30, 30, 100])
def test_any_power_of_two_gives_the_same_bits(power: int) -> None:
    given = oracle.gaussian(4, 6).astype(np.float32)
    np.testing.assert_array_equal(polar(given * np.float32(2.0**power)), polar(given))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_matrix_is_nan_and_harms_no_other(poison: float) -> None:
    given = oracle.gaussian(3, 4, 6).astype(np.float32)
    poisoned = given.copy()
    poisoned[1, 2, 3] = poison
    got, want = np.asarray(polar(poisoned)), np.asarray(polar(given))
    assert np.isnan(got[1]).all()
    np.testing.assert_array_equal(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_empty_matrices_come_back(shape: tuple[int, ...]) -> None:
    assert polar(jnp.zeros(shape)).shape == shape


def test_newton_schulz_approaches_it() -> None:
    given = oracle.with_spectrum(np.linspace(1.0, 0.1, 8), 8, 16).astype(np.float32)
    orthogonalizer = jax.jit(mo.newton_schulz(mo.polar_express(8), dtype=jnp.float32))
    assert oracle.relative_error(orthogonalizer(given), polar(given)) <= 1e-5


@pytest.mark.parametrize("rows, cols", [(4, 8), (8, 4)])
def test_flops_is_the_usual_estimate(rows: int, cols: int) -> None:
    """A singular value decomposition by QR, with both factors: 6 m n^2 + 20 n^3 (Golub and Van Loan)."""
    assert mo.polar_factor().flops(rows, cols) == 6 * 8 * 4**2 + 20 * 4**3
