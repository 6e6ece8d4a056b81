"""The small examples run as they are, with few steps, and their loss falls."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# Steps, and by which factor at least the loss must fall in them.
SMALL = {"research_scan": (40, 2.0), "linen_trainstate": (60, 2.0), "equinox_mlp": (60, 4.0), "haiku_mlp": (60, 2.0)}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SMALL)
def test_the_loss_falls(name: str, capsys: pytest.CaptureFixture[str]):
    steps, factor = SMALL[name]
    first, last = load(name).main(steps=steps)
    assert last * factor < first
    heading, *_, result = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["path", "shape", "layout"]
    assert f"{first:.2f}" in result
    assert f"{steps} steps" in result


@pytest.mark.parametrize("name", [*SMALL, "own_orthogonalizer"])
def test_it_stays_short(name: str):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 80


def test_every_orthogonalizer_learns(capsys: pytest.CaptureFixture[str]):
    losses = load("own_orthogonalizer").main(steps=60)
    assert len(losses) == len(capsys.readouterr().out.splitlines()) == 3
    for first, last in losses.values():
        assert last * 10 < first
