"""Layouts from the layers themselves: exact on Flax's own layers, and the measure of the default rules."""

import warnings
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import muon_optax as mo
from muon_optax.flax import layouts_of


def shown(layouts: dict[str, mo.Layout | None]) -> dict[str, str | None]:
    """Layouts as strings, without the many ``None`` of biases."""
    return {
        path: None if layout is None else str(layout) for path, layout in layouts.items() if not path.endswith("bias")
    }


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def nnx_stack(axis: int, length: int, layer: Callable[[nnx.Rngs], nnx.Module]) -> Callable[[], nnx.Module]:
    axes = nnx.StateAxes({nnx.Param: axis, ...: None})
    return lambda: nnx.vmap(lambda keys: layer(keys), in_axes=0, out_axes=axes)(nnx.Rngs(0).fork(split=length))


class NNXLinearSubclass(nnx.Linear):
    pass


class NNXBlock(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs):
        self.inner = nnx.Linear(size, 2 * size, rngs=rngs)
        self.mixing = nnx.Linear(size, size, use_bias=False, rngs=rngs)
        self.norm = nnx.RMSNorm(size, rngs=rngs)


class NNXTwoStacks(nnx.Module):
    """As many layers as the width, in front and on axis 1."""

    def __init__(self) -> None:
        self.a, self.b = (nnx_stack(axis, 4, lambda keys: NNXBlock(4, keys))() for axis in (0, 1))


