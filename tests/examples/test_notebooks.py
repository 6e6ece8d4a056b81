"""Every notebook is short, stored with its outputs, and runs; what it prints is what its text says."""

import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from places import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MOST_LINES = 120  # of code, all cells together
STATE_BYTES = r"parameters, (\S+) bytes of optimizer state", r"the whole state: (\S+) bytes"
NUMBER = r"-?(?:\d+\.\d+|nan|inf)"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def execute(notebook: nbformat.NotebookNode, root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs it in `folder`, with the examples beside the notebooks as in a clone; raises what a cell raises."""
    shutil.copytree(ROOT / "examples", root / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    folder.mkdir(exist_ok=True)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # or pictures would not be shown in the notebook
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()


def numbers(pattern: str, text: str) -> np.ndarray:
    """The groups of each match as floats, one row a match."""
    matches = re.finditer(pattern.replace("#", f"({NUMBER})"), text)
    return np.array([list(map(float, match.groups())) for match in matches])


def check_why_orthogonalize(notebook: nbformat.NotebookNode) -> None:
    text = printed(notebook)
    ((loss, chance),) = numbers(r"loss after 60 steps: # nats a byte \(guessing: #\)", text)
    assert loss < 0.7 * chance
    momentum = numbers(r"/kernel +\(\d+, \d+\) +# +# +(\d+)%", text)
    assert momentum.shape == (12, 3)
    largest, stable_rank, first_eight = momentum.T
    assert largest.min() > 0.3
    assert stable_rank.max() < 12  # of 128; noise has about 32
    assert first_eight.min() > 50
    promised = numbers(r"promised \[#, #\], measured \[#, #\]", text)
    assert promised[:, :2].tolist() == [[0.471, 1.202], [0.475, 1.145], [0.856, 1.144], [1.0, 1.0]]
    # Four bfloat16 roundings: what the products are off by, on top of the polynomial's own range.
    assert (promised[:, 2] > promised[:, 0] - 4 * 2**-8).all()
    assert (promised[:, 3] < promised[:, 1] + 4 * 2**-8).all()
    rows = numbers(r"(?m)^\S+ +# +# +#$", text.partition("medians")[2])
    raw, adamw, keller, you_jiacheng, polar_express, exact = rows  # cosine, distance, RMS
    assert max(raw[0], adamw[0]) < 0.6
    assert min(keller[0], you_jiacheng[0], polar_express[0]) > 0.9
    assert 1 > raw[1] > 0.9 > keller[1] > you_jiacheng[1] > polar_express[1] > exact[1] == 0
    np.testing.assert_allclose([keller[2], polar_express[2], exact[2]], 0.2, atol=0.04)
    assert raw[2] < adamw[2] / 10
    assert pictures(notebook) == 4


def check_compose_your_own_muon(notebook: nbformat.NotebookNode) -> None:
    runs = numbers("loss #   state #", printed(notebook))
    assert runs.shape == (4, 2)
    losses, states = runs.T  # of AdamW and of the three recipes
    assert losses.max() < 0.5 * np.log(256)  # of guessing
    # AdamW keeps two numbers a parameter; the matrices one, NorMuon's neurons one more, and 8 bits a quarter.
    np.testing.assert_allclose(states, [2, 1.28, 1.28, 0.74], atol=0.015)
    assert pictures(notebook) == 1


def check_many_devices(notebook: nbformat.NotebookNode) -> None:
    text = printed(notebook)
    assert "cpu:7" in text
    assert "cpu:8" not in text
    ((first, last),) = numbers("one device: loss # at first, # at last", text)
    assert last < 0.2 * first
    # Float32 sums in another order; what is wrong on a mesh is off by a percent and more.
    assert numbers("differs from one device by at most # of the loss", text).shape == (3, 1)
    assert numbers("differs from one device by at most # of the loss", text).max() < 1e-4
    assert "float32[64@data,256@model]" in text
    assert re.findall(r"busiest device, (.*) times an even share", text) == ["1.00", "1.00"]
    # All is spread but counters.
    held, whole = (int(found.replace(",", "")) for pattern in STATE_BYTES for found in re.findall(pattern, text))
    assert held == pytest.approx(whole / 8, rel=0.01)
    assert pictures(notebook) == 1


def check_diagnose_a_bad_run(notebook: nbformat.NotebookNode) -> None:
    text = printed(notebook)
    good, dead, without, high = numbers("last loss #", text)[:, 0]
    assert 20 * max(good, dead, without) < high  # the loss gives away one of three
    assert "Step 55. No leaf stands out." in text
    found = dict(re.findall(r"(?m)^(.*): (\d+) of 19 stand out$", text))
    assert found == {"good": "0", "dead layer": "3", "leaf without gradient": "1", "rate times ten": "12"}
    idle = re.findall(r"layers/(\S+) +idle +it gets no gradient", text)
    assert idle == ["3/down/kernel", "3/up/bias", "3/up/kernel", "2/down/kernel"]
    sizes = numbers(r"the update is (\d\S*) times as large as predicted", text)
    assert sizes.shape == (3, 1)
    assert sizes.min() > 5
    assert re.findall(r"(?m)^(\S+) at step (\d): ", text) == [("normalized", "5")]
    assert "holds 16 NaN and 0 infinite of 4096 elements, the first at index (200, 0)" in text
    assert "steps not taken: 1\n" in text
    values = numbers(r"step \d: loss #", text)[:, 0]
    assert np.flatnonzero(np.isnan(values)).tolist() == [5]
    assert values[-1] < 0.6 * values[0]
    assert pictures(notebook) == 2


def check_coefficients_and_precision(notebook: nbformat.NotebookNode) -> None:
    text = printed(notebook)
    rows = numbers(r"(?m)^\S+ +\d+ +\d+" + " +#" * 6 + "$", text)
    promised, single, half = rows[:, :2], rows[:, 2:4], rows[:, 4:]
    assert len(rows) == 5
    np.testing.assert_allclose(single, promised, atol=2e-3)
    np.testing.assert_allclose(half[:4], promised[:4], atol=0.03)
    assert 0.8 < half[4, 0] < 0.95 < promised[4, 0]  # ten steps: the floor of bfloat16
    products = numbers(r"(?m)^\S+ +(\d+) +(\d+) +\d\.", text)
    assert products.tolist() == [[5, 15], [5, 15], [5, 10], [5, 15], [10, 30]]
    after_ten = dict(re.findall(r"(\S+) +after ten steps: (\S+)", text))
    ((once, keller),) = numbers("rounded once: #; KELLER in bfloat16: #", text)
    assert float(after_ten["float32"]) < 1e-4 < once < float(after_ten["bfloat16"]) < 2 * once < keller
    given, other = np.split(numbers(r"(?m)^\S+ +# # +# #$", text), 2, axis=1)
    moved = np.abs(other / given - 1).max(axis=1)
    assert moved[2] > 0.3  # CUBIC's
    assert np.delete(moved, 2).max() < 0.025
    assert pictures(notebook) == 2


CHECKS = {
    "coefficients_and_precision": check_coefficients_and_precision,
    "compose_your_own_muon": check_compose_your_own_muon,
    "diagnose_a_bad_run": check_diagnose_a_bad_run,
    "many_devices": check_many_devices,
    "why_orthogonalize": check_why_orthogonalize,
}


def test_every_notebook_has_a_check_of_its_numbers() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(CHECKS)


@each_notebook
def test_stored_notebook_is_short_and_holds_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    lines = [line for cell in code_cells(notebook) for line in cell.source.splitlines()]
    assert len([line for line in lines if line.strip()]) < MOST_LINES
    assert path.stat().st_size < 400_000
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs(notebook) if output.output_type == "stream"} == {"stdout"}  # no warning
    assert str(ROOT) not in path.read_text(encoding="utf-8")
    CHECKS[path.stem](notebook)


@pytest.mark.notebook
@each_notebook
def test_notebook_runs_beside_the_examples(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []  # so that what is checked was made by this run
    execute(notebook, tmp_path, tmp_path / "notebooks", monkeypatch)
    CHECKS[path.stem](notebook)


@pytest.mark.notebook
@each_notebook
def test_first_cells_run_from_the_root_too(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = code_cells(notebook)[:2]  # what installs and what imports
    execute(notebook, tmp_path, tmp_path, monkeypatch)
    assert [cell.execution_count for cell in notebook.cells] == [1, 2]


def test_every_notebook_begins_with_the_same_cell_that_installs() -> None:
    first = {code_cells(nbformat.read(path, as_version=4))[0].source for path in NOTEBOOKS}
    assert len(first) == 1
    assert "%pip install" in first.pop()


# A kernel that finds nothing but Python's own modules and what lies beside the notebook, a pip that prints, and a
# traceback that needs no packages.
WITHOUT_PACKAGES = """
import sys, sysconfig
from IPython import get_ipython

sys.path = ["", sysconfig.get_paths()["stdlib"]]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
get_ipython().set_custom_exc((Exception,), lambda shell, kind, value, *_, **__: print(kind.__name__, value))
get_ipython().register_magic_function(lambda line: print("pip", line), magic_name="pip")
"""
CLONES = {"in its root": ".", "in notebooks": "..", "beside it": "muon_optax"}


def what_the_install_cell_does(folder: Path) -> list[nbformat.NotebookNode]:
    source = code_cells(nbformat.read(NOTEBOOKS[0], as_version=4))[0].source
    cells = [nbformat.v4.new_code_cell(text) for text in (WITHOUT_PACKAGES, source)]
    notebook, resources = nbformat.v4.new_notebook(cells=cells), {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", resources=resources, allow_errors=True).execute()
    return notebook.cells[1].outputs


@pytest.mark.notebook
@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES.keys())
def test_install_cell_takes_the_clone(clone: str, tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    package = folder / clone / "muon_optax"
    folder.mkdir()
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (output,) = what_the_install_cell_does(folder)
    assert output.text == f'pip install -q "{package.resolve().parent}[examples]"\n'


@pytest.mark.notebook
def test_install_cell_takes_the_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "muon_optax-0.1.0-py3-none-any.whl"
    wheel.touch()
    (output,) = what_the_install_cell_does(tmp_path)
    assert output.text == f'pip install -q "{wheel}[examples]"\n'


@pytest.mark.notebook
def test_install_cell_asks_for_one_of_the_two(tmp_path: Path) -> None:
    (output,) = what_the_install_cell_does(tmp_path)
    assert output.text.startswith("FileNotFoundError Put a clone of muon_optax or its wheel beside this notebook")
