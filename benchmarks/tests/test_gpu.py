"""gpu.py, tpu.py and step_parts.py: they run with --quick, keep to their time, and survive a lack of memory."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks.accelerators import tpu
from benchmarks.accelerators._budget import Budget, Contender, measured_cases
from benchmarks.shared.report import Report
from benchmarks.shared.ways_to_run import Case, propose_limits
from benchmarks.tests.running import script
from muon_optax._orthogonalizers.batching import _Limits


def run(name: str, output: Path) -> dict[str, Any]:
    command = [sys.executable, str(script(name)), "--quick", "--output", str(output)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    (written,) = output.glob("*.json")
    return json.loads(written.read_text())


@pytest.mark.slow
def test_gpu_writes_its_tables(tmp_path: Path) -> None:
    report = run("gpu", tmp_path)
    assert report["left_out"] == []
    sections = {row["section"] for row in report["rows"]}
    assert sections == {"grouping", "orthogonalization", "updates", "step share"}
    assert all(row["result"] == "ok" and row["ms"] > 0 for row in report["rows"])
    shares = {row["contender"]: row["share"] for row in report["rows"] if row["section"] == "step share"}
    assert shares.keys() == {"forward and backward", "muon_optax.muon", "optax.adamw"}
    assert shares["forward and backward"] == 0 < shares["muon_optax.muon"] < 1
    assert "_Limits(matrix=" in report["notes"][-1]


@pytest.mark.slow
def test_step_parts_writes_its_table(tmp_path: Path) -> None:
    rows = run("step_parts", tmp_path)["rows"]
    whole = rows.pop()
    assert [row["part"] for row in rows] == ["momentum", "orthogonalization", "scale", "decay", "rate", "apply"]
    assert (whole["part"], whole["of the whole"]) == ("whole update", 1)
    assert sum(row["of the parts"] for row in rows) == pytest.approx(1)


@pytest.mark.slow
def test_tpu_writes_its_tables_on_any_device(tmp_path: Path) -> None:
    report = run("tpu", tmp_path)
    assert report["left_out"] == []
    assert all(row["result"] == "ok" and row["ms"] > 0 for row in report["rows"])
    assert {row["section"] for row in report["rows"]} == {"orthogonalization", "updates"}
    compared = [row for row in report["rows"] if row["section"] == "orthogonalization"]
    cases = {"16 x 64, KELLER", "16 x 64, four steps", "24 x 16, KELLER", "24 x 16, four steps"}
    assert {row["case"] for row in compared if row.get("difference") == 0} == cases  # both are XLA's here
    updated = {row["contender"] for row in report["rows"] if row["section"] == "updates"}
    assert {'muon, products="xla"', 'muon, products="symmetric"', "optax.contrib.muon", "optax.adamw"} < updated


def test_tpu_says_that_it_needs_a_tpu(tmp_path: Path) -> None:
    command = [sys.executable, str(script("tpu")), "--output", str(tmp_path)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr.startswith("tpu.py needs a TPU, and JAX has cpu.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_a_wrong_block_of_a_product_is_found(wrong: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def by_either(four_steps: bool) -> dict[str, Any]:
        del four_steps
        return {tpu.XLA: lambda matrix: matrix, tpu.SYMMETRIC: lambda matrix: matrix.at[2:4, 5:9].multiply(1 + wrong)}

    monkeypatch.setattr(tpu, "orthogonalizers", by_either)
    report = Report("trial", "cpu", [])
    different = tpu.orthogonalization(Budget(report, tmp_path, 60, {"orthogonalization": 1}), [(8, 16)], 2)
    assert different == ["8 x 16, KELLER", "8 x 16, four steps"]
    results = {row["contender"]: row["result"] for row in report.rows}
    assert results == {tpu.XLA: "ok", tpu.SYMMETRIC: "differs", tpu.OPTAX: "ok"}


def failing(message: str, kind: type[Exception] = jax.errors.JaxRuntimeError) -> Any:
    def prepare() -> Contender:
        raise kind(message)

    return prepare


def adding() -> Contender:
    return Contender(lambda: jnp.ones(3) + 1, {"compile s": 0.5})


def test_a_lack_of_memory_is_a_row_and_the_others_are_timed(tmp_path: Path) -> None:
    report = Report("trial", "cpu", [])
    budget = Budget(report, tmp_path, 60, {"one": 1})
    contenders = {"large": failing("RESOURCE_EXHAUSTED: 99 GB"), "small": adding, "broken": failing("INTERNAL: a | b")}
    contenders["unwritten"] = failing("", NotImplementedError)
    large, small, broken, unwritten = budget.compare("one", "case", contenders, "small", 2)
    assert (large["result"], large["ms"]) == ("out of memory", None)
    assert (small["result"], small["ratio"], small["compile s"]) == ("ok", 1, 0.5)
    assert (broken["result"], unwritten["result"], budget.failures) == ("INTERNAL: a / b", "NotImplementedError", 2)
    (written,) = tmp_path.glob("*.json")
    assert len(json.loads(written.read_text())["rows"]) == 4


def test_what_does_not_fit_is_said_and_the_next_section_has_its_time(tmp_path: Path) -> None:
    report = Report("trial", "cpu", [])
    budget = Budget(report, tmp_path, 60, {"first": 0, "second": 1})
    assert budget.compare("first", "case", {"small": adding}, "small", 2) == []
    assert report.left_out == ["first, case: the section's time was spent"]
    assert len(budget.compare("second", "case", {"small": adding}, "small", 2)) == 1


def test_a_later_run_measures_what_an_earlier_one_left_out(tmp_path: Path) -> None:
    earlier = Report("trial", "cpu", [])
    budget = Budget(earlier, tmp_path, 60, {"one": 1})
    budget.compare("one", "1 x 2", {"small": adding}, "small", 2)
    budget.compare("one", "1 x 3", {"small": adding}, "small", 2)
    earlier.left_out.append("one, 1 x 3, large: the section's time was spent")
    known = measured_cases(earlier.write(tmp_path).with_suffix(".json"))
    assert known == {("one", "1 x 2")}
    report = Report("trial", "cpu", [])
    later = Budget(report, tmp_path, 60, {"one": 1}, known)
    assert later.compare("one", "1 x 2", {"small": adding}, "small", 2) == []
    assert len(later.compare("one", "1 x 3", {"small": adding}, "small", 2)) == 1
    assert report.left_out == ["one, 1 x 2: an earlier run has it"]


def test_limits_end_where_a_batch_stops_to_pay() -> None:
    ratios = {
        Case(32, 64, 64): {"one batch": 0.2, "loop": 1.0},
        Case(24, 512, 512): {"one batch": 0.8, "loop": 1.2},
        Case(16, 1024, 1024): {"one batch": 1.1, "loop": 1.3},
        Case(8, 2048, 2048): {"one batch": 0.9, "loop": 1.0},
    }
    present = _Limits(matrix=7, batch=7, batches=7, written_out=4)
    assert propose_limits(ratios, present) == (512**2, 24 * 512**2, 7, 16)
    assert propose_limits({Case(4, 8, 8): {"loop": 1.0}}, present) is None
