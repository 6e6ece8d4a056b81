"""The default layouts: evidence of each kind is asked in its order, the strongest first."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from muon_optax._layouts.evidence import names
from muon_optax._layouts.evidence.bias import by_bias
from muon_optax._layouts.evidence.convolutions import by_convolution, by_depth
from muon_optax._layouts.evidence.experts import by_name, by_router
from muon_optax._layouts.evidence.heads import embedding, head, is_vocabulary
from muon_optax._layouts.evidence.layer_types import kind_of, layout_by_type
from muon_optax._layouts.evidence.siblings import by_attention, by_einsum, by_gates, by_gating, by_low_rank
from muon_optax._layouts.evidence.stacks import UNSTACKED, Stack
from muon_optax._layouts.evidence.tree import Reading, Seen, Tree, unwrapped
from muon_optax._layouts.evidence.two_axes import by_orientation
from muon_optax._layouts.evidence.vectors import is_bias_or_norm, is_norm
from muon_optax._layouts.evidence.widths import by_width_of_inputs, by_width_of_outputs
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, named_leaves

__all__ = ["Decision", "decide", "default_layouts", "guess_layouts", "is_bias_or_norm"]


class Decision(NamedTuple):
    """What the rules say of one leaf: its layout, the evidence in a few words, and whether there is any."""

    layout: Layout | None
    why: str
    known: bool


UNKNOWN = Decision(None, "unknown", False)

# Asked before the axes are read, as `_decide` does it: what is told, and how. The page of the rules shows both tables.
KNOWN_BEFORE = (
    ("biases and norms", "an Equinox or Haliax type, or the name; `b` beside `w`, `query_b` beside `query_w`"),
    ("vectors and scalars", "all axes but one have length 1"),
    ("embeddings", "an Equinox or Haliax type, or the name"),
    ("heads", "the module's name, a class called `*Head`, or the last layer in a scope called head"),
    ("integers", "the type; `init` refuses them"),
    ("layers with types", "Equinox `Linear`, `Conv`, `ConvTranspose`, `GRUCell`, `LSTMCell`; Haliax `Linear`"),
    ("a head by the vocabulary", "the shape of the table of tokens, turned, and no other leaf has it"),
    ("vectors of a stack", "one axis is left without the stacked ones"),
    ("no weights", "words such as `params`, `log_*`, `codebook`, `inducing_inputs`: a warning"),
)

# Asked in this order about one layer's axes, with the layouts each gives; the first that answers decides.
RULES: tuple[tuple[Callable[[Seen], Reading | None], str], ...] = (
    (by_gates, "`io` with a split"),
    (by_low_rank, "`io`, `iio`, `ioo`"),
    (by_depth, "`None`"),
    (by_bias, "`ioo`, `iio`, `iiio`, `iioi`, `oiii`"),
    (by_einsum, "`oio`, `iio`, `boio`, `bioo`"),
    (by_gating, "`bio`, `boi`, `bboi`"),
    (by_attention, "`ioo`, `iio`"),
    (by_convolution, "`iiio`, `iioi`, `oiii`"),
    (by_router, "`bio`, `boi`"),
    (by_width_of_inputs, "`ioo`, `ooi`"),
    (by_width_of_outputs, "`iio`, `iiio`"),
    (by_name, "`bio`, `boi`"),
    (by_orientation, "`io`, `oi`"),
)


def default_layouts(params: Any) -> dict[str, Layout | None]:
    """The layout of every leaf, by the default rules; ``None`` for what goes to AdamW.

    The rules reason from evidence, the strongest first: a layer's type, a bias, norms, siblings, names. Biases, norms,
    embeddings, heads, depthwise convolutions and everything of fewer than two axes get ``None``. So does what no rule
    knows. The page "What the rules know" lists the evidence.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``; only paths, shapes, dtypes and module types are read.

    Returns:
        A mapping from every leaf's path to its layout, in the order of the leaves.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}}
        >>> {path: str(layout) for path, layout in mo.default_layouts(params).items()}
        {'query/bias': 'None', 'query/kernel': 'ioo'}
    """
    return guess_layouts(named_leaves(params))[0]


def guess_layouts(leaves: Sequence[NamedLeaf]) -> tuple[dict[str, Layout | None], list[NamedLeaf]]:
    """The default layouts, and the leaves of several axes that no rule knows."""
    decisions = decide(leaves)
    unknown = [leaf for leaf in leaves if not decisions[leaf.path].known]
    return {path: decision.layout for path, decision in decisions.items()}, unknown


def decide(leaves: Sequence[NamedLeaf]) -> dict[str, Decision]:
    """The decision on every leaf, by path, in the order of the leaves."""
    seen = unwrapped(leaves)
    tree = Tree(seen)
    return {leaf.path: _decide(bare, tree) for leaf, bare in zip(leaves, seen, strict=True)}


def _decide(leaf: NamedLeaf, tree: Tree) -> Decision:
    if leaf.path in tree.vectors:
        return Decision(None, "norm" if is_norm(leaf) else "bias", True)
    if sum(size != 1 for size in leaf.shape) < 2:
        return Decision(None, "vector" if leaf.shape else "scalar", True)
    kind, name = kind_of(leaf), embedding(leaf)
    if kind == "embedding" or name is not None:
        return Decision(None, f"embedding: {name}" if name else "layer type", True)
    name = head(leaf, tree)
    if name is not None:
        return Decision(None, f"head: {name}", True)
    dtype = leaf.dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        # Integers are refused by `init`, in one voice; complex arrays are AdamW's, and that is worth a warning.
        is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
        return UNKNOWN if is_complex else Decision(None, "integers", True)
    if kind is not None:
        return _without_vectors(leaf, Decision(layout_by_type(leaf), "layer type", True))
    if is_vocabulary(leaf, tree):
        return Decision(None, "head: vocabulary", True)
    return _without_vectors(leaf, _by_stacks(leaf, tree))


def _without_vectors(leaf: NamedLeaf, decision: Decision) -> Decision:
    """A matrix with a side of one is a vector."""
    if decision.layout is not None and 1 in (decision.layout.fan_in(leaf.shape), decision.layout.fan_out(leaf.shape)):
        return Decision(None, "a side of 1", True)
    return decision


def _by_stacks(leaf: NamedLeaf, tree: Tree) -> Decision:
    """What the rules say of one layer, if they say the same however layers may be stacked."""
    stacks = tree.stacks(leaf)
    decisions = {_by_rules(leaf, tree, stack, bool(stacks)) for stack in stacks or (UNSTACKED,)}
    if len({decision.layout for decision in decisions}) > 1:
        return UNKNOWN
    return min(decisions, key=lambda decision: decision.why)


def _by_rules(leaf: NamedLeaf, tree: Tree, stack: Stack, told: bool) -> Decision:
    seen = Seen(tree, leaf, stack, told)
    if len(seen.core) < 2:
        if seen.name in ("kernel", "w"):  # beside a stack, not in it
            return _by_rules(leaf, tree, UNSTACKED, told)
        return Decision(None, "stacked vectors", True)
    if 1 in seen.core and len(seen.core) == 2:
        return Decision(None, "a side of 1", True)
    if names.is_weight(seen.name) is False:
        return UNKNOWN
    for rule, _ in RULES:
        reading = rule(seen)
        if reading is not None and reading.letters is None:
            return Decision(None, reading.why, True)
        if reading is not None:
            return Decision(Layout(stack.whole(str(reading.letters)), reading.split), reading.why, True)
    return UNKNOWN
