"""``python -m muon_optax``: what is installed, what it runs on, how exact and how fast it is there. For bug reports."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from muon_optax._layouts.columns import in_columns
from muon_optax._orthogonalizers.coefficients import KELLER, coefficient_range
from muon_optax._orthogonalizers.newton_schulz import choose_method, newton_schulz
from muon_optax._orthogonalizers.polar_factor import polar_factor
from muon_optax._orthogonalizers.precision import cpu_multiplies_bfloat16
from muon_optax._version import __version__

_ROWS, _COLS = 256, 512
_SPREAD = 10.0  # the largest singular value over the smallest
# How far rounding may push a singular value out of the range of exact arithmetic, relative to its ends. On a CPU it is
# 8e-4, 5e-5 and less than 1e-5. Coefficients rounded to bfloat16 would shift them by 3e-2, TF32 in place of float32 by
# 1e-3.
_ROUNDING = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 2e-5}
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion")
_ROUNDS = 5


class Check(NamedTuple):
    """An orthogonalizer whose results must have singular values in a range."""

    name: str
    orthogonalizer: Callable[[jax.Array], jax.Array]
    low: float
    high: float


def checks(singular_values: np.ndarray) -> list[Check]:
    """Makes the checks of Newton-Schulz in every dtype, and of the polar factor.

    Args:
        singular_values: The matrix's singular values.
    """
    length = float(np.linalg.norm(singular_values))
    low, high = coefficient_range(KELLER, singular_values.min() / length, singular_values.max() / length)
    found = [
        Check(f"newton_schulz, {dtype}", newton_schulz(dtype=dtype), low * (1 - slack), high * (1 + slack))
        for dtype, slack in _ROUNDING.items()
    ]
    slack = _ROUNDING["float32"]
    return [*found, Check("polar_factor, float32", polar_factor(), 1 - slack, 1 + slack)]


def main(make_checks: Callable[[np.ndarray], Sequence[Check]] = checks) -> int:
    """Prints the report.

    Args:
        make_checks: Makes the checks for a matrix of these singular values.

    Returns:
        0, or 1 if an error is beyond its range.
    """
    print(*_versions(), sep="\n")
    matrix, singular_values = _matrix()
    results = [(check, _range(check, matrix)) for check in make_checks(singular_values)]
    rows = [
        (check.name, _shown(found), _shown((check.low, check.high)), _verdict(check, found)) for check, found in results
    ]
    heading = ("orthogonalizer", "singular values", "allowed", "verdict")
    print("", f"Of one matrix of {_ROWS} x {_COLS}:", *in_columns([heading, *rows]), "", *_times(matrix), sep="\n")
    failed = [check.name for check, found in results if not _holds(check, found)]
    if failed:
        print("", f"FAILED: {', '.join(failed)}. Please report this, with all of the above.", sep="\n")
    return 1 if failed else 0


def _versions() -> list[str]:
    methods = (f"{choose_method(KELLER, 768, long, jnp.dtype('bfloat16'))} for 768 x {long}" for long in (768, 3072))
    widened = jax.default_backend() == "cpu" and not cpu_multiplies_bfloat16()
    return [
        f"muon_optax: {__version__}",
        f"optax:  {optax.__version__}",
        jax.print_environment_info(return_string=True) or "",
        f"backend: {jax.default_backend()}, {', '.join(sorted({device.device_kind for device in jax.devices()}))}",
        "settings: " + ", ".join(f"{name} {getattr(jax.config, name)}" for name in _SETTINGS),
        f"products: XLA's; of bfloat16 numbers in {'float32, which this CPU does faster' if widened else 'bfloat16'}",
        f"Newton-Schulz: {', '.join(methods)}",
    ]


def _matrix() -> tuple[jax.Array, np.ndarray]:
    """A matrix and its singular values, which lie evenly in logarithm."""
    random = np.random.default_rng(0)
    left, _ = np.linalg.qr(random.standard_normal((_ROWS, _ROWS)))
    right, _ = np.linalg.qr(random.standard_normal((_COLS, _ROWS)))
    values = np.geomspace(1, 1 / _SPREAD, _ROWS)
    matrix = jnp.asarray((left * values) @ right.T, jnp.float32)
    return matrix, values


def _range(check: Check, matrix: jax.Array) -> tuple[float, float]:
    result = np.asarray(jax.jit(check.orthogonalizer)(matrix), np.float64)
    if not np.isfinite(result).all():
        return float("nan"), float("nan")
    values = np.linalg.svd(result, compute_uv=False)
    return float(values.min()), float(values.max())


def _shown(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.5f} to {ends[1]:.5f}"


def _holds(check: Check, found: tuple[float, float]) -> bool:
    return check.low <= found[0] and found[1] <= check.high  # NaN is not within any range


def _verdict(check: Check, found: tuple[float, float]) -> str:
    return "good" if _holds(check, found) else "BEYOND ITS RANGE"


def _times(matrix: jax.Array) -> list[str]:
    transform = optax.contrib.scale_by_muon(beta=0.0, nesterov=False)

    def of_optax(matrices: jax.Array) -> Any:
        return transform.update(matrices, transform.init(matrices))[0]

    runs = {
        "muon_optax.newton_schulz(), products in bfloat16": jax.jit(newton_schulz()),
        "muon_optax.newton_schulz(dtype=float32)": jax.jit(newton_schulz(dtype=jnp.float32)),
        "optax.contrib.scale_by_muon, float32": jax.jit(of_optax),
    }
    seconds = _interleaved(runs, matrix)
    return [f"{1000 * value:8.2f} ms  {name}" for name, value in seconds.items()]


def _interleaved(runs: Mapping[str, Callable[[jax.Array], Any]], matrix: jax.Array) -> dict[str, float]:
    """The median time of each, taken in turn: what else the machine does slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for function in runs.values():
        jax.block_until_ready(function(matrix))
    for name in [*runs] * _ROUNDS:
        began = time.perf_counter()
        jax.block_until_ready(runs[name](matrix))
        seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
