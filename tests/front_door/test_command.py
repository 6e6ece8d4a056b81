"""``python -m muon_optax``: its report, and its exit code both ways."""

import os
import subprocess
import sys
from collections.abc import Callable

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
        f"muon_optax: {mo.__version__}",
        f"optax:  {optax.__version__}",
        f"jax:    {jax.__version__}",
        f"backend: {jax.default_backend()}",
        "jax_enable_x64 False",
        "Newton-Schulz: direct for 768 x 768, gram for 768 x 3072",
        "optax.contrib.scale_by_muon, float32",
    ):
        assert expected in printed
    verdicts = [line.split()[-1] for line in printed.splitlines() if line.startswith(("newton_schulz,", "polar"))]
    assert verdicts == ["good"] * 4


ROUNDED = tuple(tuple(float(jnp.bfloat16(value)) for value in step) for step in mo.KELLER)
WRONG: dict[str, tuple[str, Orthogonalizer]] = {
    "coefficients rounded to bfloat16": ("newton_schulz, bfloat16", mo.newton_schulz(ROUNDED)),
    "products in less than float32": ("newton_schulz, float32", mo.newton_schulz(dtype=jnp.float16)),
    "a step left out": ("newton_schulz, float16", mo.newton_schulz(mo.KELLER[:-1], dtype=jnp.float16)),
    "nothing done": ("polar_factor, float32", lambda matrices: matrices),
    "NaN": ("polar_factor, float32", lambda matrices: matrices * jnp.nan),
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
