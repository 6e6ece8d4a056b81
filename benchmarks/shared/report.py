"""What every benchmark shares around its measurements: command line, environment, progress, result files."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import jax

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("jax", "jaxlib", "optax", "numpy")

Row = dict[str, Any]


@dataclass
class Report:
    """A benchmark's result: rows of one table for each value of their first column, and what they were made with."""

    name: str
    device: str
    notes: list[str]
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # cases not run, each with the reason
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = field(default_factory=lambda: f"{_processor()}, {os.cpu_count()} cores")
    command: str = field(default_factory=lambda: shlex.join(["python", *map(_relative, sys.argv)]))
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d"))

    def __post_init__(self) -> None:
        installed = {package: importlib.metadata.version(package) for package in PACKAGES}
        self.versions = {"python": platform.python_version(), **installed, "muon_optax": revision()} | self.versions

    def write(self, folder: Path) -> Path:
        """Writes ``<device>-<name>-<date>.json`` and the table as ``.md`` beside it, and returns the latter's path."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"{_slug(self.device)}-{self.name}-{self.date}"
        stem.with_suffix(".json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        stem.with_suffix(".md").write_text(self.markdown())
        return stem.with_suffix(".md")

    def markdown(self) -> str:
        """The environment, the notes and the tables."""
        versions = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        lines = [
            f"# {self.name} on {self.device}",
            "",
            f"- Date: {self.date}",
            f"- Command: `{self.command}`",
            f"- Versions: {versions}",
            f"- Machine: {self.machine}",
            *(f"- {note}" for note in self.notes),
            *(f"- Left out: {case}" for case in self.left_out),
        ]
        for heading in dict.fromkeys(next(iter(row.values())) for row in self.rows):
            rows = [dict(list(row.items())[1:]) for row in self.rows if next(iter(row.values())) == heading]
            lines += ["", f"## {heading}", "", *_table(rows)]
        return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    # Text is aligned to the left, numbers to the right; a figure that is not known is None or missing.
    rules = ["---" if any(isinstance(row.get(column), str) for row in rows) else "---:" for column in columns]
    cells = [columns, rules, *([_cell(row.get(column)) for column in columns] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _relative(argument: str) -> str:
    """An argument as it is typed at the root of the repository."""
    return argument.removeprefix(f"{ROOT}/")


def _processor() -> str:
    try:
        information = Path("/proc/cpuinfo").read_text()
    except OSError:
        information = ""
    named = re.search(r"^model name\s*:\s*(.+)$", information, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def revision() -> str:
    """The Git revision of the checkout, with "+changes" where the code differs from it; "unknown" without Git."""
    code = ("--", "muon_optax", "benchmarks", ":!benchmarks/results")
    head, changes = _git("rev-parse", "--short=12", "HEAD"), _git("status", "--porcelain", *code)
    return "unknown" if head is None else head + ("+changes" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()


def device_name() -> str:
    """What JAX runs on."""
    return jax.devices()[0].device_kind


def is_cpu() -> bool:
    """Whether JAX has no accelerator."""
    return jax.default_backend() == "cpu"


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with the options that all benchmarks have."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = options.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="tiny shapes, seconds: to see that it runs, for CI")
    size.add_argument("--full", action="store_true", help="all shapes, whatever they cost: for accelerators")
    options.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    return options


def finish(report: Report, folder: Path) -> None:
    """Writes the files and prints the table."""
    path = report.write(folder)
    print(report.markdown())
    print(f"written: {path} and {path.with_suffix('.json').name}")


class Progress:
    """A bar on stderr if tqdm is there, else a line a step: ``with Progress(9, "title") as step: step("one")``."""

    def __init__(self, total: int, title: str) -> None:
        self._total, self._title, self._done, self._bar = total, title, 0, None
        if importlib.util.find_spec("tqdm"):
            self._bar = importlib.import_module("tqdm").tqdm(total=total, desc=title, smoothing=0)

    def __enter__(self) -> "Progress":
        return self

    def __call__(self, label: str) -> None:
        """Says that the step ``label`` is done."""
        self._done += 1
        if self._bar is None:
            print(f"{self._title} {self._done}/{self._total}: {label}", file=sys.stderr, flush=True)
        else:
            self._bar.set_postfix_str(label, refresh=False)
            self._bar.update()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del kind, error, trace
        if self._bar is not None:
            self._bar.close()


def within(cases: Mapping[str, float], limit: float | None) -> tuple[list[str], list[str]]:
    """The cases of at most ``limit`` GFLOP, and for each of the others a line that says so."""
    fitting = [case for case, gflop in cases.items() if limit is None or gflop <= limit]
    reason = "GFLOP a run are more than this run's --max-gflop"
    return fitting, [f"{case}: {gflop:,.0f} {reason} {limit:g}" for case, gflop in cases.items() if case not in fitting]
