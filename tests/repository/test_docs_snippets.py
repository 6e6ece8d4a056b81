"""Every Python snippet of README.md and docs/ runs, each file's snippets in one namespace, top to bottom."""

from pathlib import Path

import pytest
from places import ROOT
from snippets import Snippet, run, snippets

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]


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
print(z)
```

```text
2
```
"""


def test_extraction_keeps_line_numbers_and_reasons() -> None:
    assert snippets(TEXT) == [
        Snippet(4, "x = 1\n", None),
        Snippet(9, "y = 1 / 0\n", "needs a pod"),
        Snippet(17, "z = x + 1\nprint(z)\n", None, "2\n"),
    ]
    assert snippets(TEXT.replace("needs a pod", ""))[1].reason == ""
    twice = snippets(TEXT + "\n<!-- not run: -->\n```python\n1\n```\n")
    assert [part.reason for part in twice] == [None, "needs a pod", None, ""]


def test_snippets_share_a_namespace_and_errors_name_the_page() -> None:
    first, broken, last = snippets(TEXT)
    assert run([first, last], Path("page.md"))["z"] == 2
    with pytest.raises(AssertionError, match=r"page\.md:17 prints something else"):
        run([first, last._replace(output="3\n")], Path("page.md"))
    with pytest.raises(ZeroDivisionError) as raised:
        run([broken], Path("page.md"))
    last_call = raised.traceback[-1]
    assert (str(last_call.path), last_call.lineno + 1) == ("page.md", 9)
