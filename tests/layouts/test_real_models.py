"""The default layouts of 385 trees of models that people train, nested and flat: right, weak or left unknown."""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from places import TESTS
from trees_as_text import tree_of

import muon_optax as mo

# In real_models are those the rules were first made on; nobody had tuned the rules for the others when they were
# judged. mended_by, third, sixth, ninth and eleventh were looked at while the rules changed, the others afterwards.
FOLDERS = {
    "real_models": 71,
    "unseen_models/first": 21,
    "unseen_models/mended_by": 40,
    "unseen_models/second": 17,
    "unseen_models/third": 19,
    "unseen_models/fourth": 24,
    "unseen_models/fifth": 21,
    "unseen_models/sixth": 23,
    "unseen_models/seventh": 26,
    "unseen_models/eighth": 30,
    "unseen_models/ninth": 23,
    "unseen_models/tenth": 25,
    "unseen_models/eleventh": 24,
    "unseen_models/twelfth": 21,
}
LEAST_RIGHT = {
    "real_models": 0.998,
    "unseen_models/first": 0.99,
    "unseen_models/mended_by": 0.99,
    "unseen_models/second": 0.97,
    "unseen_models/third": 0.97,
    "unseen_models/fourth": 0.98,
    "unseen_models/fifth": 0.99,
    "unseen_models/sixth": 0.99,
    "unseen_models/seventh": 0.94,
    "unseen_models/eighth": 0.99,
    "unseen_models/ninth": 0.99,
    "unseen_models/tenth": 0.9,
    "unseen_models/eleventh": 0.98,
    "unseen_models/twelfth": 0.97,
}
MOST_WEAK = {"real_models": 0.03, "": 0.08}  # of the right matrices, of these trees and of all
FILES = {folder: sorted((TESTS / folder).glob("*.json")) for folder in FOLDERS}


def flat(leaves: list[Any], join: Callable[[str], Any]) -> dict[Any, Any]:
    """One dictionary of abstract arrays, its keys joined."""
    return {join(path): jax.ShapeDtypeStruct(tuple(shape), jnp.float32) for path, shape, *_ in leaves}


def allowed(right: str | None, others: list[str | None]) -> set[str | None]:
    """The letters that count as right; "io split" is a fused projection, right with or without its split."""
    return {layout and layout.split(" ")[0] for layout in (right, *others)}


@cache
def leaves_of(file: Path) -> list[Any]:
    return json.loads(file.read_text("utf-8"))["leaves"]


def read(tree: Any) -> dict[str, tuple[str | None, str]]:
    """The letters of each path, and how strong the evidence is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what no rule knows
        rows = mo.summarize(tree).rows
    return {row.path: (row.layout and row.layout.axes, row.strength) for row in rows}


@cache
def scores(file: Path) -> tuple[Counter[str], list[str]]:
    """How many matrices are right, right on weak evidence, wrong, left out; and what went wrong in silence."""
    found, count, silent = read(tree_of(leaves_of(file))), Counter(), []
    for path, shape, right, *rest in leaves_of(file):
        axes, strength = found[path]
        fits = axes in allowed(right, rest[0] if rest else [])
        count["matrices"] += right is not None
        count["right"] += fits and right is not None
        count["weak"] += fits and right is not None and strength == "weak"
        if not fits and strength == "strong":
            silent.append(f"{path} {shape}: {axes}, right is {right}")
    return count, silent


@pytest.mark.parametrize(
    "file", [file for files in FILES.values() for file in files], ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_nothing_is_wrong_in_silence(file: Path) -> None:
    assert scores(file)[1] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_most_matrices_are_right(folder: str) -> None:
    total = sum((scores(file)[0] for file in FILES[folder]), Counter())
    assert total["right"] >= LEAST_RIGHT[folder] * total["matrices"]


@pytest.mark.parametrize("among", MOST_WEAK, ids=["these", "all"])
def test_few_of_the_right_matrices_are_marked_weak(among: str) -> None:
    chosen = [file for folder, files in FILES.items() for file in files if among in folder]
    total = sum((scores(file)[0] for file in chosen), Counter())
    assert total["right"] > 4000
    assert total["weak"] <= MOST_WEAK[among] * total["right"]


JOINED: dict[str, Callable[[str], Any]] = {
    "dots": lambda path: path.replace("/", "."),
    "colons": lambda path: path.replace("/", ":"),
    "underscores": lambda path: path.replace("/", "__"),
    "tuples": lambda path: tuple(path.split("/")),
}


@pytest.mark.parametrize("join", JOINED.values(), ids=JOINED)
def test_a_flat_dictionary_is_read_as_its_nested_tree(join: Callable[[str], Any]) -> None:
    different = {}
    for file in FILES["real_models"]:
        leaves = leaves_of(file)
        nested, joined = read(tree_of(leaves)), read(flat(leaves, join))
        for path, *_ in leaves:
            key = join(path)
            if nested[path] != joined[key if isinstance(key, str) else path]:
                different[f"{file.stem}: {path}"] = (nested[path], joined[key if isinstance(key, str) else path])
    assert not different


def test_all_trees_are_there() -> None:
    assert {folder: len(files) for folder, files in FILES.items()} == FOLDERS
