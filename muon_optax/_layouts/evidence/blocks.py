"""Block-diagonal layers without a bias. Each block reads its own part of the features."""

from muon_optax._layouts.tree import names, roles
from muon_optax._layouts.tree.seen import Reading, Seen


def by_blocks(seen: Seen) -> Reading | None:
    """A projection is (blocks, a, b), and layers near have the sizes blocks x a and blocks x b."""
    core, module = seen.core, seen.module
    projects = "proj" in module or roles.side_of(module) is not None
    if (
        len(core) != 3
        or seen.bias is not None
        or "conv" in module
        or not projects
        or seen.name not in names.MODULE_ARRAY
    ):
        return None
    blocks, rows, columns = core
    sides = {size for scope in seen.scopes[:2] for shape in scope.shapes if len(shape) < 3 for size in shape}
    if blocks > 1 and {blocks * rows, blocks * columns} <= sides:
        return Reading("boi" if seen.outputs_first else "bio", "blocks of features", weak=True)
    return None