class NNXTied(nnx.Module):
    """A model whose head holds the embedding's variable, under a name that sorts first."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Embed(11, 4, rngs=rngs)
        self.a_projection = nnx.Linear(11, 4, use_bias=False, rngs=rngs)
        self.a_projection.kernel = self.table.embedding
        self.own = nnx.Param(jnp.ones((4, 3, 2)))


NNX: dict[str, tuple[Callable[[], nnx.Module], dict[str, str | None]]] = {
    "linear": (lambda: nnx.Linear(3, 5, rngs=rngs()), {"kernel": "io"}),
    "subclass": (lambda: NNXLinearSubclass(3, 5, rngs=rngs()), {"kernel": "io"}),
    "one output": (lambda: nnx.Linear(3, 1, rngs=rngs()), {"kernel": None}),
    "general, two inputs": (lambda: nnx.LinearGeneral((3, 4), 5, axis=(-2, -1), rngs=rngs()), {"kernel": "iio"}),
    "general, two outputs": (lambda: nnx.LinearGeneral(3, (4, 5), rngs=rngs()), {"kernel": "ioo"}),
    "general, a batch": (lambda: nnx.LinearGeneral(3, (4, 5), batch_axis={0: 2}, rngs=rngs()), {"kernel": "bioo"}),
    "einsum, heads first": (lambda: nnx.Einsum("btd,ndh->btnh", (2, 4, 3), rngs=rngs()), {"kernel": "oio"}),
    "einsum, out": (lambda: nnx.Einsum("btnh,nhd->btd", (2, 3, 4), rngs=rngs()), {"kernel": "iio"}),
    "einsum, key and value": (lambda: nnx.Einsum("bsd,ckdh->cbskh", (2, 2, 4, 3), rngs=rngs()), {"kernel": "boio"}),
    "einsum, experts": (lambda: nnx.Einsum("ebd,edf->ebf", (3, 4, 5), rngs=rngs()), {"kernel": "bio"}),
    "einsum, turned": (lambda: nnx.Einsum("...d,fd->...f", (5, 4), rngs=rngs()), {"kernel": "oi"}),
    "conv": (lambda: nnx.Conv(3, 8, (3, 5), rngs=rngs()), {"kernel": "iiio"}),
    "conv, groups": (lambda: nnx.Conv(4, 6, 3, feature_group_count=2, rngs=rngs()), {"kernel": "iio split 3+3"}),
    "conv, depthwise": (lambda: nnx.Conv(4, 8, (3, 3), feature_group_count=4, rngs=rngs()), {"kernel": None}),
    "conv, two groups of one channel": (
        lambda: nnx.Conv(2, 8, (3, 3), feature_group_count=2, rngs=rngs()),
        {"kernel": None},
    ),
    "transposed": (lambda: nnx.ConvTranspose(3, 8, (3, 3), rngs=rngs()), {"kernel": "iiio"}),
    "transposed kernel": (
        lambda: nnx.ConvTranspose(3, 8, (3, 3), transpose_kernel=True, rngs=rngs()),
        {"kernel": "iioi"},
    ),
    "attention": (
        lambda: nnx.MultiHeadAttention(2, 8, normalize_qk=True, decode=False, rngs=rngs()),
        {"query/kernel": "ioo", "key/kernel": "ioo", "value/kernel": "ioo", "out/kernel": "iio"}
        | {"query_ln/scale": None, "key_ln/scale": None},
    ),
    "embedding": (lambda: nnx.Embed(7, 4, rngs=rngs()), {"embedding": None}),
    "norms": (lambda: nnx.Sequential(nnx.LayerNorm(4, rngs=rngs())), {"layers/0/scale": None}),
    "gru": (
        lambda: nnx.GRUCell(3, 4, rngs=rngs()),
        {"dense_i/kernel": "io split 4+4+4", "dense_h/kernel": "io split 4+4+4"},
    ),
    "optimized lstm": (
        lambda: nnx.RNN(nnx.OptimizedLSTMCell(3, 2, rngs=rngs())),
        {"cell/dense_i/kernel": "io split 2+2+2+2", "cell/dense_h/kernel": "io split 2+2+2+2"},
    ),
    "lstm": (
        lambda: nnx.LSTMCell(3, 2, rngs=rngs()),
        {f"{gate}/kernel": "io" for gate in ("hf", "hg", "hi", "ho", "if_", "ig", "ii", "io")},
    ),
    "tied": (lambda: NNXTied(rngs()), {"a_projection/kernel": None, "own": None}),
    "stack": (nnx_stack(0, 3, lambda keys: nnx.Linear(4, 5, rngs=keys)), {"kernel": "bio"}),
    "stack on axis 1": (nnx_stack(1, 3, lambda keys: nnx.Linear(4, 5, rngs=keys)), {"kernel": "ibo"}),
    "stack of attention on axis 1": (
        nnx_stack(1, 3, lambda keys: nnx.LinearGeneral(4, (2, 5), use_bias=False, rngs=keys)),
        {"kernel": "iboo"},
    ),
    # As many layers as the width: only the bias beside a square kernel tells where the stack is.
    "square stack on axis 1": (
        nnx_stack(1, 4, lambda keys: NNXBlock(4, keys)),
        {"inner/kernel": "ibo", "mixing/kernel": "ibo", "norm/scale": None},
    ),
    # Two stacks of that kind tell it apart: the nearest arrays count.
    "square stacks on both axes": (
        NNXTwoStacks,
        {f"{name}/{layer}/kernel": axes for name, axes in (("a", "bio"), ("b", "ibo")) for layer in ("inner", "mixing")}
        | {"a/norm/scale": None, "b/norm/scale": None},
    ),
    # Nothing tells: the layers are in front.
    "square stack alone": (
        nnx_stack(0, 4, lambda keys: nnx.Linear(4, 4, use_bias=False, rngs=keys)),
        {"kernel": "bio"},
    ),
    "stack of gates": (
        nnx_stack(1, 3, lambda keys: nnx.GRUCell(5, 2, rngs=keys)),
        {"dense_i/kernel": "ibo split 2+2+2", "dense_h/kernel": "ibo split 2+2+2"},
    ),
}


# Nothing in these trees tells what the layers know: an equation, or that a table is used twice.
UNTOLD = {"NNX": {"einsum, key and value", "einsum, turned", "tied"}, "Linen": {"einsum"}}


def assert_no_other_matrix(params: Any, exact: dict[str, mo.Layout | None]) -> None:
    """The rules may leave a matrix to AdamW, but name no other one than the layers do; groups of channels apart."""
    for path, layout in mo.default_layouts(params).items():
        assert layout is None or layout.axes == str(exact[path]).partition(" ")[0], path


def test_a_convolution_of_one_channel_without_groups_is_a_matrix() -> None:
    model = nnx.eval_shape(lambda: nnx.Conv(1, 8, (3, 3), rngs=rngs()))
    assert shown(layouts_of(model)) == {"kernel": "iiio"}


@pytest.mark.parametrize("name", NNX)
def test_nnx_layers(name: str) -> None:
    build, expected = NNX[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Flax's own of forked keys; and of the array of "tied" that is no layer's
        model = nnx.eval_shape(build)
        exact = layouts_of(model)
    assert shown(exact) == dict(sorted(expected.items()))
    if name not in UNTOLD["NNX"]:
        assert_no_other_matrix(nnx.state(model, nnx.Param), exact)


class Body(nn.Module):
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        x = nn.MultiHeadDotProductAttention(2, name="attention")(nn.LayerNorm()(x))
        inner = nn.Dense(2 * self.size, name="inner")(x)
        return nn.Dense(self.size, use_bias=False, name="mixing")(inner[..., : self.size]), None


class Scanned(nn.Module):
    axis: int
    length: int
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        body = nn.remat(Body) if self.remat else Body
        scanned = nn.scan(
            body,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=self.length,
            in_axes=nn.broadcast,
        )
        x, _ = scanned(x.shape[-1], name="layers")(x, None)
        return nn.Dense(11, name="lm_head")(x)


class Experts(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        experts = nn.vmap(nn.Dense, in_axes=None, variable_axes={"params": 1}, split_rngs={"params": True}, axis_size=3)
        return experts(5, name="experts")(x)


class TiedTable(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        table = nn.Embed(11, 4, name="a")
        x = nn.Dropout(0.5, deterministic=not train)(table(tokens))
        return table.attend(nn.Dense(4, name="b")(x) + self.param("own", nn.initializers.ones, (4,)))


def scanned(stack: str, front: str) -> dict[str, str | None]:
    matrices = {"inner": "io", "mixing": "io"} | {f"attention/{name}": "ioo" for name in ("query", "key", "value")}
    matrices |= {"attention/out": "iio"}
    at = len(front)
    kernels = {f"layers/{name}/kernel": axes[:at] + stack + axes[at:] for name, axes in matrices.items()}
    return kernels | {"layers/LayerNorm_0/scale": None, "lm_head/kernel": None}


IMAGE = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)
SEQUENCE = jax.ShapeDtypeStruct((2, 5, 4), jnp.float32)
LINEN: dict[str, tuple[nn.Module, jax.ShapeDtypeStruct, dict[str, str | None]]] = {
    "dense": (nn.Dense(5), SEQUENCE, {"kernel": "io"}),
    "one output": (nn.Dense(1), SEQUENCE, {"kernel": None}),
    "general, two inputs": (nn.DenseGeneral(3, axis=(-2, -1)), SEQUENCE, {"kernel": "iio"}),
    "general, two outputs": (nn.DenseGeneral((3, 2)), SEQUENCE, {"kernel": "ioo"}),
    "general, a batch": (nn.DenseGeneral((3, 2), batch_dims=(0,)), SEQUENCE, {"kernel": "bioo"}),
    "einsum": (nn.Einsum((2, 4, 3), "bsd,ndh->bsnh"), SEQUENCE, {"kernel": "oio"}),
    "conv": (nn.Conv(8, (3, 5)), IMAGE, {"kernel": "iiio"}),
    "conv, groups": (nn.Conv(6, (3, 3), feature_group_count=2), IMAGE, {"kernel": "iiio split 3+3"}),
    "conv, depthwise": (nn.Conv(8, (3, 3), feature_group_count=4), IMAGE, {"kernel": None}),
    "conv, local": (nn.ConvLocal(8, (3, 3)), IMAGE, {"kernel": "bbio"}),
    "transposed": (nn.ConvTranspose(8, (3, 3)), IMAGE, {"kernel": "iiio"}),
    "transposed kernel": (nn.ConvTranspose(8, (3, 3), transpose_kernel=True), IMAGE, {"kernel": "iioi"}),
    "norm of a weight": (
        nn.WeightNorm(nn.Dense(5)),
        SEQUENCE,
        {"layer_instance/kernel": "io", "layer_instance/kernel/scale": None},
    ),
    "gru": (
        nn.RNN(nn.GRUCell(3)),
        SEQUENCE,
        {f"cell/{side}{gate}/kernel": "io" for side in "hi" for gate in "rzn"},
    ),
    "optimized lstm": (
        nn.RNN(nn.OptimizedLSTMCell(3)),
        SEQUENCE,
        {f"cell/{side}{gate}/kernel": "io" for side in "hi" for gate in "ifgo"},
    ),
    "scan": (Scanned(0, 3), SEQUENCE, scanned("b", "")),
    "scan on axis 1": (Scanned(1, 3), SEQUENCE, scanned("b", "i")),
    "scan on axis 1, as many layers as the width": (Scanned(1, 4, remat=True), SEQUENCE, scanned("b", "i")),
    "vmap on axis 1": (Experts(), SEQUENCE, {"experts/kernel": "ibo"}),
}


@pytest.mark.parametrize("name", LINEN)
def test_linen_layers(name: str) -> None:
    model, inputs, expected = LINEN[name]
    exact = layouts_of(model, inputs)
    assert shown(exact) == expected
    if name not in UNTOLD["Linen"]:
        assert_no_other_matrix(jax.eval_shape(model.init, jax.random.key(0), inputs)["params"], exact)


def test_linen_options_reach_the_model_and_a_tied_table_is_an_embedding() -> None:
    layouts = layouts_of(TiedTable(), jax.ShapeDtypeStruct((2, 3), jnp.int32), train=True)
    assert shown(layouts) == {"a/embedding": None, "b/kernel": "io", "own": None}


def test_muon_takes_them_and_updates_the_layers_apart() -> None:
    model, inputs = Scanned(1, 3), jnp.ones(SEQUENCE.shape)
    params = model.init(jax.random.key(0), inputs)["params"]
    optimizer = mo.muon(1.0, weight_decay=0.0, layouts=layouts_of(model, inputs), orthogonalizer=mo.polar_factor())
    gradients = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size) ** 2.0).reshape(leaf.shape), params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    kernel = np.asarray(updates["layers"]["inner"]["kernel"])  # (4, 3, 8), orthogonal layer by layer
    expected = np.eye(4) * (0.2 * np.sqrt(8)) ** 2
    for layer in range(3):
        np.testing.assert_allclose(kernel[:, layer] @ kernel[:, layer].T, expected, atol=1e-4)


def test_nnx_optimizer_takes_them() -> None:
    model = NNXTied(rngs())
    layouts = layouts_of(model, layouts={"own": "bio"})
    optimizer = nnx.Optimizer(model, mo.muon(1e-2, layouts=layouts), wrt=nnx.Param)
    before = model.own[...]
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    assert (model.own[...] != before).all()
    assert set(layouts) == set(mo.default_layouts(nnx.state(model, nnx.Param)))


def test_lora_is_asked_for_by_its_variables() -> None:
    model = nnx.LoRALinear(6, 8, lora_rank=2, rngs=rngs())
    assert shown(layouts_of(model, wrt=nnx.LoRAParam)) == {"lora/lora_a": "io", "lora/lora_b": "io"}


def test_the_users_globs_go_first_and_names_make_heads() -> None:
    model, inputs = Scanned(0, 3), SEQUENCE
    layouts = layouts_of(model, inputs, layouts={"*/query/kernel": "bibo", "lm_head/*": None})
    assert str(layouts["layers/attention/query/kernel"]) == "bibo"
    with pytest.raises(ValueError, match="matches no parameter"):
        layouts_of(model, inputs, layouts={"*/router/*": None})


def test_refusals() -> None:
    with pytest.raises(TypeError, match="takes an NNX model or a Linen module; got"):
        layouts_of(optax.sgd(1.0))
    with pytest.raises(TypeError, match="Options belong to a call"):
        layouts_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), train=True)


class ActorCritic(nn.Module):
    """As actor-critics in Linen are written: no layer has a name."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        actor = nn.tanh(nn.Dense(64)(nn.tanh(nn.Dense(64)(x))))
        critic = nn.tanh(nn.Dense(64)(x))
        return nn.softmax(nn.Dense(6)(actor)), nn.Dense(2)(critic)


