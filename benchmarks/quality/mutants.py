"""Whether the tests notice what is wrong: changes to the package, one at a time, each against its fast tests.

    python benchmarks/quality/mutants.py                           # of each group of files about two hundred
    python benchmarks/quality/mutants.py --only evidence tree      # these groups
    python benchmarks/quality/mutants.py --only mesh --sample 100 --seed 1   # another hundred of the mesh
    python benchmarks/quality/mutants.py --only numbers --full     # every change there is
    python benchmarks/quality/mutants.py --quick                   # a handful, of one small file

_judges.py says which files are a group (numbers, evidence, tree, assigning, mesh, state, transforms, family,
diagnostics, front_door) and which tests judge them. The checkout is copied and never changed. A change
that no test notices survives; _unnoticeable.py says of some why no test could. Ends with status 1 if fewer than nine
in ten are killed. Ctrl-C ends early, with what is judged.
"""

import io
import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import hypothesis
import pytest

from benchmarks.quality._judges import GROUPS, files_of
from benchmarks.quality._mutate import Mutant, mutants
from benchmarks.quality._unnoticeable import UNNOTICEABLE
from benchmarks.shared.report import ROOT, Progress, Report, Row, finish, parser

PACKAGE = "muon_optax"
QUICK_FILE, QUICK_SAMPLE = "_transforms/checks/arguments", 4
SAMPLE, AT_LEAST, SEED = 200, 2, 0  # changes of a group, and of each file at least
ENOUGH = 0.9
# What takes long to import, and starts no thread.
PRELOADED = ["jax.numpy", "optax", "hypothesis", "pytest", "numpy", "scipy.linalg", "flax.nnx", "equinox"]
LONGEST = 1800  # seconds that the tests of a file may take without a change
TOO_LONG = "longer than"

NOTES = [
    "One change at a time: an operator, a comparison (its boundary moved; negated), a condition, a constant (an "
    "integer plus 1, a float times 1.01), a function left out or replaced (min, max, any, all), two arguments swapped. "
    "Annotations, messages and `strict` of `zip` are not changed.",
    "Killed: a test failed, or the tests took five times as long as they do. Each change meets the default tests "
    "of the files named for it, up to the first that fails: first those that noticed another change of its file.",
]


class Verdict(NamedTuple):
    """What the tests said of one change."""

    killed: bool
    by: str  # the first test that failed, or why there is none
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="only these groups of files")
    options.add_argument("--sample", type=int, default=SAMPLE, help=f"changes of each group, {SAMPLE} by default")
    options.add_argument(
        "--jobs", type=int, default=1, help="changes that are judged at once, each in a copy of its own"
    )
    options.add_argument("--seed", type=int, default=SEED, help=f"which changes are drawn, {SEED} by default")
    given = options.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [copied(Path(folder) / str(job)) for job in range(given.jobs)]
        package = copies[0] / PACKAGE
        groups = {group: files_of(package, group) for group in given.only}
        if given.quick:
            groups = {"numbers": {QUICK_FILE: files_of(package, "numbers")[QUICK_FILE]}}
        size = QUICK_SAMPLE if given.quick else math.inf if given.full else given.sample
        chosen = [change for files in groups.values() for change in choose(package, files, size, given.seed)]
        tests = {file: tests for files in groups.values() for file, tests in files.items()}
        some = [] if given.only == list(GROUPS) else given.only
        report = Report("_".join(["mutants", *some]), "CPU", NOTES)
        with Progress(len(chosen), report.name) as step:
            found = judge(copies, Path(folder) / "compilations", chosen, tests, step)
    if len(found) < len(chosen):
        report.notes = [
            *report.notes,
            f"Stopped after {len(found)} of {len(chosen)}, which were taken in random order.",
        ]
    chosen, verdicts = [chosen[number] for number in sorted(found)], [found[number] for number in sorted(found)]
    group_of = {file: group for group, files in groups.items() for file in files}
    report.rows = [*counts(chosen, verdicts, group_of), *survivors(chosen, verdicts)]
    killed = sum(verdict.killed for verdict in verdicts)
    report.notes.append(f"Killed: {killed} of {len(chosen)}, {killed / len(chosen):.1%}.")
    if given.full:
        made = {(file, mutant.after) for file, mutant in chosen}
        given_reasons = [(file, after) for file in tests for after in UNNOTICEABLE.get(file, {})]
        stale = [f"{file}: `{after}`" for file, after in given_reasons if (file, after) not in made]
        report.notes += [f"_unnoticeable.py speaks of a change that is not made: {each}" for each in stale]
    finish(report, given.output)
    if killed < ENOUGH * len(chosen):
        raise SystemExit(1)


