"""A benchmark in a process of its own, and what it wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
ROOT = FOLDER.parent
ENVIRONMENT = {"name", "device", "notes", "rows", "left_out", "versions", "machine", "command", "date"}


def script(name: str) -> Path:
    """The benchmark of this name, in the folder of what it measures."""
    (found,) = FOLDER.glob(f"*/{name}.py")
    return found


def run(name: str, output: Path, *arguments: str) -> dict[str, Any]:
    """The JSON file of a run in a process of its own: there compilation is fresh and JAX has one device."""
    command = [sys.executable, str(script(name)), *arguments, "--output", str(output)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(command, env=environment, cwd=output, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    (written,) = output.glob("*.json")
    table = written.with_suffix(".md").read_text()
    assert table in finished.stdout
    report = json.loads(written.read_text())
    assert report.keys() == ENVIRONMENT
    assert written.stem == f"{report['device'].lower().replace(' ', '-')}-{name}-{report['date']}"
    assert {"python", "jax", "jaxlib", "optax", "muon_optax"} <= report["versions"].keys()
    assert f"{script(name).relative_to(ROOT)} {arguments[0]}" in report["command"]
    assert report["command"] in table
    return report
