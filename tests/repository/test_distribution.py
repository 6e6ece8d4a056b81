"""What is shipped: wheel and sdist in a clean environment, nothing else imported, no code run from what is read."""

import ast
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = {"jax", "numpy", "optax"}
NEEDED_BY_TESTS = [
    "README.md",
    "constraints.txt",
    ".ci/*",
    ".github/workflows/*.yml",
    "benchmarks/**/*.py",
    "docs/*.md",
    "examples/*.py",
    "notebooks/*.ipynb",
    "tests/**/*.py",
    "tests/golden/*",
    "tests/golden_states/*/*.json",
    "tests/real_models/*.json",
    "tests/unseen_models/*/*.json",
]
NOT_RUNTIME = {"chex", "equinox", "flax", "haiku", "hypothesis", "matplotlib", "orbax", "pytest", "torch", "tqdm"}


def run(*command: str | Path, folder: Path) -> str:
    """What a program prints that is started in ``folder``, with nothing of this environment on its path."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment["JAX_PLATFORMS"] = "cpu"
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def build(source: Path, kind: str, output: Path) -> Path:
    """The one file that the build backend makes of ``source``, in an isolated environment that pip fills."""
    run(sys.executable, "-m", "build", f"--{kind}", "--outdir", output, source, folder=output.parent)
    (built,) = output.iterdir()
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("build") / "wheel")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("build") / "sdist")


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one folder that the sdist unpacks to."""
    folder = tmp_path_factory.mktemp("build")
    with tarfile.open(sdist) as archive:
        # Python 3.11.4 brought the filter, which later versions want to be told.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder / "unpacked", **safely)
    (top,) = (folder / "unpacked").iterdir()
    return top


@pytest.mark.long
def test_the_wheel_holds_the_package_and_its_metadata(wheel: Path) -> None:
    files = contents(wheel)
    info = f"muon_optax-{PROJECT['version']}.dist-info"
    shipped = {name for name in files if not name.startswith(f"{info}/")}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "muon_optax").rglob("*.py")}
    assert shipped == here | {"muon_optax/py.typed"}
    assert f"{info}/licenses/LICENSE" in files
    metadata = Parser().parsestr(files[f"{info}/METADATA"].decode())
    assert metadata["Version"] == PROJECT["version"]
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert {re.match(r"[\w-]+", line)[0] for line in required} == RUNTIME


@pytest.mark.long
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_the_metadata_is_what_an_index_takes(kind: str, wheel: Path, sdist: Path, unpacked: Path) -> None:
    """The checks of an upload; of the names of classifiers the build backend takes care."""
    if kind == "wheel":
        name, version, *_ = parse_wheel_filename(wheel.name)
        (text,) = (data for name, data in contents(wheel).items() if name.endswith(".dist-info/METADATA"))
    else:
        name, version = parse_sdist_filename(sdist.name)
        text = (unpacked / "PKG-INFO").read_bytes()
    metadata = Metadata.from_email(text, validate=True)  # refuses unknown fields and wrong values
    assert (metadata.name, metadata.version) == ("muon_optax", version)
    assert name == canonicalize_name(metadata.name)
    assert str(metadata.requires_python) == PROJECT["requires-python"]
    assert metadata.summary == PROJECT["description"]
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text("utf-8")
    assert (metadata.license_expression, metadata.license_files) == ("Apache-2.0", ["LICENSE"])
    assert sorted(metadata.classifiers) == sorted(PROJECT["classifiers"])
    # An index refuses a requirement by address.
    assert all(requirement.url is None for requirement in metadata.requires_dist or [])


@pytest.mark.long
def test_the_sdist_holds_what_the_tests_need(unpacked: Path) -> None:
    assert unpacked.name == f"muon_optax-{PROJECT['version']}"
    present = {path.relative_to(unpacked) for path in unpacked.rglob("*")}
    for pattern in NEEDED_BY_TESTS:
        expected = {path.relative_to(ROOT) for path in ROOT.glob(pattern)}
        assert expected
        assert expected - present == set()
    # The build backend adds five files, and nothing that git ignores may come along.
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    allowed = {path.strip("/") for path in included["include"]}
    assert {path.parts[0] for path in present} == allowed | {".gitignore", "LICENSE", "PKG-INFO", "README.md"} | {
        "pyproject.toml"
    }
    ignored = ("__pycache__", "_build", ".pytest_cache", "runs", ".ipynb_checkpoints")
    assert [path for path in present if set(path.parts) & {*ignored} or path.match("docs/notebooks")] == []


