"""Whether the tests notice what is wrong: changes to the numeric files, one at a time, each against the tests.

    python benchmarks/quality/mutants.py          # a sample of about two hundred
    python benchmarks/quality/mutants.py --full   # every change there is
    python benchmarks/quality/mutants.py --quick  # a handful, of one small file

The checkout is copied and never changed. A change that no test notices survives; _unnoticeable.py says of some why
no test could. Ends with status 1 if fewer than nine in ten are killed.
"""

import io
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import pytest

from benchmarks.quality._mutate import Mutant, mutants
from benchmarks.quality._unnoticeable import UNNOTICEABLE
from benchmarks.shared.report import ROOT, Progress, Report, Row, finish, parser

PACKAGE = "muon_optax"
# The numeric files, and for each of them the test files that shall notice: first those that are fast or hit.
TESTS = {
    "_transforms/checks/arguments": ("checks", "refusals"),
    "_orthogonalizers/coefficients": ("coefficients", "refusals"),
    "_transforms/decay_mask": ("decay_mask",),
    "_orthogonalizers/gram_newton_schulz": ("gram_newton_schulz",),
    "_orthogonalizers/restarts": ("restarts", "gram_newton_schulz"),
    "_orthogonalizers/batching": ("groups",),
    "_layouts/layout": ("layout", "refusals"),
    "_orthogonalizers/newton_schulz": ("newton_schulz", "refusals"),
    "_transforms/orthogonalize": ("refusals", "layout", "mesh"),
    "_orthogonalizers/polar_factor": ("polar",),
    "_orthogonalizers/precision": ("precision",),
    "_transforms/scale_by_shape": ("scales", "refusals"),
    "_transforms/scales": ("scales", "refusals"),
    "_orthogonalizers/start": ("start",),
    "_orthogonalizers/step": ("step",),
}
QUICK_FILE = "_transforms/checks/arguments"
SAMPLE, AT_LEAST, SEED = 200, 4, 0  # changes in all, and of each file at least
ENOUGH = 0.9
LONGEST = 1800  # seconds that the tests of a file may take without a change

NOTES = [
    "One change at a time: an operator, a comparison (its boundary moved; negated), a condition, a constant (an "
    "integer plus 1, a float times 1.01), a function left out or replaced (min, max, any, all), two arguments swapped. "
    "Annotations, messages and `strict` of `zip` are not changed.",
    "Killed: a test failed, or the tests took five times as long as they do. Each change meets the default tests "
    "of the files named for it, up to the first that fails.",
]


