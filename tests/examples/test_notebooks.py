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
MOST_LINES = {"why_orthogonalize": 80}  # of code, all cells together; 120 for the others
NUMBER = r"-?(?:\d+\.\d+|nan|inf)"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def execute(notebook: nbformat.NotebookNode, root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs it in `folder`, with the examples beside the notebooks as in a clone; raises what a cell raises."""
    shutil.copytree(ROOT / "examples", root / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    folder.mkdir(exist_ok=True)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # or pictures would not be shown in the notebook
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()


def numbers(pattern: str, text: str) -> np.ndarray:
    """The groups of each match as floats, one row a match."""
    return np.array([list(map(float, groups)) for groups in re.findall(pattern.replace("#", f"({NUMBER})"), text)])


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
    pictures = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(pictures) == 4


def check_compose_your_own_muon(notebook: nbformat.NotebookNode) -> None:
    runs = numbers("loss #   state #", printed(notebook))
    assert runs.shape == (4, 2)
    losses, states = runs.T  # of AdamW and of the three recipes
    assert losses.max() < 0.5 * np.log(256)  # of guessing
    # AdamW keeps two numbers a parameter; the matrices one, NorMuon's neurons one more, and 8 bits a quarter.
    np.testing.assert_allclose(states, [2, 1.28, 1.28, 0.74], atol=0.015)
    assert len([output for output in outputs(notebook) if "image/png" in output.get("data", {})]) == 1


CHECKS = {"compose_your_own_muon": check_compose_your_own_muon, "why_orthogonalize": check_why_orthogonalize}


def test_every_notebook_has_a_check_of_its_numbers() -> None:
    assert [path.stem for path in NOTEBOOKS] == sorted(CHECKS)


@each_notebook
def test_stored_notebook_is_short_and_holds_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    lines = [line for cell in code_cells(notebook) for line in cell.source.splitlines()]
    assert len([line for line in lines if line.strip()]) < MOST_LINES.get(path.stem, 120)
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
def test_first_cell_runs_from_the_root_too(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = code_cells(notebook)[:1]
    execute(notebook, tmp_path, tmp_path, monkeypatch)
    assert notebook.cells[0].execution_count == 1
