"""The start of an iteration: the smaller Gram matrix of the normalized matrix, and its norm."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from places import TESTS
from tolerances import RTOL

import muon_optax as mo
from muon_optax._orthogonalizers import start as _start

start = jax.jit(_start.start, static_argnums=(1, 2))
NORMS = {
    "frobenius": lambda matrices: np.linalg.norm(matrices, axis=(-2, -1)),
    "schatten4": lambda matrices: np.sum(np.linalg.svd(matrices, compute_uv=False) ** 4, axis=-1) ** 0.25,
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (3, 4, 6), (3, 6, 4)], ids=str)
def test_gram_and_norm_are_those_of_the_normalized_matrix(shape: tuple[int, ...], kind: str) -> None:
    given = 1e-20 * oracle.gaussian(*shape).astype(np.float32)
    X, gram, norm = start(jnp.asarray(given), jnp.float32, kind)
    want = given.astype(np.float64) / NORMS[kind](given.astype(np.float64))[..., None, None]
    assert oracle.relative_error(np.asarray(X, np.float64) / norm, want) <= RTOL["float32"]
    turned = np.swapaxes(want, -1, -2)
    products = want @ turned if shape[-2] <= shape[-1] else turned @ want
    assert gram.shape[-1] == min(shape[-2:])
    assert oracle.relative_error(gram, products) <= RTOL["float32"]


def test_only_the_matrix_is_rounded_to_the_dtype_of_products() -> None:
    X, gram, norm = start(jnp.asarray(oracle.gaussian(4, 9), jnp.float32), jnp.bfloat16, "frobenius")
    assert (X.dtype, gram.dtype, norm.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    exact = np.asarray(X, np.float64) / norm
    assert oracle.relative_error(gram, exact @ exact.T) <= RTOL["float32"]


@pytest.mark.parametrize("kind", NORMS)
def test_a_zero_matrix_has_norm_one(kind: str) -> None:
    X, gram, norm = start(jnp.zeros((3, 4)), jnp.float32, kind)
    assert float(norm[0, 0]) == 1
    assert not X.any()
    assert not gram.any()


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_the_norm_of_a_poisoned_matrix_is_no_number(poison: float, kind: str) -> None:
    given = oracle.gaussian(3, 4, 5).astype(np.float32)
    given[1, 2, 3] = poison
    norms = start(jnp.asarray(given), jnp.float32, kind).norm
    np.testing.assert_array_equal(np.isfinite(norms[:, 0, 0]), [True, False, True])


def test_four_steps_from_the_tighter_norm_are_as_close_to_orthogonal_as_five_of_keller() -> None:
    spectra = np.load(TESTS / "golden" / "momentum_spectra.npz")["singular_values"]
    stack = jnp.asarray(np.stack([oracle.with_spectrum(values, 128, 128) for values in spectra]), jnp.float32)

    def distance(orthogonalizer):
        values = np.linalg.svd(np.asarray(orthogonalizer(stack), np.float64), compute_uv=False)
        return np.sqrt(np.mean((values - 1) ** 2, axis=-1)).mean()

    for dtype in (jnp.float32, jnp.bfloat16):
        four, five = mo.polar_express(4, 4e-3), mo.newton_schulz(dtype=dtype)
        tighter = distance(mo.newton_schulz(four, dtype=dtype, norm="schatten4"))
        assert tighter <= distance(five) < distance(mo.newton_schulz(four, dtype=dtype))
