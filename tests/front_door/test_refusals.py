"""What is wrong is refused as early as it can be known: what was given, what is allowed, what to do, and where."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees

import muon_optax as mo

PARAMS = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}


def refused(error: type[Exception], *parts: str) -> Any:
    """``pytest.raises`` for a message with all of these parts."""
    return pytest.raises(error, match="".join(f"(?=.*{re.escape(part)})" for part in parts).join(("(?s)^", "")))


# At construction.

CONSTRUCTION: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "scale-of-muon": (
        lambda: mo.muon(0.1, scale="adam"),
        ValueError,
        ("'adam'", "'naive'", "'keller'", "'mup'", "'moonlight'", "(fan_in, fan_out)"),
    ),
    "scale-by-shape": (
        lambda: mo.scale_by_shape("Keller"),
        ValueError,
        ("'Keller'", "'naive'", "'keller'", "'mup'", "'moonlight'"),
    ),
    "method": (
        lambda: mo.newton_schulz(method="fast"),
        ValueError,
        ("method='fast'", "'auto'", "'direct'", "'gram'"),
    ),
    "method-of-the-part": (
        lambda: mo.orthogonalize_via_newton_schulz(method="fast"),
        ValueError,
        ("method='fast'", "'auto'", "'direct'", "'gram'"),
    ),
    "no-coefficients": (lambda: mo.newton_schulz(()), ValueError, ("coefficients=()", "(a, b, c)", "at least one")),
    "coefficients-of-two": (
        lambda: mo.newton_schulz(((1.5, -0.5),)),
        ValueError,
        ("(1.5, -0.5)", "(a, b, c)"),
    ),
    "one-triple-alone": (
        lambda: mo.newton_schulz((3.4445, -4.7750, 2.0315)),
        ValueError,
        ("3.4445", "one (a, b, c)", "((a, b, c),) * n"),
    ),
    "ragged-coefficients": (
        lambda: mo.orthogonalize_via_newton_schulz(((1.5, -0.5, 0.0), (1.5, -0.5))),
        ValueError,
        ("(1.5, -0.5))", "(a, b, c)"),
    ),
    "coefficients-with-nan": (
        lambda: mo.newton_schulz(((float("nan"), 0.0, 0.0),)),
        ValueError,
        ("nan", "finite"),
    ),
    "infinite-coefficients": (
        lambda: mo.newton_schulz(((float("inf"), 0.0, 0.0),)),
        ValueError,
        ("inf", "finite"),
    ),
    "diverging-coefficients": (
        lambda: mo.newton_schulz(((10.0, 0.0, 0.0),)),
        ValueError,
        ("step 1", "(10.0, 0.0, 0.0)", "singular value"),
    ),
    "integer-dtype": (lambda: mo.newton_schulz(dtype=jnp.int32), ValueError, ("int32", "jnp.bfloat16", "jnp.float32")),
    "dtype-of-8-bits": (
        lambda: mo.newton_schulz(dtype=jnp.float8_e4m3fn),
        ValueError,
        ("float8_e4m3fn", "jnp.bfloat16", "jnp.float32"),
    ),
    "float64-without-x64": (lambda: mo.newton_schulz(dtype=jnp.float64), ValueError, ("float64", "jax_enable_x64")),
    "orthogonalizer": (
        lambda: mo.orthogonalize("newton_schulz"),
        TypeError,
        ("orthogonalizer='newton_schulz'", "muon_optax.newton_schulz()", "muon_optax.polar_factor()"),
    ),
    "orthogonalizer-of-muon": (
        lambda: mo.muon(0.1, orthogonalizer=5),
        TypeError,
        ("orthogonalizer=5", "muon_optax.newton_schulz()"),
    ),
    "momentum-of-one": (lambda: mo.muon(0.1, momentum=1.0), ValueError, ("momentum=1.0", "[0, 1)", "0.95")),
    "negative-momentum": (lambda: mo.muon(0.1, momentum=-0.1), ValueError, ("momentum=-0.1", "[0, 1)")),
    "nan-momentum": (lambda: mo.muon(0.1, momentum=float("nan")), ValueError, ("momentum=nan", "[0, 1)")),
    "concrete-array-momentum": (
        lambda: mo.muon(0.1, momentum=jnp.asarray(1.5)),
        ValueError,
        ("momentum=", "1.5", "[0, 1)"),
    ),
    "integer-momentum-dtype": (
        lambda: mo.muon(0.1, momentum_dtype=jnp.int8),
        ValueError,
        ("momentum_dtype=", "int8", "jnp.bfloat16"),
    ),
    "adamw-factory": (lambda: mo.muon(0.1, adamw=optax.adamw), TypeError, ("adamw=adamw", "call the factory")),
    "adamw-number": (lambda: mo.muon(0.1, adamw=3e-4), TypeError, ("adamw=0.0003", "adamw_learning_rate")),
    "two-adamw-rates": (
        lambda: mo.muon(0.1, adamw=optax.sgd(0.1), adamw_learning_rate=1.0),
        ValueError,
        ("adamw_learning_rate=1.0", "exclude"),
    ),
    "negative-adamw-rate": (lambda: mo.muon(0.1, adamw_learning_rate=-1.0), ValueError, ("adamw_learning_rate=-1.0",)),
    "negative-decay": (lambda: mo.muon(0.1, weight_decay=-0.1), ValueError, ("weight_decay=-0.1", ">= 0")),
    "infinite-decay": (lambda: mo.muon(0.1, weight_decay=float("inf")), ValueError, ("weight_decay=inf", "finite")),
    "negative-rate": (lambda: mo.muon(-1e-3), ValueError, ("learning_rate=-0.001", ">= 0", "schedule")),
    "nan-rate": (lambda: mo.muon(float("nan")), ValueError, ("learning_rate=nan", ">= 0")),
    "concrete-array-rate": (lambda: mo.muon(jnp.asarray(-1.0)), ValueError, ("learning_rate=", "-1.", ">= 0")),
    "text-as-rate": (lambda: mo.muon("fast"), TypeError, ("learning_rate='fast'", "schedule")),
    "layout-letters": (lambda: mo.Layout("iox"), ValueError, ("'iox'", "'i'", "'o'", "'b'")),
    "layout-without-i": (lambda: mo.Layout("oo"), ValueError, ("'oo'", "at least one 'i' and one 'o'")),
    "layout-without-o": (lambda: mo.Layout("bi"), ValueError, ("'bi'", "at least one 'i' and one 'o'")),
    "empty-layout": (lambda: mo.Layout(""), ValueError, ("''", "at least one 'i' and one 'o'")),
    "layout-no-string": (lambda: mo.Layout(("i", "o")), TypeError, ("('i', 'o')", "'io'")),
    "split-with-two-outputs": (
        lambda: mo.Layout("ioo", split=(2, 2)),
        ValueError,
        ("'ioo'", "(2, 2)", "exactly one output axis"),
    ),
    "empty-split": (lambda: mo.Layout("io", split=()), ValueError, ("split=()", "(768, 256, 256)")),
    "split-with-zero": (lambda: mo.Layout("io", split=(4, 0)), ValueError, ("split=(4, 0)", "positive")),
}


# muon and the recipes, with what each needs besides a learning rate.
FACTORIES: dict[str, Callable[..., Any]] = {
    "muon": mo.muon,
    "normuon": mo.recipes.normuon,
    "muon_clip": mo.recipes.muon_clip,
    "muon_h": lambda *args, **given: mo.recipes.muon_h(*args, **{"adamw_learning_rate": 1e-3} | given),
    "muon_speedrun": lambda *args, **given: mo.recipes.muon_speedrun(*args, **{"adamw_learning_rate": 1e-3} | given),
}
WRONG: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "negative rate": ({"learning_rate": -1.0}, ValueError, ("learning_rate=-1.0", ">= 0", "schedule")),
    "nan rate": ({"learning_rate": float("nan")}, ValueError, ("learning_rate=nan", ">= 0")),
    "text as rate": ({"learning_rate": "fast"}, TypeError, ("learning_rate='fast'", "schedule")),
    "array as rate": ({"learning_rate": jnp.asarray(-1.0)}, ValueError, ("learning_rate=", "-1.", ">= 0")),
    "negative decay": ({"weight_decay": -0.1}, ValueError, ("weight_decay=-0.1", ">= 0")),
    "infinite decay": ({"weight_decay": float("inf")}, ValueError, ("weight_decay=inf", "finite")),
    "negative adamw rate": ({"adamw_learning_rate": -1.0}, ValueError, ("adamw_learning_rate=-1.0", ">= 0")),
    "text as adamw rate": ({"adamw_learning_rate": "fast"}, TypeError, ("adamw_learning_rate='fast'",)),
    "momentum of one": ({"momentum": 1.0}, ValueError, ("momentum=1.0", "[0, 1)", "0.95")),
    "injected layouts": ({"layouts": jnp.ones(3)}, TypeError, ("layouts", "static_args=('layouts',)")),
}
LACKS = {("muon_h", "weight_decay"), ("muon_clip", "momentum")}


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("case", WRONG)
def test_every_factory_refuses_wrong_numbers_at_construction(case: str, factory: str) -> None:
    given, error, parts = WRONG[case]
    if any((factory, name) in LACKS for name in given):
        parts, error = (f"{factory}() has no argument",), TypeError
    with refused(error, *parts):
        FACTORIES[factory](**{"learning_rate": 0.1} | given)


OF_ONE_RECIPE: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "b2": (lambda: mo.recipes.normuon(0.1, b2=1.0), ValueError, ("b2=1.0", "[0, 1)")),
    "axis": (lambda: mo.recipes.normuon(0.1, axis="input"), ValueError, ("axis='input'", "'output'", "'longer'")),
    "threshold": (lambda: mo.recipes.muon_clip(0.1, threshold=0.0), ValueError, ("threshold=0.0",)),
    "a number among heads": (
        lambda: mo.recipes.muon_h(0.1, adamw_learning_rate=0.1, heads=("*head*", 5)),
        TypeError,
        ("heads=('*head*', 5)",),
    ),
    "text as heads": (lambda: mo.recipes.muon_h(0.1, adamw_learning_rate=0.1, heads="lm"), TypeError, ("heads='lm'",)),
    "a rate by position": (lambda: mo.recipes.muon_h(0.1, 0.1), TypeError, ("positional",)),
    "another rate by position": (lambda: mo.recipes.muon_speedrun(0.1, 0.1), TypeError, ("positional",)),
}


@pytest.mark.parametrize("case", OF_ONE_RECIPE)
def test_what_one_recipe_takes_is_checked_too(case: str) -> None:
    build, error, parts = OF_ONE_RECIPE[case]
    with refused(error, *parts):
        build()


HEADED = {"up": jnp.ones((4, 6)), "lm_head": {"kernel": jnp.ones((6, 8)), "bias": jnp.ones(8)}, "bias": jnp.ones(6)}


@pytest.mark.parametrize(
    "glob, parts",
    [
        ("typo/*", ("heads names 'typo/*'", "matches no parameter", "'lm_head/kernel'")),
        ("bias", ("heads names 'bias'", "two or more axes", "'lm_head/kernel'")),
        ("up", ("heads names 'up'", "Muon trains 'up'", "layouts={'up': None}")),
    ],
)
def test_globs_of_heads_must_match(glob: str, parts: tuple[str, ...]) -> None:
    optimizer = mo.recipes.muon_h(0.1, adamw_learning_rate=0.1, heads=("lm_head/kernel", glob))
    with refused(ValueError, *parts):
        optimizer.init(HEADED)


def test_heads_may_be_out_of_sight_or_none_at_all() -> None:
    optimizer = mo.recipes.muon_h(0.1, adamw_learning_rate=0.1, heads=("lm_head/kernel",))
    seen = {"up": True, "lm_head": {"kernel": False, "bias": True}, "bias": True}
    masked = optax.masked(optimizer, seen)
    updates, _ = masked.update(HEADED, masked.init(HEADED), HEADED)
    assert updates["lm_head"]["kernel"] is HEADED["lm_head"]["kernel"]
    plain = mo.recipes.muon_h(0.1, adamw_learning_rate=0.1)
    updates, _ = plain.update(PARAMS, plain.init(PARAMS), PARAMS)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(updates))
    # An optimizer of a part of a model has None for the rest.
    optimizer.init(HEADED | {"lm_head": None})
    # The remedy of the message above.
    freed = mo.recipes.muon_h(0.1, adamw_learning_rate=0.1, heads=("up",), layouts={"up": None})
    assert "head" in freed.init(HEADED).inner_states["adamw"].inner_state.inner_states


@pytest.mark.parametrize("case", CONSTRUCTION)
def test_refused_at_construction(case: str) -> None:
    build, error, parts = CONSTRUCTION[case]
    with refused(error, *parts):
        build()


# At init, when shapes and paths are known.

NESTED = {"decoder": {"query": {"kernel": jnp.ones((4, 2, 3))}, "up": {"kernel": jnp.ones((4, 6))}}}

INIT: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "too-few-letters": (
        {"decoder/query/kernel": "io"},
        NESTED,
        ("'decoder/query/kernel'", "'io'", "2 letters", "3 axes", "(4, 2, 3)"),
    ),
    "too-many-letters": (
        {"*/up/kernel": "bio"},
        NESTED,
        ("'decoder/up/kernel'", "'bio'", "3 letters", "2 axes", "(4, 6)"),
    ),
    "unknown-letters": ({"*/up/kernel": "hw"}, NESTED, ("'hw'", "'i'", "'o'", "'b'")),
    "split-that-does-not-sum": (
        {"*/up/kernel": mo.Layout("io", split=(2, 3))},
        NESTED,
        ("'decoder/up/kernel'", "(2, 3)", "sums to 5", "size 6"),
    ),
    "typo-in-a-glob": (
        {"*/qeury/*": "ibo"},
        NESTED,
        ("'*/qeury/*'", "matches no parameter", "'decoder/query/kernel'", "'decoder/up/kernel'"),
    ),
    "one-typo-of-two-globs": (
        {"*/query/*": "ibo", "encoder/*": None},
        NESTED,
        ("'encoder/*'", "matches no parameter"),
    ),
    "function-that-leaves-out-a-path": (
        lambda params: {"decoder/up/kernel": "io"},
        NESTED,
        ("'decoder/query/kernel'", "every path", "None"),
    ),
    "function-that-names-another-path": (
        lambda params: {"decoder/up/kernel": "io", "decoder/query/kernel": "ibo", "w": "io"},
        NESTED,
        ("'w'", "matches no parameter"),
    ),
    "complex-parameter": ({"w": "io"}, {"w": jnp.ones((2, 3), jnp.complex64)}, ("'w'", "complex64", "None")),
    "integer-parameter": ({"w": "io"}, {"w": jnp.ones((2, 3), jnp.int32)}, ("'w'", "int32", "floating")),
}

ENTRIES = {
    **{
        name: lambda layouts, params, build=build: build(0.1, layouts=layouts).init(params)
        for name, build in FACTORIES.items()
    },
    "partition": lambda layouts, params: mo.partition_by_layout(optax.sgd(1.0), optax.sgd(1.0), layouts).init(params),
    "orthogonalize": lambda layouts, params: mo.orthogonalize(mo.polar_factor(), layouts=layouts).init(params),
    "scale": lambda layouts, params: mo.scale_by_shape(layouts=layouts).init(params),
    "assign": lambda layouts, params: mo.assign_layouts(params, layouts),
    "label": lambda layouts, params: mo.label_params(params, layouts),
    "summarize": lambda layouts, params: mo.summarize(params, layouts),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", INIT)
def test_layouts_refused_at_init(case: str, entry: str) -> None:
    layouts, params, parts = INIT[case]
    with refused(ValueError, *parts):
        ENTRIES[entry](layouts, params)


@pytest.mark.parametrize("entry", [*FACTORIES, "partition", "orthogonalize", "scale"])
def test_layouts_are_refused_on_abstract_shapes(entry: str) -> None:
    abstract = jax.eval_shape(lambda: NESTED)
    with refused(ValueError, "'decoder/up/kernel'", "'bio'"):
        ENTRIES[entry]({"*/up/kernel": "bio"}, abstract)


def test_a_layouts_function_must_return_a_mapping() -> None:
    with refused(TypeError, "mapping from path to layout", "list"):
        mo.muon(0.1, layouts=lambda params: ["io"]).init(PARAMS)


@pytest.mark.parametrize("part", [mo.orthogonalize_via_newton_schulz, mo.scale_by_shape])
def test_a_part_refuses_what_is_no_matrix(part: Callable[[], Any]) -> None:
    transform = part()
    with refused(ValueError, "'bias'", "(6,)", "partition_by_layout", "layouts={'bias'"):
        transform.init(PARAMS)


@pytest.mark.parametrize("part", [mo.orthogonalize_via_newton_schulz, mo.scale_by_shape])
def test_a_part_refuses_at_update_what_is_no_matrix(part: Callable[[], Any]) -> None:
    transform = part()
    state = transform.init({"kernel": PARAMS["kernel"]})
    with refused(ValueError, "'bias'", "(6,)", "partition_by_layout"):
        transform.update(PARAMS, state)


def test_every_layout_that_fits_is_taken_when_all_leaves_are_matrices() -> None:
    """A tree in which the partition hides nothing from the parts: their own rules must not overrule the layouts."""
    params = {"w": jnp.ones((4, 2, 7)), "embedding": jnp.ones((5, 3))}
    optimizer = mo.muon(0.1, layouts={"w": "ibo", "embedding": "io"})
    updates, _ = jax.eval_shape(optimizer.update, params, optimizer.init(params), params)
    assert updates["w"].shape == (4, 2, 7)


# At update.


@pytest.mark.parametrize(
    "change, path, shapes",
    [
        (lambda tree: {"kernel": tree["kernel"]}, "bias", ("missing", "(6,)")),
        (lambda tree: {"bias": tree["bias"]}, "kernel", ("missing", "(4, 6)")),
        (lambda tree: tree | {"new": jnp.ones((2, 2))}, "new", ("(2, 2)", "missing")),
        (lambda tree: tree | {"kernel": jnp.ones((6, 4))}, "kernel", ("(6, 4)", "(4, 6)")),
        (lambda tree: tree | {"bias": jnp.ones(5)}, "bias", ("(5,)", "(6,)")),
        (lambda tree: {"renamed" if name == "kernel" else name: leaf for name, leaf in tree.items()}, "kernel", ()),
    ],
    ids=["vector-missing", "matrix-missing", "extra", "other-matrix-shape", "other-vector-shape", "renamed"],
)
@pytest.mark.parametrize("where", ["params-of-init", "params-of-updates", "no-params"])
def test_updates_of_another_tree_are_refused(where: str, change: Any, path: str, shapes: tuple[str, ...]) -> None:
    # Without params: parts that need none. Decay would be missed first.
    optimizer = (
        mo.muon(0.1) if where != "no-params" else mo.partition_by_layout(optax.trace(0.9), optax.scale_by_adam())
    )
    state = optimizer.init(PARAMS)
    updates = change(PARAMS)
    params = {"params-of-init": PARAMS, "params-of-updates": updates, "no-params": None}[where]
    with refused(ValueError, repr(path), "updates", "init", *shapes):
        optimizer.update(updates, state, params)


@pytest.mark.filterwarnings("ignore:No rule knows:UserWarning")  # a list has no names
def test_updates_of_another_kind_of_tree_are_refused() -> None:
    optimizer = mo.muon(0.1)
    state = optimizer.init(list(PARAMS.values()))
    with refused(ValueError, "updates", "init"):
        optimizer.update(PARAMS, state, PARAMS)


ATTENTION = {"q_proj": jnp.ones((4, 6)), "k_proj": jnp.ones((4, 6)), "kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}


@pytest.mark.parametrize("factory", FACTORIES)
def test_update_without_params_is_refused_where_decay_needs_them(factory: str) -> None:
    optimizer = FACTORIES[factory](0.1)
    with refused(ValueError, "param"):
        optimizer.update(ATTENTION, optimizer.init(ATTENTION))


@pytest.mark.parametrize("factory", FACTORIES)
def test_every_factory_refuses_incomplete_updates_and_states_of_others(factory: str) -> None:
    optimizer, extra = FACTORIES[factory](0.1), {"max_logits": jnp.ones(2)} if factory == "muon_clip" else {}
    state = optimizer.init(ATTENTION)
    few = {name: leaf for name, leaf in ATTENTION.items() if name != "kernel"}
    with refused(ValueError, "'kernel'", "missing", "Pass gradients"):
        optimizer.update(few, state, few, **extra)
    with refused(ValueError, "state", "init"):
        optimizer.update(ATTENTION, optax.adamw(0.1).init(ATTENTION), ATTENTION, **extra)
    with refused(ValueError, "'kernel'", "int32", "floating"):
        optimizer.init(ATTENTION | {"kernel": jnp.ones((4, 6), jnp.int32)})


def test_a_decay_schedule_of_the_speedrun_is_read_at_each_step() -> None:
    optimizer = mo.recipes.muon_speedrun(0.1, adamw_learning_rate=0.1, weight_decay=lambda step: 10.0 * step)
    none, params = (
        mo.recipes.muon_speedrun(0.1, adamw_learning_rate=0.1, weight_decay=0.0),
        {"kernel": trees.arrays()["up"]},
    )
    (first, state), (plain, _) = (one.update(params, one.init(params), params) for one in (optimizer, none))
    np.testing.assert_array_equal(first["kernel"], plain["kernel"])
    second, _ = optimizer.update(params, state, params)
    assert float(jnp.abs(second["kernel"] - first["kernel"]).max()) > 0.01


def test_parts_without_decay_need_no_params() -> None:
    optimizer = mo.partition_by_layout(
        optax.chain(mo.orthogonalize_via_newton_schulz(), mo.scale_by_shape("naive")), optax.scale(2.0)
    )
    gradient = {"kernel": trees.arrays()["up"], "bias": jnp.ones(6)}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    np.testing.assert_array_equal(updates["bias"], 2 * np.ones(6))


@pytest.mark.parametrize(
    "orthogonalizer, after",
    [
        (lambda matrices: jnp.swapaxes(matrices, -1, -2), "(6, 4)"),
        (lambda matrices: matrices[None], "(1, 4, 6)"),
        (lambda matrices: matrices[:-1], "(3, 6)"),
        (jnp.sum, "()"),
    ],
    ids=["transposes", "adds-an-axis", "drops-a-row", "sums"],
)
@pytest.mark.parametrize("factory", ["part", "muon"])
def test_an_orthogonalizer_that_changes_a_shape_is_refused(factory: str, orthogonalizer: Any, after: str) -> None:
    params = {"kernel": PARAMS["kernel"]}
    transform = mo.orthogonalize(orthogonalizer) if factory == "part" else mo.muon(0.1, orthogonalizer=orthogonalizer)
    state = transform.init(params)
    with refused(TypeError, "orthogonalizer", "(4, 6)", after):
        transform.update(params, state, params)


def test_two_parameters_of_one_path_are_refused() -> None:
    params = {"a": {"b": jnp.ones((2, 3))}, "a/b": jnp.ones((2, 3))}
    with refused(ValueError, "'a/b'", "rename"):
        mo.muon(0.1).init(params)


def test_an_unknown_array_is_named_in_one_warning() -> None:
    params = {"mystery": jnp.ones((2, 3, 4)), "riddle": jnp.ones((2, 3, 4)), "up": jnp.ones((4, 6))}
    with pytest.warns(
        UserWarning, match=r"AdamW.*'mystery' float32\[2, 3, 4\], 'riddle' .*Give 'mystery' a letter"
    ) as caught:
        mo.muon(0.1).init(params)
    assert len(caught) == 1


def test_a_branch_may_mask_some_of_its_leaves_for_itself() -> None:
    params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4)), "bias": jnp.ones(8)}
    momentum = optax.masked(optax.trace(0.9), {"up": True, "down": False, "bias": False})
    optimizer = mo.partition_by_layout(optax.chain(momentum, mo.orthogonalize(mo.polar_factor())), optax.sgd(1.0))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert float(jnp.linalg.norm(updates["down"])) == pytest.approx(1.0, abs=1e-5)


def test_layouts_that_are_no_mapping() -> None:
    with pytest.raises(TypeError, match=r"layouts='io' is not allowed: give a mapping from path globs to layouts"):
        mo.muon(0.1, layouts="io").init({"w": jnp.ones((4, 8))})


def test_the_state_of_other_branches_names_what_it_holds() -> None:
    other = mo.muon(0.1, adamw=optax.sgd(0.1))
    with refused(ValueError, "another optimizer", "'adamw' holds nothing", "ScaleByAdamState", "adamw="):
        mo.muon(0.1).update(PARAMS, other.init(PARAMS), PARAMS)


def test_an_error_of_a_part_stays_what_it_is() -> None:
    def failing(matrices: jax.Array) -> jax.Array:
        raise RuntimeError("out of ideas")

    optimizer = mo.muon(0.1, orthogonalizer=failing)
    with pytest.raises(RuntimeError, match=r"^out of ideas"):
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)


def test_the_state_of_a_python_float_is_not_weakly_typed() -> None:
    state = mo.muon(0.1).init({"temperature": 1.0})
    assert {leaf.weak_type for leaf in jax.tree.leaves(state)} == {False}