class Verdict(NamedTuple):
    """What the tests said of one change."""

    killed: bool
    by: str  # the first test that failed, or why there is none
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument(
        "--files", nargs="+", choices=TESTS, default=list(TESTS), help="only these files of the package"
    )
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "checkout"
        for name in (PACKAGE, "benchmarks", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        chosen = choose(copy / PACKAGE, given.files, given.quick, given.full)
        report = Report("mutants", "CPU", NOTES)
        with Progress(len(chosen) + len({file for file, _ in chosen}), report.name) as step:
            verdicts = judge(copy, Path(folder) / "compilations", chosen, step)
    report.rows = [*counts(chosen, verdicts), *survivors(chosen, verdicts)]
    killed = sum(verdict.killed for verdict in verdicts)
    report.notes.append(f"Killed: {killed} of {len(chosen)}, {killed / len(chosen):.1%}.")
    if given.full:
        made = {(file, mutant.after) for file, mutant in chosen}
        given_reasons = [(file, after) for file in given.files for after in UNNOTICEABLE.get(file, {})]
        stale = [f"{file}: `{after}`" for file, after in given_reasons if (file, after) not in made]
        report.notes += [f"_unnoticeable.py speaks of a change that is not made: {each}" for each in stale]
    finish(report, given.output)
    if killed < ENOUGH * len(chosen):
        raise SystemExit(1)


Chosen = list[tuple[str, Mutant]]


def choose(package: Path, files: Sequence[str], quick: bool, full: bool) -> Chosen:
    """The changes to make: all, or a sample of which each file has its share; the same ones every time."""
    every = {name: list(mutants((package / f"{name}.py").read_text())) for name in TESTS}
    total = sum(map(len, every.values()))
    sizes = {name: len(every[name]) if full else max(AT_LEAST, SAMPLE * len(every[name]) // total) for name in files}
    if quick:
        sizes = {QUICK_FILE: AT_LEAST}
    return [(name, mutant) for name, size in sizes.items() for mutant in sample(every[name], size)]


def sample(found: Sequence[Mutant], size: int) -> list[Mutant]:
    """``size`` of them, in their order; seeded."""
    positions = random.Random(SEED).sample(range(len(found)), min(size, len(found)))
    return [found[position] for position in sorted(positions)]


def judge(copy: Path, compilations: Path, chosen: Chosen, step: Progress) -> list[Verdict]:
    """A verdict for each change, after the unchanged files have passed the same tests."""
    # Set before the server of forks starts. What is compiled for one change is found again by the next.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilations))
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    # A process that has imported what takes long, without muon_optax and without a thread: each run is a fork of it.
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["jax.numpy", "optax", "hypothesis", "pytest", "numpy", "scipy.linalg"])
    limits: dict[str, float] = {}
    for file in dict.fromkeys(file for file, _ in chosen):
        unchanged = run_tests(server, copy, TESTS[file], LONGEST)
        if unchanged.killed:
            raise SystemExit(f"The tests of {file}.py fail without a change: {unchanged.by}")
        limits[file] = 10 + 5 * unchanged.seconds
        step(f"{file}: {unchanged.seconds:.0f} s")
    verdicts = []
    for file, mutant in chosen:
        path = copy / PACKAGE / f"{file}.py"
        original = path.read_text()
        path.write_text(mutant.source)
        verdicts.append(run_tests(server, copy, TESTS[file], limits[file]))
        path.write_text(original)
        step(f"{file}:{mutant.line} {'killed' if verdicts[-1].killed else 'SURVIVED'}")
    return verdicts


def run_tests(
    server: multiprocessing.context.ForkServerContext, copy: Path, tests: Sequence[str], limit: float
) -> Verdict:
    """The verdict on the files as they are in ``copy``, in a process of its own."""
    receiver, sender = server.Pipe(duplex=False)
    process = server.Process(
        target=run_pytest, args=(copy, [str(next(copy.glob(f"tests/*/test_{name}.py"))) for name in tests], sender)
    )
    started = time.perf_counter()
    process.start()
    sender.close()
    try:
        first_failure = receiver.recv() if receiver.poll(limit) else f"longer than {limit:.0f} s"
    except EOFError:
        first_failure = "the process broke off"
    process.kill()
    process.join()
    if isinstance(first_failure, Exception):
        raise first_failure
    return Verdict(first_failure is not None, first_failure or "", time.perf_counter() - started)


def run_pytest(copy: Path, files: list[str], sender: Connection) -> None:
    """In a process of its own: sends the name of the first test that fails, None if none does."""
    # Byte code is looked up by the second in which a file was written: that of another change must not be found.
    shutil.rmtree(copy / PACKAGE / "__pycache__", ignore_errors=True)
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    first = FirstFailure()
    options = ["-x", "-q", "-n0", "-pno:cacheprovider", f"--basetemp={copy.with_name('temporary')}"]
    options += ["-Wignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # hypothesis, by the server
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        status = pytest.main([*options, *files], plugins=[first])
    imported = getattr(sys.modules.get(PACKAGE), "__file__", str(copy))
    if not Path(imported).is_relative_to(copy):
        sender.send(RuntimeError(f"{imported} was tested, and not the copy in {copy}"))
    elif status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED):
        sender.send(RuntimeError(f"pytest ended with {status!r}: {printed.getvalue()}"))
    else:
        sender.send(None if status == pytest.ExitCode.OK else first.failed)


class FirstFailure:
    """A pytest plugin that keeps the name of the first test, or test file, that fails."""

    failed = "no test by name"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid.removeprefix("tests/")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = report.nodeid.removeprefix("tests/")


def counts(chosen: Chosen, verdicts: Sequence[Verdict]) -> Iterator[Row]:
    """A row for each file, and one for all."""
    files = dict.fromkeys(file for file, _ in chosen)
    for name in (*files, "all"):
        of = [(file, mutant, verdict) for (file, mutant), verdict in zip(chosen, verdicts, strict=True)]
        of = [each for each in of if name in (each[0], "all")]
        killed = sum(verdict.killed for _, _, verdict in of)
        explained = sum(not verdict.killed and bool(reason(file, mutant)) for file, mutant, verdict in of)
        yield {
            "table": "Changes by file",
            "file": name,
            "changes": len(of),
            "killed": killed,
            "share": killed / len(of),
        } | {
            "survived, explained": explained,
            "survived, unexplained": len(of) - killed - explained,
            "seconds": sum(verdict.seconds for _, _, verdict in of),
        }


def survivors(chosen: Chosen, verdicts: Sequence[Verdict]) -> Iterator[Row]:
    """A row for each change that no test noticed."""
    for (file, mutant), verdict in zip(chosen, verdicts, strict=True):
        if not verdict.killed:
            before, after = (f"`{text}`".replace("|", "\\|") for text in (mutant.before, mutant.after))
            yield {"table": "Survivors", "line": f"{file}.py:{mutant.line}", "before": before, "after": after} | {
                "why": reason(file, mutant) or "not known: a test is missing"
            }


def reason(file: str, mutant: Mutant) -> str:
    return UNNOTICEABLE.get(file, {}).get(mutant.after, "")


if __name__ == "__main__":
    main()
