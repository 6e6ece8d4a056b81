"""The benchmarks: each runs with --quick and writes what it promises, and the TPU estimate is summed rightly."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hostile.table import ROWS

from benchmarks.shared.hlo import count_lines, estimated_cycles, executed
from benchmarks.shared.measure import count_products, summarize_times, time_interleaved
from benchmarks.shared.report import Progress, Report, within
from benchmarks.tests.running import ROOT, run, script
from benchmarks.training import weight_growth

COSTS = {"products", "product GFLOP", "XLA GFLOP", "temporary MB", "XLA lines", "trace s", "compile s"}
TIMES = {"ms", "ratio to optax"}
ERRORS = {"error (polar)", "error (float64)"}


@pytest.mark.slow
def test_orthogonalize_writes_its_table(tmp_path: Path) -> None:
    rows = run("orthogonalize", tmp_path, "--quick")["rows"]
    assert rows[0].keys() == {"shape", "dtype", "coefficients", "program"} | TIMES | ERRORS | COSTS
    programs = {"muon_optax gram", "muon_optax direct", "muon_optax auto", "optax.contrib"}
    assert {(row["dtype"], row["program"]) for row in rows} == {
        (dtype, program) for dtype in ("float32", "bfloat16") for program in programs
    }
    # In float32 everyone runs the same polynomial; what remains is rounding, which the Gram method amplifies.
    assert all(row["error (float64)"] < 1e-3 for row in rows if row["dtype"] == "float32")
    assert all(0.2 < row["error (polar)"] < 0.4 for row in rows)
    assert all(row["ratio to optax"] == 1 for row in rows if row["program"] == "optax.contrib")


@pytest.mark.slow
def test_optimizer_step_writes_its_table(tmp_path: Path) -> None:
    rows = run("optimizer_step", tmp_path, "--quick")["rows"]
    assert rows[0].keys() == {"case", "optimizer", "state MB"} | TIMES | COSTS
    by_name = {row["optimizer"]: row for row in rows if row["case"] == "1 layer of d=16"}
    muon, optax_muon, adamw = (by_name[name] for name in ("muon_optax.muon", "optax.contrib.muon", "optax.adamw"))
    # Six matrices of 12 * 16 ** 2 elements: one momentum for Muon and two for AdamW; besides, scalars.
    assert muon["state MB"] == pytest.approx(12 * 16**2 * 4e-6, rel=1e-2)
    assert adamw["state MB"] == pytest.approx(2 * muon["state MB"], rel=1e-2)
    assert optax_muon["products"] == 6 * 15
    assert muon["product GFLOP"] == pytest.approx(optax_muon["product GFLOP"])
    assert adamw["products"] == 0


@pytest.mark.slow
def test_grouping_writes_its_table(tmp_path: Path) -> None:
    rows = run("grouping", tmp_path, "--quick")["rows"]
    costs = {"temporary MB", "XLA lines", "compile s", "compile CPU s"}
    assert rows[0].keys() == {"group", "run", "ms", "ratio"} | costs
    six = {row["run"]: row for row in rows if row["group"] == "6 of 16 x 16"}
    assert six.keys() == {"one by one", "loop", "one batch", "as muon_optax"}
    assert six["one by one"]["ratio"] == 1
    # Six times the program, but for the sums around it; a batch's is that of one matrix and its way in and out.
    assert six["one by one"]["XLA lines"] > 3 * six["one batch"]["XLA lines"]
    assert six["as muon_optax"]["XLA lines"] == six["one batch"]["XLA lines"]


@pytest.mark.slow
def test_import_time_names_the_programs_and_every_file(tmp_path: Path) -> None:
    rows = run("import_time", tmp_path, "--quick")["rows"]
    assert [row["program"] for row in rows if row["table"] == "programs"] == [
        "import optax",
        "import optax, muon_optax",
        "import muon_optax, after import optax",
    ]
    assert all(0 < row["least ms"] <= row["ms"] <= row["most ms"] for row in rows if row["table"] == "programs")
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "muon_optax").rglob("*.py")]
    modules = {".".join(file.parts).removesuffix(".__init__") for file in files}
    # An integration, and what only it imports, is imported on request; so are the kernels, which import Pallas, and the
    # command.
    modules = {module for module in modules if not module.startswith("muon_optax._orthogonalizers.kernels")}
    assert {row["module"] for row in rows[3:]} == modules - {
        "muon_optax.__main__",
        "muon_optax.flax",
        "muon_optax.keras",
        "muon_optax.plots",
        "muon_optax._layouts.assigning.last_layers",
        "muon_optax._layouts.assigning.told_by_layers",
    }


@pytest.mark.slow
def test_clip_qk_compares_three_steps(tmp_path: Path) -> None:
    rows = run("clip_qk_cost", tmp_path, "--quick")["rows"]
    assert [row["optimizer"] for row in rows] == ["muon", "muon, maxima returned", "muon, maxima returned, clip_qk"]
    assert all(row["ms"] > 0 for row in rows)
    assert rows[0]["ratio"] == 1


@pytest.mark.slow
def test_step_share_gives_the_formula_beside_the_time(tmp_path: Path) -> None:
    (row,) = run("step_share", tmp_path, "--quick")["rows"]
    assert row["T m / B, %"] == pytest.approx(100 * 5 * 16 / row["tokens a batch"], abs=0.06)
    assert row["Muon, ms"] > 0


@pytest.mark.slow
def test_layout_rules_times_both_steps(tmp_path: Path) -> None:
    (row,) = run("layout_rules", tmp_path, "--quick")["rows"]
    assert row["checkout"] == "here"
    assert all(seconds > 0 for name, seconds in row.items() if name.endswith(", s"))
    assert len(row) == 4


def test_hostile_inputs_writes_its_table(tmp_path: Path) -> None:
    rows = run("hostile_inputs", tmp_path, "--quick")["rows"]
    counts = {row["outcome"]: row for row in rows if row["topic"] == "Totals"}
    inputs = [row for row in rows if row["topic"] != "Totals"]
    assert [row["input"] for row in inputs] == [row.name for row in ROWS[::10] if not row.slow]
    for library in ("muon_optax.muon", "optax.contrib.muon"):
        assert sum(row[library] for row in counts.values()) == len(inputs)
        assert counts["works"][library] == sum(row[library] == "works" for row in inputs)
    assert all(row["muon_optax.muon"] in ("works", "clear error") for row in inputs)


@pytest.mark.slow
def test_the_plot_and_its_table_are_written(tmp_path: Path) -> None:
    weight_growth.main(["--quick", "--output", str(tmp_path)])
    (written,) = tmp_path.glob("*.json")
    rows = json.loads(written.read_text())["rows"]
    columns = ("optimizer", "weights", "decay")
    assert [tuple(row[column] for column in columns) for row in rows] == list(weight_growth.CASES)
    assert all(row["RMS at last"] > row["RMS at first"] for row in rows)
    assert (tmp_path / "weight_growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is in pip install "jax[tpu]"')
def test_tpu_compile_writes_its_table(tmp_path: Path) -> None:
    rows = run("tpu_compile", tmp_path, "--quick")["rows"]
    assert rows[0].keys() == {"case", "optimizer", "cycles", "ratio to optax", "compile CPU s", "state MB"} | COSTS
    cycles = {row["optimizer"]: row["cycles"] for row in rows}
    assert 0 < cycles["optax.adamw"] < min(cycles["optax.contrib.muon"], cycles["muon_optax.muon"])


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_tpu_compile_says_how_to_get_the_compiler(tmp_path: Path) -> None:
    command = [sys.executable, str(script("tpu_compile")), "--quick", "--output", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 1
    assert 'pip install "jax[tpu]"' in finished.stderr
    assert "Traceback" not in finished.stderr


HLO = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,8]{1,0})->f32[8,8]{1,0}}

FileNames
1 "step.py"

%inside (x: f32[8,8]) -> f32[8,8] {
  ROOT %product = f32[8,8]{1,0} multiply(%x, %x), backend_config={"window_config":{"estimated_cycles":"1000000"}}
}

%inner_body (state.1: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %fusion.1 = f32[8,8]{1,0} fusion(%state.1), calls=%inside, backend_config={"window_config":{"estimated_cycles":"7"}}
}

%inner_condition (state.2: (s32[], f32[8,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %less = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body (state.3: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %fusion.2 = f32[8,8]{1,0} fusion(%state.3), calls=%inside, backend_config={"window_config":{"estimated_cycles":"100"}}
  %while.1 = (s32[], f32[8,8]) while(%fusion.2), condition=%inner_condition, body=%inner_body
}

%condition (state.4: (s32[], f32[8,8])) -> pred[] {
  ROOT %less.1 = pred[]{:T(512)} compare(%counter.1, %limit.1), direction=LT
}

%called (x.1: f32[8,8]) -> f32[8,8] {
  ROOT %copy = f32[8,8]{1,0} copy(%x.1), backend_config={"window_config":{"estimated_cycles":"20000"}}
}

ENTRY %main (x.2: f32[8,8]) -> f32[8,8] {
  %x.2 = f32[8,8]{1,0} parameter(0)
  %while.2 = (s32[], f32[8,8]) while(%x.2), condition=%condition, body=%body, backend_config={TRIPS}
  ROOT %call = f32[8,8]{1,0} call(%while.2), to_apply=%called
}
"""
KNOWN = HLO.replace("TRIPS", '"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}')


