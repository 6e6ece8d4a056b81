"""Every row of the table of hostile inputs, by every transform that it is about; the docs show the same table."""

import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from hostile.inputs import Change, filled, plain, steps, times, with_entry
from hostile.oracles import B2, LEARNING_RATE, MOMENTUM, on_matrices
from hostile.row import OURS, Contender, Inputs, Row, Train, check_numbers, outcome
from hostile.table import ROWS
from places import ROOT

import muon_optax as mo

pytestmark = pytest.mark.no_cover  # as in test_contract.py


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


def hand_chained(layouts: Any, params: Any) -> optax.GradientTransformation:
    del params
    matrices = optax.chain(
        optax.trace(MOMENTUM),
        mo.orthogonalize_via_newton_schulz(),
        mo.scale_by_shape("keller"),
        optax.scale_by_learning_rate(LEARNING_RATE),
    )
    return mo.partition_by_layout(matrices, optax.adamw(LEARNING_RATE, b2=B2, weight_decay=0.0), layouts)


BY_HAND = (
    "NaN in one matrix of a stack",
    "largest entry 1e+38, float32",
    "a stack of no matrices, (0, 3, 4)",
    "experts in raw arrays (expert, in, out), nothing said",
    "two matrices of one path",
)


@pytest.mark.parametrize("name", BY_HAND)
def test_parts_chained_by_hand_keep_it_too(name: str) -> None:
    (row,) = (row for row in ROWS if row.name == name)
    assert outcome(row, Contender("parts", hand_chained)) == ("clear error" if row.words else "works")


ORTHOGONALIZERS = {
    "direct": (mo.newton_schulz(dtype=jnp.float32, method="direct"), oracle.newton_schulz),
    "gram": (mo.newton_schulz(dtype=jnp.float32, method="gram"), oracle.newton_schulz),
    "polar": (mo.polar_factor(), oracle.polar_factor),
}
VALUES = {
    "zero": filled(0.0),
    "NaN": with_entry(np.nan),
    "infinite": with_entry(-np.inf),
    "enormous": times(3e38),
    "tiny": times(1e-30),
    "subnormal": times(1e-40),
}


@pytest.mark.parametrize("name", ORTHOGONALIZERS)
@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
def test_a_bare_orthogonalizer_takes_the_values_of_one_matrix(change: Change, name: str) -> None:
    orthogonalizer, exact = ORTHOGONALIZERS[name]
    clean = np.float32([steps(seed)[0] for seed in range(3)])
    given = np.float32([clean[0], change(clean[1]), clean[2]])
    got, unharmed = map(jax.jit(orthogonalizer), (given, clean))
    for index, want in enumerate(on_matrices(exact, given, "bio")):
        check_numbers(f"matrix {index}", got[index], want, 1e-5)
    np.testing.assert_array_equal(got[::2], unharmed[::2])


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
