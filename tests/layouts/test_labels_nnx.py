"""Flax NNX: the layout of every parameter of real models, and two steps of training with ``nnx.Optimizer``."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import (
    NNXOthers,
    NNXRecurrent,
    NNXScannedTransformer,
    NNXTransformer,
    Table,
    assert_updated_as_layers,
    clipped_muon,
    shown,
    squared,
    under,
)

import muon_optax as mo


def block(stack: str, bias: bool = True, norms: bool = True) -> Table:
    """The table of ``NNXBlock``; ``stack`` is "b" in front of every layout of a stack of blocks."""
    attention = {f"attn/{name}/kernel": stack + "ioo" for name in ("query", "key", "value")}
    table = {**attention, "attn/out/kernel": stack + "iio", "up/kernel": stack + "io", "down/kernel": stack + "io"}
    biases = ["attn/query/bias", "attn/key/bias", "attn/value/bias", "attn/out/bias", "up/bias", "down/bias"]
    scales = ["attn/query_ln/scale", "attn/key_ln/scale", "norm1/scale", "norm2/scale"]
    vectors = biases * bias + scales * norms + ["norm2/bias"] * (bias and norms)
    return {**table, **dict.fromkeys(vectors)}


def transformer(bias: bool) -> Table:
    outside = {"embed/embedding": None, "positions": None, "norm/scale": None, "head/kernel": None}
    return {**outside, **under("blocks/0", block("", bias)), **under("blocks/1", block("", bias))}


def scanned(bias: bool, norms: bool) -> Table:
    return {**under("blocks", block("b", bias, norms)), "head/kernel": None, **({"head/bias": None} if bias else {})}


def recurrent(hidden: int) -> Table:
    three, four = "+".join([str(hidden)] * 3), "+".join([str(hidden)] * 4)
    return {
        "gru/cell/dense_i/kernel": f"io split {three}",
        "gru/cell/dense_i/bias": None,
        "gru/cell/dense_h/kernel": f"io split {three}",
        "lstm/cell/dense_i/kernel": f"io split {four}",
        "lstm/cell/dense_h/kernel": f"io split {four}",
        "lstm/cell/dense_h/bias": None,
        "simple/cell/dense_i/kernel": "io",
        "simple/cell/dense_i/bias": None,
        "simple/cell/dense_h/kernel": "io",
        "classifier/kernel": None,
        "classifier/bias": None,
    }


OTHERS = {
    "lora/kernel": "io",
    "lora/bias": None,
    "lora/lora/lora_a": "io",
    "lora/lora/lora_b": "io",
    "per_head/kernel": "bio",
    "per_head/bias": None,
    "split/kernel": "ioo",
    "split/bias": None,
    "down/kernel": None,  # one input channel: can't be told from a depthwise convolution
    "mix/kernel": "iiio",
    "smooth/kernel": None,  # depthwise
    "up/kernel": "iiio",
    "up/bias": None,
    "logits/kernel": None,
    "logits/bias": None,
}
WITHOUT_BIAS = {path: layout for path, layout in OTHERS.items() if path != "per_head/bias"} | {"per_head/kernel": None}


def image(rows: int, columns: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (2, rows, columns))


@dataclass(frozen=True)
class Case:
    build: Callable[[], nnx.Module]
    inputs: jax.Array
    table: Table
    unknown: tuple[str, ...] = ()


TOKENS = jnp.arange(10).reshape(2, 5) % 11
CASES = {
    "transformer": Case(lambda: NNXTransformer(11, 5, 12, 3, 2, True, nnx.Rngs(0)), TOKENS, transformer(True)),
    "transformer, as many heads as inputs": Case(
        lambda: NNXTransformer(11, 5, 4, 4, 2, True, nnx.Rngs(0)), TOKENS, transformer(True)
    ),
    "transformer, as many heads as inputs, no biases": Case(
        lambda: NNXTransformer(11, 5, 4, 4, 2, False, nnx.Rngs(0)), TOKENS, transformer(False)
    ),
    **{
        f"scanned, {layers} layers of {heads} heads, width {width}, bias={bias}, norms={norms}": Case(
            lambda layers=layers, heads=heads, width=width, bias=bias, norms=norms: NNXScannedTransformer(
                width, heads, layers, bias, norms, nnx.Rngs(0)
            ),
            image(5, width),
            scanned(bias, norms),
        )
        for layers, heads, width, bias, norms in (
            (2, 3, 12, True, True),
            (3, 3, 12, True, True),
            (3, 3, 12, False, True),
            (3, 3, 12, True, False),
            (3, 3, 12, False, False),
            (4, 4, 4, True, True),
            (4, 4, 4, False, False),
        )
    },
    "recurrent": Case(lambda: NNXRecurrent(4, 6, nnx.Rngs(0)), image(3, 4), recurrent(6)),
    "recurrent, as many inputs as hidden": Case(lambda: NNXRecurrent(6, 6, nnx.Rngs(0)), image(3, 6), recurrent(6)),
    "others": Case(lambda: NNXOthers(nnx.Rngs(0)), image(5, 6), OTHERS),
    "others, an einsum without a bias": Case(
        lambda: NNXOthers(nnx.Rngs(0), bias=False), image(5, 6), WITHOUT_BIAS, ("per_head/kernel",)
    ),
}


def loss_of(model: nnx.Module, inputs: jax.Array) -> jax.Array:
    outputs = model(inputs)
    return squared(outputs, jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape))


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def check_warnings(caught: list[warnings.WarningMessage], unknown: tuple[str, ...]) -> None:
    assert len(caught) == bool(unknown), [str(warning.message) for warning in caught]
    for warning in caught:
        assert "No rule knows" in str(warning.message)
        assert all(repr(path) in str(warning.message) for path in unknown)


def test_every_parameter_has_its_layout(case: Case):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert shown(nnx.state(case.build(), nnx.Param)) == case.table
    check_warnings(caught, case.unknown)


def test_layouts_are_the_same_for_abstract_shapes_and_pure_dicts(case: Case):
    abstract = nnx.state(nnx.eval_shape(case.build), nnx.Param)
    layouts = dict.fromkeys(case.unknown)  # an override is no guess: no warning
    assert shown(abstract, layouts) == case.table
    assert shown(nnx.to_pure_dict(abstract), layouts) == case.table


def test_gradients_have_the_same_layouts_and_update_does_not_warn(case: Case):
    optimizer = mo.muon(1e-2, orthogonalizer=mo.polar_factor())  # which is traced fastest

    def update() -> tuple[nnx.State, nnx.State]:
        model = case.build()
        gradients, params = nnx.grad(loss_of)(model, case.inputs), nnx.state(model, nnx.Param)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of init have a test of their own
            state = optimizer.init(params)
        return gradients, optimizer.update(gradients, state, params)[0]

    gradients, updates = nnx.eval_shape(update)
    assert shown(gradients, dict.fromkeys(case.unknown)) == case.table
    assert jax.tree.structure(updates) == jax.tree.structure(gradients)


# What compiles differently; the tables above cover the rest.
@pytest.mark.parametrize(
    "name",
    [
        "transformer",
        "scanned, 3 layers of 3 heads, width 12, bias=True, norms=True",
        pytest.param("recurrent", marks=pytest.mark.slow),
        pytest.param("others, an einsum without a bias", marks=pytest.mark.slow),
    ],
)
def test_two_steps_of_nnx_optimizer(name: str):
    case = CASES[name]
    model = case.build()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = nnx.Optimizer(model, clipped_muon(), wrt=nnx.Param)
    check_warnings(caught, case.unknown)
    seen = []

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, inputs: jax.Array) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model, inputs)
        seen.append(shown(gradients, dict.fromkeys(case.unknown)))
        optimizer.update(model, gradients)
        return loss

    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    losses = [float(step(model, optimizer, case.inputs)) for _ in range(2)]
    losses.append(float(loss_of(model, case.inputs)))
    assert losses[2] < losses[1] < losses[0]
    assert seen == [case.table]  # traced once: the second step was no retrace
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    for path, layout in case.table.items():
        value = changed
        for key in path.split("/"):
            value = value[int(key) if key.isdigit() else key]
        # A key's bias cancels in the softmax: its gradient is rounding, or nothing.
        assert value or (layout is None and path.endswith("key/bias")), path


def test_a_stack_is_updated_as_its_layers_would_be():
    model = NNXScannedTransformer(12, 3, 3, True, True, nnx.Rngs(0))
    assert_updated_as_layers(nnx.to_pure_dict(nnx.state(model.blocks, nnx.Param)), 3)


def test_lora_alone_is_trained_by_muon():
    model = nnx.LoRALinear(6, 8, lora_rank=2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, mo.muon(1e-2), wrt=nnx.LoRAParam)
    assert shown(nnx.state(model, nnx.LoRAParam)) == {"lora/lora_a": "io", "lora/lora_b": "io"}
    frozen = model.kernel[...]

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of, argnums=nnx.DiffState(0, nnx.LoRAParam))(model, image(5, 6))
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(3)]
    assert losses[-1] < losses[0]
    assert (model.kernel[...] == frozen).all()


def test_an_override_by_path_reaches_a_model():
    layouts = {"*/query/kernel": "ibo", "blocks/1/up/kernel": None}
    model = NNXTransformer(11, 5, 12, 3, 2, True, nnx.Rngs(0))
    expected = transformer(True) | {f"blocks/{i}/attn/query/kernel": "ibo" for i in (0, 1)}
    assert shown(nnx.state(model, nnx.Param), layouts) == expected | {"blocks/1/up/kernel": None}
    optimizer = nnx.Optimizer(model, mo.muon(1e-2, layouts=layouts), wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer) -> jax.Array:
        loss, gradients = nnx.value_and_grad(loss_of)(model, TOKENS)
        optimizer.update(model, gradients)
        return loss

    assert step(model, optimizer) > step(model, optimizer)
    labels = mo.label_params(nnx.to_pure_dict(nnx.state(model, nnx.Param)), layouts)
    assert labels["blocks"][0]["up"]["kernel"] == "muon"
    assert labels["blocks"][1]["up"]["kernel"] == "adamw"
