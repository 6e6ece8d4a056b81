"""What the site needs beside Sphinx: formulas without a network, and links into Optax's and JAX's documentation."""

import shutil
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.transforms.post_transforms import SphinxPostTransform

# A page for each name, as their autosummary writes it. Sphinx's own extension for this downloads an index in each
# build, which fails where there is no network.
OPTAX = "https://optax.readthedocs.io/en/latest/api/generated"
JAX = "https://docs.jax.dev/en/latest/_autosummary"
OF_OPTAX = """
    adam adamw add_decayed_weights apply_if_finite apply_updates chain clip_by_block_rms clip_by_global_norm ema lion
    masked partition scale scale_by_adam scale_by_learning_rate scale_by_schedule set_to_zero sgd trace EmaState
    MultiSteps TraceState
    contrib.muon contrib.scale_by_muon contrib.split_real_and_imaginary
"""
SCHEDULES = "cosine_decay_schedule inject_hyperparams linear_schedule warmup_cosine_decay_schedule"
OF_JAX = "eval_shape jit lax.scan lax.stop_gradient make_mesh shard_map vmap"
LINKS = (
    {f"optax.{name}": f"{OPTAX}/optax.{name}.html" for name in OF_OPTAX.split()}
    | {f"optax.{name}": f"{OPTAX}/optax.schedules.{name}.html" for name in SCHEDULES.split()}
    | {f"jax.{name}": f"{JAX}/jax.{name}.html" for name in OF_JAX.split()}
)


class LinkForeignNames(SphinxPostTransform):
    """Makes a link of every code span that is a name of ``LINKS``, in pages and in docstrings."""

    default_priority = 500

    def run(self, **_: Any) -> None:
        """Runs once on each page."""
        for code in list(self.document.findall(nodes.literal)):
            address = LINKS.get(code.astext().removesuffix("()")) or self.page(code.astext())
            if address and not isinstance(code.parent, nodes.reference):
                code.replace_self(nodes.reference("", "", code.deepcopy(), refuri=address, internal=False))

    def page(self, path: str) -> str | None:
        """Where a page lies that a notebook or the changelog names by its file, as in ``docs/tuning.md``."""
        name = path.removeprefix("docs/").removesuffix(".md")
        if path != f"docs/{name}.md" or name not in self.env.all_docs:
            return None
        return self.app.builder.get_relative_uri(self.env.docname, name)


def visit_formula(writer: Any, node: nodes.math) -> None:
    """A formula in a line, as MathML: browsers draw it without a script."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def visit_formulas(writer: Any, node: nodes.math_block) -> None:
    """A formula that stands alone."""
    writer.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def bring_notebooks(app: Sphinx) -> None:
    """Sphinx reads only what lies below its folder."""
    target = Path(app.srcdir) / "notebooks"
    target.mkdir(exist_ok=True)
    for notebook in (Path(app.srcdir).parent / "notebooks").glob("*.ipynb"):
        shutil.copy2(notebook, target)


def read_constant(_: Sphinx, what: str, name: str, __: Any, ___: Any, lines: list[str]) -> None:
    """The text below a constant or a type alias: autodoc looks for it where the name is imported to, or shows tuple's.

    Raises:
        ExtensionError: If there is none.
    """
    if what != "data":
        return
    package, _, short = name.partition(".")
    modules = [module for module in sorted(sys.modules) if module.startswith(f"{package}._")]
    found = [ModuleAnalyzer.for_module(module).find_attr_docs().get(("", short)) for module in modules]
    texts = [text for text in found if text]
    if len(texts) != 1:
        raise ExtensionError(f"{name} has {len(texts)} texts below it in {package}, and one is needed")
    lines[:] = texts[0]


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers all of it."""
    app.connect("builder-inited", bring_notebooks, priority=100)
    app.connect("autodoc-process-docstring", read_constant)
    app.add_html_math_renderer("mathml", (visit_formula, None), (visit_formulas, None))
    app.add_post_transform(LinkForeignNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
