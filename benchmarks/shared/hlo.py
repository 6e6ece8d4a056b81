"""Reads a compiled program's text: how long it is, which instructions run how often, what cycles a TPU takes."""

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*->.*\{\s*$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")

Weigh: TypeAlias = Callable[[str], float]  # from an instruction's line to what it costs


def estimated_cycles(text: str) -> int:
    """The sum of the compiler's estimates over all that one run executes.

    Loops count by their trip counts, and of a conditional the branch that takes longest.
    """
    return sum(times * _line_cycles(line) for line, times in executed(text, _line_cycles))


def _line_cycles(line: str) -> int:
    found = _CYCLES.search(line)
    return int(found[1]) if found else 0


def count_lines(text: str) -> int:
    """Lines of the program proper: instructions, and the heads and ends of computations.

    XLA also writes a table of source lines into the text, which is longer the deeper the caller's stack is.
    """
    computations, _ = computations_of(text)
    return sum(len(instructions) + 2 for instructions in computations.values())


def executed(text: str, weigh: Weigh | None = None, fused: bool = False) -> Iterator[tuple[str, int]]:
    """Each instruction that one run executes, as its line and how often.

    A fusion is one instruction: what is inside has no cost of its own, and is only shown if ``fused``. The branches of
    a conditional are alternatives: with ``weigh`` it is the one whose instructions weigh most, without all are shown.

    Raises:
        ValueError: If the trip count of a loop is not known.
    """
    computations, entry = computations_of(text)
    yield from _executed(computations, entry, 1, weigh, fused)


def _executed(
    computations: dict[str, list[str]], name: str, times: int, weigh: Weigh | None, fused: bool
) -> Iterator[tuple[str, int]]:
    for line in computations[name]:
        yield line, times
        inner, repeats = _called(computations, line, fused)
        parts = [list(_executed(computations, called, times * repeats, weigh, fused)) for called in inner]
        if parts and weigh is not None and " conditional(" in line:
            parts = [max(parts, key=lambda part: sum(count * weigh(line) for line, count in part))]
        for part in parts:
            yield from part


def _called(computations: dict[str, list[str]], line: str, fused: bool) -> tuple[list[str], int]:
    """The computations that an instruction runs, and how often."""
    if " while(" in line:
        return _named(line, "body"), _trip_count(computations, line)
    if " call(" in line:
        return _named(line, "to_apply"), 1
    if " conditional(" in line:
        return _named(line, "branch_computations", "true_computation", "false_computation"), 1
    if fused and (" fusion(" in line or " async-start(" in line):
        return _named(line, "calls"), 1
    return [], 1


def computations_of(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation, and the name of the one that runs."""
    computations: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = header["name"]
            computations[current] = []
            entry = current if header["entry"] else entry
        elif current and " = " in line:
            computations[current].append(line)
    if not entry:
        raise ValueError("this text has no ENTRY computation: give the text of a compiled program.")
    return computations, entry


def _named(line: str, *attributes: str) -> list[str]:
    """The computations that an instruction names in these attributes."""
    found = [re.search(rf"\b{attribute}=(?:\{{(?P<many>[^}}]*)\}}|(?P<one>[^,\s]+))", line) for attribute in attributes]
    names = [name for match in found if match for name in (match["many"] or match["one"]).split(",")]
    return [name.strip().removeprefix("%") for name in names]


def _trip_count(computations: dict[str, list[str]], line: str) -> int:
    """As the compiler noted it, or else the one integer that the loop's condition compares its counter with."""
    known = _TRIP_COUNT.search(line)
    if known:
        return int(known[1])
    condition = computations[_named(line, "condition")[0]]
    limits = [int(found[1]) for one in condition for found in [_CONSTANT.search(one)] if found]
    if len(limits) != 1:
        raise ValueError(f"the trip count of this loop is not known: {line.strip()[:200]}")
    return limits[0]
