"""Paths: what each kind of tree calls its leaves, with and without the boxes that frameworks put around them."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees
from flax import nnx

from muon_optax._layouts.paths import is_hidden, named_leaves, show


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


@pytest.mark.parametrize("node, hidden", [(optax.MaskedNode(), True), (A, False), (None, False), ((), False)], ids=str)
def test_is_hidden(node: Any, hidden: bool) -> None:
    assert is_hidden(node) is hidden
