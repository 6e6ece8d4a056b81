"""Reads from a compiled program's text what the devices of a mesh send each other."""

import math
import re
from typing import NamedTuple

from benchmarks.shared.hlo import executed

_COLLECTIVE = re.compile(
    r" = (?P<type>.*?) (?P<kind>all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(?P<start>-start)?\("
)
# The compiler for TPUs spreads a collective over several fusions, to compute meanwhile. Each of them holds it, and all
# but the first say where they go on. Channels don't tell how many there are: the copies of an unrolled loop share
# theirs, and so do all collectives inside shard_map.
_CONTINUED = re.compile(r'"flag_start":"\d')
_ARRAY = re.compile(r"\b(?P<dtype>pred|[a-z]+(?P<bits>\d+)\w*)\[(?P<shape>[\d,]*)\]")
_DEVICES = re.compile(r"\bnum_partitions=(\d+)")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{(?P<first>[\d,]*)\}")
_COUNTED_GROUPS = re.compile(r"replica_groups=\[\d+,(?P<size>\d+)\]<=")
_NAMED_GROUPS = re.compile(r"replica_groups=mesh\[(?P<mesh>[^\]]*)\][^{]*\{(?P<axes>[^}]*)\}")
_NAMED_SIZE = re.compile(r"'(?P<axis>[^']+)'=(?P<size>\d+)")
_NAMED_AXIS = re.compile(r"'(?P<axis>[^']+)'(?::\(\d+\)(?P<part>\d+))?")  # a whole axis, or a part of one


class Collective(NamedTuple):
    """One collective of a program, as one device sees it."""

    kind: str
    times: int
    result_bytes: int  # of what the device has afterwards
    sent_bytes: float  # by the device, along a ring


def collectives(text: str) -> list[Collective]:
    """The collectives that one run executes; of alternative branches those of the one that sends most.

    Raises:
        ValueError: If it is not known how often one runs, or among how many devices.
    """
    head = _DEVICES.search(text)
    devices = int(head[1]) if head else None

    def sent(line: str) -> float:
        found = _read(line, 1, devices)
        return found.sent_bytes if found else 0.0

    lines = executed(text, sent, fused=True)
    return [found for line, times in lines if (found := _read(line, times, devices)) is not None]


def _read(line: str, times: int, devices: int | None) -> Collective | None:
    found = _COLLECTIVE.search(line)
    if found is None or _CONTINUED.search(line):
        return None
    kind, written = found["kind"], found["type"]
    if found["start"] and kind in ("all-gather", "collective-permute"):
        written = _elements(written)[1]  # what comes in, what goes out, and for some what they keep to themselves
    result = sum(map(_bytes, _ARRAY.finditer(written)))
    if kind == "collective-permute":
        return Collective(kind, times, result, float(result))
    size = _group_size(line, devices)
    share = (size - 1) / size
    sent = {"all-reduce": 2 * share, "reduce-scatter": size - 1.0}.get(kind, share)
    return Collective(kind, times, result, sent * result)


def _elements(written: str) -> list[str]:
    """The elements of a tuple type, which may be tuples."""
    elements, depth = [""], 0
    for letter in written.strip()[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            elements.append("")
        else:
            elements[-1] += letter
    return elements


def _bytes(array: re.Match[str]) -> int:
    bits = 8 if array["dtype"] == "pred" else int(array["bits"])
    return math.prod(map(int, filter(None, array["shape"].split(",")))) * bits // 8


def _group_size(line: str, devices: int | None) -> int:
    """Among how many devices a collective is."""
    if listed := _LISTED_GROUPS.search(line):
        return listed["first"].count(",") + 1
    if counted := _COUNTED_GROUPS.search(line):
        return int(counted["size"])
    if named := _NAMED_GROUPS.search(line):
        sizes = {found["axis"]: int(found["size"]) for found in _NAMED_SIZE.finditer(named["mesh"])}
        return math.prod(int(one["part"] or sizes[one["axis"]]) for one in _NAMED_AXIS.finditer(named["axes"]))
    if "replica_groups={}" in line and devices:
        return devices
    raise ValueError(f"among how many devices this is, is not known: {line.strip()[:200]}")
