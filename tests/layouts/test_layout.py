"""Layouts: any order of axes there and back, fan-in and fan-out, splits."""

import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import muon_optax as mo
from muon_optax._layouts.layout import as_layout


@st.composite
def layouts_with_shapes(draw: st.DrawFn) -> tuple[mo.Layout, tuple[int, ...]]:
    """A layout of two to five axes in any order, sometimes with a split, and a shape that it fits."""
    axes = "".join(draw(st.permutations(["i", "o", *draw(st.lists(st.sampled_from("iob"), max_size=3))])))
    shape = [draw(st.integers(1, 4)) for _ in axes]
    if axes.count("o") > 1 or not draw(st.booleans()):
        return mo.Layout(axes), tuple(shape)
    split = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    shape[axes.index("o")] = sum(split)
    return mo.Layout(axes, split=split), tuple(shape)


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    """Every entry its own number, so that a misplaced one shows."""
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


@settings(max_examples=25)  # each shape is compiled
@given(layouts_with_shapes())
def test_round_trip(case: tuple[mo.Layout, tuple[int, ...]]) -> None:
    layout, shape = case
    array = numbered(shape)
    np.testing.assert_array_equal(layout.from_matrices(layout.to_matrices(array), shape), array)


@settings(max_examples=25)  # each shape is compiled
@given(layouts_with_shapes())
def test_matrices_have_the_stated_shapes(case: tuple[mo.Layout, tuple[int, ...]]) -> None:
    layout, shape = case
    matrices = layout.to_matrices(numbered(shape))
    assert tuple(matrix.shape for matrix in matrices) == layout.matrix_shapes(shape)
    assert {matrix.shape[-2] for matrix in matrices} == {layout.fan_in(shape)}
    assert sum(matrix.shape[-1] for matrix in matrices) == layout.fan_out(shape) == sum(layout.blocks(shape))
    assert layout.mismatch(shape) is None


@settings(max_examples=25)  # each shape is compiled
@given(layouts_with_shapes())
def test_each_index_goes_where_its_letters_say(case: tuple[mo.Layout, tuple[int, ...]]) -> None:
    """Entry by entry, with no reshape: batch, row and column are the indices along b, i and o, in their order."""
    layout, shape = case
    array = numbered(shape)
    joined = np.concatenate(layout.to_matrices(array), axis=-1)
    for index in np.ndindex(shape):
        places: dict[str, list[int]] = {letter: [] for letter in "bio"}
        sizes: dict[str, list[int]] = {letter: [] for letter in "bio"}
        for letter, position, size in zip(layout.axes, index, shape, strict=True):
            places[letter].append(position)
            sizes[letter].append(size)
        row, column = (int(np.ravel_multi_index(places[letter], sizes[letter])) for letter in "io")
        assert joined[(*places["b"], row, column)] == array[index]


@pytest.mark.parametrize(
    "axes, shape, matrices",
    [
        ("io", (8, 12), (8, 12)),
        ("oi", (8, 12), (12, 8)),
        ("ioo", (64, 4, 16), (64, 64)),
        ("ibo", (64, 4, 16), (4, 64, 16)),
        ("iio", (4, 16, 64), (64, 64)),
        ("bio", (4, 16, 64), (4, 16, 64)),
        ("boi", (4, 16, 64), (4, 64, 16)),
        ("iiio", (3, 3, 8, 16), (72, 16)),
        ("oiii", (16, 8, 3, 3), (72, 16)),
        ("bbio", (2, 4, 8, 16), (2, 4, 8, 16)),
    ],
)
def test_layouts_everybody_meets(axes: str, shape: tuple[int, ...], matrices: tuple[int, ...]) -> None:
    assert mo.Layout(axes).matrix_shapes(shape) == (matrices,)
    assert (mo.Layout(axes).fan_in(shape), mo.Layout(axes).fan_out(shape)) == matrices[-2:]


def test_stored_transposed_is_the_same_matrix() -> None:
    array = numbered((3, 5))
    np.testing.assert_array_equal(mo.Layout("io").to_matrices(array)[0], mo.Layout("oi").to_matrices(array.T)[0])


