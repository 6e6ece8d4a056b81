"""The file of results: one line a run, appended as it ends, read again to go on."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.training._grid import Run

ENVIRONMENT = ("date", "muon_optax", "python", "jax", "optax", "device", "text")
MEASURED = ("seconds_a_step", "cpu_seconds_a_step", "final_loss", "curve")
COLUMNS = (*Run._fields, *MEASURED, *ENVIRONMENT)


class Record(NamedTuple):
    """A run's line: validation losses by step, and the columns as they stand there."""

    run: Run
    curve: dict[int, float]
    line: dict[str, str]

    @property
    def final(self) -> float:
        """The validation loss at the end; infinite for a run that diverged."""
        return float(self.line["final_loss"])


class OtherText(Exception):
    """The file holds runs on another text."""


def append(path: Path, run: Run, measured: dict[str, str], environment: dict[str, str]) -> None:
    """Writes one line, in one call, behind a header if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    broken = path.exists() and (written := path.read_bytes()) and not written.endswith(b"\n")
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        elif broken:  # by a process that was killed while it wrote
            file.write("\n")
        line = {**run._asdict(), **measured, **environment}
        writer.writerow([line[column] for column in COLUMNS])


def read(path: Path) -> dict[Run, Record]:
    """The records by run. A line that a killed process left unfinished is passed over: its run is made again."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} has other columns than {', '.join(COLUMNS)}: give another --output")
        lines = [line for line in reader if all(line[column] is not None for column in COLUMNS)]
    found = (record(line) for line in lines)
    return {one.run: one for one in found}


def record(line: dict[str, str]) -> Record:
    """A line's run and its curve."""
    kinds = Run.__annotations__
    run = Run(**{name: kinds[name](line[name]) for name in Run._fields})
    return Record(run, dict(map(_point, line["curve"].split())), line)


def _point(word: str) -> tuple[int, float]:
    step, _, loss = word.partition(":")
    return int(step), float(loss)


def curve_field(steps: Iterable[int], losses: Iterable[float]) -> str:
    """``step:loss`` for each measurement, a space between."""
    return " ".join(f"{step}:{loss:.4f}" for step, loss in zip(steps, losses, strict=True))


def refuse_other_text(records: Iterable[Record], sha256: str) -> None:
    """Losses on different texts cannot be compared."""
    others = {one.line["text"] for one in records} - {sha256}
    if others:
        raise OtherText(f"the file holds runs on text {', '.join(others)}, here it is {sha256}: give another --output")


def finite(values: Iterable[float]) -> list[float]:
    """Without the losses of diverged runs."""
    return [value for value in values if math.isfinite(value)]
