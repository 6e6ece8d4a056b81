"""Hostile inputs and the recipes: each row's promise but for the numbers, which test_recipes.py compares."""

from typing import Any

import pytest
from hostile.oracles import LEARNING_RATE, MOMENTUM
from hostile.row import Contender, Row, Train, outcome
from hostile.table import ROWS

import muon_optax as mo

pytestmark = pytest.mark.no_cover  # as in test_contract.py


class AnySize(Contender):
    """A contender whose updates may be of any size: they are finite, of the right types, and zero or NaN where owed."""

    def tolerance(self, *dtypes: Any) -> float:
        return 1e30


def normuon(layouts: Any, params: Any) -> Any:
    return mo.recipes.normuon(LEARNING_RATE, weight_decay=0.0, momentum=MOMENTUM, layouts=layouts)


def muon_h(layouts: Any, params: Any) -> Any:
    return mo.recipes.muon_h(
        LEARNING_RATE, adamw_learning_rate=LEARNING_RATE, momentum=MOMENTUM, layouts=layouts, heads=()
    )


def muon_speedrun(layouts: Any, params: Any) -> Any:
    rates = {"learning_rate": LEARNING_RATE, "adamw_learning_rate": LEARNING_RATE}
    return mo.recipes.muon_speedrun(**rates, weight_decay=0.0, momentum=MOMENTUM, layouts=layouts)


RECIPES = [AnySize(build.__name__, build) for build in (normuon, muon_h, muon_speedrun)]
# One of each kind; muon itself meets all.
ALWAYS = {
    "zero, bfloat16", "largest entry 1e+38, float32", "largest entry 1e-30, bfloat16", "NaN in one entry",
    "NaN in one matrix of a stack", "NaN in a vector", "a tree without leaves", "matrix of shape (1, 12)",
    "float16 gradients of float32 parameters", "bfloat16, float16 and float32 in one tree",
    "float64 in 64-bit mode", "an int32 matrix", "a NamedTuple in a list in a tuple", "of optax.adamw", "None",
    "of the same optimizer for another model", "two matrices of one path",
}  # fmt: skip
ONLY_MUON = {
    "restored as NumPy arrays",  # its numbers are compared with a fixed tolerance
    "largest entry 30000, float16",  # recipes have Nesterov momentum, which passes the largest float16, muon's as well
}
# On a sphere a zero step still rounds the weight to its norm, and a single number can't move.
OFF_THE_SPHERE = ("zero", "subnormal", "(1, 1)")


def rows_of(recipe: Contender) -> list[Any]:
    found = []
    for row in ROWS:
        # Settings are muon's own; what a row compares with a fixed formula is muon's too.
        if row.settings or not (isinstance(row.attempt, Train) or row.words) or row.name in ONLY_MUON:
            continue
        if recipe.name == "muon_h" and any(word in row.name for word in OFF_THE_SPHERE):
            continue
        marks = [pytest.mark.slow] * (row.name not in ALWAYS)
        found.append(pytest.param(row, recipe, id=f"{row.topic}: {row.name}-{recipe.name}", marks=marks))
    return found


@pytest.mark.parametrize("row, recipe", [case for recipe in RECIPES for case in rows_of(recipe)])
def test_what_is_promised_is_kept_by_recipes(row: Row, recipe: Contender) -> None:
    assert outcome(row, recipe) == ("clear error" if row.words else "works")


def test_the_rows_that_always_run_exist() -> None:
    assert {row.name for row in ROWS} >= ALWAYS | ONLY_MUON
