"""Each kernel of the symmetric products, interpreted, against plain JAX: no tile above the diagonal is read."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.experimental.pallas import tpu as pltpu

from muon_optax._orthogonalizers.kernels import reference
from muon_optax._orthogonalizers.kernels.apply import apply
from muon_optax._orthogonalizers.kernels.gram import gram
from muon_optax._orthogonalizers.kernels.symmetric_product import symmetric_product
from muon_optax._orthogonalizers.tiling import Tiling

# Three tiles of two blocks: every way to read a tile, before, on and after the diagonal. And one as large as the side.
SIDES = {"tiles": Tiling(24, 8, 4), "one": Tiling(16, 16, 4)}
LONG = Tiling(32, 16, 8)


def above(short: Tiling, unit: int) -> np.ndarray:
    """Where tiles or blocks of this size lie above the diagonal."""
    place = np.arange(short.size) // unit
    return place[:, None] < place


SCALARS = np.array([[2.0, 0.5, -1.0, 3.0], [1.5, -0.5, 1.0, -3.0]], np.float32)
# The sums are float32 in another order; rounded to bfloat16 they may fall to either side.
RTOL = {jnp.float32: 2e-6, jnp.bfloat16: 5e-3}

dtypes = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
sides = pytest.mark.parametrize("short", SIDES.values(), ids=SIDES)
orientations = pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])


def matrices(dtype: jax.typing.DTypeLike, wide: bool, short: Tiling) -> jax.Array:
    X = oracle.gaussian(2, short.size, LONG.size)
    return jnp.asarray(X if wide else X.swapaxes(-1, -2), dtype)


def symmetric(dtype: jax.typing.DTypeLike, seed: int, short: Tiling) -> jax.Array:
    S = oracle.gaussian(2, short.size, short.size, seed=seed)
    return jnp.asarray(S + S.swapaxes(-1, -2), dtype)


def lower_only(matrices: jax.Array, short: Tiling) -> jax.Array:
    return jnp.where(above(short, short.tile), jnp.nan, matrices).astype(matrices.dtype)


def assert_equal(got: jax.Array, want: jax.Array, unwritten: np.ndarray | bool = False) -> None:
    got, want = (np.where(unwritten, 0, np.asarray(each, np.float64)) for each in (got, want))
    assert oracle.relative_error(got, want) <= RTOL[jnp.float32]


@orientations
@dtypes
@sides
def test_gram(short: Tiling, dtype: jax.typing.DTypeLike, wide: bool) -> None:
    X, kinds, unwritten = matrices(dtype, wide, short), (jnp.float32, dtype), above(short, short.tile)
    exact, rounded = gram(X, kinds, wide=wide, short=short, long=LONG, interpret=True)
    assert_equal(exact, reference.gram(X, kinds)[0], unwritten)
    # Rounded once, from the sum.
    assert_equal(rounded, exact.astype(dtype), unwritten)
    assert rounded.dtype == dtype


@pytest.mark.parametrize("whole", [False, True], ids=["lower", "whole"])
@dtypes
@sides
def test_symmetric_product(short: Tiling, dtype: jax.typing.DTypeLike, whole: bool) -> None:
    P, Q, T = symmetric(dtype, 1, short), symmetric(dtype, 2, short), symmetric(jnp.float32, 3, short)
    kinds, scalars = (jnp.float32, dtype), jnp.asarray(SCALARS)
    hidden_P, hidden_Q, hidden_T = (lower_only(each, short) for each in (P, Q, T))
    exact, rounded = symmetric_product(
        hidden_P, hidden_Q, (hidden_P, hidden_T), scalars, kinds, short=short, whole=whole, interpret=True
    )
    want = reference.symmetric_product(P, Q, (P, T), SCALARS, kinds, whole=True)[0]
    if not whole:
        # A tile on the diagonal is multiplied by its lower blocks, and comes whole.
        want = jnp.where(above(short, short.block), want.swapaxes(-1, -2), want)
    unwritten = not whole and above(short, short.tile)
    assert_equal(exact, want, unwritten)
    assert_equal(rounded, exact.astype(dtype), unwritten)


@pytest.mark.parametrize("whole", [False, True], ids=["lower", "whole"])
@orientations
@dtypes
@sides
def test_apply(short: Tiling, dtype: jax.typing.DTypeLike, wide: bool, whole: bool) -> None:
    X = matrices(dtype, wide, short)
    B = jnp.asarray(oracle.gaussian(2, short.size, short.size), dtype) if whole else symmetric(dtype, 4, short)
    given, scalars = B if whole else lower_only(B, short), jnp.asarray(SCALARS[:, :2])
    run = partial(apply, wide=wide, short=short, long=LONG, whole=whole, interpret=True)
    want = reference.apply(B, X, scalars, jnp.float32, whole=whole)
    assert oracle.relative_error(run(given, X, scalars, jnp.float32), want) <= RTOL[jnp.float32]
    assert oracle.relative_error(run(given, X, scalars, dtype), want) <= RTOL[dtype]


@pytest.mark.slow
def test_on_a_tpu_that_is_simulated_no_two_accesses_race(capfd: pytest.CaptureFixture[str]) -> None:
    """Memory that nobody wrote is NaN there; JAX prints a race, and from 0.12 on raises one."""
    short, simulated = SIDES["tiles"], pltpu.InterpretParams(detect_races=True)
    X, scalars = matrices(jnp.bfloat16, True, short), jnp.asarray(SCALARS)
    settings = {"short": short, "long": LONG, "interpret": simulated}
    (A,) = gram(X, (jnp.bfloat16,), wide=True, **settings)
    (B,) = symmetric_product(A, A, (A,), scalars[:, :3], (jnp.bfloat16,), short=short, interpret=simulated)
    Y = apply(B, X, scalars[:, :2], jnp.float32, wide=True, **settings)
    assert np.isnan(np.asarray(A, np.float32)[:, above(short, short.tile)]).all()
    assert np.isfinite(Y).all()
    assert "RACE" not in "".join(capfd.readouterr())
