"""The trees of states on docs/state.md are those that its code prints."""

import contextlib
import io
import re

from places import ROOT
from snippets import run, snippets

PAGE = ROOT / "docs" / "state.md"
SHOWN = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_trees_are_those_of_the_code() -> None:
    text = PAGE.read_text("utf-8")
    trees = text[: text.index("## Read a momentum")]
    assert text.count("```text") == len(SHOWN.findall(trees)) == 4
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run(snippets(trees), PAGE)
    assert printed.getvalue() == "".join(SHOWN.findall(trees))


def test_every_recipe_has_its_tree() -> None:
    recipes = re.findall(r"^def ([a-z]\w+)\(", (ROOT / "muon_optax" / "recipes.py").read_text("utf-8"), re.MULTILINE)
    assert len(recipes) > 3
    assert not [name for name in recipes if f"recipes.{name}(" not in PAGE.read_text("utf-8")]
