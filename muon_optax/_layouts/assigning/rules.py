"""The default layouts: evidence of each kind is asked in its order, the strongest first."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from muon_optax._layouts.decision import UNKNOWN, Decision, layouts_in
from muon_optax._layouts.evidence.attention import by_attention, by_einsum, by_heads_first
from muon_optax._layouts.evidence.bias import by_bias
from muon_optax._layouts.evidence.blocks import by_blocks
from muon_optax._layouts.evidence.convolutions import by_convolution, by_depthwise
from muon_optax._layouts.evidence.edges import Edges
from muon_optax._layouts.evidence.experts import by_expert_name, by_router, is_expert
from muon_optax._layouts.evidence.gates import by_gated_halves, by_recurrent_gates
from muon_optax._layouts.evidence.low_rank import by_low_rank
from muon_optax._layouts.evidence.no_matrices import (
    bias_or_norm,
    named_head,
    no_real_number,
    table,
    turned_table,
    vector,
)
from muon_optax._layouts.evidence.two_axes import by_elements, by_orientation
from muon_optax._layouts.evidence.widths import by_width_of_inputs, by_width_of_outputs
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, hidden_paths, named_leaves
from muon_optax._layouts.strength.doubts import Doubts
from muon_optax._layouts.strength.neighbors import Neighbors
from muon_optax._layouts.strength.support import Support
from muon_optax._layouts.tree import names
from muon_optax._layouts.tree.bare_paths import nested_paths, unwrapped
from muon_optax._layouts.tree.layer_stacks import UNSTACKED, LayerStack, LayerStacks
from muon_optax._layouts.tree.layer_types import layer_type_of, layout_by_type
from muon_optax._layouts.tree.repeated_blocks import without_repetitions
from muon_optax._layouts.tree.seen import Reading, Seen
from muon_optax._layouts.tree.tree import Tree
from muon_optax._layouts.tree.vectors import is_bias_or_norm

__all__ = ["decide", "default_layouts", "is_bias_or_norm"]

# Asked before the axes are read, in this order; the first that answers decides.
NO_MATRICES: tuple[tuple[Callable[[NamedLeaf, Tree], Decision | None], str], ...] = (
    (bias_or_norm, "biases and norms"),
    (vector, "vectors and scalars"),
    (table, "embeddings"),
    (named_head, "heads"),
    (no_real_number, "integers and complex numbers"),
    (turned_table, "a head by the vocabulary"),
)

# Asked in this order about one layer's axes, with the layouts each gives; the first that answers decides.
RULES: tuple[tuple[Callable[[Seen], Reading | None], str], ...] = (
    (by_recurrent_gates, "`io` with a split"),
    (by_low_rank, "`io`, `iio`, `ioo`"),
    (by_depthwise, "`None`"),
    (by_elements, "`None`"),
    (by_bias, "`ioo`, `iob`, `iio`, `iiio`, `iioi`, `oiii`"),
    (by_einsum, "`oio`, `iio`, `boio`, `bioo`"),
    (by_heads_first, "`oio`, `iio`"),
    (by_gated_halves, "`bio`, `boi`, `bboi`"),
    (by_attention, "`ioo`, `iio`"),
    (by_convolution, "`iiio`, `iioi`, `oiii`"),
    (by_router, "`bio`, `boi`"),
    (by_width_of_inputs, "`ioo`, `ooi`, `bioo`, `boio`"),
    (by_width_of_outputs, "`iio`, `iiio`"),
    (by_expert_name, "`bio`, `boi`"),
    (by_blocks, "`bio`, `boi`"),
    (by_orientation, "`io`, `oi`, `None`"),
)


def default_layouts(params: Any) -> dict[str, Layout | None]:
    """The layout of every leaf by the default rules, which is ``None`` for leaves that AdamW trains.

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
    return layouts_in(decide(named_leaves(params), hidden_paths(params)))


