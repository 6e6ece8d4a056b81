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

# Three tiles of two blocks, and two of two: every way to read a tile, before, on and after the diagonal.
SHORT, LONG = Tiling(24, 8, 4), Tiling(32, 16, 8)


def above(unit: int) -> np.ndarray:
    """Where tiles or blocks of this size lie above the diagonal."""
    place = np.arange(SHORT.size) // unit
    return place[:, None] < place


ABOVE, BLOCKS_ABOVE = above(SHORT.tile), above(SHORT.block)
SCALARS = np.array([[2.0, 0.5, -1.0, 3.0], [1.5, -0.5, 1.0, -3.0]], np.float32)
# The sums are float32 in another order; rounded to bfloat16 they may fall to either side.
RTOL = {jnp.float32: 2e-6, jnp.bfloat16: 5e-3}

dtypes = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
orientations = pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])


def matrices(dtype: jax.typing.DTypeLike, wide: bool) -> jax.Array:
    X = oracle.gaussian(2, SHORT.size, LONG.size)
    return jnp.asarray(X if wide else X.swapaxes(-1, -2), dtype)


def symmetric(dtype: jax.typing.DTypeLike, seed: int) -> jax.Array:
    S = oracle.gaussian(2, SHORT.size, SHORT.size, seed=seed)
    return jnp.asarray(S + S.swapaxes(-1, -2), dtype)


def lower_only(matrices: jax.Array) -> jax.Array:
    return jnp.where(ABOVE, jnp.nan, matrices).astype(matrices.dtype)


def assert_equal_below(got: jax.Array, want: jax.Array, whole: bool = False) -> None:
    got, want = (np.asarray(each, np.float64) for each in (got, want))
    if not whole:
        got, want = (np.where(ABOVE, 0, each) for each in (got, want))
    assert oracle.relative_error(got, want) <= RTOL[jnp.float32]


@orientations
@dtypes
def test_gram(dtype: jax.typing.DTypeLike, wide: bool) -> None:
    X = matrices(dtype, wide)
    kinds = (jnp.float32, dtype)
    exact, rounded = gram(X, kinds, wide=wide, short=SHORT, long=LONG, interpret=True)
    assert_equal_below(exact, reference.gram(X, kinds)[0])
    # Rounded once, from the sum.
    assert_equal_below(rounded, exact.astype(dtype))
    assert rounded.dtype == dtype


@pytest.mark.parametrize("whole", [False, True], ids=["lower", "whole"])
@dtypes
def test_symmetric_product(dtype: jax.typing.DTypeLike, whole: bool) -> None:
    P, Q, T = symmetric(dtype, 1), symmetric(dtype, 2), symmetric(jnp.float32, 3)
    kinds = (jnp.float32, dtype)
    exact, rounded = symmetric_product(
        *map(lower_only, (P, Q)),
        tuple(map(lower_only, (P, T))),
        jnp.asarray(SCALARS),
        kinds,
        short=SHORT,
        whole=whole,
        interpret=True,
    )
    want = reference.symmetric_product(P, Q, (P, T), SCALARS, kinds, whole=True)[0]
    if not whole:
        # A tile on the diagonal is multiplied by its lower blocks, and comes whole.
        want = jnp.where(BLOCKS_ABOVE, want.swapaxes(-1, -2), want)
    assert_equal_below(exact, want, whole)
    assert_equal_below(rounded, exact.astype(dtype), whole)


@pytest.mark.parametrize("whole", [False, True], ids=["lower", "whole"])
@orientations
@dtypes
def test_apply(dtype: jax.typing.DTypeLike, wide: bool, whole: bool) -> None:
    X = matrices(dtype, wide)
    B = jnp.asarray(oracle.gaussian(2, SHORT.size, SHORT.size), dtype) if whole else symmetric(dtype, 4)
    scalars = jnp.asarray(SCALARS[:, :2])
    run = partial(apply, wide=wide, short=SHORT, long=LONG, whole=whole, interpret=True)
    want = reference.apply(B, X, scalars, jnp.float32, whole=whole)
    got = run(B if whole else lower_only(B), X, scalars, jnp.float32)
    assert oracle.relative_error(got, want) <= RTOL[jnp.float32]
    assert oracle.relative_error(run(B if whole else lower_only(B), X, scalars, dtype), want) <= RTOL[dtype]


def test_on_a_tpu_that_is_simulated_no_two_accesses_race(capfd: pytest.CaptureFixture[str]) -> None:
    """Memory that nobody wrote is NaN there; JAX prints a race, and from 0.12 on raises one."""
    simulated = pltpu.InterpretParams(detect_races=True)
    X, B, scalars = matrices(jnp.bfloat16, True), lower_only(symmetric(jnp.bfloat16, 4)), jnp.asarray(SCALARS)
    sides = {"short": SHORT, "long": LONG, "interpret": simulated}
    (A,) = gram(X, (jnp.bfloat16,), wide=True, **sides)
    (B,) = symmetric_product(A, B, (A,), scalars[:, :3], (jnp.bfloat16,), short=SHORT, interpret=simulated)
    Y = apply(B, X, scalars[:, :2], jnp.float32, wide=True, **sides)
    assert np.isfinite(Y).all()
    assert "RACE" not in "".join(capfd.readouterr())
