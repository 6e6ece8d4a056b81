"""The main example, killed again and again: only the steps since the last checkpoint are lost."""

import csv
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import ROOT

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="change times of a folder are read as Linux keeps them"),
]

KILLS = 10
STEPS = 500  # of each optimizer; there is a checkpoint after each tenth of them
PATIENCE = 300  # seconds, after which a process that hangs is killed


class Run:
    """A run in a folder of its own, begun, continued, and looked at from outside."""

    def __init__(self, output: Path, cache: Path) -> None:
        self.output, self.checkpoints, self.cache = output, output / "checkpoints", cache

    def start(self, stderr: Any = subprocess.PIPE) -> subprocess.Popen:
        """On one CPU device; ``cache`` holds what was compiled before."""
        command = [sys.executable, ROOT / "examples" / "train_gpt.py", "--preset", "tiny", "--steps", str(STEPS)]
        command += ["--output", self.output, *(["--resume"] if self.checkpoints.exists() else [])]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=stderr)

    def begin(self) -> subprocess.Popen:
        """Starts it, and waits till it trains: from the last complete checkpoint, no older and no torn one."""
        last = self.last()
        optimizer = int(last >= STEPS)
        shown = self.output.with_suffix(".errors")
        with open(shown, "w") as errors:
            process = self.start(stderr=errors)

        def begun() -> list[int]:
            bars = re.findall(r"(AdamW|Muon): +\d+%\|[^|]*\| (\d+)/", shown.read_text(errors="replace"))
            return [int(made) for title, made in bars if title == ("AdamW", "Muon")[optimizer]]

        wait(process, begun, pause=0.02)  # a look takes time from the process itself
        assert begun()[:1] == [last - optimizer * STEPS], shown.read_text(errors="replace")
        return process

    def folders(self) -> list[str]:
        return os.listdir(self.checkpoints) if self.checkpoints.exists() else []

    def last(self) -> int:
        """The steps, of both optimizers together, in the last complete checkpoint."""
        return max((int(name) for name in self.folders() if name.isdigit()), default=0)

    def writing(self) -> list[str]:
        """The checkpoints that are not complete."""
        return [name for name in self.folders() if not name.isdigit()]

    def torn(self) -> int:
        """When, by the clock of the file system, the last write of a checkpoint that did not end was going on."""
        return max((os.stat(self.checkpoints / name).st_ctime_ns for name in self.writing()), default=0)

    def rows(self) -> list[list[str]]:
        """What metrics.csv holds, to the last digit."""
        with open(self.output / "metrics.csv", newline="") as file:
            return list(csv.reader(file))[1:]

    def results(self) -> list[bytes]:
        return [(self.output / name).read_bytes() for name in ("metrics.csv", "sample.txt")]


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """The exit status and what was printed on the two streams, progress bars left out."""
    try:
        printed, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    lines = [line for line in (errors or "").replace("\r", "\n").splitlines() if line and "%|" not in line]
    return process.returncode, printed, "\n".join(lines)


def wait(process: subprocess.Popen, until: Callable[[], object], pause: float = 0.001) -> None:
    """Returns when it is so, or the process has ended."""
    deadline = time.monotonic() + PATIENCE
    while not until() and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(pause)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of compiled programs; not that of the other tests, since who is killed may be writing to it."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed") / "run", cache)
    status, printed, errors = finish(run.start())
    assert (status, errors) == (0, "")
    assert "final validation loss" in printed
    return run


def at_a_moment(run: Run, process: subprocess.Popen, chance: random.Random) -> None:
    time.sleep(chance.uniform(0, 2))


def in_a_write(run: Run, process: subprocess.Popen, chance: random.Random) -> None:
    """In the second write, as a rule: a run that is always killed in its first gets nowhere."""
    for _ in range(chance.choice([1, 2, 2])):
        wait(process, lambda: not run.writing())
        wait(process, run.writing)
    time.sleep(chance.uniform(0, 0.02))


def test_a_killed_run_loses_the_steps_since_its_last_checkpoint(
    undisturbed: Run, tmp_path: Path, record_property
) -> None:
    chance, interval, expected = random.Random(0), STEPS // 10, undisturbed.rows()
    kills, survived, inside, runs = 0, 0, 0, 1
    run = Run(tmp_path / "1", undisturbed.cache)
    while survived < KILLS:
        last, torn = run.last(), run.torn()
        process = run.begin()
        survived = kills
        if kills < KILLS:
            (in_a_write, at_a_moment)[kills % 2](run, process, chance)
            process.kill()
        status = finish(process)[0]
        if status == 0:  # it was done before the kill
            assert run.results() == undisturbed.results()
            assert not run.writing()  # what the killed ones left has been cleared away
            runs += 1
            run = Run(tmp_path / str(runs), undisturbed.cache)
        else:
            assert status == -signal.SIGKILL
            kills += 1
            inside += run.torn() > torn
            rows = run.rows()
            assert rows == expected[: len(rows)]
            assert run.last() >= last
            begun = sum(training != "" for *_, training, _ in rows)  # steps that were to be in the checkpoint
            assert run.last() in (begun, begun - interval)
    assert status == 0
    summary = f"{kills} kills, {survived} survived, {inside} inside the write of a checkpoint, {runs - 1} runs finished"
    print(summary)
    record_property("kills", summary)
    assert kills == KILLS
    assert inside >= KILLS // 4
