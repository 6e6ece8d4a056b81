"""The small examples run as they are, with few steps, and their loss falls."""

import importlib

import own_orthogonalizer
import pytest

pytestmark = pytest.mark.long

# Steps, and by which factor at least the loss must fall in them.
SMALL = {"research_scan": (40, 2.0), "linen_trainstate": (60, 2.0), "equinox_mlp": (60, 4.0), "haiku_mlp": (60, 2.0)}


@pytest.mark.parametrize("name", SMALL)
def test_the_loss_falls(name: str, capsys: pytest.CaptureFixture[str]):
    steps, factor = SMALL[name]
    first, last = importlib.import_module(name).main(steps=steps)
    assert last * factor < first
    heading, *_, result = capsys.readouterr().out.splitlines()
    assert heading.split()[:3] == ["path", "shape", "layout"]
    printed = result.partition(": ")[2].split()[0]  # the examples read Python's own source, so it differs by version
    assert float(printed) == pytest.approx(first, abs=1e-3)
    assert f"{steps} steps" in result


def test_every_orthogonalizer_learns(capsys: pytest.CaptureFixture[str]):
    losses = own_orthogonalizer.main(steps=60)
    assert len(losses) == len(capsys.readouterr().out.splitlines()) == 3
    for first, last in losses.values():
        assert last * 10 < first
