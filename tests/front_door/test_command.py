"""``python -m muon_optax``: its report, and its exit code both ways."""

import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import muon_optax as mo
from muon_optax import __main__ as command
from muon_optax.__main__ import Check, checks, main

Orthogonalizer = Callable[[jax.Array], jax.Array]


def replaced(name: str, orthogonalizer: Orthogonalizer) -> Callable[[np.ndarray], list[Check]]:
    """The checks with another orthogonalizer in place of the one of this name."""
    return lambda values: [
        check._replace(orthogonalizer=orthogonalizer) if check.name == name else check for check in checks(values)
    ]


def test_all_is_well_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    printed = capsys.readouterr().out
    for expected in (
        "Of one matrix of 256 x 512:",
        f"optax:  {optax.__version__}",
        f"jax:    {jax.__version__}",
        f"backend: {jax.default_backend()}",
        "jax_enable_x64 False",
        "Newton-Schulz: direct for 768 x 768, gram for 768 x 3072",
        "optax.contrib.scale_by_muon, float32",
    ):
        assert expected in printed
    assert printed.startswith(f"muon_optax: {mo.__version__}\n")
    verdicts = [line.split()[-1] for line in printed.splitlines() if line.startswith(("newton_schulz,", "polar"))]
    assert verdicts == ["good"] * 4


ROUNDED = tuple(tuple(float(jnp.bfloat16(value)) for value in step) for step in mo.KELLER)
WRONG: dict[str, tuple[str, Orthogonalizer]] = {
    "coefficients rounded to bfloat16": ("newton_schulz, bfloat16", mo.newton_schulz(ROUNDED)),
    "products in less than float32": ("newton_schulz, float32", mo.newton_schulz(dtype=jnp.float16)),
    "a step left out": ("newton_schulz, float16", mo.newton_schulz(mo.KELLER[:-1], dtype=jnp.float16)),
    "nothing done": ("polar_factor, float32", lambda matrices: matrices),
    "NaN": ("polar_factor, float32", lambda matrices: matrices * jnp.nan),
    "one NaN": ("polar_factor, float32", lambda matrices: mo.polar_factor()(matrices).at[0, 0].set(jnp.nan)),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_beyond_its_range_fails(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_times", lambda matrix: [])  # takes longer than all else
    name, orthogonalizer = WRONG[case]
    assert main(replaced(name, orthogonalizer)) == 1
    printed = capsys.readouterr().out
    assert printed.count("BEYOND ITS RANGE") == 1
    assert f"FAILED: {name}. Please report this" in printed


def test_the_matrix_and_what_is_allowed_of_its_singular_values() -> None:
    matrix, values = command._matrix()
    assert matrix.shape == (256, 512)
    np.testing.assert_allclose(np.linalg.svd(np.float64(matrix), compute_uv=False), values, rtol=1e-4)
    assert values[0] / values[-1] == pytest.approx(10)
    # Between the smallest and the largest, whatever lies there: the iteration in float64.
    x = np.linspace(values[-1], values[0], 100_001) / np.linalg.norm(values)
    for a, b, c in mo.KELLER:
        x = a * x + b * x**3 + c * x**5
    *newton_schulz, polar = checks(values)
    assert [check.name for check in newton_schulz] == [
        f"newton_schulz, {t}" for t in ("bfloat16", "float16", "float32")
    ]
    for check, low, high in [*((check, x.min(), x.max()) for check in newton_schulz), (polar, 1, 1)]:
        slack = 0.02 if "bfloat16" in check.name else 0.005  # less than coefficients in bfloat16 would do: 0.03
        assert low * (1 - slack) < check.low < low * (1 - 1e-6)
        assert high * (1 + 1e-6) < check.high < high * (1 + slack)


@pytest.mark.parametrize("low, high, holds", [(1, 2, True), (0.9, 2, False), (1, 2.1, False), (np.nan, np.nan, False)])
def test_the_ends_of_a_range_are_allowed(low: float, high: float, holds: bool) -> None:
    assert command._holds(Check("", jnp.asarray, 1, 2), (low, high)) == holds


@pytest.mark.parametrize(
    "backend, native, dtype",
    [("cpu", False, "float32, which this CPU does faster"), ("cpu", True, "bfloat16"), ("tpu", False, "bfloat16")],
)
def test_products_and_devices_are_named(
    backend: str, native: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(command, "cpu_multiplies_bfloat16", lambda: native)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind) for kind in "edcbaabcde"])
    lines = command._versions()
    assert f"products: XLA's; of bfloat16 numbers in {dtype}" in lines
    assert f"backend: {backend}, a, b, c, d, e" in lines


def test_times_are_medians_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"one": [5, 3, 1, 2, 4], "other": [50, 30, 10, 20, 40]}
    readings, now = [], 7.0
    for turn in range(5):
        for name in took:
            readings += [now, now + took[name][turn]]
            now += 1000
    monkeypatch.setattr(command.time, "perf_counter", iter(readings).__next__)
    assert command._interleaved(dict.fromkeys(took, jnp.negative), jnp.ones(2)) == {"one": 3, "other": 30}
    monkeypatch.setattr(command, "_interleaved", lambda runs, matrix: dict.fromkeys(runs, 0.0123))
    assert {line.split("  ")[-2].strip() for line in command._times(jnp.eye(2))} == {"12.30 ms"}


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code(code: int) -> None:
    broken = "import muon_optax._orthogonalizers.polar_factor as m; m.polar_factor = lambda: lambda x: 2 * x; "
    run = "import runpy; runpy.run_module('muon_optax', run_name='__main__')"
    command = ["-m", "muon_optax"] if code == 0 else ["-c", broken + run]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=os.environ | {"XLA_FLAGS": ""}
    )
    assert done.returncode == code, done.stdout + done.stderr
