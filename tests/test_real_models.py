"""The default layouts of 38 trees of models that people train: every leaf right, none left to a warning."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import muon_optax as mo

FILES = sorted((Path(__file__).parent / "real_models").glob("*.json"))


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


def allowed(right: str | None, others: list[str | None]) -> set[str | None]:
    """The letters that count as right; "io split" is a fused projection, right with or without its split."""
    return {layout and layout.split(" ")[0] for layout in (right, *others)}


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_leaf_is_right_and_nothing_is_warned(file: Path):
    leaves = json.loads(file.read_text("utf-8"))["leaves"]
    got = mo.assign_layouts(tree_of(leaves))  # a warning is an error
    axes = {path: layout and layout.axes for path, layout in got.items()}
    wrong = {
        path: (shape, axes[path], right)
        for path, shape, right, *rest in leaves
        if axes[path] not in allowed(right, rest[0] if rest else [])
    }
    assert not wrong
    assert len(got) == len(leaves)


def test_all_trees_are_there():
    assert len(FILES) == 38
