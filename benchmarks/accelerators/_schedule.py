"""What a TPU kernel takes, from the compiler's static schedule: the bundles of its loops, read from its dump."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

# One line a bundle: its address, a label, a ">" for each loop that it is in, and its instructions. Waits are empty.
_BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?P<label>[A-Z]{2})?\s*:\s*(?P<depth>>*)\s*(?P<wait>\{\})?")
_CALL = re.compile(r"%(?P<name>[a-z_]+)[.\d]* = (?P<results>.*?) custom-call\((?P<operands>.*?)\), custom_call_target")
_KERNEL = re.compile(r"%([a-z_]+)[.\d]* = \S.* custom-call\(.*tpu_custom_call")
_PRODUCT = re.compile(r"%fusion = bf16\[(?P<sizes>[\d,]+)\]\S* fusion\(.*jit\(plain_product\)/dot_general")
_DEFINITION = re.compile(r"^\s*(?:ROOT )?%(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) ")
_ARRAY = re.compile(r"(?P<dtype>[a-z]+\d+)\[(?P<sizes>[\d,]*)\](?P<layout>\{[^}]*\})?")
# How a kernel's text names what it is given and gives.
_GIVEN = re.compile(
    r"inlined_call_operand\.(?P<space>\w+) \[shape: (?P<dtype>[a-z]+\d+)\[(?P<sizes>[\d,]*)\], index: (?P<index>\d+), "
    r"kind: (?P<kind>\w+)"
)


class Schedule(NamedTuple):
    """Bundles of a kernel; the processor issues one a cycle."""

    once: int  # Outside of the loop over the grid.
    step: int  # Of a step of the grid, without its own loops.
    loops: tuple[int, ...]  # Of one iteration of each loop in a step, in the order of the source.


class Array(NamedTuple):
    """What a kernel is given or gives."""

    dtype: str
    sizes: tuple[int, ...]
    is_near: bool  # In vector memory, and not in main memory; said of matrices only.


class Call(NamedTuple):
    """A kernel in a compiled program: equal ones are compiled once.

    Of what it is given only stacks of matrices are told: scalars that it has no use for are not in its schedule.
    """

    name: str
    results: tuple[Array, ...]
    operands: tuple[Array, ...]


def flags(folder: Path) -> str:
    """The value of ``LIBTPU_INIT_ARGS``, set before JAX starts, with which the compiler writes its schedules."""
    return f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"


def types_of(text: str) -> dict[str, str]:
    """The type of each instruction of a compiled program, by name."""
    found = (_DEFINITION.match(line) for line in text.splitlines())
    return {match["name"]: match["type"] for match in found if match}


def call_of(line: str, types: Mapping[str, str]) -> Call | None:
    """The kernel that an instruction calls."""
    if 'custom_call_target="tpu_custom_call"' not in line:
        return None
    called = _CALL.search(line)
    if called is None:
        raise ValueError(f"this call of a kernel is written in a way that is not known: {line[:300]}")
    operands = re.findall(r"%([\w.-]+)", called["operands"])
    return Call(
        called["name"],
        tuple(map(_array, _ARRAY.finditer(called["results"]))),
        tuple(array for name in operands if len((array := _array(_ARRAY.search(types[name]))).sizes) == 3),
    )


def _array(found: re.Match[str] | None) -> Array:
    if found is None:
        raise ValueError("this operand of a kernel is no array.")
    return _placed(found, "S(1)" in (found["layout"] or ""))


def _placed(found: re.Match[str], is_near: bool) -> Array:
    sizes = tuple(int(size) for size in found["sizes"].split(",") if size)
    return Array(found["dtype"], sizes, is_near and len(sizes) == 3)


def schedules(folder: Path) -> dict[Call, Schedule]:
    """Of each kernel in a dump."""
    return dict(_schedules(folder))


def _schedules(folder: Path) -> Iterator[tuple[Call, Schedule]]:
    for analysis in folder.glob("*-schedule-analysis_final_bundles.txt"):
        described = analysis.read_text(errors="replace")
        kernel = _KERNEL.search(described)
        # The schedule of a program as a whole tells of its fusion, too.
        product = _PRODUCT.search(described) if "-fusion-" in analysis.name else None
        if kernel or product:
            prefix = re.sub(r"-\d+-schedule-analysis_final_bundles.txt$", "", analysis.name)
            (program,) = folder.glob(f"{prefix}-[0-9]*[0-9]-final_bundles.txt")
            text = program.read_text(errors="replace")
            if kernel:
                yield Call(kernel[1], _given(text, "output"), _given(text, "input")), read_schedule(text)
            elif product:
                yield product_of(tuple(map(int, product["sizes"].split(",")))), read_schedule(text)


def product_of(sizes: tuple[int, ...]) -> Call:
    """What stands for XLA's own product of these sizes, if a program is nothing else."""
    return Call("product", (Array("bf16", sizes, False),), ())


def _given(text: str, kind: str) -> tuple[Array, ...]:
    """A kernel's operands (``"input"``) or results (``"output"``)."""
    found = {
        int(match["index"]): _placed(match, match["space"] == "vmem")
        for match in _GIVEN.finditer(text)
        if match["kind"] == kind
    }
    return tuple(found[index] for index in sorted(found) if len(found[index].sizes) == 3)


def read_schedule(text: str) -> Schedule:
    """Of the text of a kernel's bundles. A grid of one step is no loop: its own loops are the outermost then.

    Raises:
        ValueError: If there is a loop within a loop of a step.
    """
    bundles = [found for line in text.splitlines() if (found := _BUNDLE.match(line))]
    deepest = max((len(found["depth"]) for found in bundles), default=0)
    starts = [len(found["depth"]) for found in bundles if found["label"] == "LB"]
    if deepest > 2:
        raise ValueError("a loop within a loop of a step: its iterations are not known.")
    counts, loops, depth = [0, 0], [], 0
    for found in bundles:
        # A wait carries no depth: it belongs to what stands before it.
        depth = depth if found["wait"] else len(found["depth"])
        if found["label"] == "LB" and depth == deepest:
            loops.append(0)
        if depth == deepest and starts:
            loops[-1] += 1
        else:
            counts[depth] += 1
    return Schedule(counts[0], counts[1], tuple(loops))
