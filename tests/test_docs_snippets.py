"""Every Python snippet of README.md and docs/ runs, each file's snippets in one namespace, top to bottom."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
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


def cases() -> list:
    """Each page with its snippets, and each snippet that is not run as a skip that pytest counts."""
    found = []
    for page in filter(Path.exists, PAGES):
        name, parts = page.relative_to(ROOT).as_posix(), snippets(page.read_text("utf-8"))
        runnable = [part for part in parts if part.reason is None]
        if runnable:
            found.append(pytest.param(page, runnable, id=name))
        for part in parts:
            if part.reason is not None:
                place = f"{name}:{part.line}"
                marks = [pytest.mark.skip(reason=f"{place}: {part.reason}")] if part.reason else []
                found.append(pytest.param(page, [part], id=place, marks=marks))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page, parts", cases())
def test_page(page: Path, parts: list[Snippet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(part.reason is None for part in parts), "say why it is not run: <!-- not run: reason -->"
    monkeypatch.chdir(tmp_path)  # a snippet that saves a file leaves nothing behind
    run(parts, page)


def test_readme_has_a_snippet_that_runs() -> None:
    assert any(part.reason is None for part in snippets((ROOT / "README.md").read_text("utf-8")))


TEXT = """\
Words.

```python
x = 1
```

<!-- not run: needs a pod -->
```python
y = 1 / 0
```

```bash
false
```

```python
z = x + 1
```
"""


def test_extraction_keeps_line_numbers_and_reasons() -> None:
    assert snippets(TEXT) == [
        Snippet(4, "x = 1\n", None),
        Snippet(9, "y = 1 / 0\n", "needs a pod"),
        Snippet(17, "z = x + 1\n", None),
    ]
    assert snippets(TEXT.replace("needs a pod", ""))[1].reason == ""


def test_snippets_share_a_namespace_and_errors_name_the_page() -> None:
    first, broken, last = snippets(TEXT)
    assert run([first, last], Path("page.md"))["z"] == 2
    with pytest.raises(ZeroDivisionError) as raised:
        run([broken], Path("page.md"))
    last_call = raised.traceback[-1]
    assert (str(last_call.path), last_call.lineno + 1) == ("page.md", 9)