Chosen = list[tuple[str, Mutant]]


def choose(package: Path, files: Iterable[str], size: float, seed: int = SEED) -> Chosen:
    """About ``size`` changes, or all that there are, of which each file has its share; by seed always the same."""
    every = {name: list(mutants((package / f"{name}.py").read_text())) for name in files}
    share = min(1.0, size / sum(map(len, every.values())))
    sizes = {name: max(AT_LEAST, share * len(found)) for name, found in every.items()}
    return [(name, each) for name, found in every.items() for each in sample(found, sizes[name], seed)]


def sample(found: Sequence[Mutant], size: float, seed: int) -> list[Mutant]:
    """``size`` of them, in their order."""
    positions = random.Random(seed).sample(range(len(found)), min(int(size), len(found)))
    return [found[position] for position in sorted(positions)]


def copied(folder: Path) -> Path:
    """A copy of the checkout, as far as the tests need it."""
    for name in (PACKAGE, "benchmarks", "tests"):
        shutil.copytree(
            ROOT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__", "results")
        )
    shutil.copy(ROOT / "pyproject.toml", folder / "checkout")
    return folder / "checkout"


def judge(
    copies: Sequence[Path], compilations: Path, chosen: Chosen, tests: Mapping[str, tuple[str, ...]], step: Progress
) -> dict[int, Verdict]:
    """A verdict for each change by its number, after the unchanged files have passed the same tests.

    They are taken in random order. Ctrl-C ends the work, and those that are judged are a smaller sample.
    """
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
    server.set_forkserver_preload(PRELOADED)
    limits = {frozenset(judges): Limit(server, judges) for judges in tests.values()}  # in any order
    waiting = random.Random(0).sample(range(len(chosen)), len(chosen))
    verdicts: dict[int, Verdict] = {}
    noticed: dict[str, list[str]] = {file: [] for file in tests}

    def work(copy: Path) -> None:
        while waiting:
            number = waiting.pop()
            file, mutant = chosen[number]
            limit = limits[frozenset(tests[file])].seconds(copy)
            path = copy / PACKAGE / f"{file}.py"
            original = path.read_text()
            path.write_text(mutant.source)
            # Byte code is looked up by the second in which a file was written: another change's must not be found.
            os.utime(path, (number, number))
            verdicts[number] = run_tests(server, copy, tests[file], limit, noticed[file])
            path.write_text(original)
            if verdicts[number].killed:
                noticed[file] = list(dict.fromkeys([verdicts[number].by, *noticed[file]]))
            step(f"{file}:{mutant.line} {'killed' if verdicts[number].killed else 'SURVIVED'}")

    with ThreadPoolExecutor(len(copies)) as pool:
        try:
            for done in [pool.submit(work, copy) for copy in copies]:
                done.result()
        except KeyboardInterrupt:
            waiting.clear()
    return verdicts


class Limit:
    """The seconds that some tests may take: five times what they take without a change, which is tried when needed."""

    def __init__(self, server: multiprocessing.context.ForkServerContext, tests: tuple[str, ...]) -> None:
        self._server, self._tests, self._lock = server, tests, Lock()
        self._limit: float | None = None

    def seconds(self, copy: Path) -> float:
        with self._lock:
            if self._limit is None:
                unchanged = run_tests(self._server, copy, self._tests, LONGEST)
                if unchanged.killed:
                    raise SystemExit(f"Without a change a test fails: {unchanged.by}")
                self._limit = 10 + 5 * unchanged.seconds
            return self._limit


