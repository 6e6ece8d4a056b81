"""Newton-Schulz coefficients as mathematics: presets, the Polar Express generator, certified ranges."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

Coefficients: TypeAlias = tuple[tuple[float, float, float], ...]
"""One ``(a, b, c)`` per Newton-Schulz step: a singular value x becomes ``a x + b x^3 + c x^5``."""

KELLER: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""Five equal quintic steps, everybody's default; [0.01, 1] becomes [0.6818, 1.1344]. Jordan et al., "Muon: An
optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/, 2024."""

YOU_JIACHENG: Coefficients = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""Five steps tuned one by one; [0.01, 1] becomes [0.9778, 1.0318]. You Jiacheng, post without a title,
https://x.com/YouJiacheng/status/1905861218138804534, 2025."""

DEEPSEEK_V4: Coefficients = KELLER[:1] * 8 + ((2.0, -1.5, 0.5),) * 2
"""Eight Keller steps, then two that settle on 1; [0.001, 1] becomes [1.0000, 1.0005]. DeepSeek-AI,
"DeepSeek-V4: Towards Highly Efficient Million-Token Context Intelligence",
https://huggingface.co/collections/deepseek-ai/deepseek-v4, 2026."""

CUBIC: Coefficients = (
    (3.3656576, -3.3420992, 0.0),
    (2.5744352, -1.4957376, 0.0),
    (2.5368962, -1.4312570, 0.0),
    (2.4418906, -1.2764040, 0.0),
    (2.2230472, -0.9630650, 0.0),
)
"""Five cubic steps (c = 0), ten products in place of fifteen; [0.01, 1] becomes [0.774, 1.300]. Huang, "How
Much Orthogonalization Does Muon Need?", https://arxiv.org/abs/2606.00371, 2026."""

# The best odd polynomial for an interval is off by at most 1 (p = 0 already is), so no sound step passes 2.
# The twentieth above it is for coefficients that were rounded, in print or to bfloat16.
_LARGEST_VALUE = 2.1


def polar_express(
    steps: int = 5, lower_bound: float = 1e-3, *, safety: float = 1.02, cushion: float = 0.02407327424182761
) -> Coefficients:
    """Generates the Polar Express schedule, which has at each step the best odd quintic for the values' interval.

    Step k takes the ``p(x) = a x + b x^3 + c x^5`` with the smallest ``max |1 - p|`` on [l, u], divides
    (a, b, c) by (s, s^3, s^5) with s = `safety`, and sets ``l = p(l / s)``, ``u = 2 - l``; at first
    ``l = lower_bound``, ``u = 1``. Choose it when singular values down to `lower_bound` matter: the default
    sends [1e-3, 1] to [0.856, 1.144], six steps to 1 +- 2.5e-3, seven to 1 +- 7e-8. ``safety=1.0`` equals the
    paper's table, ``safety=1.02, cushion=0.02`` the five steps of modded-nanogpt and Dion.

    Args:
        steps: Number of triples, one per Newton-Schulz step; 5 costs what Muon's own schedule costs.
        lower_bound: The smallest singular value to bring near 1, as a fraction of the matrix's norm, in
            (0, 1). The default is the paper's; a larger one is brought closer in the same number of steps.
        safety: A margin in [1, 2): all steps but the last accept inputs up to `safety` times u. A step is steep at u,
            so an excess grows up to 13-fold each time. 1.02 covers bfloat16; 1.0 is for float32
            with `lower_bound` >= 1e-3, where five steps reach [0.876, 1.124].
        cushion: Where l < cushion u, the best quintic for [cushion u, u], scaled to p(l) + p(u) = 2, is used:
            the optimum on [l, u] would map a value in the middle to as little as p(l). In [0, 1); the paper's default.

    Returns:
        `steps` triples (a, b, c) of Python floats.

    Raises:
        ValueError: If an argument lies outside its range.

    References:
        Amsel, Persson, Musco and Gower, "The Polar Express: Optimal Matrix Sign Methods and Their
        Application to the Muon Algorithm", https://arxiv.org/abs/2505.16932, 2025.

    Example:
        >>> import muon_optax as mo
        >>> low, high = mo.coefficient_range(mo.polar_express(5, lower_bound=1e-3), 1e-3)
        >>> print(f"[{low:.3f}, {high:.3f}]")
        [0.856, 1.144]
    """
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 1:
        raise ValueError(f"steps={steps!r} is not allowed: give a positive int, such as 5.")
    for name, value in (("lower_bound", lower_bound), ("safety", safety), ("cushion", cushion)):
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"{name}={value!r} is not a number: the coefficients are computed from Python numbers.")
    if not 0 < lower_bound < 1:
        raise ValueError(f"lower_bound={lower_bound!r} is not allowed: give one in (0, 1), such as 1e-3.")
    if not 1 <= safety < 2:
        raise ValueError(f"safety={safety!r} is not allowed: give 1.02, or another in [1, 2).")
    if not 0 <= cushion < 1:
        raise ValueError(f"cushion={cushion!r} is not allowed: give one in [0, 1), or leave it out.")
    schedule: list[tuple[float, float, float]] = []
    low, high = float(lower_bound), 1.0
    for remaining in reversed(range(steps)):
        a, b, c = _best_quintic(max(low, cushion * high), high)
        scale = 2 / (_value((a, b, c), low) + _value((a, b, c), high))
        # No step follows the last one, so what rounding adds there stays as small as it is.
        divisor = float(safety) if remaining else 1.0
        step = (scale * a / divisor, scale * b / divisor**3, scale * c / divisor**5)
        # Without safety, 2 - l is the largest value but for the last bit, which a dozen steps would blow up.
        largest = max(_value(step, x) for x in _candidates(step, low, high))
        low = _value(step, low)
        high = max(2 - low, largest)
        schedule.append(step)
    return tuple(schedule)


