"""Lines of cells as a table, in text and in HTML: columns as wide as their widest cell, headings underlined."""

import html
from collections.abc import Collection, Sequence


def in_columns(lines: Sequence[Sequence[str]], right_aligned: Collection[int] = (), *, headings: int = 1) -> list[str]:
    """One text a line, the rule below the headings included.

    Args:
        lines: The headings, and cells below them; all lines have as many.
        right_aligned: The columns that hold numbers.
        headings: How many of the lines are headings.
    """
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    texts = ["  ".join(map(_align, cells, widths, _flags(right_aligned, widths))).rstrip() for cells in lines]
    return [*texts[:headings], "  ".join("-" * width for width in widths), *texts[headings:]]


def in_html(lines: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """The same for notebooks, as one table with the ``notes`` below. The first of the lines holds the headings."""
    head, *body = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
        for tag, cells in zip(["th", *["td"] * len(lines)], lines, strict=False)
    )
    rows = "".join(f"<tr>{cells}</tr>" for cells in body)
    below = "".join(f"<p>{html.escape(text)}</p>" for text in notes)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{below}"


def _align(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def _flags(right_aligned: Collection[int], widths: Sequence[int]) -> list[bool]:
    return [column in right_aligned for column in range(len(widths))]
