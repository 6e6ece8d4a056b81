"""The page "What the rules know" is what the rules' own tables say."""

import runpy

from places import ROOT

DOCS = ROOT / "docs"


def test_the_page_is_generated_from_the_rules():
    page = runpy.run_path(str(DOCS / "_rules_page.py"))["page"]()
    written = (DOCS / "what_the_rules_know.md").read_text("utf-8")
    assert written == page, "Run `python docs/_rules_page.py`."