class Residual(nn.Module):
    """A head behind residual blocks, and features that come from several layers."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.Embed(100, 16)(tokens)
        for _ in range(2):
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))
        return nn.Dense(100)(nn.LayerNorm()(x)), x


class Classifier(nn.Module):
    """A convolution, a normalization that keeps averages, dropout, a dense layer."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(x.reshape(x.shape[0], -1)))


class Looped(nn.Module):
    """Scanned layers behind another: what a loop makes has no last layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        step = nn.scan(
            lambda layer, x, _: (layer(x), None), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return step(nn.Dense(8), nn.tanh(nn.Dense(8)(x)), None)[0]


class Shared(nn.Module):
    """One layer, called twice."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layer = nn.Dense(8)
        return layer(nn.tanh(layer(x)))


class Bag(nn.Module):
    """Words without an order: the head is the only product, and reads what the table made."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        return nn.Dense(10)(nn.Embed(100, 16)(tokens).mean(1))


class Products(nn.Module):
    """Products of the inputs alone, read by a layer together with what a layer made, or without that."""

    layer: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        similar = x @ x.T
        return nn.Dense(10)(similar * nn.Dense(len(x))(x) if self.layer else similar)


class WithoutBiases(nn.Module):
    """Two layers, and nothing else that has parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(5, use_bias=False, name="b")(nn.tanh(nn.Dense(8, use_bias=False, name="a")(x)))


