"""Reads from a compiled program's text how many multiplications and additions its matrix products take."""

import math
import re
from collections.abc import Mapping, Sequence

from benchmarks.shared.hlo import computations_of, executed

_DEFINITION = re.compile(r"^\s*(?:ROOT )?(?P<name>%[\w.-]+) = \w+\[(?P<shape>[\d,]*)\]")
_PRODUCT = re.compile(r" (?P<kind>dot|convolution)\((?P<left>%[\w.-]+), (?P<right>%[\w.-]+)\)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LABELS = re.compile(r"dim_labels=(?P<left>\w+)_(?P<right>\w+)->(?P<out>\w+)")
_WINDOW = re.compile(r"window=\{(?P<settings>[^}]*)\}")

Shape = Sequence[int]


def product_flops(text: str) -> float:
    """Of all products that one run executes on one device, of alternative branches those of the costliest.

    Raises:
        ValueError: If the trip count of a loop is not known.
    """
    computations, _ = computations_of(text)
    flops: dict[str, float] = {}
    for lines in computations.values():
        # By line and not by name: a name is one instruction's, and its line holds it.
        flops |= _flops_of_lines(lines)
    return sum(times * flops[line] for line, times in executed(text, lambda line: flops[line], fused=True))


def _flops_of_lines(lines: Sequence[str]) -> dict[str, float]:
    shapes = {found["name"]: _sizes(found["shape"]) for line in lines if (found := _DEFINITION.match(line))}
    return {line: _line_flops(line, shapes) for line in lines}


def _sizes(listed: str) -> tuple[int, ...]:
    return tuple(map(int, filter(None, listed.split(","))))


def _line_flops(line: str, shapes: Mapping[str, Shape]) -> float:
    found, defined = _PRODUCT.search(line), _DEFINITION.match(line)
    if not found or not defined:
        return 0.0
    left, right, out = shapes[found["left"]], shapes[found["right"]], shapes[defined["name"]]
    if found["kind"] == "dot":
        contracted = _CONTRACTED.search(line)
        return 2.0 * math.prod(out) * math.prod(left[axis] for axis in _sizes(contracted[1] if contracted else ""))
    return 2.0 * _convolution_multiplications(line, left, right, out)


def _convolution_multiplications(line: str, left: Shape, right: Shape, out: Shape) -> int:
    """The compiler for TPUs writes products as convolutions, and batches and blocks as their windows."""
    labels = _LABELS.search(line)
    if labels is None:
        raise ValueError(f"this convolution has no dim_labels: {line.strip()[:200]}")
    count = out[labels["out"].index("b")] * out[labels["out"].index("f")] * right[labels["right"].index("i")]
    settings = _settings(line)
    for position in range(sum(label.isdigit() for label in labels["out"])):
        sizes = (shape[labels[side].index(str(position))] for side, shape in (("left", left), ("out", out)))
        count *= _taps(*sizes, **{name: values[position] for name, values in settings.items()})
    return count


def _settings(line: str) -> dict[str, list[str]]:
    """Of each window setting one value an axis."""
    found = _WINDOW.search(line)
    pairs = (setting.split("=") for setting in found["settings"].split()) if found else ()
    return {name: values.split("x") for name, values in pairs}


def _taps(
    left: int,
    out: int,
    size: str = "1",
    stride: str = "1",
    pad: str = "0_0",
    lhs_dilate: str = "1",
    rhs_dilate: str = "1",
    rhs_reversal: str = "0",
) -> int:
    """Along one axis, the pairs of an output and an entry of the kernel that meet an input and no filling."""
    del rhs_reversal  # a mirrored kernel has as many pairs
    step, first, between = int(lhs_dilate), -int(pad.split("_")[0]), int(rhs_dilate)
    places = (first + number * int(stride) + entry * between for number in range(out) for entry in range(int(size)))
    return sum(place % step == 0 and 0 <= place // step < left for place in places)
