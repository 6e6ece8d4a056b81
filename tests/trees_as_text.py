"""Trees as text: a leaf a line, with the layout that the rules are to find; ``?`` unknown, ``~`` on weak evidence."""

from typing import Any

import jax
import jax.numpy as jnp

from muon_optax._layouts.assigning.rules import decide
from muon_optax._layouts.decision import Decision
from muon_optax._layouts.paths import named_leaves

UNKNOWN = "?"


def table(tree: Any) -> dict[str, str | None]:
    decisions = decide(named_leaves(tree))
    return {path: shown(decision) for path, decision in decisions.items()}


def shown(decision: Decision) -> str | None:
    if decision.unknown:
        return UNKNOWN
    letters = decision.layout and str(decision.layout)
    return f"~{letters or '-'}" if decision.weak else letters


def rows(text: str) -> list[tuple[str, tuple[int, ...], str | None]]:
    """One leaf a line: path, shape as "3x4", layout ("-" for AdamW; a layout with a split goes on)."""
    found = []
    for line in filter(None, map(str.strip, text.splitlines())):
        path, shape, *layout = line.split(" ")
        found.append((path, tuple(map(int, shape.split("x"))), None if layout == ["-"] else " ".join(layout)))
    return found


def tree_of(leaves: list[Any]) -> dict[str, Any]:
    """Nested dicts of abstract arrays from ``[path, shape, ...]``."""
    tree: dict[str, Any] = {}
    for path, shape, *_ in leaves:
        node = tree
        *scopes, name = path.split("/")
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[name] = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    return tree
