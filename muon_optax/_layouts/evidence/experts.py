"""Experts: arrays (experts, ., .) told by their router (width, experts), and only without one by their name."""

from muon_optax._layouts.evidence import names
from muon_optax._layouts.evidence.tree import Reading, Seen
from muon_optax._layouts.paths import NamedLeaf


def by_router(seen: Seen) -> Reading | None:
    """An array (experts, a, b) near a matrix (a or b, experts)."""
    core = seen.core
    if len(core) != 3 or "conv" in seen.module or names.ATTENTION_IN.fullmatch(seen.module):
        return None
    if seen.width == 0 and not is_expert(seen.leaf):
        return None
    experts, rows, columns = core
    for scope in seen.scopes[: 3 if is_expert(seen.leaf) else 2]:
        beside = seen.cores(scope.weights)
        # No router has more experts than inputs, but many a layer writes into a wider stream.
        widths = [size for size in {rows, columns} if (size, experts) in beside and size >= experts]
        if widths:
            return Reading(_letters(seen, widths), "router")
    return None


def _letters(seen: Seen, widths: list[int]) -> str:
    _, rows, columns = seen.core
    role = names.role(seen.module)
    if role is None or rows == columns or len(widths) > 1:
        return "boi" if seen.outputs_first else "bio"
    return "bio" if (columns == widths[0]) == (role == "writes") else "boi"


def by_name(seen: Seen) -> Reading | None:
    """Without a router in sight: a component called experts or moe, three axes."""
    if len(seen.core) == 3 and is_expert(seen.leaf):
        return Reading("boi" if seen.outputs_first else "bio", "experts by name")
    return None


def is_expert(leaf: NamedLeaf) -> bool:
    """Whether a name near says so."""
    # A component far up may be the name of the whole model, and experts are no attention and no convolutions.
    parts = [names.clean(part) for part in leaf.path.split("/")[-4:]]
    others = any(names.ATTENTION.fullmatch(part) or names.SHARED.fullmatch(part) or "conv" in part for part in parts)
    return not others and any(map(names.EXPERTS.fullmatch, parts))