def decide(leaves: Sequence[NamedLeaf], hidden: Collection[str] = ()) -> dict[str, Decision]:
    """The decision on every leaf, by path, in the order of the leaves; ``hidden`` are paths that can't be seen."""
    nested = nested_paths([*(leaf.path for leaf in leaves), *hidden])
    seen = unwrapped([leaf._replace(path=nested[leaf.path]) for leaf in leaves] if nested else leaves)
    kept, alike = without_repetitions(seen) if not hidden else (seen, {})
    tree = Tree(kept, frozenset(nested.get(path, path) for path in hidden))
    decisions = [_decide(leaf, tree) for leaf in kept]
    edges = Edges(tree, kept, decisions)
    support = Support(tree, kept, decisions, edges.widths)
    doubts = Doubts(Neighbors(kept, decisions, edges.widths, all_seen=not hidden))
    found = {
        leaf.path: doubts.judged(leaf, support.judged(leaf, _at_edge(leaf, own, tree, edges)))
        for leaf, own in zip(kept, decisions, strict=True)
    }
    return {leaf.path: found[alike.get(bare.path, bare.path)] for leaf, bare in zip(leaves, seen, strict=True)}


def _at_edge(leaf: NamedLeaf, decision: Decision, tree: Tree, edges: Edges) -> Decision:
    """The decision again, now that all matrices are known: the edge of the model beats a name, both ways."""
    if not decision.why.startswith("head: "):
        return edges.judged(leaf, decision)
    if not edges.is_no_head(leaf):
        return decision._replace(strength="weak") if edges.may_be_inside(leaf) else decision
    as_matrix = _as_matrix(leaf, tree)
    return as_matrix._replace(why=f"{as_matrix.why}; no head: its outputs are taken", strength="weak")


def _decide(leaf: NamedLeaf, tree: Tree) -> Decision:
    answers = (ask(leaf, tree) for ask, _ in NO_MATRICES)
    return next((decision for decision in answers if decision is not None), None) or _as_matrix(leaf, tree)


def _as_matrix(leaf: NamedLeaf, tree: Tree) -> Decision:
    """The decision by the layer's type, else by the rules."""
    if layer_type_of(leaf) is not None:
        return _without_vectors(leaf, Decision(layout_by_type(leaf), "layer type"))
    return _without_vectors(leaf, _by_stacks(leaf, tree))


def _without_vectors(leaf: NamedLeaf, decision: Decision) -> Decision:
    """A matrix with a side of one is a vector."""
    if decision.layout is not None and 1 in (decision.layout.fan_in(leaf.shape), decision.layout.fan_out(leaf.shape)):
        return Decision(None, "a side of 1")
    return decision


def _by_stacks(leaf: NamedLeaf, tree: Tree) -> Decision:
    """The decision of the rules on one layer, if it is the same for every stack that is possible."""
    stacks = tree.stacks(leaf)
    if stacks.by == "biases" and tree.has_heads(leaf):
        stacks = LayerStacks()  # a bias of each head looks like one of each layer
    decisions = {_by_rules(leaf, tree, stack, stacks.by) for stack in stacks.options or (UNSTACKED,)}
    if stacks.by == "shapes":
        # Shapes alone are weak. A reading of the whole array counts as much, and more where its evidence is strong.
        whole = _by_rules(leaf, tree, UNSTACKED, "")
        if whole.strength == "strong" and whole.layout is not None:
            agree = is_expert(leaf) or whole.layout in {decision.layout for decision in decisions}
            decisions = {whole} if agree else {UNKNOWN}
    if len({decision.layout for decision in decisions}) > 1:
        return UNKNOWN
    return min(decisions, key=lambda decision: decision.why)


def _by_rules(leaf: NamedLeaf, tree: Tree, stack: LayerStack, told_by: str) -> Decision:
    seen = Seen(tree, leaf, stack, bool(told_by))
    if len(seen.core) < 2:
        if seen.name in ("kernel", "w", "weight"):  # beside a stack, not in it
            return _by_rules(leaf, tree, UNSTACKED, told_by)
        return Decision(None, "stacked vectors")
    if 1 in seen.core and len(seen.core) == 2:
        return Decision(None, "a side of 1")
    if names.is_weight(seen.name) is False:
        return UNKNOWN
    reading = next(filter(None, (rule(seen) for rule, _ in RULES)), None)
    if reading is None:
        return UNKNOWN
    why = f"stack by {told_by}, {reading.why}" if stack.sizes else reading.why
    by_shapes = stack.sizes and told_by == "shapes" and not is_expert(leaf)
    strength = "weak" if reading.weak or by_shapes else "strong"
    layout = None if reading.letters is None else Layout(stack.whole(reading.letters), reading.split)
    return Decision(layout, why, strength)
