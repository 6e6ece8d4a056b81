"""What a message proposes is applied here, and must then be right; where several layouts fit, it proposes none."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import muon_optax as mo
from muon_optax._layouts.assigning.messages import refuse_uncertain
from muon_optax._layouts.decision import Decision
from muon_optax._layouts.paths import named_leaves

READING = re.compile(r"'([iob]+)' is (?:one matrix|(\d+) matrices) from (\d+) inputs to (\d+) outputs")

LETTERS = "abcdefghijklmnop"

# Arrays that no rule knows, as layers have them whose code is not at hand, with what they are.
UNKNOWN = {
    "a query (d, heads, size)": ((64, 4, 16), "ioo"),
    "a query, heads first": ((4, 64, 16), "oio"),
    "an output of attention (heads, size, d)": ((4, 16, 64), "iio"),
    "the same, outputs first": ((64, 4, 16), "oii"),
    "stacked layers": ((3, 64, 48), "bio"),
    "stacked layers, outputs first": ((3, 48, 64), "boi"),
    "a matrix, inputs first": ((64, 48), "io"),
    "a matrix, outputs first": ((48, 64), "oi"),
}


def warning_about(params: Any) -> str:
    with pytest.warns(mo.MuonWarning) as caught:
        mo.assign_layouts(params)
    (warning,) = caught
    return str(warning.message)


@pytest.mark.parametrize("shape, right", UNKNOWN.values(), ids=UNKNOWN)
def test_every_reading_that_is_listed_fits_and_the_right_one_is_among_them(shape: tuple[int, ...], right: str) -> None:
    params = {"mystery_params": jnp.ones(shape), "kernel": jnp.ones((8, 8))}
    listed = READING.findall(warning_about(params))
    assert right in [letters for letters, *_ in listed]
    for letters, count, inputs, outputs in listed:
        found = mo.assign_layouts(params, {"mystery_params": letters})["mystery_params"]
        assert found is not None
        batch = (int(count),) if count else ()
        assert found.matrix_shapes(shape) == ((*batch, int(inputs), int(outputs)),)
        mo.muon(0.1, layouts={"mystery_params": letters}).init(params)


def test_no_single_layout_is_proposed() -> None:
    for shape in ((64, 4, 16), (18, 8, 256, 16)):
        text = warning_about({"mystery": jnp.ones(shape)})
        assert "layouts={" not in text
        assert len(READING.findall(text)) in (0, 6)


@pytest.mark.parametrize("groups, more", [(12, ""), (13, " and 1 more"), (15, " and 3 more")])
def test_a_warning_names_twelve_groups(groups: int, more: str) -> None:
    shapes = [(4, 5, 6 + number) for number in range(groups)]
    text = warning_about({f"mystery_{letter}": jnp.ones(shape) for letter, shape in zip(LETTERS, shapes, strict=False)})
    listed = [f"'mystery_{letter}' float32{list(shape)}" for letter, shape in zip(LETTERS, shapes[:12], strict=False)]
    assert f"AdamW trains them: {', '.join(listed)}{more}. Give " in text


@pytest.mark.parametrize(
    "others, glob", [((), "layers/*/mystery"), (((9, 9),), "layers/0/mystery")], ids=["all", "not"]
)
def test_alike_arrays_are_one_group_and_one_glob_where_it_reaches_no_other(others: tuple, glob: str) -> None:
    params = {"layers": [{"mystery": jnp.ones((4, 5, 6))} for _ in range(2)]}
    params |= {"layers/more": [{"mystery": jnp.ones(shape)} for shape in others]}
    text = warning_about(params)
    assert "AdamW trains them: 'layers/{0..1}/mystery' x2 float32[4, 5, 6]. Give " in text
    assert f"Give '{glob}' a letter for each axis" in text


def test_one_array_is_listed_without_a_count() -> None:
    assert "AdamW trains them: 'mystery' float32[4, 5, 6]. Give 'mystery' a" in warning_about(
        {"mystery": jnp.ones((4, 5, 6))}
    )


@pytest.mark.parametrize("groups, more", [(12, ""), (13, " and 1 more"), (15, " and 3 more")])
def test_the_strict_form_names_twelve_groups_of_weak_ones(groups: int, more: str) -> None:
    params = {letter: jax.ShapeDtypeStruct((4, 5), jnp.float32) for letter in LETTERS[:groups]}
    leaves = named_leaves(params | {"small": jax.ShapeDtypeStruct((4, 5), jnp.int8)})
    decisions = {leaf.path: Decision(mo.Layout("io"), "a guess", "weak") for leaf in leaves}
    listed = ", ".join(f"'{letter}' float32[4, 5] as 'io' (a guess)" for letter in LETTERS[:12])
    with pytest.raises(ValueError, match=re.escape(f"Weak evidence decides on {listed}{more}. Look at")):
        refuse_uncertain(decisions, leaves)
    refuse_uncertain(decisions | {letter: Decision(None, "known") for letter in LETTERS}, leaves)


COMPLEX = {"w": jnp.ones((4, 5), jnp.complex64)}
WARNINGS = {
    "assign_layouts": lambda: mo.assign_layouts(COMPLEX),
    "init": lambda: mo.muon(0.1).init(COMPLEX),
    "no matrix": lambda: mo.muon(0.1).init({"bias": jnp.ones(3)}),
}


@pytest.mark.parametrize("call", WARNINGS.values(), ids=WARNINGS)
def test_a_warning_blames_the_users_line(call: Any) -> None:
    with pytest.warns(mo.MuonWarning) as caught:
        call()
    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, call.__code__.co_firstlineno)


def test_both_ways_out_for_complex_arrays() -> None:
    params = {"dense": {"kernel": jnp.ones((8, 6), jnp.complex64), "bias": jnp.ones(6, jnp.complex64)}}
    text = warning_about(params)
    (path,) = re.findall(r"layouts=\{'([^']+)': None\}", text)
    optimizer = mo.muon(0.1, layouts={path: None})  # a warning would be an error
    optimizer.update(params, optimizer.init(params), params)
    assert "optax.contrib.split_real_and_imaginary(optimizer)" in text
    split = optax.contrib.split_real_and_imaginary(mo.muon(0.1, weight_decay=0.0))
    gradient = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(0), leaf.shape, leaf.dtype), params)
    updates, _ = split.update(gradient, split.init(params), params)
    # Each part is orthogonalized: its singular values are alike.
    for part in (updates["dense"]["kernel"].real, updates["dense"]["kernel"].imag):
        values = jnp.linalg.svd(part, compute_uv=False)
        assert values.min() > 0.5 * values.max()


def test_a_matrix_part_that_meets_a_leaf_without_layout_proposes_none() -> None:
    with pytest.raises(ValueError, match=r"'x' of shape \(4, 5, 6\) has no layout.*a letter for each axis"):
        mo.orthogonalize_via_newton_schulz(layouts={"x": None}).init({"x": jnp.ones((4, 5, 6))})


WEAK = {"Dense_0": {"kernel": jnp.ones((17, 64))}, "Dense_1": {"kernel": jnp.ones((64, 6))}}
UNTOLD = {"attn": {"wq": jnp.ones((4, 64, 16)), "wo": jnp.ones((4, 16, 64))}}


@pytest.mark.parametrize("check", [mo.assign_layouts, mo.summarize])
def test_the_strict_form_refuses_what_is_weak_or_unknown(check: Any) -> None:
    with pytest.raises(ValueError, match=r"strict: Weak evidence decides on 'Dense_1/kernel' .* as no matrix \(edge"):
        check(WEAK, strict=True)
    with pytest.raises(ValueError, match=r"strict: No evidence decides on 'attn/wo' .*, 'attn/wq'"):
        check(UNTOLD, strict=True)
    check(WEAK, {"Dense_1/kernel": None}, strict=True)
    check(UNTOLD, {"attn/wq": "oio", "attn/wo": "iio"}, strict=True)


def test_the_strict_form_can_be_given_as_layouts() -> None:
    with pytest.raises(ValueError, match="strict: Weak evidence"):
        mo.muon(0.1, layouts=functools.partial(mo.assign_layouts, strict=True)).init(WEAK)
    said = functools.partial(mo.assign_layouts, layouts={"Dense_1/kernel": "io"}, strict=True)
    optimizer = mo.muon(0.1, layouts=said)
    updates, _ = optimizer.update(WEAK, optimizer.init(WEAK), WEAK)
    assert jax.tree.structure(updates) == jax.tree.structure(WEAK)


def test_layouts_outlast_the_rules() -> None:
    layouts = mo.assign_layouts(WEAK) | {"Dense_0/kernel": mo.Layout("io", split=(32, 32))}
    text = mo.layouts_to_json(layouts)
    assert mo.layouts_from_json(text) == layouts
    grown = WEAK | {"Dense_2": {"kernel": jnp.ones((6, 6))}}
    again = mo.assign_layouts(grown, mo.layouts_from_json(text))
    assert {path: again[path] for path in layouts} == layouts
    optimizer = mo.muon(0.1, layouts=mo.layouts_from_json(text))
    optimizer.update(WEAK, optimizer.init(WEAK), WEAK)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1]", "a JSON object from path to layout; got list"),
        ('{"a": "xy"}', "'a' has the layout 'xy'"),
        ('{"a": 3}', "'a' has the layout 3"),
        ('{"a": {"axes": "io"}}', "'a' has the layout"),
        ("{", "Expecting property name"),
    ],
)
def test_other_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mo.layouts_from_json(text)
