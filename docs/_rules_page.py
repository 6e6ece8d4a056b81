"""Writes docs/what_the_rules_know.md from the evidence table of muon_optax: ``python docs/_rules_page.py``."""

from pathlib import Path

from muon_optax._layouts.assigning.rules import NO_MATRICES, RULES
from muon_optax._layouts.tree import names, roles

PAGE = Path(__file__).parent / "what_the_rules_know.md"

HEADER = """\
# What the rules know

This page is written by `docs/_rules_page.py` from the rules themselves.

The rules ask for evidence in the order of these tables, and the first kind that answers decides. Axes that stack
layers are found first, in front (`(layers, in, out)`) or behind the first axis as MaxText has them
(`(in, layers, out)`): norms and biases in the same scope have them too. The rules then judge the axes of one layer.
Last, the edge of the model is judged: outputs that no layer takes are a head's or a table's.
What no rule knows goes to AdamW, and one warning names it. Weak evidence is marked `~` in `summarize`.
"""

LIMITS = """\
## Limits

- A flat list of arrays has no names and no scopes. Its matrices are not guessed but named in the warning.
- Where all sizes agree (as many layers as heads, and as wide), nothing tells a stack in front from one on axis 1.
- Attention with its heads first, without a norm near, looks like stacked layers. It is unknown.
- Queries and keys whose output is masked away are known only if their heads fill the width, or differ in number.
- A stack of layers without norms and biases is told by its shapes alone. It is marked weak.
- A last layer with a part or a multiple of another layer's size stays with Muon, marked weak. So does a last
  convolution.
- An array that PyTorch calls `X_weight` may have either axis first. Without a bias or numbered layers in turn it
  is marked weak.
- A gated layer whose hidden width is the model's reads the same both ways, and gets the same update.
- The scale of a spline or a mask with the shape of the weight beside it looks like a weight. It is marked weak where
  its name says nothing.

Wrong without a mark are mostly these. Give them a layout of their own:

- Weights called `weight` that have their inputs first, beside norms or biases that don't tell. They are read as
  PyTorch's, outputs first. Roles (`up`, `linear1`, `wo`) with a width, or numbered layers in turn, tell otherwise.
  Without any norm and bias in the tree they are marked weak.
- A head with as many classes as some other layer has inputs, or as the features of a norm. It stays with Muon.
- A table called `weight` with a number of rows that another layer takes, unless its name says that it is a table.
- A square weight without a bias is read by its name alone.
"""


def page() -> str:
    """The page's text."""
    known = [f"| {what} | {' '.join((ask.__doc__ or '').split())} |" for ask, what in NO_MATRICES]
    rules = [f"| {' '.join((rule.__doc__ or '').split())} | {layouts} |" for rule, layouts in RULES]
    patterns = {
        "heads": names.HEAD,
        "heads, if nothing takes what they give": names.LAST,
        "embeddings": names.EMBEDDING,
        "arrays of embeddings": names.EMBEDDING_ARRAY,
        "biases": names.BIAS,
        "norms": names.NORM,
        "experts": names.EXPERTS,
    }
    words = {name: pattern.pattern for name, pattern in patterns.items()} | {
        f"projections: {role.replace('_', ' ')}": pattern for role, pattern in roles.ROLES.items()
    }
    named = [f"| {what} | `{pattern.replace('|', chr(92) + '|')}` |" for what, pattern in words.items()]
    return "\n".join(
        [
            HEADER,
            "## Before the axes are read\n\n| what | how it is told |\n|---|---|",
            *known,
            "\n## The axes of one layer\n\n| evidence | layouts |\n|---|---|",
            *rules,
            "\n## Names\n\nWhole components of a path match these patterns, in lower case and without a trailing",
            "number (`Dense_0` is `dense`). A name never beats a type or a bias.\n\n| what | pattern |\n|---|---|",
            *named,
            "",
            LIMITS,
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
