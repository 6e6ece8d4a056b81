"""Paths: what each kind of tree calls its leaves, with and without the boxes that frameworks put around them."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees
from flax import nnx

from muon_optax._layouts.path_patterns import natural_order, pattern
from muon_optax._layouts.paths import brief, has_hidden, hidden_paths, is_hidden, named_leaves, parameter_of, show


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Weights:
    down: Any
    up: Any


class Pair(NamedTuple):
    first: Any
    second: Any


@jax.tree_util.register_pytree_node_class
class Opaque:
    """A node without key paths: JAX numbers its children."""

    def __init__(self, *children: Any) -> None:
        self.children = children

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return self.children, None

    @classmethod
    def tree_unflatten(cls, _: None, children: tuple[Any, ...]) -> "Opaque":
        return cls(*children)


A, B = jnp.zeros((2, 3)), jnp.ones((4, 5))
LINEAR = eqx.nn.Linear(3, 2, key=jax.random.key(0))
STATE = nnx.state(trees.Layers(A, B), nnx.Param)

TREES: dict[str, tuple[Any, list[str]]] = {
    "dict": ({"b": A, "a": {"c": B}}, ["a/c", "b"]),
    "int-keys": ({"layers": {0: A, 10: B}}, ["layers/0", "layers/10"]),
    "list": ({"layers": [A, {"w": B}]}, ["layers/0", "layers/1/w"]),
    "tuple": ((A, (B,)), ["0", "1/0"]),
    "none": ({"a": None, "b": [None, A]}, ["b/1"]),
    "namedtuple": (Pair(A, {"w": B}), ["first", "second/w"]),
    "dataclass": ({"mlp": Weights(A, B)}, ["mlp/down", "mlp/up"]),
    "node-without-keys": ({"node": Opaque(A, B)}, ["node/0", "node/1"]),
    "array": (A, [""]),
    "abstract": ({"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}, ["w"]),
    "python-number": ({"temperature": 1.0}, ["temperature"]),
    "nnx-state": (STATE, ["down", "up"]),
    "nnx-state-inside": ({"model": STATE}, ["model/down", "model/up"]),
    "nnx-pure-dict": (nnx.to_pure_dict(STATE), ["down", "up"]),
    "nnx-module-list": (nnx.state(nnx.List([trees.Layers(A, B)]), nnx.Param), ["0/down", "0/up"]),
    "linen-box": ({"params": {"dense": {"kernel": nn.Partitioned(A, ("x", None))}}}, ["params/dense/kernel"]),
    "linen-box-of-logical-axes": ({"kernel": nn.LogicallyPartitioned(A, ("x", None))}, ["kernel"]),
    "equinox-module": (trees.KINDS["equinox"](A, B), ["down", "up"]),
    "equinox-layers": ({"mlp": [LINEAR]}, ["mlp/0/weight", "mlp/0/bias"]),
    "equinox-layer": (LINEAR, ["weight", "bias"]),
    "hidden": ({"a": optax.MaskedNode(), "b": A}, ["b"]),
}


@pytest.mark.parametrize("kind", TREES)
def test_paths(kind: str) -> None:
    tree, want = TREES[kind]
    assert [leaf.path for leaf in named_leaves(tree)] == want


@pytest.mark.parametrize("kind", TREES)
def test_leaves_are_in_the_order_of_jax(kind: str) -> None:
    tree, _ = TREES[kind]
    leaves = jax.tree.leaves(tree)
    assert len(leaves) == len(named_leaves(tree))
    assert all(leaf.value is other for leaf, other in zip(named_leaves(tree), leaves, strict=True))


@pytest.mark.parametrize("name", ["Variable", "AxisMetadata", "NamedArray", "FlatState", "Module", "MaskedNode"])
def test_classes_of_other_packages_are_plain_nodes_whatever_their_names(name: str) -> None:
    kind = jax.tree_util.register_dataclass(dataclasses.make_dataclass(name, ["value", "bias"]))
    leaves = named_leaves({"w": kind(A, B)})
    assert [leaf.path for leaf in leaves] == ["w/value", "w/bias"]
    assert {(leaf.owner, leaf.classes, leaf.axes) for leaf in leaves} == {(None, (), ())}
    assert not is_hidden(kind(A, B))


def test_a_box_has_a_name_of_flax_and_other_classes_of_flax_are_nodes() -> None:
    @flax.struct.dataclass
    class Struct:
        value: Any

    assert [leaf.path for leaf in named_leaves({"w": Struct(A)})] == ["w/value"]
    assert [leaf.path for leaf in named_leaves({"w": nnx.State({"value": A})})] == ["w/value"]


def test_nnx_optimizers_two_trees_have_the_same_paths() -> None:
    """``nnx.Optimizer`` calls ``init`` with variables and ``update`` with what they hold."""
    seen = []

    def spy(tree: Any, *_: Any) -> None:
        seen.append([leaf.path for leaf in named_leaves(tree)])

    def init(params: Any) -> optax.EmptyState:
        spy(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        spy(updates)
        spy(params)
        return updates, state

    model = trees.Layers(A, B)
    optimizer = nnx.Optimizer(model, optax.GradientTransformation(init, update), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: model.down.sum() + model.up.sum())(model))
    assert seen == [["down", "up"]] * 3


def test_a_parameter_called_value_keeps_its_name() -> None:
    assert [leaf.path for leaf in named_leaves({"attention": {"value": A, "key": {"value": B}}})] == [
        "attention/key/value",
        "attention/value",
    ]


def test_shapes_and_dtypes() -> None:
    tree = {"array": A, "number": 1.0, "numpy": np.zeros(3, np.float16), "shape": jax.ShapeDtypeStruct((7,), jnp.int32)}
    assert {leaf.path: (leaf.shape, leaf.dtype) for leaf in named_leaves(tree)} == {
        "array": ((2, 3), jnp.float32),
        "number": ((), jnp.float32),
        "numpy": ((3,), jnp.float16),
        "shape": ((7,), jnp.int32),
    }


@pytest.mark.parametrize(
    "value, shown",
    [
        ("float32", r"'float32' of type str"),
        (jax.nn.relu, r"relu of type custom_jvp"),
        (np.array([None, 1], object), r"array\(\[None, 1\], dtype=object\) of type ndarray"),
        (object(), r"<object object at .*> of type object"),
    ],
    ids=["name-of-a-dtype", "function", "objects", "object"],
)
def test_what_is_no_array_has_no_dtype(value: object, shown: str) -> None:
    (leaf,) = named_leaves({"activation": value})
    with pytest.raises(
        TypeError, match=f"^'activation' is {shown}, not an array of numbers: give the optimizer arrays"
    ):
        _ = leaf.dtype


def test_the_owner_is_the_nearest_equinox_layer() -> None:
    attention = eqx.filter(eqx.nn.MultiheadAttention(2, 8, key=jax.random.key(0)), eqx.is_array)
    owners = {leaf.path: type(leaf.owner).__name__ for leaf in named_leaves({"a": attention, "b": A})}
    assert owners == {
        **{f"a/{name}_proj/weight": "Linear" for name in ("query", "key", "value", "output")},
        "b": "NoneType",
    }


def test_a_subclass_of_a_layer_is_a_layer() -> None:
    class Scaled(eqx.nn.Linear):
        pass

    (weight, _) = named_leaves(Scaled(3, 2, key=jax.random.key(0)))
    assert isinstance(weight.owner, Scaled)


def test_errors_show_a_path_or_say_that_there_is_none() -> None:
    assert show("a/b") == "'a/b'"
    assert "the tree is one leaf" in show("")


@pytest.mark.parametrize("length, shown", [(9, "'xxxxxxx'"), (10, "'xxxxxxxx'"), (11, "'xxxxxx...")])
def test_a_value_is_cut_where_it_is_longer_than_allowed(length: int, shown: str) -> None:
    assert brief("x" * (length - 2), 10) == shown


def test_a_function_is_shown_by_its_name_and_lines_as_one() -> None:
    assert brief(named_leaves) == "named_leaves"
    assert brief(np.eye(2)) == "array([[1., 0.], [0., 1.]])"


@pytest.mark.parametrize("node, hidden", [(optax.MaskedNode(), True), (A, False), (None, False), ((), False)], ids=str)
def test_is_hidden(node: Any, hidden: bool) -> None:
    assert is_hidden(node) is hidden


def test_some_of_a_tree_may_be_hidden() -> None:
    assert has_hidden({"a": optax.MaskedNode(), "b": A})
    assert hidden_paths({"a": optax.MaskedNode(), "b": A, "c": {"d": optax.MaskedNode()}}) == {"a", "c/d"}
    assert not has_hidden({"a": A, "b": None})
    assert hidden_paths({"a": A, "b": None}) == frozenset()


@pytest.mark.parametrize(
    "paths, shown, matched",
    [
        (["a/w"], "a/w", "a/w"),
        (["a/0/w", "a/1/w"], "a/{0..1}/w", "a/*/w"),
        (["a/0", "a/2"], "a/{0,2}", "a/*"),
        (["a/0", "a/2", "a/3", "a/9"], "a/{0,2,3,9}", "a/*"),
        (["a/0", "a/2", "a/3", "a/9", "a/11"], "a/{0,2,3,..,11}", "a/*"),
        (["a/9", "a/10", "a/11"], "a/{9..11}", "a/*"),
        (["0/b/7", "1/b/7"], "{0..1}/b/7", "*/b/7"),
        (["w[0]", "w[1]"], "w[{0..1}]", "w[[]*]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_paths_that_differ_in_numbers_as_one(paths: list[str], shown: str, matched: str) -> None:
    assert pattern(paths) == shown
    assert pattern(paths, "*") == matched


def test_numbers_in_paths_are_sorted_as_numbers() -> None:
    paths = ["layers/10/w", "layers/2/w", "layers/2/b", "head", "2/a"]
    assert sorted(paths, key=natural_order) == ["2/a", "head", "layers/2/b", "layers/2/w", "layers/10/w"]


@pytest.mark.parametrize(
    "path, shape, parameter",
    [
        ("0/trace/block/w", (2, 3), "block/w"),
        ("0/trace/w", (4,), "w"),
        ("0/trace/block/w", (4,), "w"),
        ("0/trace/block/w", (5,), None),
        ("0/trace/other", (4,), None),
    ],
)
def test_the_parameter_of_a_state_has_its_shape_and_ends_its_path(
    path: str, shape: tuple[int, ...], parameter: str | None
) -> None:
    assert parameter_of(path, shape, {"block/w": (2, 3), "w": (4,)}) == parameter


def test_an_array_alone_is_the_parameter_of_its_state() -> None:
    assert parameter_of("0/trace", (2, 3), {"": (2, 3)}) == ""
