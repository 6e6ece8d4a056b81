"""Presets, generator, exact ranges and refusals of schedules; the oracle is a float64 grid."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muon_optax._orthogonalizers.coefficients import (
    CUBIC,
    DEEPSEEK_V4,
    KELLER,
    YOU_JIACHENG,
    Coefficients,
    check_coefficients,
    coefficient_range,
    polar_express,
)

PRESETS = {"keller": KELLER, "you_jiacheng": YOU_JIACHENG, "deepseek_v4": DEEPSEEK_V4, "cubic": CUBIC}

# The paper's table (arXiv 2505.16932), for lower_bound = 1e-3 and no safety.
PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)

# modded-nanogpt and Dion: safety 1.02 with a cushion of 0.02.
PUBLISHED_WITH_SAFETY = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

# Turbo-Muon's list (arXiv 2512.04632) is for AOL's row rescaling: its first step is negative beyond 0.884.
TURBO_MUON = (
    (4.0098, -7.0585, 2.4635),
    (3.4585, -5.5479, 2.5959),
    (2.7573, -3.2939, 1.4254),
    (2.7215, -3.0494, 1.3169),
)

LIMIT = (1.875, -1.25, 0.375)
CUSHION = 0.02407327424182761  # the paper's
LOWER_BOUNDS = (1e-8, 1e-5, 1e-3, 0.1, 0.5, 0.9)
SAFETIES = (1.0, 1.02, 1.5)


def apply(coefficients: Coefficients, x: np.ndarray) -> np.ndarray:
    for a, b, c in coefficients:
        x = a * x + b * x**3 + c * x**5
    return x


def largest_difference(schedule: Coefficients, other: Coefficients) -> float:
    assert len(schedule) == len(other)
    return float(np.abs(np.array(schedule) - np.array(other)).max())


# The digits that the sources in the docstrings print.
PRINTED = {
    "keller": ((3.4445, -4.7750, 2.0315),) * 5,
    "you_jiacheng": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    "deepseek_v4": ((3.4445, -4.7750, 2.0315),) * 8 + ((2, -1.5, 0.5),) * 2,
    "cubic": (
        (3.3656576, -3.3420992, 0),
        (2.5744352, -1.4957376, 0),
        (2.5368962, -1.4312570, 0),
        (2.4418906, -1.2764040, 0),
        (2.2230472, -0.9630650, 0),
    ),
}


@pytest.mark.parametrize("preset", PRINTED)
def test_presets_have_the_printed_digits(preset):
    """Their images would hide a wrong digit: several steps forgive a percent of one."""
    assert PRESETS[preset] == PRINTED[preset]


# Images, slopes and the digits printed in the sources.
IMAGES = {
    "keller": (KELLER, 485, (0.4705, 1.2024), (0.6818, 1.1344), 4),
    "you_jiacheng": (YOU_JIACHENG, 493, (0.475, 1.145), (0.9778, 1.0318), None),
    "polar_express_5": (PUBLISHED[:5], 1026, (0.8764, 1.1236), (0.8764, 1.1236), 4),
    "polar_express_6": (PUBLISHED[:6], None, (1 - 1.2e-3, 1 + 1.2e-3), (1 - 1.2e-3, 1 + 1.2e-3), 4),
    "polar_express_7": (PUBLISHED[:7], None, (1 - 1e-9, 1 + 1e-9), (1 - 1e-9, 1 + 1e-9), 9),
    "modded_nanogpt": (PUBLISHED_WITH_SAFETY, 990, (0.8589, 1.1411), (0.8589, 1.1411), 4),
    "deepseek_v4": (DEEPSEEK_V4, 7.9e4, (1.0000, 1.0005), (1.0000, 1.0005), 4),
    "cubic": (CUBIC, 119, (0.119, 1.30), (0.774, 1.30), None),
}


@pytest.mark.parametrize(("schedule", "slope", "wide", "narrow", "digits"), IMAGES.values(), ids=IMAGES)
def test_images_equal_the_published_ones_to_the_printed_digits(schedule, slope, wide, narrow, digits):
    for lower, image in ((1e-3, wide), (1e-2, narrow)):
        for value, printed in zip(coefficient_range(schedule, lower), image, strict=True):
            places = digits or len(repr(printed).split(".")[1])
            assert value == pytest.approx(printed, abs=0.51 * 10.0**-places)
    if slope is not None:
        assert math.prod(a for a, _, _ in schedule) == pytest.approx(slope, rel=5e-3)


def test_polar_express_without_safety_equals_the_papers_table():
    schedule = polar_express(8, lower_bound=1e-3, safety=1.0)
    assert largest_difference(schedule, PUBLISHED) < 1e-9
    # The table's seventh row carries its 4 x 4 solve's rounding, 1.8e-11; the others agree much closer.
    assert largest_difference(schedule[:6] + schedule[7:], PUBLISHED[:6] + PUBLISHED[7:]) < 1e-12


def test_polar_express_with_safety_equals_modded_nanogpts_list():
    assert largest_difference(polar_express(5, safety=1.02, cushion=0.02), PUBLISHED_WITH_SAFETY) < 1e-12


def test_safety_divides_the_first_step_and_leaves_the_last_alone():
    plain, safe = polar_express(2, safety=1.0), polar_express(2, safety=1.02)
    np.testing.assert_allclose(safe[0], np.array(plain[0]) / 1.02 ** np.array([1, 3, 5]), rtol=1e-14)
    # The last step is undivided: it still centers the interval that reaches it on 1.
    low, high = coefficient_range(safe, 1e-3)
    assert low + high == pytest.approx(2, abs=1e-13)
    assert polar_express(1, safety=1.02) == polar_express(1, safety=1.0)


@pytest.mark.parametrize("safety", SAFETIES)
@pytest.mark.parametrize("lower_bound", LOWER_BOUNDS)
def test_values_up_to_the_safety_factor_stay_in_range(lower_bound, safety):
    for steps in (2, 5, 12):
        schedule = polar_express(steps, lower_bound, safety=safety)
        assert coefficient_range(schedule, lower_bound, safety)[1] <= 2 + 1e-12


def test_without_safety_a_small_excess_diverges():
    assert coefficient_range(polar_express(8, 1e-4, safety=1.0), 1e-3, 1 + 1e-6)[1] > 1e6


@pytest.mark.parametrize("lower_bound", LOWER_BOUNDS)
def test_each_generated_step_equioscillates(lower_bound):
    """Where no cushion acts, |1 - p| has one height at l, u and both critical points."""
    low, high = lower_bound, 1.0
    checked = 0
    for step in polar_express(6, lower_bound, safety=1.0, cushion=0.0):
        error = 1 - apply((step,), np.array(low))
        if error > 1e-5:  # below this the four points lie closer than rounding lets NumPy's roots tell
            a, b, c = step
            squares = np.sort(np.roots([5 * c, 3 * b, a]).real)
            points = np.array([low, *np.sqrt(squares), high])
            assert np.all(np.diff(points) > 0)
            np.testing.assert_allclose(apply((step,), points) - 1, error * np.array([-1, 1, -1, 1]), rtol=0, atol=1e-11)
            checked += 1
        low, high = 1 - error, 1 + error
    assert checked >= 1


@pytest.mark.parametrize("lower_bound", LOWER_BOUNDS)
def test_a_cushioned_step_is_centered_on_the_whole_interval(lower_bound):
    (step,) = polar_express(1, lower_bound, safety=1.0)
    low, high = coefficient_range((step,), lower_bound)
    assert low + high == pytest.approx(2, abs=1e-14)
    if lower_bound < CUSHION:
        # It is the best quintic of [cushion, 1] but for its scale.
        best = polar_express(1, CUSHION, safety=1.0)[0]
        np.testing.assert_allclose(np.array(step) / np.array(best), step[0] / best[0], rtol=1e-13)


@pytest.mark.parametrize("safety", SAFETIES)
@pytest.mark.parametrize(
    "lower_bound", (*LOWER_BOUNDS, 1e-300, 1e-17, 1 - 1e-5, 1 - 1e-9, 1 - 1e-15, math.nextafter(1, 0))
)
def test_generator_is_sound_for_any_number_of_steps(lower_bound, safety):
    error = 1.0
    for steps in range(1, 21):
        schedule = polar_express(steps, lower_bound, safety=safety)
        assert len(schedule) == steps
        assert all(type(k) is float and math.isfinite(k) for step in schedule for k in step)
        assert check_coefficients(schedule) == schedule
        low, high = coefficient_range(schedule, lower_bound)
        assert 0 < low <= high < 2 + 1e-12
        # One more step brings the farthest value closer, until rounding is all that's left. A safety factor as
        # wide as 1.5 moves values that are near 1 already away from it.
        assert max(1 - low, high - 1) <= max(error, 1e-14) or safety == 1.5
        error = max(1 - low, high - 1)


def test_converged_steps_become_the_limit():
    for step in polar_express(20, 1e-3, safety=1.0)[7:] + polar_express(3, math.nextafter(1, 0), safety=1.0):
        assert step == pytest.approx(LIMIT, abs=1e-14)


def test_more_steps_improve_strictly_until_converged():
    errors = [1 - coefficient_range(polar_express(n, 1e-3), 1e-3)[0] for n in range(1, 8)]
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < 1e-7


def test_the_defaults_and_a_numpy_integer_as_steps():
    assert polar_express(np.int64(5)) == polar_express() == polar_express(5, 1e-3, safety=1.02, cushion=CUSHION)


@pytest.mark.parametrize(
    "schedule, lower, upper, image",
    [
        # p = 3x - 4x^3 (the Chebyshev polynomial T_3, mirrored) climbs to 1 at x = 1/2 and falls to -1 at x = 1.
        (((3.0, -4.0, 0.0),), 0.25, 1.0, (-1.0, 1.0)),
        # T_5 = 16x^5 - 20x^3 + 5x: all its extrema are 1 and -1, also beyond the first.
        (((5.0, -20.0, 16.0),), 0.0, 1.0, (-1.0, 1.0)),
        # Composed, T_3(T_5) = T_15: negative values go through the second step as well.
        (((5.0, -20.0, 16.0), (-3.0, 4.0, 0.0)), 0.0, 1.0, (-1.0, 1.0)),
        (((0.0, 0.0, 0.0),), 0.5, 1.0, (0.0, 0.0)),
        (((2.0, 0.0, 0.0),), 0.25, 0.5, (0.5, 1.0)),
        # Near the ends of float64 b^2 overflows, or vanishes.
        (((3e300, -4e300, 0.0),), 0.25, 1.0, (-1e300, 1e300)),
        (((3e-300, -4e-300, 0.0),), 0.25, 1.0, (-1e-300, 1e-300)),
    ],
)
def test_range_of_a_polynomial_of_known_extrema(schedule, lower, upper, image):
    assert coefficient_range(schedule, lower, upper) == pytest.approx(image, rel=1e-13, abs=0)


GRID_CASES = {
    **PRESETS,
    "published": PUBLISHED,
    "published_with_safety": PUBLISHED_WITH_SAFETY,
    "polar_express_1e-6": polar_express(9, 1e-6),
    "turbo_muon": TURBO_MUON,
}


@pytest.mark.parametrize("lower", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("schedule", GRID_CASES.values(), ids=GRID_CASES)
def test_range_equals_a_dense_grid_from_outside(schedule, lower):
    low, high = coefficient_range(schedule, lower)
    # Half of the points spaced by ratio: the steepest places lie near 0.
    grid = np.concatenate([np.geomspace(max(lower, 1e-8), 1, 100_000), np.linspace(lower, 1, 100_000)])
    values = apply(schedule, grid)
    assert low - 1e-11 <= values.min() <= low + 1e-6
    assert high - 1e-6 <= values.max() <= high + 1e-11


coefficient = st.floats(-4, 4).map(lambda k: round(k, 3))
schedules = st.lists(st.tuples(coefficient, coefficient, coefficient), min_size=1, max_size=3).map(tuple)
unit = st.floats(0, 1)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(schedule=schedules, ends=st.tuples(unit, unit), inside=st.lists(unit, min_size=1, max_size=20))
def test_range_contains_the_image_of_every_point(schedule, ends, inside):
    lower, upper = sorted(ends)
    low, high = coefficient_range(schedule, lower, upper)
    points = np.clip(lower + (upper - lower) * np.array([0.0, *inside, 1.0]), lower, upper)
    values = apply(schedule, points)
    slack = 1e-9 * max(1.0, abs(low), abs(high))
    assert low - slack <= values.min()
    assert values.max() <= high + slack


@settings(derandomize=True, deadline=None, max_examples=100)
@given(step=st.tuples(coefficient, coefficient, coefficient), ends=st.tuples(unit, unit))
def test_range_of_one_step_is_attained(step, ends):
    lower, upper = sorted(ends)
    low, high = coefficient_range((step,), lower, upper)
    values = apply((step,), np.linspace(lower, upper, 20_001))
    # Between grid points 5e-5 apart p lies within max|p''| h^2 / 8 < 4e-8 of the grid at an extremum.
    assert values.min() - 1e-7 <= low <= values.min() + 1e-12
    assert values.max() - 1e-12 <= high <= values.max() + 1e-7


@pytest.mark.parametrize("cushion", [0.0, CUSHION, 0.5])
@settings(derandomize=True, deadline=None, max_examples=60)
@given(steps=st.integers(1, 12), exponent=st.floats(-8, -0.01), safety=st.floats(1, 1.9), x=st.floats(0, 1))
def test_any_generated_schedule_is_accepted_and_contains_its_values(cushion, steps, exponent, safety, x):
    lower_bound = 10.0**exponent
    schedule = check_coefficients(polar_express(steps, lower_bound, safety=safety, cushion=cushion))
    start = lower_bound + (1 - lower_bound) * x
    low, high = coefficient_range(schedule, lower_bound)
    # Without safety rounding grows 13-fold a step, which is why bounds below 1e-3 need some.
    slack = 1e-12 * (1.0 if safety > 1.001 else 13.0**steps)
    assert low - slack <= float(apply(schedule, np.array(start))) <= high + slack


ACCEPTED = {
    **PRESETS,
    "published": PUBLISHED,
    "published_first_step": PUBLISHED[:1],
    "published_with_safety": PUBLISHED_WITH_SAFETY,
    "rounded_to_bfloat16": ((8.3125, -23.625, 17.25), (4.09375, -2.953125, 0.54296875)),
    "newton_schulz": ((1.5, -0.5, 0.0),) * 12,
    "quintic_that_settles": ((2.0, -1.5, 0.5),) * 12,
    "taylor": (LIMIT,) * 12,
    "identity": ((1.0, 0.0, 0.0),),
    "largest_value": ((2.1, 0.0, 0.0),),
}


@pytest.mark.parametrize("schedule", ACCEPTED.values(), ids=ACCEPTED)
def test_sound_schedules_are_accepted_unchanged(schedule):
    assert check_coefficients(schedule) == schedule


@pytest.mark.parametrize(
    "convert", [list, np.asarray, lambda s: [list(step) for step in s]], ids=["list", "numpy", "lists"]
)
def test_schedules_become_tuples_of_floats(convert):
    schedule = check_coefficients(convert(KELLER))
    assert schedule == KELLER
    assert type(schedule) is tuple
    assert {type(step) for step in schedule} == {tuple}
    assert {type(k) for step in schedule for k in step} == {float}
    assert type(check_coefficients([(1, 0, 0)])[0][0]) is float


REFUSED = {
    "turbo_muon": (TURBO_MUON, "becomes -0.5852 after step 1, (4.0098, -7.0585, 2.4635)", "stay positive"),
    "turbo_muon_later": (KELLER[:3] + TURBO_MUON, "after step 4", "stay positive"),
    "turbo_muon_after_steps_of_other_tops": (
        ((0.9, 0.0, 0.0), (3.0, -3.53, 0.0), TURBO_MUON[0]),
        "singular value 0.5914 becomes",
        "stay positive",
    ),
    "negative_inside_only": (((1.0, -2.5, 1.55),), "after step 1", "stay positive"),
    "negative_inside_only_by_a_small_quintic": (((0.44, -1.2, 0.8),), "after step 1", "stay positive"),
    "touches_zero": (((1.0, -2.0, 1.0),), "singular value 1 becomes 0 after step 1", "stay positive"),
    "touches_zero_inside": (((1.0, -4.0, 4.0),), "singular value 0.7071 becomes 0 after", "stay positive"),
    "diverges": (((1.5, 0.0, 0.0),) * 4, "singular value 1 becomes 2.25 after step 2", "stay below 2.1"),
    "diverges_inside": (((12.0, -30.0, 20.0),), "after step 1", "stay below 2.1"),
    "diverges_late": (((1.001, 0.0, 0.0),) * 2000, "becomes 2.101 after step 743", "stay below 2.1"),
    "overflows": (((1e308, 1e308, -1e308),), "after step 1", "stay below 2.1"),
    "negative_slope": ((*KELLER, (-1.0, 2.0, 0.0)), "step 6, (-1.0, 2.0, 0.0)", "without a > 0"),
    "zero_slope": (((0.0, 1.0, 0.0),), "step 1, (0.0, 1.0, 0.0)", "without a > 0"),
}


@pytest.mark.parametrize(("schedule", "where", "rule"), REFUSED.values(), ids=REFUSED)
def test_schedules_that_flip_or_diverge_are_refused(schedule, where, rule):
    with pytest.raises(ValueError, match=re.escape(where)) as error:
        check_coefficients(schedule)
    assert rule in str(error.value)
    assert "Give a preset or polar_express(...)" in str(error.value)
    named = re.findall(r"singular value (\S+) becomes (\S+) after step (\d+)", str(error.value))
    assert len(named) == (rule != "without a > 0")
    for start, value, step in named:
        assert 0 < float(start) <= 1
        # The message prints four digits; three Keller steps magnify their rounding 40-fold.
        reached = float(apply(schedule[: int(step)], np.array(float(start))))
        assert reached == pytest.approx(float(value), rel=2e-2, abs=1e-8)


def test_upper_end_decides():
    # 1.5 x - 0.5 x^3 turns negative beyond sqrt(3), Turbo-Muon's first step beyond 0.884.
    assert check_coefficients(((1.5, -0.5, 0.0),), upper=1.7)
    assert check_coefficients(TURBO_MUON[:1], upper=0.88)
    with pytest.raises(ValueError, match="stay positive"):
        check_coefficients(((1.5, -0.5, 0.0),), upper=1.75)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(schedule=schedules)
def test_what_is_accepted_stays_positive_and_bounded(schedule):
    values = np.linspace(0, 1, 2001)[1:]
    bad = False
    for step in schedule:
        values = apply((step,), values)
        bad = bad or bool(values.min() <= 0 or values.max() > 2.1)
    try:
        check_coefficients(schedule)
    except ValueError:
        # Refused, so some value breaks a rule: on the grid, or between its points or next to 0.
        assert bad or min(a for a, _, _ in schedule) <= 0 or values.min() < 0.05 or values.max() > 2.05
    else:
        assert not bad


NO_SCHEDULES = [(), [], None, 3.0, "keller", (3.4445, -4.7750, 2.0315), np.zeros((0, 3)), np.zeros((2, 3, 1))]
NO_SCHEDULES += [[(1.0, 2.0)], [(1.0, 0.0, 0.0), (1.0, 0.0)], [(1.0, 0.0, 0.0, 0.0)], [("1.5", "-0.5", "0")]]
NO_SCHEDULES += [[(1.5, -0.5, None)], [(1.5 + 0j, -0.5, 0.0)], [(True, False, False)], [(math.nan, 0.0, 0.0)]]
NO_SCHEDULES += [[(math.inf, 0.0, 0.0)], [(Fraction(3, 2), Fraction(-1, 2), 0)]]


@pytest.mark.parametrize("check", [check_coefficients, lambda c: coefficient_range(c, 0.1)], ids=["check", "range"])
@pytest.mark.parametrize("given_value", NO_SCHEDULES, ids=repr)
def test_what_is_no_schedule_is_refused(check, given_value):
    message = f"coefficients={given_value!r} is not allowed: give one (a, b, c) of finite real numbers per step"
    with pytest.raises(ValueError, match=re.escape(message)):
        check(given_value)


ARGUMENTS = {
    "steps": ([0, -1, 5.0, "5", True, None], "a positive int"),
    "lower_bound": ([0, 1, -0.1, 1.5, math.nan, math.inf], "one in (0, 1)"),
    "safety": ([0.99, 0, -1.02, 2, 1e300, math.nan, math.inf], "1.02"),
    "cushion": ([-0.1, 1, math.nan], "one in [0, 1)"),
}


@pytest.mark.parametrize("name, value", [(name, value) for name, (values, _) in ARGUMENTS.items() for value in values])
def test_arguments_of_polar_express_are_refused(name, value):
    message = f"{name}={value!r} is not allowed: give {ARGUMENTS[name][1]}"
    with pytest.raises(ValueError, match=re.escape(message)):
        polar_express(**{name: value})


@pytest.mark.parametrize(("lower", "upper"), [(-0.1, 1), (0.5, 0.4), (0, math.inf), (math.nan, 1), (0, math.nan)])
def test_range_refuses_what_is_no_interval(lower, upper):
    message = f"lower={lower!r}, upper={upper!r} is not allowed: give 0 <= lower <= upper < inf"
    with pytest.raises(ValueError, match=re.escape(message)):
        coefficient_range(KELLER, lower, upper)


def test_range_refuses_what_overflows():
    with pytest.raises(ValueError, match=r"step 1, \(1e\+308, 1e\+308, 0.0\), overflows float64"):
        coefficient_range(((1e308, 1e308, 0.0),), 0.0)
