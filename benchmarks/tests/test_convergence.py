"""convergence.py: it resumes, its figures are those of its file, and steps to a loss are read off right."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from _curves import best, by_settings, reached, steps_to, target
from _grid import Run
from _records import COLUMNS, Record, append, read

FOLDER = Path(__file__).parents[1]
RUN = Run("1M", "adamw", 3e-3, 3e-3, 0.1, 0.95, 100, 0)


def quick(output: Path) -> dict:
    command = [sys.executable, str(FOLDER / "convergence.py"), "--quick", "--output", str(output)]
    environment = os.environ | {"PYTHONPATH": str(FOLDER.parent), "JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    (written,) = output.glob("*.json")
    return json.loads(written.read_text())


@pytest.mark.slow
def test_a_finished_grid_is_not_run_again_and_the_report_is_that_of_the_file(tmp_path: Path) -> None:
    report = quick(tmp_path)
    path = tmp_path / "convergence.csv"
    written = path.read_bytes()
    # A run that was lost is made again, alone.
    path.write_bytes(b"".join(written.splitlines(keepends=True)[:-1]))
    assert quick(tmp_path)["rows"] == report["rows"]
    without_times = [
        [{name: line[name] for name in (*Run._fields, "final_loss", "curve")} for line in csv.DictReader(text)]
        for text in (written.decode().splitlines(), path.read_text().splitlines())
    ]
    assert without_times[0] == without_times[1]
    groups = by_settings(read(path))
    full = [group for group in groups if group.run.steps == max(one.run.steps for one in groups)]
    shown = {row["contender"]: row["final loss"] for row in report["rows"] if "its best settings" in row["table"]}
    assert shown == {kind: group.final.text(4) for (_, kind), group in best(full).items()}
    assert all(group.final.count == 3 for group in best(full).values())
    assert {image.name for image in tmp_path.glob("*.png")} >= {"convergence_curves.png", "convergence_rates.png"}


CURVE = {0: 4.0, 10: 3.0, 20: 3.2, 40: 2.0}


@pytest.mark.parametrize("loss, steps", [(5.0, 0), (3.5, 5), (3.0, 10), (2.6, 30), (2.0, 40), (1.9, None)])
def test_steps_to_a_loss_lie_straight_between_measurements(loss: float, steps: float | None) -> None:
    assert steps_to(CURVE, loss) == (steps if steps is None else pytest.approx(steps))


def record(run: Run, final: float) -> Record:
    return Record(run, {0: 5.0, run.steps: final}, {"final_loss": str(final)})


def test_the_baseline_is_its_best_setting_with_all_seeds() -> None:
    finals = {**{RUN._replace(seed=seed): 2.0 + seed / 10 for seed in range(3)}, RUN._replace(rate=1e-2): 1.0}
    muon = {RUN._replace(contender="muon", seed=seed): 1.0 for seed in range(3)}
    groups = by_settings({run: record(run, final) for run, final in (finals | muon).items()})
    # One seed of a better rate does not count before it has the others.
    assert target(groups, "1M", 100) == pytest.approx(2.1)
    contender = best(groups)["1M", "muon"]
    spread = reached(contender, 2.1)
    assert spread is not None
    assert (spread.mean, spread.count) == (pytest.approx(100 * 2.9 / 4), 3)
    assert reached(contender, 0.5) is None


def test_a_line_that_a_killed_process_left_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "convergence.csv"
    measured = {"seconds_a_step": "1", "cpu_seconds_a_step": "1", "final_loss": "2", "curve": "0:5.0 100:2.0"}
    environment = dict.fromkeys(set(COLUMNS) - set(Run._fields) - set(measured), "x")
    append(path, RUN, measured, environment)
    with path.open("a") as file:
        file.write("1M,adamw,0.00")
    assert list(read(path)) == [RUN]
    other = RUN._replace(seed=1)
    append(path, other, measured, environment)
    assert list(read(path)) == [RUN, other]
    assert read(path)[other].curve == {0: 5.0, 100: 2.0}
