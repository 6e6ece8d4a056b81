"""The main example killed, preempted, locked out, out of disk space: only the last steps are lost, and it says so."""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes
import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="limits, permissions and mounts are Linux's"),
]

KILLS = 10
LONG, SHORT = 500, 100  # steps of each optimizer; there is a checkpoint after each tenth of them
ADVICE = "with that put right, --resume goes on"


class Run:
    """A run in a folder of its own, begun, continued, and looked at from outside."""

    def __init__(self, output: Path, steps: int, cache: Path) -> None:
        self.output, self.checkpoints, self.steps, self.cache = output, output / "checkpoints", steps, cache

    def start(self, *flags: str, **options) -> subprocess.Popen:
        resume = ["--resume"] if self.checkpoints.exists() else []
        arguments = ["--preset", "tiny", "--steps", str(self.steps), "--output", self.output, *resume, *flags]
        return processes.start(*arguments, cache=self.cache, **options)

    def finish(self, **options) -> tuple[int, str, str]:
        return processes.finish(self.start(**options))

    def begin(self) -> subprocess.Popen:
        """Starts it, and waits till it trains: from the last complete checkpoint, no older and no torn one."""
        last = self.last()
        optimizer = int(last >= self.steps)
        shown = self.output.with_suffix(".errors")
        with open(shown, "w") as errors:
            process = self.start(stderr=errors)

        def begun() -> list[int]:
            bars = re.findall(r"(AdamW|Muon): +\d+%\|[^|]*\| (\d+)/", shown.read_text(errors="replace"))
            return [int(made) for title, made in bars if title == ("AdamW", "Muon")[optimizer]]

        wait(process, begun, pause=0.02)  # a look takes time from the process itself
        assert begun()[:1] == [last - optimizer * self.steps], shown.read_text(errors="replace")
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

    def contents(self) -> dict[Path, bytes]:
        """The files of the last checkpoint."""
        folder = self.checkpoints / str(self.last())
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait(process: subprocess.Popen, until: Callable[[], object], pause: float = 0.001) -> None:
    """Returns when it is so, or the process has ended."""
    deadline = time.monotonic() + processes.PATIENCE
    while not until() and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(pause)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of compiled programs; not that of the other tests, since who is killed may be writing to it."""
    return tmp_path_factory.mktemp("cache")


def goes_on(run: Run, like: Run | None = None) -> str:
    """What a run prints that ends well, with the results of another."""
    status, printed, errors = run.finish()
    assert (status, errors) == (0, "")
    assert like is None or run.results() == like.results()
    return printed


def assert_stopped(result: tuple[int, str, str], message: str, left: Run, stopped: Run) -> None:
    """It says in one line why it can't write, and leaves the checkpoint as it was."""
    status, _, errors = result
    assert errors == "train_gpt.py: error: " + message
    assert status == 2
    assert left.contents() == stopped.contents()


def undisturbed(steps: int) -> Callable[..., Run]:
    @pytest.fixture(scope="module")
    def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Run:
        run = Run(tmp_path_factory.mktemp("undisturbed") / "run", steps, cache)
        assert "final validation loss" in goes_on(run)
        return run

    return run


