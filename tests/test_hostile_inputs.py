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
from hostile import ROWS
from hostile.contenders import OURS, Contender
from hostile.gradients import VALUES
from hostile.oracles import map_matrices, poisoned
from hostile.row import Inputs, Row, check_numbers, outcome
from hostile.trees import filled, plain, with_entry
from oracle import newton_schulz, polar_factor
from test_benchmarks import run

import muon_optax as mo
from muon_optax._layouts.layout import as_layout
from muon_optax._layouts.paths import named_leaves

ROOT = Path(__file__).parents[1]


def label(row: Row) -> str:
    return f"{row.topic}: {row.name}"


def cases(rows: Any, contenders: Callable[[Row], Any]) -> list[Any]:
    return [
        pytest.param(row, contender, id=f"{label(row)}-{contender.name}", marks=[pytest.mark.slow] * row.slow)
        for row in rows
        for contender in contenders(row)
    ]


@pytest.mark.parametrize("row, contender", cases(ROWS, Row.contenders))
def test_what_is_promised_is_kept(row: Row, contender: Contender) -> None:
    assert outcome(row, contender) == ("clear error" if row.refused else "works")


TRAINED = [row for row in ROWS if row.inputs is not None and not row.refused]


@pytest.mark.parametrize("row", TRAINED, ids=label)
def test_layouts_labels_and_summary_agree(row: Row) -> None:
    with row.mode():
        params, _, truth, _ = row.inputs()
        layouts = truth if row.told else None
        assert mo.assign_layouts(params, layouts) == {path: as_layout(axes) for path, axes in truth.items()}
        leaves = named_leaves(params)
        labels = ["adamw" if truth[leaf.path] is None else "muon" for leaf in leaves]
        assert jax.tree.leaves(mo.label_params(params, layouts)) == labels
        rows = mo.summarize(params, layouts).rows
        assert [(row.path, row.shape, row.label) for row in rows] == [
            (leaf.path, leaf.shape, label) for leaf, label in zip(leaves, labels, strict=True)
        ]


@pytest.mark.parametrize("row", TRAINED, ids=label)
def test_a_step_has_the_same_types_when_it_is_only_traced(row: Row) -> None:
    with row.mode():
        given = row.inputs()
        optimizer = OURS.build(given.layouts if row.told else None, given.params)
        state = jax.eval_shape(optimizer.init, given.params)
        updates, new_state = jax.eval_shape(optimizer.update, given.gradients[-1], state, given.params)
        owed, got = map(named_leaves, (given.gradients[-1], updates))
        assert [(leaf.shape, leaf.dtype) for leaf in got] == [(leaf.shape, leaf.dtype) for leaf in owed]
    types = [
        [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)] for tree in (state, new_state)
    ]
    assert types[0] == types[1]
    assert not any(weak for _, _, weak in types[1])


ORTHOGONALIZERS = {
    "newton_schulz": (mo.newton_schulz(dtype=jnp.float32), newton_schulz),
    "newton_schulz, gram": (mo.newton_schulz(dtype=jnp.float32, method="gram"), newton_schulz),
    "polar_factor": (mo.polar_factor(), polar_factor),
}


@pytest.mark.parametrize("name", ORTHOGONALIZERS)
@pytest.mark.parametrize("row", [row for row in VALUES if row.inputs is not None], ids=label)
def test_functions_of_arrays(row: Row, name: str) -> None:
    function, reference = ORTHOGONALIZERS[name]
    matrices = row.inputs().gradients[-1]["w"]
    want = map_matrices(poisoned(reference), np.asarray(matrices, np.float64), "bio"[3 - matrices.ndim :])
    check_numbers("w", function(matrices), want, OURS._replace(exact=True).tolerance(matrices.dtype))


def test_no_row_stands_twice() -> None:
    names = [label(row) for row in ROWS]
    assert len(names) == len(set(names)) >= 100


# The checks can fail.


def changed(change: Callable[[Any, Any], Any]) -> Contender:
    """Our muon, but for ``change`` of the gradients or the updates: ``change(run, gradients)``."""

    def build(layouts: Any, params: Any) -> optax.GradientTransformation:
        inner = OURS.build(layouts, params)

        def update(gradients: Any, state: Any, params: Any) -> Any:
            return change(lambda gradients: inner.update(gradients, state, params), gradients)

        return optax.GradientTransformation(inner.init, update)

    return OURS._replace(build=build)


def of_matrix(change: Callable[[Any], Any], result: Any) -> Any:
    updates, state = result
    return updates | {"w": change(updates["w"])}, state


def scribble(run: Any, gradients: Any) -> Any:
    result = run(gradients)
    gradients["w"][0, 0] = 1.0
    return result


def raise_key_error(run: Any, gradients: Any) -> Any:
    raise KeyError("adamw")


def harm_all(run: Any, gradients: Any) -> Any:
    (updates, state), bad = run(gradients), jnp.isnan(gradients["w"]).any()
    return updates | {"other": updates["other"] * jnp.where(bad, 1 + 1e-6, 1)}, state


def on_host() -> Any:
    given = plain()()
    return given._replace(gradients=[jax.tree.map(np.array, gradient) for gradient in given.gradients])