FOLLOWED = {
    "without biases": (WithoutBiases(), (jnp.ones((2, 7)),), {}, {"b/kernel"}),
    "bag of words": (Bag(), (jnp.ones((2, 5), jnp.int32),), {}, {"Dense_0/kernel"}),
    "products of the inputs": (Products(False), (jnp.ones((4, 6)),), {}, set()),
    "products of the inputs and a layer": (Products(True), (jnp.ones((4, 6)),), {}, {"Dense_0/kernel"}),
    "actor-critic": (ActorCritic(), (jnp.ones((2, 17)),), {}, {"Dense_3/kernel", "Dense_4/kernel"}),
    "residual": (Residual(), (jnp.ones((2, 5), jnp.int32),), {}, {"Dense_4/kernel"}),
    "classifier": (Classifier(), (jnp.ones((2, 8, 8, 3)),), {"train": True}, {"Dense_0/kernel"}),
    "loop": (Looped(), (jnp.ones((2, 8)),), {}, set()),
    "a layer called twice": (Shared(), (jnp.ones((2, 8)),), {}, set()),
    "rematerialized": (
        nn.Sequential([nn.Dense(8), nn.tanh, nn.remat(nn.Dense)(5)]),
        (jnp.ones((2, 8)),),
        {},
        {"layers_2/kernel"},
    ),
    "a weight that is normalized": (
        nn.Sequential([nn.Dense(8), nn.tanh, nn.WeightNorm(nn.Dense(5))]),
        (jnp.ones((2, 8)),),
        {},
        {"layers_2/layer_instance/kernel"},
    ),
}


