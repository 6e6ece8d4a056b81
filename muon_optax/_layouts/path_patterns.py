"""Paths of repeated layers, written as one: ``layers/{0..25}/attn/w``."""

import glob
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+")


def without_numbers(path: str) -> str:
    """``path`` with ``#`` for each number: the same for the same parameter of every repeated layer."""
    return _NUMBER.sub("#", path)


def natural_order(path: str) -> tuple[tuple[str | int, ...], ...]:
    """A key that sorts ``layers/2`` before ``layers/10``."""
    # Texts and numbers take turns: two keys never compare a text with a number.
    return tuple(
        tuple(int(part) if position % 2 else part for position, part in enumerate(re.split(r"(\d+)", component)))
        for component in path.split("/")
    )


def pattern(paths: Sequence[str], several: str | None = None) -> str:
    """Paths that differ in nothing but numbers, as one: numbers that differ become a range, or ``several``.

    Args:
        paths: At least one.
        several: The text in place of numbers that differ; everything else is escaped for use as a glob.
    """
    numbers = [sorted(set(map(int, column))) for column in zip(*map(_NUMBER.findall, paths), strict=True)]
    first, *texts = _NUMBER.split(paths[0])
    escape = glob.escape if several else str
    parts = [escape(first)]
    for own, found, text in zip(_NUMBER.findall(paths[0]), numbers, texts, strict=True):
        parts += [own if len(found) == 1 else several or _range(found), escape(text)]
    return "".join(parts)


def _range(found: Sequence[int]) -> str:
    whole = list(found) == list(range(found[0], found[-1] + 1))
    listed = found if len(found) <= 4 else [*found[:3], "..", found[-1]]
    return f"{{{found[0]}..{found[-1]}}}" if whole else f"{{{','.join(map(str, listed))}}}"
