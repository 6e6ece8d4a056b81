"""Inputs that nobody wants and everybody has: what muon_optax.muon and optax.contrib.muon make of each.

    python benchmarks/hostile_inputs.py             # every row, minutes on two CPU cores
    python benchmarks/hostile_inputs.py --docs      # and puts the tables into docs/hostile_inputs.md
    python benchmarks/hostile_inputs.py --quick     # every tenth row

The rows are those of tests/hostile, where the library's promises are tests. Without an installed muon_optax, put
PYTHONPATH=. in front.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence

import jax
from _report import ROOT, Progress, Report, Row, device_name, finish, parser

sys.path.append(str(ROOT / "tests"))
from hostile import ROWS
from hostile.contenders import OPTAX, OURS
from hostile.row import outcome

PAGE = ROOT / "docs" / "hostile_inputs.md"
LIBRARIES = {"muon_optax.muon": OURS, "optax.contrib.muon": OPTAX}
OUTCOMES = ("works", "clear error", "unclear error", "wrong")

NOTES = [
    "works: updates within a tenth (Frobenius norm) of a float64 oracle, of one formula for both libraries; NaN only "
    "where the gradient has one, parameters and state in the dtypes that they had, and no array written to.",
    "clear error: an error whose text holds the path of the leaf, or the argument or value, that is to blame; unclear "
    "error: any other. Where an error is promised, who trains instead is wrong, unless the input has one right result "
    "and that came out.",
    "Both with learning rate 0.1, momentum 0.9, no Nesterov momentum, Keller Jordan's scale and no decay, if the row "
    "says nothing else: then they are the same algorithm. muon_optax multiplies in bfloat16, its default; "
    "optax.contrib.muon in the dtype of the gradients. Both are told the layouts, unless the row says that nothing is "
    "said.",
    "The rows about 32, 1,000 and 10,000 leaves count operations of the traced program: wrong is more than promised.",
    "optax.contrib.muon documents that it takes every array of two axes for a matrix and no other. What it makes of "
    "models of which nothing is said is wrong by how Muon's authors treat such parameters, not by its documentation.",
]


def as_code(text: str) -> str:
    """``text`` with an error message as Markdown shows it letter by letter."""
    kind, _, message = text.partition("error: ")
    return text if not message else f"{kind}error: `{message.replace('`', chr(39)).replace('|', '/')}`"


def count(rows: Sequence[Row]) -> list[Row]:
    """How often each library came to each outcome."""
    return [
        {"topic": "Totals", "outcome": kind}
        | {library: sum(row[library].startswith(kind) for row in rows) for library in LIBRARIES}
        for kind in OUTCOMES
    ]


def try_all(quick: bool, progress: Callable[[int], Progress]) -> list[Row]:
    """A row for each input."""
    chosen = [row for row in ROWS[::10] if not row.slow] if quick else ROWS
    results = []
    with progress(len(chosen)) as step:
        for row in chosen:
            outcomes = {library: as_code(outcome(row, contender)) for library, contender in LIBRARIES.items()}
            results.append({"topic": row.topic, "input": row.name, "promised": row.promise} | outcomes)
            step(row.name)
    return results


def write_page(report: Report) -> None:
    """Puts the tables of ``report`` between the marks of the page."""
    tables = report.markdown().partition("## Totals")
    marks = r"(<!-- results -->\n).*(<!-- end of results -->)"
    text = re.sub(
        marks, lambda match: f"{match[1]}\n{tables[1]}{tables[2]}\n{match[2]}", PAGE.read_text(), flags=re.DOTALL
    )
    PAGE.write_text(text)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--docs", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    given = options.parse_args(arguments)
    warnings.simplefilter("ignore")
    report = Report("hostile_inputs", device_name(), NOTES)
    with tempfile.TemporaryDirectory() as cache:
        # Nothing is timed, and the rows repeat a few operations: each is compiled once.
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        results = try_all(given.quick, lambda total: Progress(total, report.name))
    report.rows = [*count(results), *results]
    finish(report, given.output)
    if given.docs:
        write_page(report)


if __name__ == "__main__":
    main()
