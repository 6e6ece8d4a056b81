"""What momentum in host memory takes on a TPU chip, by its own compiler. Nothing runs."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.tests.running import run

NO_COMPILER = importlib.util.find_spec("libtpu") is None
pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(NO_COMPILER, reason='the TPU compiler is in pip install "jax[tpu]"'),
]


def test_a_chip_holds_two_batches_of_the_momentum(tmp_path: Path) -> None:
    rows = run("host_memory", tmp_path, "--quick", "--batches", "1", "16")["rows"]
    device, whole, streamed = rows
    momentum = 4e-6 * 16 * 1024**2
    assert device["host MB"] == device["host copies"] == 0
    assert device["device MB"] == pytest.approx(2 * momentum, rel=0.02)  # gradients too
    for row in (whole, streamed):
        assert row["host MB"] == row["link MB"] == pytest.approx(momentum)
        assert row["host copies"] == 2 * 16
        assert row["argument MB"] == pytest.approx(momentum, rel=0.02)
    assert streamed["temporary MB"] < 4 / 16 * momentum < momentum <= whole["temporary MB"]
