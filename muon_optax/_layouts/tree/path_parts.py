"""The grammar of paths: modules, arrays, numbers, and names that say what an array is."""

import re
from collections.abc import Iterator

from muon_optax._layouts.paths import NamedLeaf
from muon_optax._layouts.tree import names


def is_embedding(leaf: NamedLeaf) -> bool:
    """Whether a name says that the leaf is a table of embeddings, or something near one."""
    if names.MAYBE_EMBEDDING.search(leaf.path) is None:
        return False
    parts = [names.clean(part) for part in leaf.path.split("/")]
    if names.EMBEDDING_ARRAY.fullmatch(parts[-1]):
        return True
    near = [names.EMBEDDING.fullmatch(part) is not None for part in parts[-4:]]
    if parts[-1] in names.MODULE_ARRAY and len(parts) > 1:
        # A dense layer or a convolution in an embedder has a name of its own, and a table fewer axes than a window.
        own = near[-2] or names.EMBEDDING_ARRAY.fullmatch(parts[-2]) is not None
        axes, window = len(leaf.shape), names.CONVOLUTION.search(parts[-2]) is not None
        return any(near) and (own if axes == 2 else axes == 3 and not window)
    return any(near)


def module_of(path: str) -> tuple[str, str]:
    """The scope and the name of what a leaf belongs to: its module, or itself if its name says more than "kernel"."""
    scope, _, name = path.rpartition("/")
    if scope and names.clean(name) in names.MODULE_ARRAY:
        scope, _, name = scope.rpartition("/")
    return scope, names.clean(name)


def is_torch(path: str) -> bool:
    """Whether an array is called "weight", which has its outputs first."""
    name = path.rpartition("/")[2]
    return (name.startswith("weight") and name != "weights") or name.endswith("_weight")


def family_of(path: str) -> str:
    """``path`` without its numbers."""
    return re.sub(r"\d+", "#", re.sub(r"_\d+(?=/|$)", "", path))


def numbers_in(path: str) -> list[int]:
    return list(map(int, re.findall(r"\d+", path)))


def each_part(path: str) -> Iterator[tuple[str, str]]:
    """Each component of ``path`` with the path of what it names, outermost first."""
    for slash in [*(match.start() for match in re.finditer("/", path)), len(path)]:
        yield path[:slash].rpartition("/")[2], path[:slash]
