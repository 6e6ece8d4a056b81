"""The scale variants as numbers, and the transform that multiplies by them."""

import jax.numpy as jnp
import numpy as np
import pytest

import muon_optax as mo
from muon_optax._transforms.scales import scale_factors

FACTORS = {
    # variant: fan-out four times fan-in, a quarter of it, equal
    "naive": (1.0, 1.0, 1.0),
    "keller": (2.0, 1.0, 1.0),
    "mup": (2.0, 0.5, 1.0),
    "moonlight": (1.6, 1.6, 0.8),
}
SHAPES = ((16, 64), (64, 16), (16, 16))
# Factors that bfloat16 does not hold: 5 ** 0.5, and the same per block.
UNEVEN = np.linspace(1.0, 2.0, 4 * 20).reshape(4, 20)


@pytest.mark.parametrize("variant", FACTORS)
def test_factors(variant: str) -> None:
    for shape, factor in zip(SHAPES, FACTORS[variant], strict=True):
        assert scale_factors(variant, mo.Layout("io"), shape) == (pytest.approx(factor, rel=1e-15),)
        assert scale_factors(variant, mo.Layout("oi"), shape[::-1]) == (pytest.approx(factor, rel=1e-15),)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
@pytest.mark.parametrize("variant", FACTORS)
def test_what_is_empty_is_multiplied_by_one(variant: str, shape: tuple[int, int]) -> None:
    assert scale_factors(variant, mo.Layout("io"), shape) == (1.0,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "layout, factors",
    [(mo.Layout("io"), [5.0**0.5] * 20), (mo.Layout("io", split=(12, 8)), [3.0**0.5] * 12 + [2.0**0.5] * 8)],
    ids=["whole", "split"],
)
def test_factors_are_not_rounded_before_they_multiply(layout: mo.Layout, factors: list[float], dtype: str) -> None:
    updates = {"w": jnp.asarray(UNEVEN, dtype)}
    transform = mo.scale_by_shape("keller", layouts={"w": layout})
    scaled, _ = transform.update(updates, transform.init(updates))
    assert scaled["w"].dtype == dtype
    want = jnp.asarray(np.asarray(updates["w"], np.float64) * factors, dtype)
    # One unit in the last place of float32, which the factor itself is rounded to; half of one in 16 bits.
    off = 2.0**-23 if dtype == "float32" else 0
    np.testing.assert_allclose(np.asarray(scaled["w"], np.float64), np.asarray(want, np.float64), rtol=off)


def test_a_function_may_name_the_factor() -> None:
    updates = {"w": jnp.ones((3, 8))}
    transform = mo.scale_by_shape(lambda fan_in, fan_out: fan_in + 100 * fan_out)
    assert transform.update(updates, transform.init(updates))[0]["w"][0, 0] == 803
