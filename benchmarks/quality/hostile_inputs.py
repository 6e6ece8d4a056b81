"""Inputs that nobody wants and everybody has: what muon_optax.muon and optax.contrib.muon make of each.

    python benchmarks/quality/hostile_inputs.py          # every row, minutes on two CPU cores
    python benchmarks/quality/hostile_inputs.py --docs   # and puts the tables into docs/hostile_inputs.md
    python benchmarks/quality/hostile_inputs.py --quick  # every tenth row

The rows are those of tests/hostile, where the library's promises are tests.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository: nothing need be installed

import jax
import numpy as np
import optax

import muon_optax as mo
from benchmarks.shared.report import ROOT, Progress, Report, Row, device_name, finish, parser

sys.path.append(str(ROOT / "tests"))
from hostile import row as hostile
from hostile.attempts import GENTLE, second_step
from hostile.inputs import SHAPE, of_dtype, plain
from hostile.oracles import B2, LEARNING_RATE, MOMENTUM
from hostile.table import MASK, ROWS

PAGE = ROOT / "docs" / "hostile_inputs.md"
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
    "The rows about 64, 1,000 and 10,000 leaves count operations of the traced program: wrong is more than promised.",
    "optax.contrib.muon documents that it takes every array of two axes for a matrix and no other. What it makes of "
    "models of which nothing is said is wrong by how Muon's authors treat such parameters, not by its documentation.",
]


Numbers = optax.contrib.MuonDimensionNumbers
NAN = float("nan")
BOTH = {"other": Numbers(), "w": Numbers(), "b": None}


def dimension_numbers(params: Any, layouts: Mapping[str, str | None]) -> Any:
    """Layouts in the words of ``optax.contrib.muon``."""

    def positions(axes: str, letter: str) -> tuple[int, ...]:
        return tuple(axis for axis, name in enumerate(axes) if name == letter)

    told = [layouts[path] for path, _ in hostile.named(params)]
    numbers = [axes and Numbers(positions(axes, "i"), positions(axes, "o")) for axes in told]
    return jax.tree.unflatten(jax.tree.structure(params), numbers)


def optax_muon(layouts: Any, params: Any, **settings: Any) -> optax.GradientTransformation:
    given = {"learning_rate": LEARNING_RATE, "beta": MOMENTUM, "nesterov": False, "adam_b2": B2}
    if layouts is not None:
        given["muon_weight_dimension_numbers"] = dimension_numbers(params, layouts)
    return optax.contrib.muon(**given | settings)


OPTAX = hostile.Contender("optax.contrib.muon", optax_muon, ours=False)
LIBRARIES = {"muon_optax.muon": hostile.OURS, OPTAX.name: OPTAX}

# The settings of optax.contrib.muon that come nearest to those of a row.
SETTINGS: dict[str, dict[str, Any]] = {
    "more axes than the matrix has": {"muon_weight_dimension_numbers": BOTH | {"w": Numbers(0, (1, 2))}},
    "axes out of range": {"muon_weight_dimension_numbers": BOTH | {"w": Numbers(5, (7, 8))}},
    "no output axis": {"muon_weight_dimension_numbers": BOTH | {"w": Numbers((0, 1), ())}},
    "a number in place of a layout": {"muon_weight_dimension_numbers": BOTH | {"w": 3}},
    "a matrix's layout for a vector": {"muon_weight_dimension_numbers": BOTH | {"b": Numbers()}},
    "the name of no parameter": {"muon_weight_dimension_numbers": BOTH | {"typo": Numbers()}},
    "text in place of the mapping": {"muon_weight_dimension_numbers": "io"},
    "rank 1 until it is rounded to bfloat16": {},
    "from before other coefficients": {"ns_coeffs": GENTLE[0]},
    "from before another number of steps": {"ns_coeffs": mo.DEEPSEEK_V4, "ns_steps": 10},
    "momentum 1": {"beta": 1.0},
    "momentum -0.5": {"beta": -0.5},
    "a momentum in int8": {"mu_dtype": np.int8},
    "no Newton-Schulz steps": {"ns_steps": 0},
    "two coefficients a step": {"ns_coeffs": ((1.5, -0.5),)},
    "a coefficient NaN": {"ns_coeffs": (NAN, 0, 0)},
    "coefficients that diverge": {"ns_coeffs": (10.0, 0.0, 0.0)},
    "an unknown norm": {"preconditioning": "nuclear"},
    "Keller Jordan's coefficients": {"ns_coeffs": "muon"},  # the documented preset
    "coefficients of four steps": {"ns_coeffs": mo.polar_express(4)},
    "coefficients of ten steps": {"ns_coeffs": mo.DEEPSEEK_V4},
    "a decay mask": MASK | {"adam_weight_decay": 0.5},
}


def complex_update(gradients: Sequence[np.ndarray], axes: str) -> np.ndarray:
    """Muon of complex matrices."""
    del axes
    X = MOMENTUM * gradients[0] + gradients[1]
    X = X / np.linalg.norm(X)
    for a, b, c in mo.KELLER:
        A = X @ X.conj().T
        X = a * X + (b * A + c * A @ A) @ X
    return -LEARNING_RATE * (SHAPE[1] / SHAPE[0]) ** 0.5 * X


def injected(contender: hostile.Contender) -> None:
    given = {"learning_rate": LEARNING_RATE, "beta": MOMENTUM, "nesterov": False, "adam_b2": B2}
    built = optax.inject_hyperparams(optax.contrib.muon)(**given)
    hostile.Train(plain())(contender._replace(build=lambda *_: built))


COMPLEX = of_dtype(np.complex64, matrix=True, layout="io")
ATTEMPTS: dict[str, Callable[..., None]] = {
    "of optax.contrib.muon": second_step(state=lambda *given: mo.muon(LEARNING_RATE).init(given[1])),
    "a complex matrix with a matrix's layout": hostile.Train(COMPLEX, owed=complex_update),
    "optax.inject_hyperparams": injected,
}


def for_optax(row: hostile.Row) -> hostile.Row:
    """The row in the words of ``optax.contrib.muon``."""
    attempt = ATTEMPTS.get(row.name, row.attempt)
    return replace(row, attempt=attempt, settings=SETTINGS.get(row.name, row.settings))


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
            rows = dict(zip(LIBRARIES, (row, for_optax(row)), strict=True))
            outcomes = {name: as_code(hostile.outcome(rows[name], LIBRARIES[name])) for name in LIBRARIES}
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
