"""Arrays that are not matrices, found before any axis is read: vectors, tables, heads, numbers that are not real."""

import jax.numpy as jnp

from muon_optax._layouts.decision import UNKNOWN, Decision
from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.layer_types import layer_type_of
from muon_optax._layouts.tree.path_parts import each_part, is_torch, module_of
from muon_optax._layouts.tree.tree import Tree


def bias_or_norm(leaf: NamedLeaf, tree: Tree) -> Decision | None:
    """By an Equinox or Haliax type, or by name, such as `b` beside `w` and `query_b` beside `query_w`."""
    if leaf.path not in tree.vectors:
        return None
    return Decision(None, "norm" if leaf.path in tree.norms else "bias")


def vector(leaf: NamedLeaf, tree: Tree) -> Decision | None:
    """As an array in which all axes but one have length 1."""
    del tree
    if sum(size != 1 for size in leaf.shape) > 1:
        return None
    return Decision(None, "vector" if leaf.shape else "scalar")


def table(leaf: NamedLeaf, tree: Tree) -> Decision | None:
    """By an Equinox or Haliax type, or by the name of an embedding that has no bias beside it."""
    name = _embedding(leaf, tree)
    if name is not None:
        # Frameworks call the weight of a layer so, and a table otherwise.
        layer = names.clean(leaf.path.rpartition("/")[2]) in ("kernel", "w")
        return Decision(None, f"embedding: {name}", "weak" if layer else "strong")
    return Decision(None, "layer type") if layer_type_of(leaf) == "embedding" else None


def named_head(leaf: NamedLeaf, tree: Tree) -> Decision | None:
    """By the module's name, by a class called `*Head`, or as the last layer in a scope called head."""
    name = _head(leaf, tree)
    return None if name is None else Decision(None, f"head: {name}")


def no_real_number(leaf: NamedLeaf, tree: Tree) -> Decision | None:
    """By dtype. `init` refuses integers with its own message; complex arrays get a warning."""
    del tree
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return None
    return UNKNOWN if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else Decision(None, "integers")


def turned_table(leaf: NamedLeaf, tree: Tree) -> Decision | None:
    """As the only matrix with the transposed shape of the token embedding."""
    known = layer_type_of(leaf) is not None
    return Decision(None, "head: vocabulary") if not known and _is_vocabulary(leaf, tree) else None


def _embedding(leaf: NamedLeaf, tree: Tree) -> str | None:
    """The name that makes ``leaf`` an embedding."""
    if not tree.is_table(leaf):
        return None
    parts = [names.clean(part) for part in leaf.path.split("/")]
    return next((part for part in parts[-4:] if names.EMBEDDING.fullmatch(part)), parts[-1])


def _head(leaf: NamedLeaf, tree: Tree) -> str | None:
    """The name that makes ``leaf`` a head: its own module's, or that of a scope whose last layer it is."""
    scope_path, module = module_of(leaf.path)
    if _is_attention(module):
        return None  # "to_attn_logits"
    if names.HEAD.fullmatch(module) or (names.LAST.fullmatch(module) and _is_last(leaf, tree, "")):
        return module
    for kind in map(str.lower, leaf.classes):
        if kind.endswith("head") and not kind.startswith("multi") and not _is_attention(kind):
            return kind
    if names.MAYBE_HEAD.search(scope_path) is None:
        return None
    if roles.reads_attention(module) or tree.scopes[scope_path].queries:
        return None
    for part, path in each_part(scope_path):
        if names.HEAD.fullmatch(names.clean(part)) and _is_last(leaf, tree, path):
            return names.clean(part)
    return None


def _is_attention(name: str) -> bool:
    return names.ATTENTION.fullmatch(name) is not None


def _is_last(leaf: NamedLeaf, tree: Tree, head_path: str) -> bool:
    """Whether no layer of the head takes the outputs of ``leaf``. A whole network may be called classifier."""
    first = is_torch(leaf.path) and len(leaf.shape) == 2
    outputs, inputs = (leaf.shape[0], leaf.shape[1]) if first else (leaf.shape[-1], leaf.shape[-2])
    scope = tree.scopes[head_path]
    takers = scope.inputs.get(outputs, 0) - (inputs == outputs)
    return takers <= 0 and not any(norm[-1] == outputs for norm in scope.norms)


def _is_vocabulary(leaf: NamedLeaf, tree: Tree) -> bool:
    """Whether ``leaf`` is the only one with the transposed shape of the token embedding."""
    turned = leaf.shape[::-1]
    return len(leaf.shape) == 2 and tree.tables[turned] > 0 and tree.reversed[turned] == 1 and turned[0] > turned[1]
