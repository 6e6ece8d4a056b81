"""Products in float16: in range at any scale of the gradient, and eight times as close as bfloat16's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import muon_optax as mo

SIZE = 64
SPECTRA = {
    "Gaussian": oracle.gaussian(SIZE, 4 * SIZE),
    "spread 1e-3": oracle.with_spectrum(np.logspace(0, -3, SIZE), SIZE, 4 * SIZE),
    "spread 1e-5": oracle.with_spectrum(np.logspace(0, -5, SIZE), SIZE, 4 * SIZE),
    "near rank 1": oracle.with_spectrum([1.0] + [1e-3] * (SIZE - 1), SIZE, 4 * SIZE),
}


@pytest.mark.parametrize("method", ["direct", "gram"])
@pytest.mark.parametrize("name", SPECTRA)
def test_errors_beside_bfloat16(name: str, method: Any) -> None:
    matrix, want = SPECTRA[name], oracle.newton_schulz(SPECTRA[name])

    def error(dtype: Any, scale: float = 1.0) -> float:
        run = jax.jit(mo.newton_schulz(dtype=dtype, method=method))
        return oracle.relative_error(run(jnp.asarray(matrix * scale, jnp.float32)), want)

    narrow, wide = error(jnp.bfloat16), error(jnp.float16)
    assert wide < narrow / 5
    # Largest entries of 1e-30 and 1e30 are far out of float16's range; the rounding is another, not larger.
    for scale in (1e-30, 1e30):
        assert error(jnp.float16, scale) < 1.5 * wide


def test_products_stay_small() -> None:
    """A matrix of equal entries has the largest products, n times those of the entries."""
    ones = jnp.ones((2048, 2048), jnp.float32)
    got = jax.jit(mo.newton_schulz(mo.YOU_JIACHENG, dtype=jnp.float16))(60000 * ones)
    np.testing.assert_allclose(got, ones / 2048, rtol=0.05)
