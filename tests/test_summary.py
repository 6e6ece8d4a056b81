"""The table that a person reads before training: its text, its totals and its bytes."""

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from models import EquinoxTransformer, LinenStack, NNXTransformer

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
GOLDEN = """\
path                    shape      layout           matrices                label           scale  state bytes
----------------------  ---------  ---------------  ----------------------  -----  --------------  -----------
attention/key/kernel    [8, 2, 4]  ibo              2 of 8 x 4              muon           0.5657          256
attention/out/kernel    [2, 4, 8]  iio              8 x 8                   muon           0.5657          256
attention/query/kernel  [8, 2, 4]  ioo              8 x 8                   muon           0.5657          256
attention/value/kernel  [8, 2, 4]  ioo              8 x 8                   muon           0.5657          256
embed/embedding         [32, 8]    -                                        adamw                        2,048
head/kernel             [8, 32]    -                                        adamw                        1,024
norm/scale              [8]        -                                        adamw                           64
qkv/bias                [24]       -                                        adamw                          192
qkv/kernel              [8, 24]    io split 8+12+4  8 x 8 + 8 x 12 + 8 x 4  muon   0.5657, 0.6928          768
9 parameters, 992 elements: 448 by Muon (45.2%), 544 by AdamW. Optimizer state: 5,120 bytes."""


def test_the_table_of_a_small_model():
    assert str(mo.summarize(small(), LAYOUTS)) == GOLDEN


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
    assert rows["layers/w"].cells()[3] == "3 of 4 x 16"
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
    assert mo.summarize(jnp.ones((4, 8))).rows[0].cells()[1:5] == ("[4, 8]", "io", "4 x 8", "muon")


def test_columns_stay_aligned_for_long_paths_and_large_numbers():
    params = {"decoder" * 20: {"kernel": jax.ShapeDtypeStruct((8192, 131072), jnp.float32)}, "b": jnp.ones(3)}
    heading, rule, *rows, totals = str(mo.summarize(params)).splitlines()
    edges = [column for column, character in enumerate(rule) if character == " "]
    for line in (heading, *rows):
        assert all(line[column : column + 1] in ("", " ") for column in edges)
        assert not line.endswith(" ")
    assert len(rule.split()) == len(heading.replace("state bytes", "bytes").split()) == 7
    assert rows[1].endswith("4,294,967,296")
    assert "1,073,741,824 by Muon (100.0%)" in totals


def test_state_is_counted_for_one_parameter_where_a_path_ends_like_another():
    params = {"w": jnp.ones((4, 8)), "block": {"w": jnp.ones((4, 8))}}
    summary = mo.summarize(params, optimizer=mo.muon(0.1))
    assert [row.state_bytes for row in summary.rows] == [128, 128]
