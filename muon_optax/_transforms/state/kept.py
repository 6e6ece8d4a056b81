"""The contents of a state, however it is packed: the parts of its chains by place, their arrays and counters."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from muon_optax._layouts.paths import NamedLeaf, named_leaves

COUNTERS = ("count", "step")


class Part(NamedTuple):
    """The state of one transform in a chain."""

    place: str  # the label of its branch and its number in the chain, "muon/0"
    kind: str  # the name of its class
    fields: tuple[str, ...]
    leaves: list[NamedLeaf]  # by their paths within the part, "trace/up/kernel"

    @property
    def label(self) -> str:
        """The label of its branch."""
        return self.place.split("/")[0]

    @property
    def only_counts(self) -> bool:
        """Whether all it keeps is the step, as a schedule's state does."""
        return len(self.fields) == 1 and self.fields[0] in COUNTERS


def parts_of(state: Any) -> list[Part]:
    """All parts, in the order of ``jax.tree.leaves``. Masks and chains are taken apart, empty states left out."""
    return list(_walk(state, ""))


def _walk(node: Any, place: str) -> Iterator[Part]:
    if isinstance(node, optax.MaskedState):
        yield from _walk(node.inner_state, place)
    elif isinstance(node, optax.PartitionState):
        branches: dict[Any, Any] = dict(node.inner_states)
        for label in sorted(branches):
            yield from _walk(branches[label], f"{place}/{label}" if place else str(label))
    elif type(node) is tuple:
        for index, inner in enumerate(node):
            yield from _walk(inner, f"{place}/{index}")
    elif not (isinstance(node, tuple) and not node):
        yield Part(place, type(node).__name__, getattr(node, "_fields", ()), named_leaves(node))


def is_counter(leaf: NamedLeaf) -> bool:
    """Whether a leaf of a part is its step."""
    return leaf.path in COUNTERS and not leaf.shape and jnp.issubdtype(leaf.dtype, jnp.integer)


def key_of(part: Part, leaf: NamedLeaf) -> str:
    """A name of a leaf that is the same in all states that keep it."""
    return f"{part.place}/{'count' if is_counter(leaf) else leaf.path}"