BROKEN: dict[str, tuple[Callable[[Any, Any], Any], Callable[[], Any], str]] = {
    "no-update": (
        lambda run, gradients: of_matrix(jnp.zeros_like, run(gradients)),
        plain(),
        "wrong: 'w' gets a zero update",
    ),
    "twice-the-update": (
        lambda run, gradients: of_matrix(lambda update: 2 * update, run(gradients)),
        plain(),
        "wrong: the update of 'w' is off by ",
    ),
    "update-of-zero": (
        lambda run, gradients: of_matrix(lambda update: update + 1, run(gradients)),
        plain(filled(0.0)),
        "wrong: the update of 'w' is off from zero",
    ),
    "nan": (
        lambda run, gradients: of_matrix(lambda update: update.at[0, 0].set(jnp.nan), run(gradients)),
        plain(),
        "wrong: 1 of 96 entries of 'w' are NaN or infinite",
    ),
    "hidden-nan": (
        lambda run, gradients: run(jax.tree.map(jnp.nan_to_num, gradients)),
        plain(with_entry(np.nan), only="w"),
        "wrong: 'w' hides a NaN of its gradient",
    ),
    "harm": (harm_all, plain(with_entry(np.nan), only="w"), "wrong: 'other' is changed by the NaN of another"),
    "transposed": (
        lambda run, gradients: of_matrix(jnp.transpose, run(gradients)),
        plain(),
        "wrong: 'w' has an update of shape (12, 8)",
    ),
    "other-dtype": (
        lambda run, gradients: of_matrix(lambda update: update.astype(jnp.bfloat16), run(gradients)),
        plain(),
        "wrong: 'w' has a gradient of dtype float32 and an update of dtype bfloat16",
    ),
    "other-state": (
        lambda run, gradients: (run(gradients)[0], ()),
        plain(),
        "unclear error: ValueError: The state must be",
    ),
    "lost-leaf": (
        lambda run, gradients: ({"w": run(gradients)[0]["w"]}, run(gradients)[1]),
        plain(),
        "wrong: the updates are another tree",
    ),
    "scribbled": (scribble, on_host, "wrong: an array that was passed in has changed"),
    "raised": (raise_key_error, plain(), "unclear error: KeyError: 'adamw'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_seen(case: str) -> None:
    change, inputs, message = BROKEN[case]
    assert outcome(Row("", "", "", inputs), changed(change)).startswith(message)


def test_an_update_that_the_parameter_cannot_hold_is_seen() -> None:
    small = optax.scale(-0.1)
    contender = OURS._replace(build=lambda *_: small, matrix=lambda gradients, axes: -0.1 * gradients[-1])
    gradient = {"w": jnp.ones((2, 3))}
    row = Row("", "", "", lambda: Inputs({"w": jnp.ones((2, 3), jnp.int32)}, [gradient], {"w": "io"}))
    assert outcome(row, contender) == "wrong: 'w' loses its update to int32"


def test_an_error_is_clear_if_it_holds_all_the_words() -> None:
    def raising(message: str) -> Row:
        def attempt(contender: Contender) -> None:
            raise ValueError(message)

        return Row("", "", "", attempt=attempt, refused=True, words=("'w'", "int32"))

    assert outcome(raising("'w' has dtype int32"), OURS) == "clear error"
    assert outcome(raising("dtype int32"), OURS) == "unclear error: ValueError: dtype int32"


# The benchmark and the docs.


@pytest.mark.slow
def test_the_benchmark_writes_its_table(tmp_path: Path) -> None:
    rows = run("hostile_inputs", tmp_path, "--quick")["rows"]
    counts = [row for row in rows if row["topic"] == "Totals"]
    inputs = [row for row in rows if row["topic"] != "Totals"]
    assert [row["input"] for row in inputs] == [row.name for row in ROWS[::10] if not row.slow]
    for library in ("muon_optax.muon", "optax.contrib.muon"):
        assert sum(row[library] for row in counts) == len(inputs)
        by_kind = {row["outcome"]: row[library] for row in counts}
        assert by_kind["works"] == sum(row[library] == "works" for row in inputs)
    assert all(row["muon_optax.muon"] in ("works", "clear error") for row in inputs)


def test_the_table_in_the_docs_is_the_committed_result_of_these_rows() -> None:
    committed = max((ROOT / "benchmarks" / "results").glob("*-hostile_inputs-*.json"))
    results = [row for row in json.loads(committed.read_text())["rows"] if row["topic"] != "Totals"]
    assert [(row["topic"], row["input"], row["promised"]) for row in results] == [
        (row.topic, row.name, row.promise) for row in ROWS
    ]
    assert [row["muon_optax.muon"] for row in results] == ["clear error" if row.refused else "works" for row in ROWS]
    page = (ROOT / "docs" / "hostile_inputs.md").read_text()
    shown = re.search(r"<!-- results -->\n(.*)<!-- end of results -->", page, re.DOTALL)
    assert shown
    assert shown[1].strip() in committed.with_suffix(".md").read_text()
    assert shown[1].count("\n| ") >= len(ROWS)