def coefficient_range(coefficients: Coefficients, lower: float, upper: float = 1.0) -> tuple[float, float]:
    """Computes the exact image of an interval of singular values under a schedule.

    That is the smallest and the largest ``p_n(... p_2(p_1(x)))`` over all x in [lower, upper]. Choose it to
    certify a schedule of your own, or to see what a preset makes of the singular values you measured.

    Args:
        coefficients: One (a, b, c) per step, ``p(x) = a x + b x^3 + c x^5``.
        lower: Smallest singular value after normalization, at least 0.
        upper: Largest one; dividing by the Frobenius norm guarantees the default, 1.

    Returns:
        (smallest, largest) final value, exact to float64 rounding.

    Raises:
        TypeError: If `lower` or `upper` is not a number.
        ValueError: If `coefficients` is not a schedule, not 0 <= lower <= upper < inf, or a value overflows.

    Example:
        >>> import muon_optax as mo
        >>> low, high = mo.coefficient_range(mo.KELLER, 0.01)
        >>> print(f"[{low:.4f}, {high:.4f}]")
        [0.6818, 1.1344]
    """
    schedule = _as_triples(coefficients)
    if not (isinstance(lower, Real) and isinstance(upper, Real)):
        raise TypeError(
            f"lower={lower!r}, upper={upper!r} is not allowed: give two numbers, 0 <= lower <= upper < inf."
        )
    if not 0 <= lower <= upper < math.inf:
        raise ValueError(
            f"lower={lower!r}, upper={upper!r} is not allowed: give 0 <= lower <= upper < inf; divided by "
            "the Frobenius norm, singular values lie in [0, 1]."
        )
    low, high = float(lower), float(upper)
    # Interval arithmetic usually overestimates; here it is exact. A step is continuous, so it maps an
    # interval onto an interval: [low, high] holds what the steps so far reach and nothing else, and the next
    # step's extrema over it are the composition's.
    for number, step in enumerate(schedule, start=1):
        values = [_value(step, x) for x in _candidates(step, low, high)]
        if not all(map(math.isfinite, values)):
            raise ValueError(f"step {number}, {step}, overflows float64: give a schedule that stays near 1.")
        low, high = min(values), max(values)
    return low, high


def check_coefficients(coefficients: Sequence[Sequence[float]], upper: float = 1.0) -> Coefficients:
    """Returns the schedule as triples of floats; refuses one that flips a sign or diverges on (0, upper]."""
    schedule = _as_triples(coefficients)
    high, tops = float(upper), []  # tops: where on (0, high] each step so far is largest
    for number, step in enumerate(schedule, start=1):
        a, b, c = step
        if a <= 0:
            raise ValueError(
                f"step {number}, {step}, is not allowed: without a > 0 small singular values vanish "
                "or turn negative. Give a preset or polar_express(...)."
            )
        # p(x) = x g(x^2) keeps the sign of x where g > 0, and the parabola g is lowest at an end or vertex.
        # The least p in place of g would miss a p that touches zero, where a direction is lost for good.
        vertex = -b / (2 * c) if c > 0 else 0.0
        lowest = min(high * high, vertex) if vertex > 0 else high * high
        if a + lowest * (b + lowest * c) <= 0:
            raise ValueError(_refusal(schedule, tops, math.sqrt(lowest), "stay positive"))
        top = max(_candidates(step, 0.0, high), key=lambda x, step=step: _value(step, x))
        if not _value(step, top) <= _LARGEST_VALUE:
            raise ValueError(_refusal(schedule, tops, top, f"stay below {_LARGEST_VALUE}"))
        tops.append(top)
        high = _value(step, top)
    return schedule


