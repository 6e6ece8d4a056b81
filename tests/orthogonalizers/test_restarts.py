"""Restarts of Gram Newton-Schulz: few, and enough for the bound on its rounding errors."""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
from schedules import SCHEDULES

import muon_optax as mo
from muon_optax._orthogonalizers import restarts as _restarts
from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.restarts import largest_value, restart_steps
from muon_optax._orthogonalizers.step import center


def test_restarts_of_the_usual_schedules() -> None:
    assert restart_steps(mo.KELLER, jnp.bfloat16) == restart_steps(mo.KELLER, jnp.float16) == (2, 3)
    assert restart_steps(mo.CUBIC, jnp.bfloat16) == (1, 3)
    assert restart_steps(mo.KELLER, jnp.float32) == ()
    assert restart_steps(mo.DEEPSEEK_V4, jnp.float32) == (5,)
    # The first steps of Polar Express are steep: in bfloat16 they stay alone, in float16 they need not.
    assert restart_steps(mo.polar_express(6), jnp.bfloat16) == (1, 2, 4)
    assert restart_steps(mo.polar_express(6), jnp.float16) == (2, 4)
    assert restart_steps(mo.polar_express(4), jnp.bfloat16) == (1, 2)
    # Made for singular values down to 1e-5, the steps stay steep for longer.
    assert restart_steps(mo.polar_express(6, 1e-5), jnp.bfloat16) == (1, 2, 3, 4)
    # A quintic step among cubic ones is enough for the third to stay alone.
    assert restart_steps((*mo.KELLER[:2], *((1.5, -0.5, 0.0),) * 3), jnp.bfloat16) == (2, 3)


def test_where_no_bound_is_small_enough_every_step_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_restarts, "_TOLERANCE", 0.0)
    assert restart_steps.__wrapped__(mo.polar_express(6), jnp.bfloat16) == (1, 2, 3, 4, 5)
    assert restart_steps.__wrapped__(mo.KELLER[:1], jnp.bfloat16) == ()


def transcribed_bound(coefficients: Coefficients, restarts: tuple[int, ...], roundoff: float) -> float:
    """The bound that ``largest_value`` describes, one singular value at a time."""
    top = 1.0
    for first, end in pairwise((0, *restarts, len(coefficients))):
        starts = [top * point / 1000 for point in range(1, 1001)]
        values, excesses, drift, multiple = list(starts), [0.0] * 1000, 0.0, 1.0
        for a, b, c in coefficients[first:end]:

            def factor(s: float, a: float = a, b: float = b, c: float = c) -> float:
                return a + b * s + c * s * s

            squares = [x * x for x in values]
            factors = [factor(s) for s in squares]
            excesses = [
                x * (max(abs(factor(s - drift)), abs(factor(s + drift))) - abs(z))
                for x, s, z in zip(values, squares, factors, strict=True)
            ]
            # Rounding R: to first order its error goes through z (z - a), through z z where no residual is kept.
            of_R = max(squares) * max(abs(z * (z - a)) if c else z * z for z in factors)
            # Rounding the factor without its multiple d of the identity: it meets R twice.
            d = a + center(b, c)
            of_factor = (
                2 * max(abs(z - d) for z in factors) * max(abs(s * z) for s, z in zip(squares, factors, strict=True))
            )
            drift = max(z * z for z in factors) * drift + roundoff * (of_R + of_factor)
            values = [x * z for x, z in zip(values, factors, strict=True)]
            multiple *= d
        of_product = max(abs(x / start - multiple) for x, start in zip(values, starts, strict=True))
        top = max(
            abs(x) + max(excess, 0.0) + roundoff * of_product * start
            for x, excess, start in zip(values, excesses, starts, strict=True)
        )
    return top


# Passes 1 by so much that the next step changes the sign, which no schedule of the package does.
OVERSHOOTING = {"overshooting": ((3.0, -2.5, 0.0),) * 3}


@pytest.mark.parametrize(
    "schedule, restarts, dtype",
    [
        ("keller", (2, 3), "bfloat16"),
        ("cubic", (1, 3), "bfloat16"),
        ("you_jiacheng", (2, 3), "float16"),
        ("deepseek_v4", (5,), "float32"),
        ("polar_express-4", (2,), "bfloat16"),
        ("polar_express-4", (1, 2), "bfloat16"),
        ("polar_express-6", (2, 4), "float16"),
        ("newton-schulz-12", (), "float16"),
        ("overshooting", (), "bfloat16"),
    ],
    ids=str,
)
def test_the_bound_is_what_its_docstring_says(schedule: str, restarts: tuple[int, ...], dtype: str) -> None:
    roundoff = 0.375 * float(jnp.finfo(dtype).eps) / 2
    coefficients = (SCHEDULES | OVERSHOOTING)[schedule]
    want = transcribed_bound(coefficients, restarts, roundoff)
    assert largest_value(coefficients, restarts, jnp.dtype(dtype)) == pytest.approx(want, rel=1e-12)


def test_a_bound_that_overflows_is_infinite() -> None:
    assert largest_value(mo.polar_express(12), (2, 4, 6, 8, 10), jnp.bfloat16) == float("inf")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_on_rounding_holds_or_every_step_is_alone(schedule: str, dtype: str) -> None:
    coefficients = SCHEDULES[schedule]
    restarts = restart_steps(coefficients, jnp.dtype(dtype))
    limit = 1.15 * mo.coefficient_range(coefficients, 0.0)[1]
    assert largest_value(coefficients, restarts, jnp.dtype(dtype)) <= limit


def test_pairs_of_steep_steps_break_the_bound() -> None:
    """Of 30,000 random matrices two ended at 1.3 and 1.5 times the range with these pairs."""
    coefficients = mo.polar_express(4)
    high = mo.coefficient_range(coefficients, 0.0)[1]
    assert largest_value(coefficients, (2,), jnp.bfloat16) > 1.5 * high
    assert largest_value(coefficients, (2,), jnp.float16) < 1.05 * high


@pytest.mark.parametrize("steps", range(1, 12))
@pytest.mark.parametrize("step", [mo.KELLER[0], (1.5, -0.5, 0.0)], ids=["quintic", "cubic"])
def test_no_more_than_two_steps_without_a_restart_and_no_restart_too_many(step: tuple, steps: int) -> None:
    restarts = restart_steps((step,) * steps, jnp.bfloat16)
    lengths = np.diff([0, *restarts, steps])
    assert sorted(lengths) == [1] * (steps % 2) + [2] * (steps // 2)
