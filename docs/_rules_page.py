"""Writes docs/what_the_rules_know.md from the evidence table of muon_optax: ``python docs/_rules_page.py``."""

from pathlib import Path

from muon_optax._layouts.assigning.rules import NO_MATRICES, RULES
from muon_optax._layouts.strength.doubts import DOUBTS, DOUBTS_BY_NEIGHBORS
from muon_optax._layouts.tree import names, roles

PAGE = Path(__file__).parent / "what_the_rules_know.md"

HEADER = """\
# What the rules know

This page is written by `docs/_rules_page.py` from the rules themselves.

The rules look for evidence in the order of these tables, and the first that applies decides.

1. Axes that stack layers are found first. They come in front, `(layers, in, out)`, or second as in MaxText,
   `(in, layers, out)`. Norms and biases in the same scope have them too.
2. The rules then read the axes of one layer.
3. Last, they look at the edge of the model. A matrix whose outputs no layer takes is a head or a table.

Arrays that no rule knows go to AdamW, and one warning names them. `summarize` marks weak evidence with `~`.
"""

DOUBTS_HEADER = """
## Doubts

What the rules have read is marked weak if one of these is true, whatever told it. `summarize` prints the first column
behind the evidence. A norm's or a table's weight of two long axes, which a layer may be too, is marked as well.

| printed | what is weak |
|---|---|"""

LIMITS = """\
## Limits

- A flat list of arrays has no names and no scopes. Its matrices are unknown, and the warning names them.
- If all sizes are equal (as many layers as heads, and as wide), a stack in front looks like a stack on axis 1.
- Attention with its heads first looks like stacked layers. Without a norm near, it is unknown.
- Queries and keys whose output is masked away are known only if their heads fill the width, or differ in number.
- A stack of layers without norms and biases shows in its shapes alone. It is marked weak.
- A last layer with a part or a multiple of another layer's size stays with Muon, marked weak. So does a last
  convolution.
- A name may be anybody's. Where `weight`, `w` or an array's own name alone says which axis is the input, the layer is
  marked weak. A shape of the same tree bears the name out: a bias, a pair of low-rank factors, numbered layers in turn,
  or a projection (`q_proj`, `down`) with the width of a norm. Flax's and Keras' `kernel` needs nothing.
- A `weight` without a bias, in a module whose name is not a layer's, may be a table. It is marked weak.
- A matrix of fewer than eight outputs is marked weak if it is not one of repeated blocks: its outputs may be taken by
  chance.
- Networks side by side on the last axis, (inputs, outputs, n), are marked weak: with a bias (outputs, n) they look like
  heads. In front they look like layers. Where layers would not fit, what may be a head of each is marked weak.
- A square layer with the last number of its name, beside repeated blocks, may be a head. It is marked weak.
- A head by name whose outputs another layer may take is marked weak. So is an embedding called `kernel` or `w`.
- A convolution of PyTorch with an even window and no bias may be a transposed one. It is marked weak.
- If a gated layer is as wide inside as the model, both readings fit. They give the same update.
- The scale of a spline, or a mask, with the shape of the weight beside it looks like a weight. It is marked weak
  unless its name is a weight's.

The rules are wrong without a mark mostly in these cases. Give such parameters a layout of their own:

- Weights called `weight` that store their inputs first beside others that store their outputs first.
- A last layer with as many outputs as a norm has features, or as a layer near it has inputs. It stays with Muon.
- A table called `weight`, under a layer's name, with as many rows as another layer has inputs.
- Arrays called `kernel` that store their outputs first, and have no bias.
"""


def page() -> str:
    """The page's text."""
    known = [f"| {what} | {' '.join((ask.__doc__ or '').split())} |" for ask, what in NO_MATRICES]
    doubts = [
        f"| {what} | {' '.join((doubt.__doc__ or '').split())} |" for doubt, what in (*DOUBTS, *DOUBTS_BY_NEIGHBORS)
    ]
    rules = [f"| {' '.join((rule.__doc__ or '').split())} | {layouts} |" for rule, layouts in RULES]
    patterns = {
        "heads": names.HEAD,
        "heads, if no layer takes their outputs": names.LAST,
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
            "## Before the axes are read\n\n| what | how it is recognized |\n|---|---|",
            *known,
            "\n## The axes of one layer\n\n| evidence | layouts |\n|---|---|",
            *rules,
            "\n## Names\n\nWhole components of a path match these patterns, in lower case and without a trailing",
            "number (`Dense_0` is `dense`). A name never beats a type or a bias.\n\n| what | pattern |\n|---|---|",
            *named,
            DOUBTS_HEADER,
            *doubts,
            "",
            LIMITS,
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
