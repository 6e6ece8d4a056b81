"""Sphinx configuration: the pages are Markdown (MyST), the API page is written from the docstrings."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for _site

project = "muon_optax"
author = "The muon_optax authors"
copyright = author
release = version = installed_version("muon_optax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "_site",
]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # the notebooks hold their outputs; tests run them
nb_merge_streams = True  # what one cell prints, in one box
copybutton_exclude = ".linenos, .gp, .go"  # neither the prompts of a doctest nor what it prints

# Each docstring says what an argument may be; the aliases of JAX and Optax, written out, would bury it.
autodoc_mock_imports = ["keras"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True  # KELLER, not its fifteen numbers
maximum_signature_line_length = 80
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "muon_optax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
