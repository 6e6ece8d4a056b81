"""Which tables, code blocks and pictures are cut off: ``python docs/_widths.py docs/_build``.

A headless Chrome shows every page at 1280 and at 400 pixels. ``BROWSER`` may name another Chromium. The exit status is
0 if everything fits, 1 if something does not, and 99 if there is no browser.
"""

import os
import sys
from pathlib import Path

from playwright.sync_api import Error, Page, sync_playwright

NO_BROWSER = 99
WIDTHS = (1280, 400)
LEFT_OUT = {"genindex", "py-modindex", "search"}
# What is wider than its column, and cut off or scrolled sideways. A formula may be scrolled.
MEASURE = """() => {
  const boxes = [...document.querySelectorAll("article pre, article table, article img")]
    .map(element => [element, element.closest(".table-wrapper") || element])
    .filter(([element, box]) => box.scrollWidth > box.clientWidth + 1 && box.clientWidth > 0)
    .map(([element]) => element.tagName.toLowerCase() + ": " + element.textContent.trim().slice(0, 60));
  const page = document.documentElement;
  return page.scrollWidth > page.clientWidth + 1 ? ["the page", ...boxes] : boxes;
}"""


def cut_off(page: Page, site: Path) -> list[str]:
    """A line for everything that does not fit."""
    found = []
    for file in sorted([*site.glob("*.html"), *site.glob("notebooks/*.html")]):
        if file.stem in LEFT_OUT:
            continue
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            page.goto(file.resolve().as_uri())
            found += [f"{file.name} at {width} pixels: {what!r} is too wide" for what in page.evaluate(MEASURE)]
    return found


def main() -> int:
    """Prints what is cut off."""
    named = os.environ.get("BROWSER")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(
                executable_path=named, channel=None if named else "chrome", args=["--no-sandbox"]
            )
        except Error as error:
            print(f"no browser: the widths of the pages were not checked ({str(error).splitlines()[0]})")
            return NO_BROWSER
        found = cut_off(browser.new_page(), Path(sys.argv[1]))
        browser.close()
    print(*found, sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