@pytest.mark.long
def test_the_sdist_builds_the_same_wheel(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    rebuilt = build(unpacked, "wheel", tmp_path / "wheel")
    assert rebuilt.name == wheel.name
    assert contents(rebuilt) == contents(wheel)


TRAINING = f"""
import importlib.metadata, importlib.util, json, sys
from pathlib import Path
import jax, jax.numpy as jnp, optax
import muon_optax as mo

x = jax.random.normal(jax.random.key(0), (32, 16))
params = {{"dense": {{"kernel": 0.1 * jax.random.normal(jax.random.key(1), (16, 8)), "bias": jnp.zeros(8)}}}}
optimizer = mo.muon(5e-2)

def loss(params):
    return jnp.mean((x @ params["dense"]["kernel"] + params["dense"]["bias"] - x[:, :8]) ** 2)

@jax.jit
def step(params, state):
    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value

state, losses = optimizer.init(params), []
for _ in range(20):
    params, state, value = step(params, state)
    losses.append(float(value))
print(json.dumps({{
    "losses": losses,
    "file": mo.__file__,
    "typed": Path(mo.__file__).with_name("py.typed").exists(),
    "versions": [mo.__version__, importlib.metadata.version("muon_optax")],
    "prefix": sys.prefix,
    "present": [name for name in {sorted(NOT_RUNTIME)} if importlib.util.find_spec(name) or name in sys.modules],
    "labels": mo.label_params(params),
}}))
"""


@pytest.mark.long
def test_the_wheel_trains_where_only_its_dependencies_are_installed(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, folder=tmp_path)
    seen: dict[str, Any] = json.loads(run(python, "-W", "error", "-c", TRAINING, folder=tmp_path))
    assert seen["present"] == []
    assert Path(seen["prefix"]) == tmp_path / "venv"
    assert Path(seen["file"]).is_relative_to(tmp_path / "venv")
    assert seen["typed"]
    assert seen["versions"] == [PROJECT["version"]] * 2
    assert seen["labels"] == {"dense": {"kernel": "muon", "bias": "adamw"}}
    assert seen["losses"][-1] < 0.5 * seen["losses"][0]


IMPORT = """
import sys, json
import jax, numpy, optax
before = set(sys.modules)
import muon_optax
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_loads_nothing_but_the_package_on_top_of_its_dependencies() -> None:
    loaded = json.loads(run(sys.executable, "-c", IMPORT, folder=ROOT))
    assert "muon_optax._muon" in loaded
    assert {name.split(".")[0] for name in loaded} <= RUNTIME | {"muon_optax"} | sys.stdlib_module_names


# pyproject.toml has ruff look for modules and functions that turn data into code. These read files, or are not found.
FILES = {"fromfile", "genfromtxt", "load", "loadtxt", "memmap", "open", "read_bytes", "read_text"}
BUILT_IN = {"__import__", "compile"}


def test_the_package_reads_no_file() -> None:
    nodes = [node for file in ROOT.glob("muon_optax/**/*.py") for node in ast.walk(ast.parse(file.read_text()))]
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert "jnp.matmul" in called
    assert called & BUILT_IN == set()
    assert {name.split(".")[-1] for name in called} & FILES == set()


def test_checkers_and_the_build_backend_are_pinned() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = [*PROJECT["optional-dependencies"]["dev"], *pyproject["build-system"]["requires"]]
    assert len(pinned) >= 3
    for requirement in pinned:
        assert re.fullmatch(r"[\w\[\]-]+==[\d.]+", requirement), requirement


def constraints_for(python: str) -> dict[str, str]:
    """The versions in constraints.txt for a Python, by the package's name in lower case with dashes."""
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line.partition("#")[0].strip() or "none==0")
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            found[canonicalize_name(requirement.name)] = str(requirement.specifier)
    return found


@pytest.mark.parametrize("python, jax", [("3.11", "==0.10."), ("3.12", "==0.10."), ("3.13", "==0.1")])
def test_the_constraints_hold_every_dependency_of_every_extra(python: str, jax: str) -> None:
    named = [*PROJECT["dependencies"], *itertools.chain(*PROJECT["optional-dependencies"].values())]
    found = constraints_for(python)
    assert {canonicalize_name(Requirement(text).name) for text in named} <= found.keys()
    assert found["jax"].startswith(jax)
    assert found["jax"] == found["jaxlib"]


def test_both_commands_of_the_readme_use_the_constraints() -> None:
    commands = re.findall(r"^pip install -e .*&&.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(commands) == 2
    assert all(" -c constraints.txt && " in command for command in commands)


def test_the_workflows_may_only_read_and_pin_what_they_use() -> None:
    files = list(ROOT.glob(".github/workflows/*.yml"))
    assert files
    for file in files:
        text = file.read_text()
        assert re.findall(r"^ *permissions:\n((?: +\S.*\n)+)", text, re.MULTILINE) == ["  contents: read\n"]
        assert "secrets." not in text
        assert text.count("persist-credentials: false") == text.count("actions/checkout@") == 1
        used = re.findall(r"uses: (.+)", text)
        assert used
        for action in used:
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", action), action
