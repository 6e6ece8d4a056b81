"""One step's polynomial, split: the same polynomial, and a smaller part to round."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tolerances import RTOL

import muon_optax as mo
from muon_optax._orthogonalizers import step as _step
from muon_optax._orthogonalizers.step import polynomial, polynomial_of_operands

STEPS = {
    "keller": mo.KELLER[0],
    "polar-express-first": mo.polar_express(5)[0],
    "polar-express-last": mo.polar_express(5)[-1],
    "cubic-first": mo.CUBIC[0],
    "cubic-last": mo.CUBIC[-1],
}


@pytest.mark.parametrize("step", STEPS)
def test_the_parts_sum_to_the_polynomial(step: str) -> None:
    X = oracle.with_spectrum(np.linspace(1.1, 0.1, 6), 6, 9).astype(np.float32)
    A = (X @ X.T).astype(np.float32)
    d, B = polynomial(STEPS[step], jnp.asarray(A))
    a, b, c = STEPS[step]
    want = a * np.eye(6) + b * A.astype(np.float64) + c * A.astype(np.float64) @ A
    assert oracle.relative_error(d * np.eye(6) + np.asarray(B, np.float64), want) <= RTOL["float32"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("step", STEPS)
def test_operands_give_the_same_bits_as_constants(step: str, dtype: str) -> None:
    X = oracle.with_spectrum(np.linspace(1.1, 0.1, 6), 6, 9)
    A = jnp.asarray(X @ X.T, dtype)
    d, B = jax.jit(polynomial_of_operands, static_argnums=0)(STEPS[step], A)
    known, want = jax.jit(polynomial, static_argnums=0)(STEPS[step], A)
    assert (B.dtype, d.dtype) == (A.dtype, jnp.float32)
    np.testing.assert_array_equal(B, want)
    np.testing.assert_array_equal(d, known)


@pytest.mark.parametrize("platform, barriers", [("tpu", 5), ("cpu", 0)])
def test_only_a_tpu_does_not_see_the_numbers_of_unequal_steps(platform: str, barriers: int) -> None:
    def text(coefficients: mo.Coefficients) -> str:
        traced = jax.jit(mo.newton_schulz(coefficients)).trace(jnp.ones((8, 8)))
        return traced.lower(lowering_platforms=(platform,)).as_text()

    assert text(mo.polar_express(5)).count("stablehlo.optimization_barrier") == barriers
    assert "stablehlo.optimization_barrier" not in text(mo.KELLER)


def test_each_matrix_of_a_batch_has_its_own_polynomial() -> None:
    matrices = oracle.gaussian(2, 3, 4, 4).astype(np.float32)
    with jax.numpy_rank_promotion("raise"):
        d, batch = polynomial(mo.KELLER[0], jnp.asarray(matrices @ np.swapaxes(matrices, -1, -2)))
    for index in np.ndindex(2, 3):
        alone, B = polynomial(mo.KELLER[0], jnp.asarray(matrices[index] @ matrices[index].T))
        assert alone == d
        assert oracle.relative_error(batch[index], B) <= RTOL["float32"]


@pytest.mark.parametrize("step", STEPS)
def test_what_is_rounded_is_smaller_than_without_centering(step: str) -> None:
    _, b, c = STEPS[step]
    values = np.linspace(0.0, 1.3, 200)
    _, B = polynomial(STEPS[step], jnp.asarray(np.diag(values), jnp.float32))
    uncentered = np.abs(b * values + c * values**2).max()
    assert np.abs(np.diagonal(B)).max() == pytest.approx(np.ptp(b * values + c * values**2) / 2, rel=1e-3)
    assert np.abs(np.diagonal(B)).max() <= 0.51 * uncentered


@pytest.mark.parametrize("b, c", [(-4.7750, 2.0315), (-1.0, 1.0), (2.0, -1.0), (-2.0, 0.0), (0.5, 0.1)], ids=str)
def test_the_center_is_the_middle_of_all_values(b: float, c: float) -> None:
    values = [b * s + c * s * s for s in np.linspace(0.0, 1.3, 13_001)]
    assert _step.center(b, c) == pytest.approx((min(values) + max(values)) / 2, abs=1e-7)


def test_the_rounded_part_has_the_dtype_of_products() -> None:
    d, B = polynomial(mo.KELLER[0], jnp.eye(3, dtype=jnp.bfloat16))
    assert isinstance(d, float)  # exact: never an array that a product would round
    assert B.dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(64, 64), (64, 256)], ids=str)
def test_centering_takes_a_quarter_off_the_error(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    given = np.stack([oracle.gaussian(*shape, seed=seed) for seed in range(8)]).astype(np.float32)
    want = oracle.newton_schulz(given, mo.KELLER)

    def error() -> float:
        jax.clear_caches()  # Equal orthogonalizers share what jit has traced, whatever the center was.
        return oracle.relative_error(jax.jit(mo.newton_schulz(method="direct"))(given), want)

    centered = error()
    monkeypatch.setattr(_step, "center", lambda b, c: 0.0)
    assert centered <= 0.75 * error()


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 4), (3, 9, 4), (20, 4, 9), (2, 1, 9, 4)], ids=str)
def test_the_smaller_gram_matrix_is_formed(shape: tuple[int, ...]) -> None:
    assert _step.gram(jnp.ones(shape)).shape == (*shape[:-2], 4, 4)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (4, 4)], ids=str)
def test_apply_multiplies_on_the_side_of_the_gram_matrix(shape: tuple[int, int]) -> None:
    X = oracle.gaussian(*shape).astype(np.float32)
    turned = _step.apply(2.0, _step.gram(jnp.asarray(X)), jnp.asarray(X))
    np.testing.assert_allclose(turned, 2 * X + X.astype(np.float64) @ X.T @ X, rtol=1e-4)
