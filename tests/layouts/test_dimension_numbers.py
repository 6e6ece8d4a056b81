"""Trees of ``optax.contrib.MuonDimensionNumbers`` as layouts: the same matrices as in Optax, or refused by path."""

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import trees
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import mesh_of
from models import shown
from optax.contrib import MuonDimensionNumbers as Numbers
from trees import assert_trees_equal

import muon_optax as mo
from muon_optax._layouts.assigning.dimension_numbers import is_dimension_tree

FLOAT32 = mo.newton_schulz(dtype=jnp.float32, method="direct")
CASES = {
    "as a kernel": (Numbers(), (4, 6), "io"),
    "as PyTorch": (Numbers(1, 0), (4, 6), "oi"),
    "negative": (Numbers(-2, -1), (3, 4, 6), "bio"),
    "attention": (Numbers(0, (-2, -1)), (4, 2, 3), "ioo"),
    "attention out": (Numbers((0, -2), (-1,)), (2, 3, 4), "iio"),
    "in another order": (Numbers((1, 0), [3, 2]), (2, 3, 4, 5), "iioo"),
    "scanned on axis 1": (Numbers((0,), (-1,)), (4, 3, 6), "ibo"),
    "experts of layers": (Numbers(-2, -1), (2, 3, 4, 6), "bbio"),
    "output first": (Numbers(2, 0), (4, 3, 6), "obi"),
}


@pytest.mark.parametrize("numbers, shape, letters", CASES.values(), ids=CASES)
def test_numbers_are_the_letters_and_updates_those_of_optax(numbers: Numbers, shape: tuple, letters: str) -> None:
    params = {"w": jnp.asarray(oracle.gaussian(*shape), jnp.float32), "b": jnp.ones(3)}
    gradients = {"w": jnp.asarray(oracle.gaussian(*shape, seed=1), jnp.float32), "b": jnp.ones(3)}
    dimensions = {"w": numbers, "b": None}
    assert shown(params, dimensions) == {"b": None, "w": letters}
    theirs = optax.contrib.muon(0.1, muon_weight_dimension_numbers=dimensions, adam_b2=0.95, nesterov=False)
    ours = mo.muon(0.1, weight_decay=0.0, nesterov=False, scale="keller", orthogonalizer=FLOAT32, layouts=dimensions)
    got, want = (one.update(gradients, one.init(params), params)[0] for one in (ours, theirs))
    assert_trees_equal(got, want, 1e-5)


def first_is_no_matrix(tree: Any) -> Any:
    """``None`` for ``down``, and inputs last for ``up``: one of each in every tree of ``trees.KINDS``."""
    names = iter([None, Numbers(1, 0)])
    return jax.tree.map(lambda _: next(names), tree)


@pytest.mark.parametrize("given", ["tree", "function"])
@pytest.mark.parametrize("kind", [kind for kind in trees.KINDS if kind != "array"])
def test_a_tree_of_every_kind(kind: str, given: str) -> None:
    params = trees.KINDS[kind](*trees.arrays().values())
    layouts = first_is_no_matrix(params) if given == "tree" else first_is_no_matrix
    down, up = shown(params).keys()
    assert shown(params, layouts) == {down: None, up: "oi"}
    # Where the transform sees updates and parts behind a mask, too.
    optimizer = mo.muon(0.1, layouts=layouts)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    by_letters = mo.muon(0.1, layouts={down: None, up: "oi"})
    assert_trees_equal(updates, by_letters.update(params, by_letters.init(params), params)[0])


def test_a_tree_in_plain_containers_speaks_of_the_same_paths() -> None:
    params = trees.KINDS["nnx"](*trees.arrays().values())
    assert shown(params, {"down": Numbers(1, 0), "up": None}) == {"down": "oi", "up": None}


def test_one_leaf_alone() -> None:
    assert shown(jnp.ones((4, 6)), Numbers(1, 0)) == {"": "oi"}