@pytest.mark.parametrize("model, inputs, options, heads", FOLLOWED.values(), ids=FOLLOWED)
def test_the_output_leads_to_the_last_layers(model: Any, inputs: Any, options: Any, heads: set[str]) -> None:
    layouts = layouts_of(model, *inputs, **options)
    assert {path for path in layouts if path.endswith("kernel") and layouts[path] is None} == heads


def test_an_nnx_model_is_followed_if_it_gets_inputs() -> None:
    layers = [nnx.Linear(16, 64, rngs=rngs()), nnx.relu, nnx.Linear(64, 8, rngs=rngs())]
    model = nnx.Sequential(*layers)
    assert shown(layouts_of(model))["layers/2/kernel"] == "io"  # 8 is a part of 64: the rules keep it, marked weak
    assert shown(layouts_of(model, jnp.ones((2, 16))))["layers/2/kernel"] is None


class Distribution:
    """As an actor returns one: no tree and no array."""

    def __init__(self, logits: jax.Array) -> None:
        self.logits = logits


class Actor(nn.Module):
    """Returns a distribution and, if asked, its values."""

    values: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        hidden = nn.tanh(nn.Dense(64)(x))
        actor = Distribution(nn.Dense(6)(hidden))
        return (actor, nn.Dense(5)(hidden), "actor") if self.values else actor


