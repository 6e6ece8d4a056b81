"""Every row of the table of hostile inputs, by every transform that it is about; the docs show the same table."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hostile.inputs import filled, plain, with_entry
from hostile.row import OURS, Contender, Inputs, Row, Train, outcome
from hostile.table import ROWS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "row, contender",
    [
        pytest.param(
            row, contender, id=f"{row.topic}: {row.name}-{contender.name}", marks=[pytest.mark.slow] * row.slow
        )
        for row in ROWS
        for contender in row.contenders()
    ],
)
def test_what_is_promised_is_kept(row: Row, contender: Contender) -> None:
    assert outcome(row, contender) == ("clear error" if row.words else "works")


def test_no_row_stands_twice() -> None:
    names = [(row.topic, row.name) for row in ROWS]
    assert len(names) == len(set(names)) >= 100


def test_the_table_in_the_docs_is_the_committed_result_of_these_rows() -> None:
    committed = max((ROOT / "benchmarks" / "results").glob("*-hostile_inputs-*.json"))
    results = [row for row in json.loads(committed.read_text())["rows"] if row["topic"] != "Totals"]
    assert [(row["topic"], row["input"], row["promised"], row["muon_optax.muon"]) for row in results] == [
        (row.topic, row.name, row.promise, "clear error" if row.words else "works") for row in ROWS
    ]
    page = (ROOT / "docs" / "hostile_inputs.md").read_text()
    shown = re.search(r"<!-- results -->\n(.*)<!-- end of results -->", page, re.DOTALL)
    assert shown
    assert shown[1].strip() in committed.with_suffix(".md").read_text()
    assert shown[1].count("\n| ") >= len(ROWS)


# The checks can fail: our muon, but for a change of the gradients or the updates.

Step = Callable[[Any], tuple[dict[str, Any], Any]]


def of_w(change: Callable[[Any], Any]) -> Callable[[Step, Any], Any]:
    def changed(step: Step, gradients: Any) -> Any:
        updates, state = step(gradients)
        return updates | {"w": change(updates["w"])}, state

    return changed


def harm(step: Step, gradients: Any) -> Any:
    (updates, state), bad = step(gradients), jnp.isnan(gradients["w"]).any()
    return updates | {"other": updates["other"] * jnp.where(bad, 1 + 1e-6, 1)}, state


def scribble(step: Step, gradients: Any) -> Any:
    result = step(gradients)
    gradients["w"][0, 0] = 1.0
    return result


def on_host() -> Inputs:
    return plain()()._replace(gradients=jax.tree.map(np.array, plain()().gradients))


POISONED = plain(with_entry(np.nan), only="w")
BROKEN: dict[str, tuple[Callable[[Step, Any], Any], Callable[[], Inputs]]] = {
    "'w' gets a zero update": (of_w(jnp.zeros_like), plain()),
    "the update of 'w' is off by ": (of_w(lambda update: 2 * update), plain()),
    "the update of 'w' is off from zero": (of_w(lambda update: update + 1), plain(filled(0.0))),
    "1 of 96 entries of 'w' are NaN or infinite": (of_w(lambda update: update.at[0, 0].set(jnp.nan)), plain()),
    "'w' hides a NaN of its gradient": (
        lambda step, gradients: step(jax.tree.map(jnp.nan_to_num, gradients)),
        POISONED,
    ),
    "'other' is changed by the NaN of another": (harm, POISONED),
    "'w' has an update of shape (12, 8)": (of_w(jnp.transpose), plain()),
    "'w' has a gradient of dtype float32 and an update of dtype bfloat16": (of_w(jnp.bfloat16), plain()),
    "the updates are another tree": (lambda step, gradients: ({}, step(gradients)[1]), plain()),
    "the state changed its dtypes or shapes": (
        lambda step, gradients: (step(gradients)[0], jnp.zeros(3)),
        lambda: plain()()._replace(gradients=plain()().gradients[:1]),
    ),
    "an array that was passed in has changed": (scribble, on_host),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_is_broken_is_seen(message: str) -> None:
    change, inputs = BROKEN[message]

    def build(layouts: Any, params: Any) -> optax.GradientTransformation:
        inner = OURS.build(layouts, params)

        def update(gradients: Any, state: Any, params: Any) -> Any:
            return change(lambda gradients: inner.update(gradients, state, params), gradients)

        return optax.GradientTransformation(inner.init, update)

    assert outcome(Row("", Train(inputs), ""), OURS._replace(build=build)).startswith(f"wrong: {message}")


def test_an_update_that_the_parameter_cannot_hold_is_seen() -> None:
    contender = OURS._replace(build=lambda *_: optax.scale(-0.1))
    inputs = Inputs({"w": jnp.ones((2, 3), jnp.int32)}, [{"w": jnp.ones((2, 3))}], {"w": "io"})
    assert (
        outcome(Row("", Train(lambda: inputs, owed=lambda gradients, axes: -0.1 * gradients[-1]), ""), contender)
        == "wrong: 'w' loses its update to int32"
    )


@pytest.mark.parametrize(
    "message, answer", [("'w' is int32", "clear error"), ("int32", "unclear error: ValueError: int32")]
)
def test_an_error_is_clear_if_it_holds_all_the_words(message: str, answer: str) -> None:
    def attempt(contender: Contender) -> None:
        raise ValueError(message)

    assert outcome(Row("", attempt, "", words=("'w'", "int32")), OURS) == answer