MODEL = {"embed": {"table": jnp.ones((50, 8))}, "mlp": {"up": jnp.ones((8, 16)), "down": jnp.ones((16, 8))}}


def test_what_stands_at_an_inner_node_holds_below() -> None:
    assert shown(MODEL, {"embed": None, "mlp": Numbers(1, 0)}) == {
        "embed/table": None, "mlp/down": "oi", "mlp/up": "oi",
    }  # fmt: skip
    assert set(shown(MODEL["mlp"], Numbers(1, 0)).values()) == {"oi"}


HIDDEN = optax.MaskedNode()
TOLD_APART = {
    "nothing": (None, False),
    "no paths": ({}, False),
    "letters by path": ({"a": None, "b": "io"}, False),
    "None by path": ({"a": None}, False),
    "numbers by path": ({"a": Numbers(), "b": None}, True),
    "numbers and letters": ({"a": {"b": Numbers(), "c": "io"}}, True),
    "None in a tree": ({"a": {"b": None}}, True),
    "None and hidden in a tree": ({"a": {"b": None, "c": HIDDEN}}, True),
    "hidden in a tree": ([HIDDEN], True),
    "None and letters in a tree": ({"a": {"b": None, "c": "io"}}, False),
    "an empty tree": ({"a": {}}, False),
    "a list of None": ([None], True),
    "numbers of another kind": ({"a": {"b": 3}}, False),
}


@pytest.mark.parametrize("given, is_tree", TOLD_APART.values(), ids=TOLD_APART)
def test_a_tree_of_numbers_is_told_from_letters_by_path(given: Any, is_tree: bool) -> None:
    assert is_dimension_tree(given) is is_tree


def test_nothing_but_none_is_a_tree_too() -> None:
    assert set(shown(MODEL, lambda params: jax.tree.map(lambda _: None, params)).values()) == {None}


