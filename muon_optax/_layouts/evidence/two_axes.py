"""Arrays of two axes: which one is the input, and whether they are a matrix at all."""

import math

from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.path_parts import family_of
from muon_optax._layouts.tree.seen import Reading, Seen

_TWO_AXES = "two axes"  # and a name that says nothing
_IN_TURN = "numbered layers"  # each takes what the one before gives
_SIBLINGS = "bias of siblings"
_QUERIES = frozenset({"query", "queries"})


def by_elements(seen: Seen) -> Reading | None:
    """An array (heads, size) whose name is not a weight's, with one element for each feature of the model."""
    # "r_k" and "bonus" may be that; "feat_2d_weights" and "w1" say that they are weights.
    own = names.is_weight(seen.name) is None or seen.name.rpartition("_")[2] in ("q", "k", "v", "o")
    if own and len(seen.core) == 2 and seen.bias is None and seen.is_width(math.prod(seen.core)):
        return Reading(None, "one for each feature", weak=True)
    return None


def by_orientation(seen: Seen) -> Reading | None:
    """The output axis has the bias's length, or the siblings' biases show it, else the name or numbered layers do."""
    if len(seen.core) != 2:
        return None
    if _are_queries(seen):
        return Reading(None, "learned queries", weak=True)
    letters, why = _letters(seen)
    if letters is None:
        return None
    inputs, outputs = seen.core if letters == "io" else seen.core[::-1]
    fused = (roles.role_of(seen.module) == "fused") and outputs == 3 * inputs
    # "in_proj_weight" has its outputs first, where PyTorch made it; "loop_weight" may be anybody's.
    # Without any bias or norm a tree of weights may be anybody's too: JAX users store their inputs first.
    anybodys = seen.name.endswith("_weight") or not (seen.tree.vectors or seen.tree.hidden)
    weak = why in (_TWO_AXES, _IN_TURN) or (why == "name: weight" and anybodys and not fused)
    # Siblings that store their outputs first speak against a name that is not PyTorch's.
    weak |= why == _SIBLINGS and letters == "oi" and not seen.outputs_first
    return Reading(letters, why, (inputs,) * 3 if fused else None, weak=weak)


def _are_queries(seen: Seen) -> bool:
    """Whether an array called query holds vectors as wide as the model, beside layers that have names of their own."""
    return seen.name in _QUERIES and seen.tree.of_layers and seen.width == 1 and seen.bias is None


def _letters(seen: Seen) -> tuple[str | None, str]:
    own = _fitted(seen.core, seen.bias)
    if own is not None:
        return own, "its bias"
    siblings = _by_siblings(seen)
    if siblings == "oi" or (siblings and seen.outputs_first):
        return siblings, _SIBLINGS
    in_turn = seen.tree.chains.get(family_of(seen.leaf.path)) if not seen.stack.sizes else None
    if seen.outputs_first:
        by_name = {"io": ("io", _IN_TURN), "oi": ("oi", f"name: weight, {_IN_TURN}"), None: ("oi", "name: weight")}
        return _by_role(seen) or by_name[in_turn]
    weight = names.is_weight(seen.name)
    if weight:
        return "io", f"name: {seen.name}"
    if seen.bias is not None:
        return "io", "its bias"
    if weight is None and not seen.tree.is_flat_list:
        if not seen.tree.of_layers:
            # A user's own tree, whose names are his own.
            return (in_turn, _IN_TURN) if in_turn else ("io", _TWO_AXES)
        if seen.width == 0:
            return "io", "width"
    return None, ""


def _fitted(core: tuple[int, ...], bias: tuple[int, ...] | None) -> str | None:
    if bias is None or len(bias) != 1 or core[0] == core[1] or bias[0] not in core:
        return None
    return "oi" if bias[0] == core[0] else "io"


def _by_siblings(seen: Seen) -> str | None:
    """The orientation on which all biases agree in the nearest scope where a bias shows one."""
    # What lies outside of all blocks may be a table with a bias, which is stored the other way round.
    near = seen.scopes[:-1] if len(seen.scopes) > 2 else seen.scopes
    for scope in near[:3]:
        pairs = [
            p for p in scope.pairs if len(p.weight) == len(seen.leaf.shape) and p.outputs_first == seen.outputs_first
        ]
        stacked = [p for p in pairs if seen.stack.fits(p.weight) and seen.stack.fits(p.bias)]
        fitted = [_fitted(seen.stack.core(pair.weight), seen.stack.core(pair.bias)) for pair in stacked]
        told = {letters for letters in fitted if letters is not None}
        if told:
            return told.pop() if len(told) == 1 else None
    return None


def _by_role(seen: Seen) -> tuple[str, str] | None:
    """PyTorch's name with the inputs first, as older Haliax stores it: width and role say so."""
    role = roles.side_of(seen.module)
    if seen.width is None or role is None or not seen.tree.stores_inputs_first:
        return None
    return ("io", "name + width") if (seen.width == 0) == (role == "reads") else ("oi", "name + width")
