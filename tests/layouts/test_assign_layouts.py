"""Overrides, labels and refusals of ``assign_layouts``, on any tree."""

import fnmatch
import re
from typing import Any, NamedTuple

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import shown
from tolerances import RTOL

import muon_optax as mo
from muon_optax._layouts.assigning import rules
from muon_optax._layouts.assigning.messages import is_trainable
from muon_optax._layouts.assigning.resolve import decisions_on
from muon_optax._layouts.paths import named_leaves
from muon_optax._layouts.tree import tree as evidence

KERNEL = jnp.ones((4, 6))
MODEL = {"decoder": [{"query": KERNEL, "out": KERNEL}, {"query": KERNEL, "out": KERNEL}], "bias": jnp.ones(6)}


def test_the_first_glob_that_matches_wins():
    layouts = {"decoder/0/*": "oi", "*/query": None, "decoder/*": "io"}
    expected = {"decoder/0/query": "oi", "decoder/0/out": "oi", "decoder/1/query": None, "decoder/1/out": "io"}
    assert shown(MODEL, layouts) == {"bias": None, **expected}


def test_an_exact_path_beats_a_glob_before_it():
    assert shown(MODEL, {"*query": None, "decoder/1/query": "oi"})["decoder/1/query"] == "oi"
    assert shown(MODEL, {"*query": None, "decoder/1/query": "oi"})["decoder/0/query"] is None


def test_a_star_spans_slashes_and_a_question_mark_is_one_character():
    assert shown(MODEL, {"dec*query": None})["decoder/0/query"] is None
    assert shown(MODEL, {"decoder/?/query": None})["decoder/1/query"] is None
    assert shown({"decoder": {"10": {"query": KERNEL}, "1": {"query": KERNEL}}}, {"decoder/?/query": None}) == {
        "decoder/1/query": None,
        "decoder/10/query": "io",
    }


def test_upper_and_lower_case_differ():
    with pytest.raises(ValueError, match="layouts names 'DECODER/\\*', which matches no parameter"):
        mo.assign_layouts(MODEL, {"DECODER/*": None})


@pytest.mark.parametrize("key", ["a[0]", "what?", "a*b", "[x", "a/b", " ", "é"])
def test_a_key_with_special_characters_is_named_by_its_exact_path(key: str):
    assert shown({"scope": {key: KERNEL, "other": KERNEL}}, {f"scope/{key}": "oi"})[f"scope/{key}"] == "oi"


def test_keys_that_are_no_strings():
    assert shown({1: KERNEL, 2: [KERNEL]}, {"1": "oi"}) == {"1": "oi", "2/0": "io"}
    assert shown({(2, 3): KERNEL}) == {"2/3": "io"}


def test_a_tree_that_is_one_leaf_has_the_empty_path():
    assert shown(KERNEL) == {"": "io"}
    assert shown(KERNEL, {"": "oi"}) == {"": "oi"}


def test_an_override_silences_the_warning_and_one_unknown_left_does_not():
    params = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 3, 4))}
    assert shown(params, {"a": None, "b": "bio"}) == {"a": None, "b": "bio"}  # a warning would be an error
    with pytest.warns(UserWarning, match=r"AdamW trains them: 'b' float32\[2, 3, 4\]\. Give"):
        assert shown(params, {"a": None}) == {"a": None, "b": None}


