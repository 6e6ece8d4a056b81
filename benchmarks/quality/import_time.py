"""How long importing muon_optax takes after optax is imported: fresh interpreters, side by side.

python benchmarks/quality/import_time.py            # half a minute
python benchmarks/quality/import_time.py --quick    # few rounds
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

from benchmarks.shared.report import ROOT, Progress, Report, Row, finish, parser

ROUNDS, QUICK_ROUNDS = 20, 2
WITHOUT, WITH, INSIDE = "import optax", "import optax, muon_optax", "import muon_optax, after import optax"
# Prints what the second import took, as seen from inside: without the start and the end of the interpreter.
TIMED = """
import time
import optax
started = time.perf_counter()
import muon_optax
print(1e3 * (time.perf_counter() - started))
"""
SELF_TIME = re.compile(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(muon_optax[\w.]*)$", re.MULTILINE)

NOTES = [
    "Each round starts three interpreters: one for each of the whole processes, one of which also reads the clock "
    "before and after `import muon_optax`, and one with -X importtime, which says what each file takes by itself.",
    "Byte code is compiled before the first round, as it is by pip when it installs. The target is 100 ms on top of "
    "optax.",
]


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser(__doc__).parse_args(arguments)
    rounds = QUICK_ROUNDS if given.quick else ROUNDS
    report = Report("import_time", "CPU", NOTES)
    with tempfile.TemporaryDirectory() as folder, Progress(rounds, report.name) as step:
        report.rows = measure(rounds, folder, step)
    finish(report, given.output)


def measure(rounds: int, byte_code: str, step: Progress) -> list[Row]:
    """A row for each program, and one for each file of the package."""
    start_interpreter(byte_code, "-c", TIMED)
    times: dict[str, list[float]] = defaultdict(list)
    by_module: dict[str, list[float]] = defaultdict(list)
    for number in range(1, rounds + 1):
        programs = {WITHOUT: WITHOUT, WITH: TIMED}
        # Turn about, so that neither always runs right after the other.
        for name in sorted(programs, reverse=number % 2 == 0):
            milliseconds, output, _ = start_interpreter(byte_code, "-c", programs[name])
            times[name].append(milliseconds)
            if output:
                times[INSIDE].append(float(output))
        _, _, split = start_interpreter(byte_code, "-X", "importtime", "-c", WITH)
        for microseconds, module in SELF_TIME.findall(split):
            by_module[module].append(1e-3 * int(microseconds))
        step(f"round {number}")
    programs = [
        {"table": "programs", "program": name, "ms": median(times[name])}
        | {"least ms": min(times[name]), "most ms": max(times[name])}
        for name in (WITHOUT, WITH, INSIDE)
    ]
    largest_first = sorted(by_module, key=lambda module: -median(by_module[module]))
    return programs + [
        {"table": "files of muon_optax, each without what it imports", "module": module}
        | {"ms": median(by_module[module])}
        for module in largest_first
    ]


def start_interpreter(byte_code: str, *arguments: str) -> tuple[float, str, str]:
    """Milliseconds of a whole process, and what it printed to stdout and stderr."""
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = own | {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": byte_code, "JAX_PLATFORMS": "cpu"}
    started = time.perf_counter()
    finished = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)
    return 1e3 * (time.perf_counter() - started), finished.stdout, finished.stderr


if __name__ == "__main__":
    main()
