"""Every array of a state with the parameter that it belongs to and what it is, whatever wrappers are around it."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from muon_optax._layouts.paths import NamedLeaf, is_hidden, named_leaves

COUNTERS = ("count", "step", "gradient_step")
# What is the same thing in states of several classes, and the way in which it is kept.
MEANINGS = {
    ("TraceState", "trace"): ("momentum", "sum"),
    ("ScheduledTraceState", "trace"): ("momentum", "sum"),
    ("EmaState", "ema"): ("momentum", "average"),
    ("MuonState", "mu"): ("momentum", "average"),
    ("ScaleByAdamState", "mu"): ("first moment", ""),
    ("ScaleByAdamState", "nu"): ("second moment", ""),
    ("ScaleByAmsgradState", "mu"): ("first moment", ""),
    ("ScaleByAmsgradState", "nu"): ("second moment", ""),
}
# Arrays that say what an optimizer does, and not what it has seen.
SETTINGS = (
    ("MuonState", "ns_coeffs"),
    ("InjectHyperparamsState", "hyperparams"),
    ("InjectStatefulHyperparamsState", "hyperparams"),
)


class Node(NamedTuple):
    """The state of one transform."""

    number: int
    kind: str  # the name of its class
    labels: tuple[str, ...]  # of the partitions around it
    wraps: bool  # whether it holds the state of another


class Kept(NamedTuple):
    """A state's entry for one parameter, or a value of the transform's own, whose path is empty."""

    path: str
    what: str  # "momentum", or the class and the field
    way: str  # in which a momentum is kept: a sum, an average, in codes
    node: Node
    field: str
    numbers: tuple[int, ...]  # of its leaves in `jax.tree.leaves` of the state
    values: tuple[Any, ...]
    former: str | None = None  # the path before it was renamed

    @property
    def origin(self) -> str:
        """The path in its own state."""
        return self.path if self.former is None else self.former

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array, or of its codes."""
        return tuple(jnp.shape(self.values[0]))

    @property
    def counts(self) -> bool:
        """Whether it is the step."""
        integer = jnp.issubdtype(jnp.result_type(self.values[0]), jnp.integer)
        return self.field in COUNTERS and not self.path and not self.shape and integer

    @property
    def is_setting(self) -> bool:
        """Whether it says what the optimizer does."""
        return (self.node.kind, self.field) in SETTINGS


def is_state(node: Any) -> bool:
    """Whether ``node`` is the state of a transform, and no tree of parameters that is a NamedTuple."""
    kind = type(node)
    if not isinstance(node, tuple) or not hasattr(node, "_fields") or is_hidden(node):
        return False
    return kind.__name__.endswith("State") or kind.__module__.split(".")[0] in ("optax", "muon_optax")


def holds_state(node: Any) -> bool:
    """Whether ``node`` is a state, or a chain or mapping of some."""
    if is_state(node):
        return True
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, tuple | list) else ()
    return not is_hidden(node) and any(map(holds_state, children))


def kept_arrays(state: Any) -> list[Kept]:
    """Everything that ``state`` keeps, with each of its leaves in one entry."""
    leaves, nodes = count(), count()
    return list(_walk(state, (), lambda: next(leaves), lambda: next(nodes)))


def _walk(
    node: Any, labels: tuple[str, ...], next_leaf: Callable[[], int], next_node: Callable[[], int]
) -> Iterator[Kept]:
    # One level at a time, in the order of `jax.tree.leaves`.
    children, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
    if is_state(node):
        owner = Node(next_node(), type(node).__name__, labels, any(holds_state(child) for _, child in children))
        codes: list[tuple[int, NamedLeaf]] = []
        for (key,), child in children:
            if holds_state(child):
                yield from _walk(child, labels, next_leaf, next_node)
            else:
                leaves = [(next_leaf(), leaf) for leaf in named_leaves(child)]
                # Scales come after all codes, and are one thing with them.
                if (owner.kind, key.name) == ("QuantizedTraceState", "codes"):
                    codes = leaves
                elif (owner.kind, key.name) == ("QuantizedTraceState", "scales"):
                    yield from map(_pair, [owner] * len(leaves), codes, leaves)
                else:
                    yield from (_single(owner, key.name, number, leaf) for number, leaf in leaves)
    elif holds_state(node):
        for (key,), child in children:
            inner = (*labels, str(key.key)) if isinstance(node, Mapping) else labels
            yield from _walk(child, inner, next_leaf, next_node)
    else:
        owner = Node(next_node(), type(node).__name__, labels, False)
        yield from (_single(owner, "", next_leaf(), leaf) for leaf in named_leaves(node))


def _single(node: Node, field: str, number: int, leaf: NamedLeaf) -> Kept:
    what, way = MEANINGS.get((node.kind, field), (f"{node.kind}.{field}", ""))
    return Kept(leaf.path, what, way, node, field, (number,), (leaf.value,))


def _pair(node: Node, codes: tuple[int, NamedLeaf], scales: tuple[int, NamedLeaf]) -> Kept:
    (one, code), (other, scale) = codes, scales
    return Kept(code.path, "momentum", "codes", node, "codes", (one, other), (code.value, scale.value))
