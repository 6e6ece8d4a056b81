"""The Python snippets of a page, found and run; a text block that follows one is what it prints."""

import contextlib
import io
import re
from pathlib import Path
from typing import NamedTuple

NOT_RUN = re.compile(r"<!-- not run:((?:(?!-->).)*)-->\s*$", re.DOTALL)  # the comment next to the code, of several
FENCE = re.compile(r"^```python\n(.*?)^```[ ]*$(?:\n\n^```text\n(.*?)^```[ ]*$)?", re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    """One fenced block: where its code starts, the code, why it is not run (None if it is), and what it prints."""

    line: int
    code: str
    reason: str | None
    output: str | None = None  # None where the page does not show it


def snippets(text: str) -> list[Snippet]:
    found = []
    for match in FENCE.finditer(text):
        comment = NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start(1)) + 1
        found.append(Snippet(line, match.group(1), comment.group(1).strip() if comment else None, match.group(2)))
    return found


def run(parts: list[Snippet], page: Path) -> dict:
    """Executes ``parts`` in one namespace and returns it; a traceback names the page and its line."""
    namespace: dict = {"__name__": "__main__"}
    for part in parts:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * (part.line - 1) + part.code, str(page), "exec"), namespace)
        print(printed.getvalue(), end="")
        if part.output is not None:
            shown, seen = (
                [line.rstrip() for line in text.strip().splitlines()] for text in (part.output, printed.getvalue())
            )
            assert shown == seen, f"{page}:{part.line} prints something else:\n" + printed.getvalue()
    return namespace
