"""The changes that try the tests: which ones are made of a line, which are chosen, and what is said of them."""

import ast
import math
from pathlib import Path

import pytest

from benchmarks.quality import mutants as runner
from benchmarks.quality._judges import GROUPS, files_of
from benchmarks.quality._mutate import Mutant, mutants
from benchmarks.quality.mutants import Verdict
from benchmarks.tests.running import ROOT, run


@pytest.mark.parametrize(
    "line, changed",
    [
        ("a + b", ["a - b"]),
        ("a << b & c", ["a << b | c", "a >> b & c"]),
        ("a ** b", ["a * b"]),
        ("a < b", ["a <= b", "a >= b"]),
        ("0 <= a < b", ["0 < a < b", "0 > a < b", "0 <= a <= b", "0 <= a >= b", "1 <= a < b"]),
        ("a is None", ["a is not None"]),
        ("a in b and c", ["a in b or c", "a not in b and c"]),
        ("not a", ["a"]),
        ("-a", ["a"]),
        ("f(keepdims=True)", ["f(keepdims=False)"]),
        ("a[-1]", ["a[1]", "a[-2]"]),
        ("2.0", ["2.02"]),
        ("0.0", ["1.0"]),
        ("b if a else c", ["b if not a else c"]),
        ("jnp.max(a)", ["jnp.min(a)"]),
        ("math.sqrt(a)", ["a"]),
        ("multiply(a, b)", ["multiply(b, a)"]),
        ("jnp.where(a, b, c)", ["jnp.where(a, c, b)"]),
        ("f(a, 'text', None)", []),
    ],
)
def test_each_change_is_made_once(line: str, changed: list[str]) -> None:
    found = list(mutants(f"first = second\nx = {line}\n"))
    assert [mutant.after for mutant in found] == [f"x = {other}" for other in changed]
    assert all(mutant.before == f"x = {line}" for mutant in found)
    assert [mutant.source for mutant in found] == [f"first = second\nx = {other}" for other in changed]
    assert {mutant.line for mutant in found} <= {2}


UNCHANGED = '''
"""1 + 1"""
Kind: TypeAlias = int | float

def f(x: int | None, *, y: Literal[1] | None = None) -> int | None:
    """2 + 2"""
    if zip(x, y, strict=True):
        raise ValueError(f"{x + 1} is not {y + 1}" + "!")
'''


def test_text_types_and_messages_are_left_alone() -> None:
    assert [mutant.after for mutant in mutants(UNCHANGED)] == ["if not zip(x, y, strict=True):"]


def test_conditions_are_negated_and_statements_shown_by_their_first_line() -> None:
    found = list(mutants("def f(n=1):\n    if n:\n        n += 1\n    return n\n"))
    assert [(mutant.line, mutant.before, mutant.after) for mutant in found] == [
        (1, "def f(n=1):", "def f(n=2):"),
        (2, "if n:", "if not n:"),
        (3, "n += 1", "n -= 1"),
        (3, "n += 1", "n += 2"),
    ]


PACKAGE = ROOT / runner.PACKAGE
NUMBERS = list(files_of(PACKAGE, "numbers"))


@pytest.fixture(scope="module")
def every() -> runner.Chosen:
    """All changes of all numeric files."""
    return runner.choose(PACKAGE, NUMBERS, math.inf)


def test_the_files_of_the_package_can_be_changed_in_hundreds_of_ways(every: runner.Chosen) -> None:
    """All of which differ from each other, and each in one line."""
    assert len(every) > 400
    assert len({(file, mutant.source) for file, mutant in every}) == len(every)
    lines = {file: ast.unparse(ast.parse((PACKAGE / f"{file}.py").read_text())).splitlines() for file in NUMBERS}
    for file, mutant in every:
        pairs = zip(lines[file], mutant.source.splitlines(), strict=True)
        assert sum(one != other for one, other in pairs) == 1


def test_the_sample_is_the_same_every_time_and_of_every_file(every: runner.Chosen) -> None:
    chosen = runner.choose(PACKAGE, NUMBERS, 200)
    assert set(chosen) < set(every)
    assert 180 <= len(chosen) <= 220
    assert {file for file, _ in chosen} == {file for file, _ in every}
    assert runner.choose(PACKAGE, NUMBERS, 200) == chosen


def test_another_seed_draws_other_changes() -> None:
    first, second = (set(runner.choose(PACKAGE, NUMBERS, 200, seed)) for seed in (0, 1))
    assert len(first) == len(second)
    assert len(first & second) < 0.5 * len(first)


def test_every_file_with_code_has_judges_that_exist() -> None:
    judged = {file: tests for group in GROUPS for file, tests in files_of(PACKAGE, group).items()}
    files = {path.relative_to(PACKAGE).with_suffix("").as_posix(): path for path in PACKAGE.glob("**/*.py")}
    changeable = {file for file, path in files.items() if next(mutants(path.read_text()), None)}
    assert changeable - judged.keys() == {"keras"}  # Its tests are slow and need the extra third-party.
    for name in {test.partition("::")[0] for tests in judged.values() for test in tests}:
        assert len(list(ROOT.glob(f"tests/*/test_{name}.py"))) == 1, name


def test_survivors_are_listed_with_the_reason_or_as_a_missing_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "UNNOTICEABLE", {"_step": {"a & b": "No bit is in both."}})
    chosen = [
        ("_step", Mutant(number, *change, "")) for number, change in enumerate([("a | b", "a & b"), ("c", "d")] * 2)
    ]
    verdicts = [
        Verdict(False, "", 1.0),
        Verdict(False, "", 1.0),
        Verdict(True, "a test", 1.0),
        Verdict(True, f"{runner.TOO_LONG} 2 s", 2.0),
    ]
    shown = [(row["line"], row["before"], row["why"]) for row in runner.survivors(chosen, verdicts)]
    assert shown == [
        ("_step.py:0", r"`a \| b`", "No bit is in both."),
        ("_step.py:1", "`c`", "not known: a test is missing"),
    ]
    figures = {"changes": 4, "killed": 2, "share": 0.5, "of them too long": 1}
    figures |= {"survived, explained": 1, "survived, unexplained": 1, "seconds": 5.0}
    assert list(runner.counts(chosen, verdicts, {"_step": "numbers"})) == [
        {"table": "Changes by group", "group": "numbers"} | figures,
        {"table": "Changes by group", "group": "all"} | figures,
        {"table": "Changes by file", "file": "_step"} | figures,
    ]


@pytest.mark.slow
def test_a_few_changes_are_noticed(tmp_path: Path) -> None:
    rows = run("mutants", tmp_path, "--quick")["rows"]
    shown = [(row.get("group") or row["file"], row["changes"], row["killed"]) for row in rows]
    assert shown == [("numbers", 4, 4), ("all", 4, 4), (runner.QUICK_FILE, 4, 4)]