def test_cycles_are_summed_over_loops_by_their_trip_counts() -> None:
    """Five times 100 and the inner loop, three times 7; the call once; what is inside a fusion never."""
    assert estimated_cycles(KNOWN) == 5 * (100 + 3 * 7) + 20000


def test_executed_says_how_often_each_instruction_runs() -> None:
    times = {line.split()[line.split().index("=") - 1]: count for line, count in executed(KNOWN)}
    assert times == {"%x.2": 1, "%while.2": 1, "%fusion.2": 5, "%while.1": 5, "%fusion.1": 15, "%call": 1, "%copy": 1}


def test_a_loop_without_a_trip_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trip count of this loop is not known: %while\.2"):
        estimated_cycles(HLO.replace("TRIPS", ""))


def test_text_without_a_program_is_refused() -> None:
    with pytest.raises(ValueError, match="no ENTRY computation"):
        estimated_cycles("HloModule jit_step")


def test_lines_are_those_of_computations() -> None:
    """Eleven instructions, and two lines around each of seven computations; neither tables nor blank lines."""
    assert count_lines(KNOWN) == 11 + 2 * 7


def test_products_in_loops_count_as_often_as_they_run() -> None:
    def five_products(X: jax.Array) -> jax.Array:
        X = jax.lax.fori_loop(0, 3, lambda _, X: X @ X, X)
        X = jax.lax.cond(X[0, 0] > 0, lambda X: X, lambda X: X @ X, X)
        return jax.lax.platform_dependent(X, tpu=lambda X: X @ X @ X, default=lambda X: X @ X)

    jaxpr = jax.make_jaxpr(five_products)(jnp.ones((4, 4)))
    assert count_products(jaxpr, "cpu") == (5 * 4**3, 5)
    assert count_products(jaxpr, "tpu") == (6 * 4**3, 6)