long, short = undisturbed(LONG), undisturbed(SHORT)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, cache: Path, short: Run) -> Run:
    """A run stopped halfway; a copy of it has been continued to the end."""
    run = Run(tmp_path_factory.mktemp("stopped") / "run", SHORT, cache)
    process = run.begin()
    wait(process, lambda: run.last() >= SHORT // 2)
    process.terminate()
    assert processes.finish(process)[0] == 128 + signal.SIGTERM
    goes_on(duplicate(run, run.output.with_name("copy")), like=short)
    return run


def duplicate(run: Run, output: Path) -> Run:
    shutil.copytree(run.output, output)
    return Run(output, run.steps, run.cache)


def at_a_moment(run: Run, process: subprocess.Popen, chance: random.Random) -> None:
    time.sleep(chance.uniform(0, 2))


def in_a_write(run: Run, process: subprocess.Popen, chance: random.Random) -> None:
    """In the second write, as a rule: a run that is always killed in its first gets nowhere."""
    for _ in range(chance.choice([1, 2, 2])):
        wait(process, lambda: not run.writing())
        wait(process, run.writing)
    time.sleep(chance.uniform(0, 0.02))


def test_a_killed_run_loses_the_steps_since_its_last_checkpoint(long: Run, tmp_path: Path, record_property) -> None:
    chance, interval, expected = random.Random(0), LONG // 10, long.rows()
    kills, survived, inside, runs = 0, 0, 0, 1
    run = Run(tmp_path / "1", LONG, long.cache)
    while survived < KILLS:
        last, torn = run.last(), run.torn()
        process = run.begin()
        survived = kills
        if kills < KILLS:
            (in_a_write, at_a_moment)[kills % 2](run, process, chance)
            process.kill()
        status = processes.finish(process)[0]
        if status == 0:  # it was done before the kill
            assert run.results() == long.results()
            assert not run.writing()  # what the killed ones left has been cleared away
            runs += 1
            run = Run(tmp_path / str(runs), LONG, long.cache)
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


def test_sigterm_loses_nothing(long: Run, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", LONG, long.cache)
    for optimizer, title in enumerate(["AdamW", "Muon"]):
        process = run.begin()
        wait(process, lambda before=optimizer * LONG: run.last() > before)
        process.terminate()
        status, printed, _ = processes.finish(process)
        assert status == 128 + signal.SIGTERM
        message = rf"{title} stopped by SIGTERM after step (\d+), all saved: --resume goes on"
        step = int(re.fullmatch(message, printed.splitlines()[-1])[1])
        assert run.last() == optimizer * LONG + step + 1
        assert run.rows()[-1][:2] == [title.lower(), str(step)]
        assert not run.writing()
    goes_on(run, like=long)


@pytest.mark.parametrize("kibibytes", [1, 100], ids=["for metrics.csv", "for the arrays"])
def test_a_file_that_can_not_be_written(stopped: Run, short: Run, tmp_path: Path, kibibytes: int) -> None:
    run = duplicate(stopped, tmp_path / "run")
    result = run.finish(under=processes.no_larger_files_than(kibibytes * 1024))
    assert_stopped(result, f"can't write to {run.output}: File too large; {ADVICE}", run, stopped)
    assert run.rows()[: len(stopped.rows())] == stopped.rows()
    goes_on(run, like=short)


LOCKED = {
    "": "can't write to --output {}: Permission denied; give another folder",
    "checkpoints": f"can't write to {{}}: Permission denied; {ADVICE}",
}


@pytest.mark.parametrize("folder", LOCKED)
def test_a_read_only_folder(stopped: Run, tmp_path: Path, folder: str) -> None:
    run = duplicate(stopped, tmp_path / "run")
    locked = [run.output / folder, *(run.output / folder).rglob("*")]
    for path in locked:
        path.chmod(path.stat().st_mode & ~0o222)
    result = run.finish(under=processes.obeying_permissions())
    for path in locked:
        path.chmod(path.stat().st_mode | 0o200)
    assert_stopped(result, LOCKED[folder].format(run.output), run, stopped)


# In a file system of 4 MiB that these commands have to themselves: spoil it, run the example, mend it, run it again.
DISK = """
disk=$1 stopped=$2 spoil=$3 mend=$4 kept=$5; shift 5
mount -t tmpfs -o size=4m none "$disk"
cp -r "$stopped" "$disk/run"
cd "$disk"
eval "$spoil"
"$@" && exit 1 || status=$?
cp -r run "$kept/spoiled"
eval "$mend"
"$@" > /dev/null 2> /dev/null
cp -r run "$kept/mended"
exit $status
"""


FILL = "cat /dev/zero > filler 2> /dev/null || truncate --size=-100K filler"
READ_ONLY, WRITABLE = (f'mount -o remount,{mode} "$disk"' for mode in ("ro", "rw"))
DISKS = {
    "full": (FILL, "rm filler", f"can't write to {{}}: No space left on device; {ADVICE}"),
    "read-only": (READ_ONLY, WRITABLE, "can't write to --output {}: Read-only file system; give another folder"),
}


@pytest.mark.parametrize("disk_is", DISKS)
def test_a_disk_that_takes_no_more(stopped: Run, short: Run, tmp_path: Path, disk_is: str) -> None:
    spoil, mend, message = DISKS[disk_is]
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount"]  # who may not mount may do so in a namespace of his own
    mount = [*alone, "mount", "-t", "tmpfs", "none", disk]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system in a namespace")
    run = Run(disk / "run", SHORT, short.cache)
    under = (*alone, "sh", "-ec", DISK, "sh", disk, stopped.output, spoil, mend, kept)
    result = processes.finish(run.start("--resume", under=under))
    assert_stopped(result, message.format(run.output), Run(kept / "spoiled", SHORT, short.cache), stopped)
    assert Run(kept / "mended", SHORT, short.cache).results() == short.results()
