"""The family benchmark: its verdict follows from the file, and it says what is missing."""

import json
from pathlib import Path

import pytest

from benchmarks.tests.one_run import ENVIRONMENT, MEASURED, RUN
from benchmarks.training import family
from benchmarks.training._records import append

LOSSES = {"muon": 2.0, "normuon": 2.036, "muon, 8-bit momentum": 2.046}


def records(path: Path, losses: dict[str, float]) -> None:
    """Three seeds of each contender at the quick length, around a loss; and a worse rate of Muon."""
    runs = {RUN._replace(contender=name): loss for name, loss in losses.items()}
    for run, loss in (runs | {RUN._replace(rate=0.02, adamw_rate=0.02): 3.0}).items():
        for seed, away in enumerate((-0.1, 0.0, 0.1)):
            measured = MEASURED | {"final_loss": f"{loss + away:.4f}"}
            append(path, run._replace(seed=seed), measured, ENVIRONMENT)


@pytest.mark.slow
def test_two_percent_above_muon_is_the_limit(tmp_path: Path) -> None:
    records(tmp_path / "convergence.csv", LOSSES)
    assert family.main(["--quick", "--report", "--output", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*.json")
    rows = {row["contender"]: row for row in json.loads(written.read_text())["rows"]}
    assert {name: row["within 2%"] for name, row in rows.items()} == {
        "muon": "yes",
        "normuon": "yes",
        "muon, 8-bit momentum": "no",
    }
    assert rows["normuon"]["change, %"] == "+1.8"
    assert rows["muon"]["final loss"] == "2.0000 (1.9000 to 2.1000)"
    # NorMuon adds a number for each neuron; codes of one byte and scales take the place of four bytes a weight.
    assert rows["muon"]["state bytes"] < rows["normuon"]["state bytes"] < 1.02 * rows["muon"]["state bytes"]
    assert rows["muon, 8-bit momentum"]["state bytes"] < 0.85 * rows["muon"]["state bytes"]
    assert all(row["ms"] > 0 for row in rows.values())


def test_without_runs_of_muon_there_is_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert family.main(["--quick", "--report", "--output", str(tmp_path)]) == 2
    assert "error: no runs of Muon with 20 steps" in capsys.readouterr().err