def test_every_round_runs_everyone() -> None:
    calls, labels = {"a": 0, "b": 0}, []

    def counting(name: str) -> Any:
        def function() -> None:
            calls[name] += 1

        return function

    times = time_interleaved({name: counting(name) for name in calls}, 4, labels.append)
    assert labels == ["round 1", "round 2", "round 3", "round 4"]
    assert {name: len(measured) for name, measured in times.items()} == {"a": 4, "b": 4}
    assert min(calls.values()) >= 2 + 4


def test_ratios_are_of_the_same_round() -> None:
    """A disturbance that hits both in a round leaves no trace in the ratio."""
    assert summarize_times([2.0, 2.0, 20.0, 30.0], [1.0, 1.0, 10.0, 10.0]) == {"ms": 11.0, "ratio to optax": 2.0}


def test_a_report_shows_unknown_figures_and_groups_its_rows(tmp_path: Path) -> None:
    rows = [{"shape": shape, "program": "a", "ms": 1234.5, "XLA GFLOP": None} for shape in ("2 x 2", "3 x 3")]
    report = Report("trial", "Some (TM) device", ["A note."], rows, left_out=["9 x 9: too large"], date="2026-01-02")
    table = report.write(tmp_path)
    assert table.name == "some-tm-device-trial-2026-01-02.md"
    assert table.read_text().endswith(
        "- A note.\n- Left out: 9 x 9: too large\n\n"
        "## 2 x 2\n\n| program | ms | XLA GFLOP |\n| --- | ---: | ---: |\n| a | 1,234 | - |\n\n"
        "## 3 x 3\n\n| program | ms | XLA GFLOP |\n| --- | ---: | ---: |\n| a | 1,234 | - |\n"
    )
    assert json.loads(table.with_suffix(".json").read_text())["rows"] == rows


def test_progress_without_tqdm_prints_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with Progress(2, "trial") as step:
        step("one")
        step("two")
    assert capsys.readouterr().err == "trial 1/2: one\ntrial 2/2: two\n"


def test_what_is_too_large_is_left_out_and_said() -> None:
    fitting, left_out = within({"small": 1.0, "large": 50.0}, 30)
    assert fitting == ["small"]
    assert left_out == ["large: 50 GFLOP a run are more than this run's --max-gflop 30"]
    assert within({"large": 50.0}, None) == (["large"], [])