@pytest.mark.parametrize("axes, axis", [("io", 1), ("oi", 0), ("boi", 1)])
def test_split_cuts_the_output_axis(axes: str, axis: int) -> None:
    shape = {"io": (4, 6), "oi": (6, 4), "boi": (2, 6, 4)}[axes]
    array = numbered(shape)
    blocks = mo.Layout(axes, split=(3, 2, 1)).to_matrices(array)
    for block, part in zip(blocks, np.split(array, [3, 5], axis=axis), strict=True):
        np.testing.assert_array_equal(block, mo.Layout(axes).to_matrices(part)[0])
    np.testing.assert_array_equal(mo.Layout(axes, split=(3, 2, 1)).from_matrices(blocks, shape), array)


def test_blocks_of_a_split_are_orthogonalized_and_scaled_apart() -> None:
    array = np.random.default_rng(0).standard_normal((8, 24)).astype(np.float32)
    layouts = {"qkv": mo.Layout("io", split=(16, 4, 4))}
    gradient = {"qkv": jnp.asarray(array)}
    polar = mo.orthogonalize(mo.polar_factor(), layouts=layouts)
    fused, _ = polar.update(gradient, polar.init(gradient))
    for part in ((slice(0, 16)), slice(16, 20), slice(20, 24)):
        np.testing.assert_allclose(fused["qkv"][:, part], mo.polar_factor()(array[:, part]), atol=1e-5)
    scale = mo.scale_by_shape("mup", layouts=layouts)
    scaled, _ = scale.update(gradient, scale.init(gradient))
    factors = np.repeat([2**0.5, 0.5**0.5, 0.5**0.5], [16, 4, 4])
    np.testing.assert_allclose(scaled["qkv"], factors * array, rtol=1e-6)


def test_works_on_shapes_alone_and_under_jit() -> None:
    layout, array = mo.Layout("oi", split=(2, 4)), numbered((6, 3))

    @jax.jit
    def round_trip(array: jax.Array) -> jax.Array:
        return layout.from_matrices(layout.to_matrices(array), array.shape)

    np.testing.assert_array_equal(round_trip(array), array)
    assert [matrix.shape for matrix in jax.eval_shape(layout.to_matrices, array)] == [(3, 2), (3, 4)]


def test_equal_layouts_are_one_key() -> None:
    one, other = mo.Layout("io", split=(2, 4)), mo.Layout("io", split=[2, 4])
    assert one == other
    assert len({one, other, mo.Layout("io"), mo.Layout("oi")}) == 3
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_layout_is_static_in_a_tree() -> None:
    traces = 0

    @jax.jit
    def shape_of(layout: mo.Layout, array: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return layout.to_matrices(array)[0]

    assert jax.tree.leaves(mo.Layout("io")) == []
    assert shape_of(mo.Layout("io"), numbered((2, 3))).shape == (2, 3)
    assert shape_of(mo.Layout("io"), numbered((2, 3))).shape == (2, 3)
    assert shape_of(mo.Layout("oi"), numbered((2, 3))).shape == (3, 2)
    assert traces == 2


@pytest.mark.parametrize("layout, text", [(mo.Layout("io"), "io"), (mo.Layout("oi", split=(4, 2)), "oi split 4+2")])
def test_text(layout: mo.Layout, text: str) -> None:
    assert str(layout) == text


@pytest.mark.parametrize(
    "given_layout, want", [("io", mo.Layout("io")), (mo.Layout("oi"), mo.Layout("oi")), (None, None)]
)
def test_a_string_stands_for_a_layout(given_layout: Any, want: Any) -> None:
    assert as_layout(given_layout) == want


@pytest.mark.parametrize(
    "layout, shape, parts",
    [
        (mo.Layout("io"), (2, 3, 4), ("'io'", "2 letters", "3 axes", "(2, 3, 4)")),
        (mo.Layout("bio"), (2, 3), ("'bio'", "3 letters", "2 axes", "(2, 3)")),
        (mo.Layout("io", split=(2, 2)), (3, 5), ("(2, 2)", "sums to 4", "(3, 5)", "size 5")),
    ],
    ids=["too-few-letters", "too-many-letters", "split"],
)
def test_mismatch_says_why(layout: mo.Layout, shape: tuple[int, ...], parts: tuple[str, ...]) -> None:
    reason = layout.mismatch(shape) or ""
    assert [part for part in parts if part not in reason] == []
