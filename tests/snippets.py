"""The Python snippets of a page, found and run."""

import re
from pathlib import Path
from typing import NamedTuple

NOT_RUN = re.compile(r"<!-- not run:(.*?)-->\s*$", re.DOTALL)
FENCE = re.compile(r"^```python\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


class Snippet(NamedTuple):
    """One fenced block: where its code starts, the code, and why it is not run (None if it is)."""

    line: int
    code: str
    reason: str | None


def snippets(text: str) -> list[Snippet]:
    found = []
    for match in FENCE.finditer(text):
        comment = NOT_RUN.search(text[: match.start()])
        line = text.count("\n", 0, match.start(1)) + 1
        found.append(Snippet(line, match.group(1), comment.group(1).strip() if comment else None))
    return found


def run(parts: list[Snippet], page: Path) -> dict:
    """Executes ``parts`` in one namespace and returns it; a traceback names the page and its line."""
    namespace: dict = {"__name__": "__main__"}
    for part in parts:
        exec(compile("\n" * (part.line - 1) + part.code, str(page), "exec"), namespace)
    return namespace
