"""The start that rescales rows: Newton-Schulz of another matrix, whose singular values are at most 1."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from tolerances import RTOL
from trees import assert_trees_equal

import muon_optax as mo
from muon_optax._orthogonalizers.start import start

METHODS = ["direct", "gram"]
begin = jax.jit(start, static_argnums=(1, 2))
SHAPES = [(16, 16), (16, 40), (40, 16), (3, 16, 24)]


def rescaled(matrices: np.ndarray) -> np.ndarray:
    """Each row of a wide matrix over the root of its row sum of ``|X X^T|``, each column of a tall one; in float64."""
    X = np.asarray(matrices, np.float64)
    tall = X.shape[-2] > X.shape[-1]
    X = np.swapaxes(X, -1, -2) if tall else X
    squares = np.abs(X @ np.swapaxes(X, -1, -2)).sum(axis=-1, keepdims=True)
    X = X / np.sqrt(np.where(squares == 0, 1, squares))
    return np.swapaxes(X, -1, -2) if tall else X


def iterated(matrices: np.ndarray, coefficients: Any = mo.KELLER) -> np.ndarray:
    """Newton-Schulz from there, on the side of the rows, in float64."""
    X = rescaled(matrices)
    for a, b, c in coefficients:
        A = X @ np.swapaxes(X, -1, -2)
        X = a * X + (b * A + c * A @ A) @ X
    return X


@cache  # one program for all tests of a kind
def function(dtype: str, method: str, coefficients: Any = mo.KELLER) -> Any:
    return jax.jit(mo.newton_schulz(coefficients, dtype=jnp.dtype(dtype), method=method, norm="aol"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_follows_the_oracle(shape: tuple[int, ...], dtype: str, method: str) -> None:
    size = min(shape[-2:])
    stack = [oracle.with_spectrum(np.geomspace(1, 0.1, size), *shape[-2:], seed=seed) for seed in range(3)]
    # Rows and columns of uneven size, which is what the start is about.
    given = np.stack(stack)[: shape[0]] if len(shape) == 3 else stack[0]
    given = given * np.linspace(1, 3, shape[-1]) * np.linspace(2, 1, shape[-2])[:, None]
    given = np.asarray(jnp.asarray(given, dtype), np.float64)
    got = function(dtype, method)(jnp.asarray(given, dtype))
    # Rounded once more than elsewhere: the matrix, after its rows were rescaled.
    assert oracle.relative_error(got, iterated(given)) <= 1.5 * RTOL[dtype]


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)], ids=["wide", "tall"])
@pytest.mark.parametrize("kind", oracle.kinds_of_matrices(8, 20))
def test_singular_values_start_within_the_certified_range(kind: str, shape: tuple[int, int]) -> None:
    """At most 1, and at least those of before over the largest and the fourth root of the shorter side."""
    matrix = oracle.kinds_of_matrices(8, 20)[kind].astype(np.float32)
    matrix = matrix if shape[0] == 8 else matrix.T
    X, gram, norm = begin(jnp.asarray(matrix), jnp.float32, "aol")
    before, after = (
        np.linalg.svd(np.asarray(one, np.float64), compute_uv=False) for one in (matrix, np.asarray(X) / norm)
    )
    assert after.max() <= 1 + 1e-6
    assert (after >= before / before.max() / 8**0.25 - 1e-6).all()
    assert oracle.relative_error(X, rescaled(matrix)) <= RTOL["float32"]
    turned = rescaled(matrix) if shape[0] == 8 else rescaled(matrix).T
    assert oracle.relative_error(gram, turned @ turned.T) <= RTOL["float32"]
    got = np.linalg.svd(np.asarray(function("float32", "direct")(jnp.asarray(matrix))), compute_uv=False)
    low, high = mo.coefficient_range(mo.KELLER, max(0.0, float(before.min() / before.max() / 8**0.25)))
    assert low - 1e-3 <= got.min()
    assert got.max() <= high + 1e-3


@pytest.mark.parametrize("consistent_rms, scale", [(None, "keller"), (0.2, "moonlight")], ids=["keller", "moonlight"])
def test_equals_optax_contrib_muon(consistent_rms: float | None, scale: str) -> None:
    shapes = {"wide": (8, 20), "tall": (20, 8), "square": (12, 12), "experts": (3, 8, 12)}

    def tree(seed: int) -> dict[str, jax.Array]:
        return {name: jnp.asarray(oracle.gaussian(*shape, seed=seed), jnp.float32) for name, shape in shapes.items()}

    numbers = {name: optax.contrib.MuonDimensionNumbers(-2, -1) for name in shapes}
    theirs = optax.contrib.muon(
        0.02, weight_decay=0.1, preconditioning="aol", consistent_rms=consistent_rms,
        muon_weight_dimension_numbers=numbers,
    )  # fmt: skip
    ours = mo.muon(
        0.02, momentum=mo.nesterov_ema(0.95, debias=True), scale=scale, layouts=numbers,
        orthogonalizer=mo.newton_schulz(dtype=jnp.float32, norm="aol"),
    )  # fmt: skip
    params, states = tree(0), [one.init(tree(0)) for one in (ours, theirs)]
    for seed in range(1, 5):
        (got, states[0]), (want, states[1]) = (
            jax.jit(one.update)(tree(seed), state, params) for one, state in zip((ours, theirs), states, strict=True)
        )
        assert_trees_equal(got, want, 1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(8, 20), (20, 8)], ids=["wide", "tall"])
def test_any_scale_gives_the_same_bits(shape: tuple[int, int], method: str) -> None:
    given = jnp.asarray(oracle.gaussian(*shape), jnp.float32)
    run = function("bfloat16", method)
    for power in (-100, -20, 100):
        np.testing.assert_array_equal(run(2.0**power * given), run(given))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_poisoned_matrix_becomes_nan_and_no_other_does(poison: float, method: str) -> None:
    given = oracle.gaussian(3, 8, 20).astype(np.float32)
    given[1, 2, 3] = poison
    given[2, 4] = 0
    for coefficients in (mo.KELLER, mo.CUBIC):
        got = np.asarray(function("float32", method, coefficients)(jnp.asarray(given)))
        assert np.isnan(got[1]).all()
        assert np.isfinite(got[[0, 2]]).all()
        assert not got[2, 4].any()


@pytest.mark.parametrize("method", METHODS)
def test_zero_gives_zero(method: str) -> None:
    assert not function("bfloat16", method)(jnp.zeros((2, 8, 20))).any()


def test_rows_that_are_permuted_or_negated_stay_so() -> None:
    given, order = oracle.gaussian(8, 20).astype(np.float32), np.random.default_rng(0).permutation(8)
    run, signs = function("float32", "direct"), np.array([1, -1] * 4, np.float32)[:, None]
    got = run(jnp.asarray(signs * given[order]))
    assert oracle.relative_error(got, signs * np.asarray(run(jnp.asarray(given)))[order]) <= RTOL["float32"]


@pytest.mark.parametrize("kind", oracle.kinds_of_matrices(16, 40))
@pytest.mark.parametrize("side", ["wide", "tall"])
def test_gram_is_direct_up_to_rounding(kind: str, side: str) -> None:
    matrix = oracle.kinds_of_matrices(16, 40)[kind].astype(np.float32)
    matrix = jnp.asarray(matrix if side == "wide" else matrix.T)
    got, want = (np.asarray(function("float32", method)(matrix), np.float64) for method in METHODS)
    # Squares below 1e-7 of the largest drown in a Gram matrix, as from any other start.
    assert np.linalg.norm(got - want) <= 1e-2 * np.sqrt(16)


def test_the_polar_factor_is_that_of_another_matrix() -> None:
    """How far is on the page about mathematics: degrees on even rows, more the more uneven they are."""

    def angle(matrix: np.ndarray) -> float:
        one, other = oracle.polar_factor(matrix), oracle.polar_factor(rescaled(matrix))
        return np.degrees(np.arccos((one * other).sum() / np.linalg.norm(one) / np.linalg.norm(other)))

    even, rows = oracle.with_spectrum(np.geomspace(1, 1e-3, 128), 128, 128), np.geomspace(1, 1e-2, 128)
    assert 3 < angle(even) < 6
    assert angle(even) < angle(rows[:, None] * oracle.gaussian(128, 128)) < 15
    # Converged, it is the polar factor of the matrix that was rescaled.
    exact = function("float32", "direct", mo.polar_express(10))(jnp.asarray(even, jnp.float32))
    assert oracle.relative_error(exact, oracle.polar_factor(rescaled(even))) <= 1e-3
    assert oracle.relative_error(exact, oracle.polar_factor(even)) > 5e-2
