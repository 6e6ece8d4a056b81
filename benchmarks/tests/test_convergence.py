"""The convergence benchmark: it resumes, its report says what its file says, and its arithmetic is right."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from statistics import mean

import jax.numpy as jnp
import optax
import pytest
from conftest import IN_ONE_MODULE

from benchmarks.tests.one_run import ENVIRONMENT, MEASURED, RUN
from benchmarks.training import convergence
from benchmarks.training._curves import by_settings, spread, steps_to
from benchmarks.training._digits import digits
from benchmarks.training._grid import Plan, forecast, missing
from benchmarks.training._records import append, read
from benchmarks.training._tables import comparison, rates
from benchmarks.training._training import schedule

KINDS = {"convergence": ["--workers=2"], "convergence_digits": ["--digits", "--workers=1"]}


def quick(path: Path, choice: Sequence[str]) -> list[dict[str, str]]:
    """The lines of the CSV after a quick run in a process of its own."""
    command = [sys.executable, convergence.__file__, "--quick", *choice, "--output", str(path.parent)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    if "--digits" in choice:
        environment |= {"XLA_FLAGS": IN_ONE_MODULE}  # the others leave convolutions twenty times as slow
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(path.parent / "compiled")}  # for the second run
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_quick_run_resumes_and_reports_what_its_file_says(tmp_path: Path) -> None:
    path = tmp_path / "convergence.csv"
    lines = quick(path, KINDS["convergence"])
    whole = path.read_text()
    path.write_text(whole[: whole.rstrip("\n").rindex("\n") + 20])  # as if killed within the last line
    again = quick(path, KINDS["convergence"])
    made = ("date", "seconds_a_step", "cpu_seconds_a_step")
    assert [line for line in again if line["final_loss"]][: len(lines) - 1] == lines[:-1]
    last = {key: value for key, value in lines[-1].items() if key not in made}
    assert last == {key: again[-1][key] for key in last}
    (written,) = tmp_path.glob("*.json")
    rows = json.loads(written.read_text())["rows"]
    (row,) = (row for row in rows if row.get("contender") == "adamw" and row.get("seeds") == 3)
    seeds = [
        float(line["final_loss"])
        for line in lines
        if (line["contender"], line["steps"], line["rate"]) == ("adamw", "20", str(float(row["rate"])))
        and (line["decay"], line["b2"]) == (row["decay"], row["b2"])
    ]
    assert row["final loss"] == f"{mean(seeds):.4f} ({min(seeds):.4f} to {max(seeds):.4f})"
    assert (tmp_path / "convergence_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_quick_run_on_digits_trains_both_optimizers(tmp_path: Path) -> None:
    lines = quick(tmp_path / "convergence_digits.csv", KINDS["convergence_digits"])
    assert {line["size"] for line in lines} == {"digits ConvNet"}
    assert {line["text"] for line in lines} == {digits().sha256[:12]}
    (written,) = tmp_path.glob("*.json")
    rows = json.loads(written.read_text())["rows"]
    tuned = {row.get("contender") for row in rows if row.get("seeds") == 3}
    assert {"adamw", "muon"} <= tuned
    assert (tmp_path / "convergence_digits_curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name, choice", KINDS.items(), ids=KINDS)
def test_runs_on_other_data_are_refused(
    name: str, choice: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append(tmp_path / f"{name}.csv", RUN, MEASURED, ENVIRONMENT)
    assert convergence.main(["--quick", *choice, "--output", str(tmp_path)]) == 2
    assert "the file holds runs on text x, here it is " in capsys.readouterr().err


def test_steps_to_a_loss_are_straight_between_measurements() -> None:
    curve = {0: 5.0, 10: 3.0, 20: 2.0}
    assert steps_to(curve, 2.5) == 15
    assert steps_to(curve, 3.0) == 10
    assert steps_to(curve, 6.0) == 0
    assert steps_to(curve, 1.9) is None


def test_seeds_give_mean_and_range(tmp_path: Path) -> None:
    for seed, loss in enumerate((2.0, 2.2, 2.7)):
        append(tmp_path / "a.csv", RUN._replace(seed=seed), MEASURED | {"final_loss": str(loss)}, ENVIRONMENT)
    (group,) = by_settings(read(tmp_path / "a.csv"))
    assert group.final == pytest.approx((2.3, 2.0, 2.7, 3))
    assert spread([2.0]).text(1) == "2.0"
    assert group.final.text(1) == "2.3 (2.0 to 2.7)"


def test_tables_name_rates_in_order_and_compare_with_the_best_baseline(tmp_path: Path) -> None:
    runs = {
        RUN: 1.0,
        RUN._replace(rate=0.03, adamw_rate=0.03): 1.2,
        RUN._replace(contender="adamw", rate=0.002, adamw_rate=0.002): 2.5,
        RUN._replace(contender="adamw, Nesterov", rate=0.002, adamw_rate=0.002): 2.25,
    }
    for run, loss in runs.items():
        curve = {"curve": f"0:5.0 10:3.0 20:{loss}", "final_loss": str(loss)}
        append(tmp_path / "a.csv", run, MEASURED | curve, ENVIRONMENT)
    groups = by_settings(read(tmp_path / "a.csv"))
    for row in rates(groups, 20):
        assert [name for name in row if name[0].isdigit()] == ["0.002", "0.01", "0.03"]
    (best,) = (row for row in comparison(groups, 20) if row["contender"] == "muon")
    assert best["part of its steps"] == "0.62"  # 12.5 of 20: from 3 to 1 in ten steps, and AdamW ends at 2.5
    assert best["part, AdamW with less momentum"] == "0.69"  # 13.75: it ends at 2.25


def test_an_unfinished_line_is_passed_over_and_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    append(path, RUN, MEASURED, ENVIRONMENT)
    with path.open("a") as file:
        file.write("tiny,muon,0.0")
    append(path, RUN._replace(seed=1), MEASURED, ENVIRONMENT)
    assert list(read(path)) == [RUN, RUN._replace(seed=1)]
    assert read(path)[RUN].curve == {0: 5.0, 10: 3.0, 20: 2.0}


def test_the_grid_goes_on_until_the_best_rate_lies_inside() -> None:
    """AdamW's best is put beyond the first range: the rates above it are asked for, and every best gets three seeds."""
    plan, finals = Plan.of(20)._replace(tiers=1), {}
    while absent := missing(plan, ("tiny",), finals):
        finals |= {run: inf if run.rate > 0.1 else abs(run.rate - 0.02) for run in absent}
    assert forecast(plan, ("tiny",), finals) == []
    for contender in ("adamw", "muon"):
        found = [run for run in finals if run.contender == contender and run.steps == 20]
        assert {run.rate for run in found} >= {0.015, 0.02, 0.03}
        assert {run.seed for run in found if run.rate == 0.02} == {0, 1, 2}
    assert {(run.decay, run.b2) for run in finals if run.contender == "adamw"} == {
        (decay, b2) for decay in (0.1, 0.3) for b2 in (0.95, 0.999)
    }


def test_the_schedule_is_the_main_jobs() -> None:
    rate, expected = schedule(3e-3, jnp.int32(60)), optax.warmup_cosine_decay_schedule(1e-3, 3e-3, 3, 60, 3e-4)
    for count in (0, 1, 3, 4, 30, 59):
        assert float(rate(count)) == pytest.approx(float(expected(count)), rel=1e-5)