def _refusal(schedule: Coefficients, tops: Sequence[float], x: float, rule: str) -> str:
    """Says what step len(tops) + 1 makes of x, and which starting singular value reaches x."""
    number, start = len(tops) + 1, x
    for step, top in zip(schedule[number - 2 :: -1] if tops else (), reversed(tops), strict=True):
        # The step climbs from 0 at 0 to its largest value at top: bisection finds where it passes `start`.
        below, above = 0.0, top
        for _ in range(100):
            middle = (below + above) / 2
            below, above = (below, middle) if _value(step, middle) >= start else (middle, above)
        start = above
    return (
        f"singular value {start:.4g} becomes {_value(schedule[number - 1], x):.4g} after step {number}, "
        f"{schedule[number - 1]}, but singular values must {rule}. Give a preset or polar_express(...); "
        "a schedule for another normalization (AOL) needs an orthogonalizer of its own."
    )


def _as_triples(coefficients: Any) -> Coefficients:
    try:
        rows = np.asarray(coefficients)
    except ValueError:  # NumPy's refusal of rows of different lengths
        rows = np.empty((0, 3))
    real = rows.dtype.kind in "iuf" and bool(np.isfinite(rows).all())
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.shape[1] != 3 or not real:
        raise ValueError(
            f"coefficients={coefficients!r} is not allowed: give one (a, b, c) of finite real numbers per "
            "step, at least one; for n equal steps ((a, b, c),) * n."
        )
    return tuple((float(a), float(b), float(c)) for a, b, c in rows)


def _value(step: tuple[float, float, float], x: float) -> float:
    a, b, c = step
    return x * (a + x * x * (b + x * x * c))


def _candidates(step: tuple[float, float, float], low: float, high: float) -> list[float]:
    """The points of [low, high] where the step can be largest or smallest: the ends and the zeros of p'."""
    # Dividing by the largest coefficient moves no zero and keeps the discriminant from overflowing.
    a, b, c = (k / (max(map(abs, step)) or 1.0) for k in step)
    discriminant = 9 * b * b - 20 * a * c
    if discriminant < 0:
        return [low, high]
    # p'(x) = a + 3 b y + 5 c y^2 with y = x^2. The sum of two numbers of one sign loses no digits, and the
    # two quotients are right for a cubic (c = 0) too.
    half = -(3 * b + math.copysign(math.sqrt(discriminant), b)) / 2
    squares = [numerator / divisor for numerator, divisor in ((half, 5 * c), (a, half)) if divisor != 0]
    zeros = [sign * math.sqrt(y) for y in squares if y > 0 for sign in (-1, 1)]
    return [low, high, *(min(max(x, low), high) for x in zeros)]


def _best_quintic(lower: float, upper: float) -> tuple[float, float, float]:
    """The odd quintic nearest to 1 on [lower, upper], up to a factor: Remez's exchange.

    It equioscillates, p(lower) = p(r) = 1 - E and p(q) = p(upper) = 1 + E, with critical points q < r. The
    usual exchange solves for (a, b, c, E) at given q and r: a 4 x 4 matrix, singular as lower -> upper. This
    one solves for q and r themselves, accurate to the last bit, and leads to (15, -10, 3) / 8 there.
    """
    q, r = lower, upper
    for _ in range(25):  # each pass divides the error by nine or more, whatever the interval
        q = _other_critical_point(lower, r)
        r = _other_critical_point(upper, q)
    # p' is proportional to (x^2 - q^2)(x^2 - r^2).
    return q * q * r * r, -(q * q + r * r) / 3, 0.2


def _other_critical_point(end: float, z: float) -> float:
    """The second critical point of the odd quintic that has one at z and takes the same value at `end`."""
    # p(x) - p(z) = c (x - z)^2 (x - end)(x^2 + s x + t). An odd p has neither x^4 nor x^2, which fixes s and
    # t; its coefficient of x is c times 5 z^2 times the square sought.
    s = 2 * z + end
    pairs = z * z + 2 * z * end
    t = pairs - z * z * end / s
    return math.sqrt((pairs * t / (z * z) - end * s) / 5)