def run_tests(
    server: multiprocessing.context.ForkServerContext,
    copy: Path,
    tests: Sequence[str],
    limit: float,
    first: Sequence[str] = (),
) -> Verdict:
    """The verdict on the files as they are in ``copy``, in a process of its own; the tests ``first`` run first."""
    receiver, sender = server.Pipe(duplex=False)
    files = [next(copy.glob(f"tests/*/test_{name.partition('::')[0]}.py")) for name in tests]
    named = [f"{file}{''.join(name.partition('::')[1:])}" for file, name in zip(files, tests, strict=True)]
    process = server.Process(target=run_pytest, args=(copy, named, first, sender))
    started = time.perf_counter()
    process.start()
    sender.close()
    try:
        first_failure = receiver.recv() if receiver.poll(limit) else f"{TOO_LONG} {limit:.0f} s"
    except EOFError:
        first_failure = "the process broke off"
    process.kill()
    process.join()
    if isinstance(first_failure, Exception):
        raise first_failure
    return Verdict(first_failure is not None, first_failure or "", time.perf_counter() - started)


def run_pytest(copy: Path, tests: list[str], first: Sequence[str], sender: Connection) -> None:
    """In a process of its own: sends the name of the first test that fails, None if none does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # or Ctrl-C would pass for a test that fails
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    failure = FirstFailure(first)
    options = ["-x", "-q", "-n0", "-pno:cacheprovider", f"--basetemp={copy.with_name('temporary')}"]
    options += ["-Wignore:Module already imported:pytest.PytestAssertRewriteWarning"]  # hypothesis, by the server
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        status = pytest.main([*options, *tests], plugins=[failure])
    imported = getattr(sys.modules.get(PACKAGE), "__file__", str(copy))
    if not Path(imported).is_relative_to(copy):
        sender.send(RuntimeError(f"{imported} was tested, and not the copy in {copy}"))
    elif PACKAGE not in sys.modules:
        # A change to what runs at import: pytest does not get to a test.
        sender.send(f"{PACKAGE} can't be imported: {printed.getvalue()[-300:]}")
    elif failure.failed == FirstFailure.failed and status != pytest.ExitCode.OK:
        # Nothing failed, not even to be collected, and yet it did not end well.
        sender.send(RuntimeError(f"pytest ended with {status!r}: {printed.getvalue()}"))
    else:
        sender.send(None if status == pytest.ExitCode.OK else failure.failed)


class FirstFailure:
    """A pytest plugin that keeps the name of the first test, or test file, that fails, and runs likely ones first."""

    failed = "no test by name"

    def __init__(self, likely: Sequence[str] = ()) -> None:
        self._order = {name: position for position, name in enumerate(likely)}

    def pytest_sessionstart(self) -> None:
        # After conftest.py's own settings. An example that fails will do as it is: to make it smaller takes time.
        phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
        hypothesis.settings.register_profile("mutants", hypothesis.settings.default, phases=phases)
        hypothesis.settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._order.get(item.nodeid.removeprefix("tests/"), len(self._order)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid.removeprefix("tests/")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = report.nodeid.removeprefix("tests/")


def counts(chosen: Chosen, verdicts: Sequence[Verdict], group_of: Mapping[str, str]) -> Iterator[Row]:
    """A row for each group, each file, and one for all."""
    judged = [(file, mutant, verdict) for (file, mutant), verdict in zip(chosen, verdicts, strict=True)]
    for group in dict.fromkeys(group_of[file] for file, _ in chosen):
        of_it = [each for each in judged if group_of[each[0]] == group]
        yield {"table": "Changes by group", "group": group} | count(of_it)
    yield {"table": "Changes by group", "group": "all"} | count(judged)
    for file in dict.fromkeys(file for file, _ in chosen):
        yield {"table": "Changes by file", "file": file} | count([each for each in judged if each[0] == file])


def count(judged: Sequence[tuple[str, Mutant, Verdict]]) -> Row:
    """How many of these changes were noticed."""
    killed = sum(verdict.killed for *_, verdict in judged)
    explained = sum(not verdict.killed and bool(reason(file, mutant)) for file, mutant, verdict in judged)
    return {"changes": len(judged), "killed": killed, "share": killed / len(judged)} | {
        "of them too long": sum(verdict.by.startswith(TOO_LONG) for *_, verdict in judged),
        "survived, explained": explained,
        "survived, unexplained": len(judged) - killed - explained,
        "seconds": sum(verdict.seconds for *_, verdict in judged),
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