@pytest.mark.parametrize("values, last", [(True, "Dense_2/kernel"), (False, "Dense_1/kernel")])
def test_what_is_no_array_is_not_followed(values: bool, last: str) -> None:
    layouts = layouts_of(Actor(values), jnp.ones((2, 17)))
    assert layouts[last] is None  # without any array the rules judge
    assert str(layouts["Dense_0/kernel"]) == "io"


def test_complex_layers_go_to_adamw_with_a_warning() -> None:
    with pytest.warns(mo.MuonWarning, match="Only real arrays can be orthogonalized.*split_real_and_imaginary"):
        layouts = layouts_of(nn.Sequential([nn.Dense(8, param_dtype=jnp.complex64), nn.Dense(4)]), jnp.ones((2, 6)))
    assert layouts["layers_0/kernel"] is None


class Generated(nn.Module):
    """Layers drawn by a seed, on a sequence of width 8."""

    seed: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        draw = np.random.default_rng(self.seed)
        for _ in range(4):
            bias = bool(draw.integers(2))
            layers = (
                nn.Dense(int(draw.integers(2, 12)), use_bias=bias),
                nn.Conv(6, (3,), use_bias=bias),
                nn.ConvTranspose(6, (3,), use_bias=bias, transpose_kernel=bool(draw.integers(2))),
                nn.MultiHeadDotProductAttention(2, qkv_features=8, use_bias=bias),
                nn.LayerNorm(use_bias=bias),
            )
            x = nn.Dense(8, use_bias=bias)(layers[draw.integers(len(layers))](x))
        return x


# A transposed kernel is not told from a plain one by its shape, unless a bias fits one of its axes only.
DISAGREE = frozenset({"ConvTranspose"})


@pytest.mark.parametrize("seed", range(8))
def test_the_rules_name_no_other_matrix_than_the_layers(seed: int) -> None:
    inputs = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
    exact = layouts_of(Generated(seed), inputs)
    params = jax.eval_shape(Generated(seed).init, jax.random.key(0), inputs)["params"]
    rules = mo.default_layouts(params)
    exact["Dense_7/kernel"] = rules["Dense_7/kernel"] or exact["Dense_7/kernel"]  # the last layer, as wide as all
    wrong = {path: (str(rules[path]), str(exact[path])) for path in exact if rules[path] not in (None, exact[path])}
    assert not {path: pair for path, pair in wrong.items() if not any(name in path for name in DISAGREE)}
