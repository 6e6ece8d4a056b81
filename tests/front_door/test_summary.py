"""The table that a person reads before training: its text, its totals and its bytes."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from models import EquinoxTransformer, LinenStack, NNXTransformer
from places import TESTS

import muon_optax as mo


class Small(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(32, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, use_bias=False, rngs=rngs)
        self.qkv = nnx.Linear(8, 24, rngs=rngs)
        self.norm = nnx.RMSNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 32, use_bias=False, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=rngs)


def small() -> nnx.State:
    return nnx.state(nnx.eval_shape(lambda: Small(nnx.Rngs(0))), nnx.Param)


LAYOUTS = {"*/key/kernel": "ibo", "qkv/kernel": mo.Layout("io", split=(8, 12, 4))}
GOLDEN = TESTS / "golden" / "summary.txt"


def test_the_table_of_a_small_model():
    assert str(mo.summarize(small(), LAYOUTS)) == GOLDEN.read_text().rstrip()


def test_totals_and_share_are_those_of_the_rows():
    summary = mo.summarize(small(), LAYOUTS)
    elements = {label: sum(row.size for row in summary.rows if row.label == label) for label in ("muon", "adamw")}
    assert elements == {"muon": 4 * 64 + 192, "adamw": 256 + 256 + 8 + 24}
    assert summary.muon_share == pytest.approx(elements["muon"] / sum(elements.values()))
    assert sum(row.state_bytes for row in summary.rows) == 5120
    assert [row.path for row in summary.rows if row.layout is None] == [
        row.path for row in summary.rows if row.label == "adamw"
    ]


def test_a_scale_of_ones_own_and_a_stack():
    params = {
        "layers": {"w": jax.ShapeDtypeStruct((3, 4, 16), jnp.float32), "b": jax.ShapeDtypeStruct((3, 16), jnp.float32)}
    }
    rows = {row.path: row for row in mo.summarize(params, scale=lambda fan_in, fan_out: fan_out / fan_in).rows}
    assert rows["layers/w"].scale == (4.0,)
    assert "3 of 4 x 16" in str(mo.summarize(params))
    assert rows["layers/b"].scale == ()
    assert [row.scale for row in mo.summarize(params, scale="mup").rows] == [(), (2.0,)]


def test_an_unknown_scale_and_a_glob_without_a_match_are_refused():
    with pytest.raises(ValueError, match="The scale 'kelller' is not known: use one of 'naive', 'keller'"):
        mo.summarize(small(), scale="kelller")
    with pytest.raises(ValueError, match="'nothing', which matches no parameter"):
        mo.summarize(small(), {"nothing": None})


def linen_params() -> Any:
    model = LinenStack(2, 3, boxed=True)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 5, 12))))["params"]


def equinox_params() -> Any:
    model = EquinoxTransformer(8, 2, 3, True, jax.random.key(0))
    return eqx.filter(model, eqx.is_inexact_array)


TREES = {
    "NNX": lambda: nnx.state(NNXTransformer(11, 5, 12, 3, 2, True, nnx.Rngs(0)), nnx.Param),
    "Linen, boxed": linen_params,
    "Linen, unboxed": lambda: nn.meta.unbox(linen_params()),
    "Equinox": equinox_params,
}


@pytest.mark.parametrize("params", TREES.values(), ids=TREES.keys())
def test_the_bytes_are_those_that_the_default_optimizer_allocates(params: Any):
    tree = params()
    assumed, measured = mo.summarize(tree), mo.summarize(tree, optimizer=mo.muon(1e-3))
    assert {row.path: row.state_bytes for row in assumed.rows} == {row.path: row.state_bytes for row in measured.rows}
    state = jax.eval_shape(mo.muon(1e-3).init, tree)
    allocated = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert sum(row.state_bytes for row in measured.rows) == allocated


def test_bytes_follow_the_momentum_dtype():
    measured = mo.summarize(small(), LAYOUTS, optimizer=mo.muon(1e-3, momentum_dtype=jnp.bfloat16, layouts=LAYOUTS))
    bytes_of = {row.path: row.state_bytes for row in measured.rows}
    assert bytes_of["qkv/kernel"] == 2 * 8 * 24
    assert bytes_of["embed/embedding"] == 2 * 4 * 32 * 8


def test_an_empty_tree_and_one_leaf():
    assert str(mo.summarize({})).splitlines()[-1] == (
        "0 parameters, 0 elements: 0 by Muon (0.0%), 0 by AdamW. Optimizer state: 0 bytes."
    )
    assert str(mo.summarize(jnp.ones((4, 8)))).splitlines()[2].split()[:6] == [
        "[4,",
        "8]",
        "~io",
        "4",
        "x",
        "8",
    ]  # its name says nothing


def test_columns_stay_aligned_for_long_paths_and_large_numbers():
    params = {"decoder" * 20: {"kernel": jax.ShapeDtypeStruct((8192, 131072), jnp.float32)}, "b": jnp.ones(3)}
    heading, rule, *rows, _, totals = str(mo.summarize(params)).splitlines()
    edges = [column for column, character in enumerate(rule) if character == " "]
    for line in (heading, *rows):
        assert all(line[column : column + 1] in ("", " ") for column in edges)
        assert not line.endswith(" ")
    assert rows[1].endswith("4,294,967,296")
    assert "1,073,741,824 by Muon (100.0%)" in totals


def repeated(layers: int) -> dict[str, Any]:
    """Layers that a dict sorts as 0, 1, 10, 11, 2, and every other one with a wider kernel."""
    layer = {"norm": {"scale": jax.ShapeDtypeStruct((8,), jnp.float32)}}
    kernels = [{"kernel": jax.ShapeDtypeStruct((8, 16 + 16 * (index % 2)), jnp.float32)} for index in range(layers)]
    return {"layers": {str(index): layer | {"mlp": kernel} for index, kernel in enumerate(kernels)}}


def test_repeated_layers_share_a_row_in_natural_order():
    summary = mo.summarize(repeated(12))
    paths = [line.split("  ")[0] for line in str(summary).splitlines()[2:-2]]
    assert paths == [
        "layers/{0,2,4,..,10}/mlp/kernel x6",
        "layers/{0..11}/norm/scale x12",
        "layers/{1,3,5,..,11}/mlp/kernel x6",
    ]
    every = summary.table(every_row=True).splitlines()[2:-2]
    assert [line.split()[0] for line in every] == [row.path for row in summary.rows]
    assert [row.path for row in summary.rows][4:6] == ["layers/2/mlp/kernel", "layers/2/norm/scale"]
    assert len(every) == 24
    shared = str(summary).splitlines()[3].split()[-1]
    assert int(shared) == sum(row.state_bytes for row in summary.rows if row.path.endswith("scale"))


def test_a_thousand_leaves_fit_on_a_screen():
    assert len(str(mo.summarize(repeated(500))).splitlines()) < 10


def test_what_nobody_knows_is_marked_counted_and_alarms():
    params = {"a": {"x": jax.ShapeDtypeStruct((4, 5, 6), jnp.float32)}, "kernel": jnp.ones((4, 4))}
    with pytest.warns(UserWarning, match="No rule knows"):
        summary = mo.summarize(params)
    text = str(summary)
    assert text.splitlines()[2].split() == ["a/x", "[4,", "5,", "6]", "?", "adamw", "unknown", "960"]
    assert "120 by AdamW, 120 of them in 1 arrays that no rule knows" in text
    assert text.count("ATTENTION") == 2
    assert "Muon trains 11.8% of the elements. The largest that AdamW trains: a/x (unknown)." in text
    answered = mo.summarize(params, {"a/x": None})
    assert [row.why for row in answered.rows] == ["given", "name: kernel"]
    assert "no rule knows most" not in str(answered)


@pytest.mark.parametrize(
    "rest, alarms", [((8, 8), False), ((8, 10), False), ((7, 9), True)], ids=["half", "less", "most"]
)
def test_only_if_most_is_unknown_it_alarms(rest: tuple[int, int], alarms: bool):
    params = {"a": {"x": jnp.ones((4, 4, 4))}, "kernel": jnp.ones(rest)}
    with pytest.warns(UserWarning, match="No rule knows"):
        assert ("no rule knows most" in str(mo.summarize(params))) == alarms


def test_below_a_third_the_three_largest_others_are_named():
    params = {f"{name}/embedding": jnp.ones((size, 4)) for name, size in {"a": 3, "b": 9, "c": 1, "d": 5}.items()}
    text = str(mo.summarize(params | {"kernel": jnp.ones((4, 8))}, {"kernel": "io"}))
    assert "Muon trains 30.8% of the elements" in text
    assert [line.split("trains: ")[1].split()[::3] for line in text.splitlines() if "largest" in line] == [
        ["b/embedding", "d/embedding", "a/embedding"]
    ]
    assert "ATTENTION" not in str(mo.summarize(params | {"kernel": jnp.ones((4, 9))}, {"kernel": "io"}))  # a third


def test_the_share_of_one_element():
    assert mo.summarize({"w": jnp.ones((1, 1))}, {"w": "io"}).muon_share == 1


def test_a_parameter_called_as_a_counter_has_its_own_bytes():
    params = {"count": jnp.ones(3), "kernel": jnp.ones((4, 4))}
    measured = mo.summarize(params, optimizer=mo.muon(0.1))
    assert [row.state_bytes for row in measured.rows] == [2 * 4 * 3, 4 * 16]


def test_notebooks_show_the_same_as_html():
    html = mo.summarize({"<b>": jnp.ones((4, 8))})._repr_html_()
    assert "<td>&lt;b&gt;</td><td>[4, 8]</td>" in html
    assert html.count("<tr>") == 2
    assert "1 parameters, 32 elements" in html


def test_state_is_counted_for_one_parameter_where_a_path_ends_like_another():
    params = {"w": jnp.ones((4, 8)), "block": {"w": jnp.ones((4, 8))}}
    summary = mo.summarize(params, optimizer=mo.muon(0.1))
    assert [row.state_bytes for row in summary.rows] == [128, 128]


BY_PATH = {
    "layers/[0-3]/*": mo.Settings(learning_rate=0.5, weight_decay=lambda step: step, momentum=0.9),
    "layers/1/mlp/kernel": mo.Settings(scale="mup", orthogonalizer=mo.polar_factor()),  # exact, so before the glob
    "*/scale": mo.Settings(learning_rate=2, weight_decay=0),
    "layers/4/*": mo.Settings(),
}


def test_settings_by_path_have_a_column_and_a_line_each():
    head, _, *rows = str(mo.summarize(repeated(6), by_path=BY_PATH)).splitlines()
    assert head.endswith("  state bytes  by path")
    assert [(line.split("  ")[0], line[head.index("by path") :]) for line in rows[:8]] == [
        ("layers/{0,2}/mlp/kernel x2", "layers/[0-3]/*"),
        ("layers/{0..3}/norm/scale x4", "layers/[0-3]/* before */scale"),
        ("layers/1/mlp/kernel", "layers/1/mlp/kernel before layers/[0-3]/*"),
        ("layers/3/mlp/kernel", "layers/[0-3]/*"),
        ("layers/4/mlp/kernel", "layers/4/*"),
        ("layers/4/norm/scale", "*/scale before layers/4/*"),
        ("layers/5/mlp/kernel", ""),
        ("layers/5/norm/scale", "*/scale"),
    ]
    assert rows[9:14] == [
        "by path, an exact path acts or else the first glob that matches:",
        "layers/[0-3]/*: learning_rate x 0.5, weight_decay x a schedule, momentum 0.9 (parameters: 7, matrices: 3)",
        "layers/1/mlp/kernel: scale mup, its own orthogonalizer (parameters: 1, matrices: 1)",
        "*/scale: learning_rate x 2, weight_decay x 0 (parameters: 2, matrices: 0)",
        "layers/4/*: as everywhere (parameters: 1, matrices: 1)",
    ]


def test_rows_know_the_scale_and_the_globs_by_path():
    summary = mo.summarize(repeated(6), by_path=BY_PATH)
    rows = {row.path: row for row in summary.rows}
    assert rows["layers/1/mlp/kernel"].scale == (2.0,)
    assert rows["layers/3/mlp/kernel"].scale == mo.summarize(repeated(6)).rows[6].scale != (2.0,)
    assert rows["layers/1/mlp/kernel"].by_path == ("layers/1/mlp/kernel", "layers/[0-3]/*")
    assert rows["layers/5/mlp/kernel"].by_path == ()
    assert summary.by_path == BY_PATH
    html = summary._repr_html_()
    assert "<th>by path</th>" in html
    assert "<td>layers/[0-3]/* before */scale</td>" in html
    assert "<p>layers/4/*: as everywhere (parameters: 1, matrices: 1)</p>" in html


@pytest.mark.parametrize(
    "glob, message", [("nobody", "by_path names 'nobody'"), ("*/scale", "sets momentum, scale, which only matrices")]
)
def test_settings_that_do_nothing_are_refused(glob: str, message: str):
    with pytest.raises(ValueError, match=message):
        mo.summarize(repeated(2), by_path={glob: mo.Settings(momentum=0.5, scale="mup")})