def test_a_function_replaces_the_rules():
    given = {"a": "bio", "b": mo.Layout("io", split=(2, 4)), "c": None}
    params = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((3, 6)), "c": jnp.ones((3, 6))}
    seen = []

    def layouts(tree: Any) -> dict[str, Any]:
        seen.append(tree)
        return given

    assert shown(params, layouts) == {"a": "bio", "b": "io split 2+4", "c": None}
    assert seen == [params]
    updates, _ = mo.muon(1e-2, layouts=layouts).update(params, mo.muon(1e-2, layouts=layouts).init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


@pytest.mark.parametrize(
    ("layouts", "kind", "message"),
    [
        (
            {"decoder/2/*": None},
            ValueError,
            "names 'decoder/2/\\*', which matches no parameter. The paths are: 'bias', ",
        ),
        ({"decoder/0/out": "ioo"}, ValueError, "'decoder/0/out': layout 'ioo' has 3 letters for the 2 axes of shape"),
        ({"decoder/0/out": "ix"}, ValueError, "Layout 'ix' is not allowed"),
        ({"decoder/0/out": 3}, TypeError, "layouts has 'decoder/0/out': 3, and needs path globs with a string"),
        (
            {"decoder/0/out": mo.Layout("io", split=(2, 3))},
            ValueError,
            r"'decoder/0/out': split \(2, 3\) sums to 5, but the output axis of shape \(4, 6\) has size 6",
        ),
        (
            lambda tree: {"bias": None},
            ValueError,
            "No layout for 'decoder/0/out': the layouts function must name every",
        ),
        (lambda tree: {"typo": None}, ValueError, "'typo', which matches no parameter"),
        (lambda tree: None, TypeError, "must return a mapping from path to layout; got NoneType"),
        (eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)), TypeError, "layouts=MLP holds arrays: give path globs or a"),
    ],
)
def test_what_does_not_fit_is_refused(layouts: Any, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        mo.assign_layouts(MODEL, layouts)


@pytest.mark.parametrize("leaves, more", [(20, ""), (21, " and 1 more"), (25, " and 5 more")])
def test_a_refusal_lists_twenty_paths(leaves: int, more: str):
    tree = {f"{number:02}": jnp.ones(3) for number in range(leaves)}
    listed = ", ".join(f"'{number:02}'" for number in range(20))
    with pytest.raises(ValueError, match=rf"The paths are: {listed}{more}\."):
        mo.assign_layouts(tree, {"typo": None})


@pytest.mark.parametrize(
    "dtype, trainable",
    [
        *((dtype, True) for dtype in ("float16", "bfloat16", "float32", "complex64")),
        *((dtype, False) for dtype in ("int32", "bool", "float8_e4m3fn")),
    ],
)
def test_floats_and_complex_numbers_of_16_bits_are_trained(dtype: str, trainable: bool):
    (leaf,) = named_leaves({"w": jax.ShapeDtypeStruct((4, 4), dtype)})
    assert is_trainable(leaf) is trainable


FILTERED = {"w": KERNEL, "frozen": None, "blocks": [None, {"w": KERNEL}]}


@pytest.mark.parametrize("glob", ["frozen", "frozen/kernel", "frozen/*/w", "blocks/0/w", "blocks/?"])
def test_a_glob_may_name_what_a_filter_left_out(glob: str):
    assert shown(FILTERED, {glob: "oi"}) == {"blocks/1/w": "io", "w": "io"}


@pytest.mark.parametrize("glob", ["frozen_too", "w/w", "blocks/1", "blocks/2/w"])
def test_a_glob_for_nothing_is_refused_beside_what_a_filter_left_out(glob: str):
    with pytest.raises(ValueError, match=rf"names '{re.escape(glob)}', which .* If those are .* a filter leaves out"):
        mo.assign_layouts(FILTERED, {glob: "oi"})


def test_a_function_that_was_called_as_a_schedule_is_hinted_at():
    with pytest.raises(ValueError, match=r"names '', .* calls a function as a schedule: name 'layouts' in static_args"):
        mo.assign_layouts(MODEL, mo.default_layouts(jnp.array(3)))


@pytest.mark.parametrize("layout, kept", [("io", True), ("oi", False), (None, False)])
def test_a_given_layout_keeps_the_reason_of_strong_evidence_for_it(layout: str | None, kept: bool):
    params = {"up": {"kernel": jnp.ones((17, 64)), "bias": jnp.ones(64)}, "down": {"kernel": jnp.ones((64, 17))}}
    by_rules, given = (decisions_on(params, named_leaves(params), globs) for globs in (None, {"up/kernel": layout}))
    assert by_rules["up/kernel"].strength == "strong"
    assert given["up/kernel"].why == (by_rules["up/kernel"].why if kept else "given")
    weak = {"a": {"kernel": jnp.ones((17, 64))}, "b": {"kernel": jnp.ones((64, 32))}}
    assert decisions_on(weak, named_leaves(weak), None)["b/kernel"].weak
    assert decisions_on(weak, named_leaves(weak), {"b/kernel": "io"})["b/kernel"].why == "given"


def test_parts_in_a_partition_see_the_whole_trees_layouts_or_their_own():
    params = {"w": jnp.ones((4, 16)), "v": jnp.ones((4, 16)), "bias": jnp.ones(16)}
    scale, turned = mo.scale_by_shape("mup"), mo.scale_by_shape("mup", layouts={"*": "oi"})
    masked = optax.masked(scale, {"w": True, "v": False, "bias": False})
    optimizer = mo.partition_by_layout(optax.chain(scale, turned, turned, scale, scale, masked), optax.identity())
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert {name: float(leaf.max()) for name, leaf in updates.items()} == {"w": 4, "v": 2, "bias": 1}


def test_a_part_refuses_at_init_what_it_sees_no_matrix_in():
    part = mo.scale_by_shape(layouts={"w": None})
    for optimizer in (part, mo.partition_by_layout(part, optax.identity())):
        with pytest.raises(ValueError, match=r"'w' of shape .* has no layout"):
            optimizer.init({"w": KERNEL} if optimizer is part else {"w": KERNEL, "bias": jnp.ones(6)})


def test_behind_a_mask_init_does_not_ask_for_what_siblings_tell():
    shapes = {"norm": {"scale": (3, 4)}, "up": {"kernel": (3, 4, 8)}, "down": {"kernel": (3, 8, 4)}}
    params = {"layers": jax.tree.map(jnp.ones, shapes, is_leaf=lambda node: isinstance(node, tuple))}
    assert shown(params)["layers/up/kernel"] == "bio"
    mask = jax.tree.map(lambda leaf: leaf.ndim == 3, params)
    optax.masked(mo.scale_by_shape(), mask).init(params)


def test_a_part_alone_asks_for_itself():
    """No partition hands it the layouts of the whole tree."""
    params = {"kernel": jnp.ones((4, 16))}
    part = mo.scale_by_shape("keller")
    updates, _ = part.update(params, part.init(params))
    assert (updates["kernel"] == 2).all()


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_only_real_floating_arrays_are_matrices(dtype: Any):
    params = {"scope": {"table": jax.ShapeDtypeStruct((3, 4), dtype)}}
    with pytest.raises(ValueError, match=f"'scope/table' has dtype {jnp.dtype(dtype)}, and only real floating"):
        mo.assign_layouts(params, {"*": "io"})


def test_two_leaves_of_one_path_are_refused_if_they_are_matrices():
    twice = {"a": {"b": KERNEL}, "a/b": KERNEL}
    with pytest.raises(ValueError, match="Two parameters have the path 'a/b': rename one"):
        mo.assign_layouts(twice)
    assert shown(twice, {"a/b": None}) == {"a/b": None}


@pytest.mark.parametrize(
    "first, second", [(KERNEL, jnp.ones(6)), (jnp.ones(6), KERNEL)], ids=["matrix-first", "vector-first"]
)
def test_a_matrix_and_a_vector_of_one_path_are_refused(first: Any, second: Any):
    twice = {"a": {"b": first}, "a/b": second}
    with pytest.raises(ValueError, match="Two parameters have the path 'a/b': rename one"):
        mo.assign_layouts(twice)
    assert mo.assign_layouts(twice, lambda params: {"a/b": None}) == {"a/b": None}


def test_two_vectors_may_have_one_path():
    assert mo.assign_layouts({"a": {"b": jnp.ones(6)}, "a/b": jnp.ones(6), "c": KERNEL})["a/b"] is None


def test_blocks_of_a_split_are_updated_as_leaves_of_their_own():
    sizes, edges = (6, 2, 3), (6, 8)
    fused = jnp.cos(jnp.arange(44.0) ** 1.5).reshape(4, 11)
    apart = dict(zip("qkv", jnp.split(fused, edges, axis=1), strict=True))
    options = {"orthogonalizer": mo.newton_schulz(dtype=jnp.float32), "scale": "keller"}

    def update(params: Any, layouts: Any = None) -> Any:
        optimizer = mo.muon(1e-2, layouts=layouts, **options)
        return optimizer.update(params, optimizer.init(params), params)[0]

    together = update({"qkv": fused}, {"qkv": mo.Layout("io", split=sizes)})["qkv"]
    expected = jnp.concatenate([update(apart)[name] for name in "qkv"], axis=1)
    np.testing.assert_allclose(together, expected, rtol=0, atol=RTOL["float32"] * float(abs(expected).max()))
    unsplit = update({"qkv": fused})["qkv"]
    assert float(abs(unsplit - expected).max()) > 0.1 * float(abs(expected).max())


class Pair(NamedTuple):
    weight: Any
    bias: Any


@flax.struct.dataclass
class Struct:
    kernel: Any
    name: str = flax.struct.field(pytree_node=False, default="x")


TREES = {
    "dict": {"dense": {"kernel": KERNEL, "bias": jnp.ones(6)}},
    "list of tuples": [(KERNEL, jnp.ones(6)), (KERNEL, None)],
    "NamedTuple": Pair(KERNEL, jnp.ones(4)),
    "dataclass": Struct(KERNEL),
    "frozen dict": flax.core.freeze({"kernel": KERNEL}),
    "Equinox": eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(0)).layers,
    "NNX": nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param),
    "one leaf": KERNEL,
    "empty": {},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_labels_have_the_structure_of_the_tree(tree: Any):
    labels = mo.label_params(tree)
    assert jax.tree.structure(labels) == jax.tree.structure(tree)
    assert jax.tree.leaves(labels) == ["muon" if len(leaf.shape) > 1 else "adamw" for leaf in jax.tree.leaves(tree)]


