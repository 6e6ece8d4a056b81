"""Reads a compiled program's text: how long it is, which instructions run how often, what cycles a TPU takes."""

import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.-]+) .*->.*\{\s*$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CONSTANT = re.compile(r" = [su]\d+\[\]\S* constant\((\d+)\)")


def estimated_cycles(text: str) -> int:
    """The sum of the compiler's estimates over all that one run executes.

    Loops count by their trip counts, and of a conditional the branch that takes longest.
    """
    computations, entry = _computations(text)
    return _cycles(computations, entry)


def _cycles(computations: dict[str, list[str]], name: str) -> int:
    total = 0
    for line in computations[name]:
        found = _CYCLES.search(line)
        inner, repeats = _called(computations, line)
        within = [_cycles(computations, called) for called in inner]
        total += int(found[1]) if found else 0
        total += max(within, default=0) if " conditional(" in line else repeats * sum(within)
    return total


def count_lines(text: str) -> int:
    """Lines of the program proper: instructions, and the heads and ends of computations.

    XLA also writes a table of source lines into the text, which is longer the deeper the caller's stack is.
    """
    computations, _ = _computations(text)
    return sum(len(instructions) + 2 for instructions in computations.values())


def executed(text: str) -> Iterator[tuple[str, int]]:
    """Each instruction that one run executes, as its line and how often.

    A fusion is one instruction: what is inside has no cost of its own. Of a conditional all branches are counted.

    Raises:
        ValueError: If the trip count of a loop is not known.
    """
    computations, entry = _computations(text)
    yield from _executed(computations, entry, 1)


def _executed(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[str, int]]:
    for line in computations[name]:
        yield line, times
        inner, repeats = _called(computations, line)
        for called in inner:
            yield from _executed(computations, called, times * repeats)


def _called(computations: dict[str, list[str]], line: str) -> tuple[list[str], int]:
    """The computations that an instruction runs, and how often."""
    if " while(" in line:
        return _named(line, "body"), _trip_count(computations, line)
    if " call(" in line:
        return _named(line, "to_apply"), 1
    if " conditional(" in line:
        return _named(line, "branch_computations", "true_computation", "false_computation"), 1
    return [], 1


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
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