def test_none_may_stand_where_nothing_is() -> None:
    model = eqx.nn.MLP(8, 4, 16, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    dimensions = jax.tree.map(lambda leaf: Numbers(1, 0) if getattr(leaf, "ndim", 0) == 2 else None, model)
    assert shown(params, dimensions) == {
        "layers/0/bias": None, "layers/0/weight": "oi", "layers/1/bias": None, "layers/1/weight": "oi",
    }  # fmt: skip


def updates_of(optimizer: optax.GradientTransformation) -> Any:
    return optimizer.update(MODEL, optimizer.init(MODEL), MODEL)


SCALE = mo.scale_by_shape("keller")
PLACES = jax.tree.map(lambda _: NamedSharding(mesh_of(data=4), P()), MODEL)
TREE = {"embed": {"table": None}, "mlp": {"up": Numbers(), "down": Numbers()}}
CALLS: dict[str, Callable[[Any], Any]] = {
    "muon": lambda layouts: mo.muon(0.1, layouts=layouts).init(MODEL),
    "normuon": lambda layouts: mo.recipes.normuon(0.1, layouts=layouts).init(MODEL),
    "partition_by_layout": lambda layouts: updates_of(mo.partition_by_layout(SCALE, optax.identity(), layouts)),
    "label_params": lambda layouts: mo.label_params(MODEL, layouts),
    "summarize": lambda layouts: str(mo.summarize(MODEL, layouts)),
    "plan": lambda layouts: str(mo.plan(MODEL, PLACES, layouts)),
    "split_fused": lambda layouts: mo.split_fused({"mlp/up": 2}, layouts)(MODEL),
    "hold_idle_matrices": lambda layouts: mo.hold_idle_matrices(optax.trace(0.9), layouts).init(MODEL),
    "strict": lambda layouts: mo.assign_layouts(MODEL, layouts, strict=True),
    "json": lambda layouts: mo.layouts_to_json(mo.assign_layouts(MODEL, layouts)),
    "diagnostics": lambda layouts: mo.diagnostics.orthogonality_error(MODEL, layouts),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_accepted_wherever_layouts_are(call: Callable[[Any], Any]) -> None:
    letters = {"embed/table": None, "mlp/up": "io", "mlp/down": "io"}
    got, want = call(TREE), call(lambda params: letters)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_tree_of_the_whole_model_does_for_a_part() -> None:
    part = {"embed": {"table": None}, "mlp": {"up": MODEL["mlp"]["up"], "down": None}}
    assert shown(part, TREE) == {"mlp/up": "io"}
    hidden = optax.masked(mo.muon(0.1, layouts=TREE), {"embed": {"table": False}, "mlp": {"up": True, "down": False}})
    updates, _ = hidden.update(MODEL, hidden.init(MODEL), MODEL)
    assert (updates["mlp"]["down"] == MODEL["mlp"]["down"]).all()
    assert (updates["mlp"]["up"] != MODEL["mlp"]["up"]).any()


# The fields of MaxText's two copies.
Sharded = namedtuple("ShardedMuonDimensionNumbers", "reduction_axis output_axis sharding")
Split = namedtuple("MuonDimensionNumbers", "reduction_axis output_axis component_splits scan_axis")


@pytest.mark.parametrize("numbers", [Sharded(0, -1, ("embed", "mlp")), Split(0, -1, None, None)])
def test_maxtexts_classes_say_the_same(numbers: Any) -> None:
    assert shown({"up": jnp.ones((4, 6))}, {"up": numbers}) == {"up": "io"}
    assert shown({"up": jnp.ones((4, 6))}, lambda params: {"up": numbers}) == {"up": "io"}


UP = {"mlp": {"up": jnp.ones((4, 6)), "bias": jnp.ones(6)}}


@pytest.mark.parametrize(
    "up, message",
    [
        (Numbers(0, 2), r"'mlp/up' of shape \(4, 6\) .*output_axis=2\) says: there is no axis 2 among 2"),
        (Numbers(-3, 1), "there is no axis -3 among 2"),
        (Numbers(0, 0), "an axis is named twice. Name each axis once"),
        (Numbers((0, -2), 1), "an axis is named twice"),
        (Numbers((0, 1), ()), "a matrix has at least one reduction axis and one output axis"),
        (Numbers(0, 1.5), "1.5 is neither an axis nor several"),
        (Split(0, 1, (2, 4), None), r"component_splits=\(2, 4\) is more than a letter for each axis says"),
    ],
    ids=["no axis", "no negative axis", "overlap", "twice", "no output", "no integer", "splits"],
)
def test_what_letters_do_not_say_is_refused_by_path(up: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mo.muon(0.1, layouts={"mlp": {"up": up, "bias": None}}).init(UP)


@pytest.mark.parametrize(
    "layouts, kind, message",
    [
        (
            {"mlp": {"up": Numbers()}},
            ValueError,
            "says nothing of 'mlp/bias': it must name every parameter. Write None",
        ),
        ({"mlp": Numbers()}, ValueError, r"'mlp/bias' of shape \(6,\) .* there is no axis 1 among 1"),
        ({"*/up": Numbers()}, ValueError, "says nothing of 'mlp/bias'.* give letters by path"),
        ({"mlp": TREE["embed"] | {"up": Numbers(), "bias": None}, "out": Numbers()}, ValueError, "layouts names 'out'"),
        ({"mlp": {"up": Numbers(), "bias": "io"}}, TypeError, "says 'io' at 'mlp/bias', beside MuonDimensionNumbers"),
        (lambda params: None, TypeError, "must return a mapping"),
    ],
    ids=["incomplete", "a vector", "glob", "no such leaf", "letters too", "nothing returned"],
)
def test_a_tree_that_is_none_of_the_parameters_is_refused(layouts: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        mo.assign_layouts(UP, layouts)


def test_a_model_whose_tree_is_callable_is_no_function() -> None:
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    dimensions = jax.tree.map(lambda leaf: Numbers() if leaf.ndim == 2 else None, model)
    assert callable(dimensions)
    assert shown(nnx.state(model), dimensions) == {"bias": None, "kernel": "io"}
