"""Lines of cells as a table in text: columns as wide as their widest cell, headings underlined."""

from collections.abc import Collection, Sequence


def in_columns(lines: Sequence[Sequence[str]], right_aligned: Collection[int] = ()) -> list[str]:
    """One text a line, the rule below the headings included.

    Args:
        lines: The headings, and cells below them; all lines have as many.
        right_aligned: The columns that hold numbers.
    """
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    texts = ["  ".join(map(_align, cells, widths, _flags(right_aligned, widths))).rstrip() for cells in lines]
    return [texts[0], "  ".join("-" * width for width in widths), *texts[1:]]


def _align(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def _flags(right_aligned: Collection[int], widths: Sequence[int]) -> list[bool]:
    return [column in right_aligned for column in range(len(widths))]