def test_labels_follow_the_overrides():
    assert mo.label_params({"a": KERNEL, "b": KERNEL}, {"b": None}) == {"a": "muon", "b": "adamw"}


def model_of(blocks: int, scanned: bool) -> dict[str, Any]:
    """A tree of ten leaves a block, three scopes deep, where siblings have to be asked."""

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((3, *shape) if scanned else shape, jnp.float32)

    def block() -> dict[str, Any]:
        attention = {name: {"kernel": leaf(6, 2, 4), "bias": leaf(2, 4)} for name in ("query", "key", "value")}
        attention["out"] = {"kernel": leaf(2, 4, 6), "bias": leaf(6)}
        return {"attention": attention, "norm": {"scale": leaf(6)}, "up": {"kernel": leaf(6, 9)}}

    return {"blocks": [block() for _ in range(blocks)]}


def calls_for(monkeypatch: pytest.MonkeyPatch, blocks: int, scanned: bool, layouts: Any = None) -> int:
    """How often paths are taken apart, leaves are asked and globs are matched: work, without a clock."""
    count = 0

    def counted(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in ("module_of", "is_norm", "is_embedding", "weight_beside", "biases_of"):
            patch.setattr(evidence, name, counted(getattr(evidence, name)))
        patch.setattr(rules, "_by_rules", counted(rules._by_rules))
        patch.setattr(fnmatch, "fnmatchcase", counted(fnmatch.fnmatchcase))
        table = mo.assign_layouts(model_of(blocks, scanned), layouts)
    assert len(table) == 10 * blocks
    assert sum(layout is not None for layout in table.values()) == 5 * blocks
    return count


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("globs", [{}, {"*/query/kernel": "ibo", "*/up/kernel": "io"}], ids=["rules", "globs"])
def test_ten_thousand_leaves_cost_ten_times_one_thousand(
    monkeypatch: pytest.MonkeyPatch, scanned: bool, globs: dict[str, str]
):
    layouts = {glob: "b" * scanned + layout for glob, layout in globs.items()}
    few = calls_for(monkeypatch, 100, scanned, layouts)
    assert few <= calls_for(monkeypatch, 1000, scanned, layouts) < 11 * few  # equal blocks are judged once
