"""A run that must end in time: contenders side by side while their section's time lasts, failures as rows."""

import json
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax

from benchmarks.shared.measure import time_interleaved
from benchmarks.shared.report import Report, Row

Run = Callable[[], Any]
SPENT = "the section's time was spent"
KNOWN = "an earlier run has it"


class Contender(NamedTuple):
    """A compiled program with its arguments, and what is known before it runs."""

    run: Run
    costs: Row


class Budget:
    """Writes the rows of contenders into a report, until the time is spent.

    A section ends when its share and those before it are over: what one leaves, the next one has. A compilation is
    never interrupted, so a run can last one compilation and its timing longer.
    """

    def __init__(
        self,
        report: Report,
        folder: Path,
        seconds: float,
        shares: Mapping[str, float],
        known: Collection[tuple[str, str]] = (),
    ) -> None:
        self._report, self._folder, self._failures, self._known = report, folder, 0, known
        began, total, until = time.perf_counter(), sum(shares.values()), 0.0
        self._ends = {}
        for section, share in shares.items():
            until += share / total
            self._ends[section] = began + until * seconds

    @property
    def failures(self) -> int:
        """How many contenders failed for another reason than memory."""
        return self._failures

    def compare(
        self, section: str, case: str, contenders: Mapping[str, Callable[[], Contender]], reference: str, rounds: int
    ) -> list[Row]:
        """Compiles, warms up and times the contenders of a case, and writes the report.

        A ratio is the median of the rounds' ratios to ``reference``. What no longer fits, or is known, is left out and
        said.
        """
        if (section, case) in self._known:
            self._report.left_out.append(f"{section}, {case}: {KNOWN}")
            return []
        if time.perf_counter() > self._ends[section]:
            self._report.left_out.append(f"{section}, {case}: {SPENT}")
            return []
        ready: dict[str, Contender] = {}
        results: dict[str, str] = {}
        for name, prepare in contenders.items():
            if time.perf_counter() > self._ends[section]:
                self._report.left_out.append(f"{section}, {case}, {name}: {SPENT}")
                continue
            try:
                contender = prepare()
                jax.block_until_ready(contender.run())
                ready[name] = contender
            except Exception as error:  # a kernel's compiler has errors of its own, and the others are worth their time
                results[name] = self._reason(error)
        times: dict[str, list[float]] = {}
        if ready:
            try:
                times = time_interleaved({name: one.run for name, one in ready.items()}, rounds, lambda _: None)
            except jax.errors.JaxRuntimeError as error:  # who of them did it is not known
                results |= dict.fromkeys(ready, f"side by side: {self._reason(error)}")
        rows = [
            {"section": section, "case": case, "contender": name, "result": results.get(name, "ok")}
            | _figures(times.get(name), times.get(reference))
            | (ready[name].costs if name in ready else {})
            for name in contenders
            if name in ready or name in results
        ]
        self._report.rows += rows
        self._report.write(self._folder)  # each time: a run that is killed leaves what it had
        return rows

    def _reason(self, error: Exception) -> str:
        if "RESOURCE_EXHAUSTED" in str(error):
            return "out of memory"
        self._failures += 1
        return (str(error).splitlines() or [type(error).__name__])[0][:100].replace("|", "/")


def _figures(own: list[float] | None, reference: list[float] | None) -> Row:
    if own is None:
        return {"ms": None, "ratio": None}
    ratio = median(a / b for a, b in zip(own, reference, strict=True)) if reference else None
    return {"ms": median(own), "ratio": ratio}


def measured_cases(results: Path) -> set[tuple[str, str]]:
    """Section and case of all rows of a results file, but for cases of which a contender was left out."""
    report = json.loads(results.read_text())
    cases = {(row["section"], row["case"]) for row in report["rows"]}
    # A case's own words contain commas, so the lines are compared from their beginning.
    return {
        (section, case)
        for section, case in cases
        if not any(line.startswith((f"{section}, {case}: ", f"{section}, {case}, ")) for line in report["left_out"])
    }
