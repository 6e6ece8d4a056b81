"""Arrays of experts (experts, a, b). Their router (width, experts) shows them, or their name where there is none."""

from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.seen import Reading, Seen


def by_router(seen: Seen) -> Reading | None:
    """An array (experts, a, b) lies near a router, a matrix (a, experts) or (b, experts)."""
    core, named = seen.core, is_expert(seen.leaf)
    if len(core) != 3 or "conv" in seen.module or roles.reads_attention(seen.module):
        return None
    if not named and (seen.width == 0 or names.is_weight(seen.name) is None):
        return None
    experts, rows, columns = core
    for scope in seen.scopes[: 3 if named else 2]:
        beside = seen.cores(scope.weights)
        # A router has fewer experts than inputs, while a layer may well write into a wider stream.
        found = {shape for shape in beside if shape[-1] == experts or (named and shape[0] == experts)}
        widths = [size for size in {rows, columns} if size > experts and {(size, experts), (experts, size)} & found]
        if widths:
            # Heads of an output look the same where they are as many as their sizes.
            return Reading(_letters(seen, widths), "router", weak=not named and experts in (rows, columns))
    return None


def _letters(seen: Seen, widths: list[int]) -> str:
    """The letters: the axis with the model's width is the input of a layer that reads it, the output of a writer."""
    _, rows, columns = seen.core
    role = roles.side_of(seen.module)
    if seen.width in (1, 2):
        widths = [seen.core[seen.width]]
    if role is None or rows == columns or len(widths) != 1:
        first = (seen.outputs_first or seen.tree.is_torch) and not _inputs_first(seen)
        return "boi" if first else "bio"
    return "bio" if (columns == widths[0]) == (role == "writes") else "boi"


def _inputs_first(seen: Seen) -> bool:
    """Whether biases of the experts beside have the length of the last axis alone."""
    pairs = (pair for pair in seen.scopes[0].pairs if len(pair.weight) == 3 and len(pair.bias) == 2)
    return any(pair.bias == (pair.weight[0], pair.weight[2]) != pair.weight[:2] for pair in pairs)


def by_expert_name(seen: Seen) -> Reading | None:
    """Three axes below a component called experts or moe, without a router near."""
    if len(seen.core) == 3 and is_expert(seen.leaf):
        letters = _letters(seen, [])
        return Reading(letters, "experts by name", weak=seen.tree.is_torch and seen.width not in (1, 2))
    return None


def is_expert(leaf: NamedLeaf) -> bool:
    """Whether a name near says so."""
    # A component far up may be the name of the whole model. Attention and convolutions are not experts.
    parts = [names.clean(part) for part in leaf.path.split("/")[-4:]]
    others = any(names.ATTENTION.fullmatch(part) or names.SHARED.fullmatch(part) or "conv" in part for part in parts)
    return not others and any(map(names.EXPERTS.fullmatch, parts))
