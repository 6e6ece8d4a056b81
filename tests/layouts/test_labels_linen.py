"""Flax Linen: the layout of every parameter of real models, and two steps of training with ``TrainState``."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.training.train_state import TrainState
from models import (
    LinenScannedMoE,
    LinenStack,
    LinenVision,
    Table,
    clipped_muon,
    shown,
    squared,
    under,
)

import muon_optax as mo

ATTENTION = "MultiHeadDotProductAttention_0"


def attention(stack: str = "", bias: bool = True) -> Table:
    kernels = {f"{name}/kernel": stack + "ioo" for name in ("query", "key", "value")} | {"out/kernel": stack + "iio"}
    return kernels | (dict.fromkeys(f"{name}/bias" for name in ("query", "key", "value", "out")) if bias else {})


def block(stack: str = "", bias: bool = True, norms: bool = True) -> Table:
    table = under(ATTENTION, attention(stack, bias)) | {"up/kernel": stack + "io", "down/kernel": stack + "io"}
    vectors = ["up/bias", "down/bias"] * bias + ["RMSNorm_0/scale", "LayerNorm_0/scale"] * norms
    return table | dict.fromkeys(vectors + ["LayerNorm_0/bias"] * (bias and norms))


def stack_of(bias: bool = True, norms: bool = True) -> Table:
    vectors = ["head/bias"] + ["LayerNorm_0/scale"] * norms + ["LayerNorm_0/bias"] * (bias and norms)
    return under("blocks", block("b", bias, norms)) | {"head/kernel": None} | dict.fromkeys(vectors)


VISION = {
    "Conv_0/kernel": "iiio",
    "Conv_0/bias": None,
    "BatchNorm_0/scale": None,
    "BatchNorm_0/bias": None,
    "down/kernel": "iiio",
    "depthwise/kernel": None,
    "depthwise/bias": None,
    "mix/kernel": "iiio",
    "ConvTranspose_0/kernel": "iiio",
    "ConvTranspose_0/bias": None,
    "LayerNorm_0/scale": None,
    "LayerNorm_0/bias": None,
    **under(ATTENTION, attention()),
    **under("as_many_heads_as_inputs", attention(bias=False)),
    "DenseGeneral_0/kernel": "ioo",
    "DenseGeneral_0/bias": None,
    "DenseGeneral_1/kernel": "iio",
    "DenseGeneral_1/bias": None,
    "classifier/kernel": None,
    "classifier/bias": None,
}


ROUTER = "layers/moe/router/kernel"


def experts(norms: bool = True) -> Table:
    return {
        "layers/moe/wi": "bbio",
        "layers/moe/wo": "bbio",
        ROUTER: "bio",
        "layers/moe/router/bias": None,
        "head/kernel": None,
        "head/bias": None,
    } | ({"layers/RMSNorm_0/scale": None} if norms else {})


def cells() -> Table:
    gated = {f"{side}{gate}/kernel": "io" for side in "ih" for gate in "ifgo"} | {
        f"h{gate}/bias": None for gate in "ifgo"
    }
    three = {f"{side}{gate}/kernel": "io" for side in "ih" for gate in "rzn"}
    return {
        **under("gru/cell", three | dict.fromkeys(["ir/bias", "iz/bias", "in/bias", "hn/bias"])),
        **under("lstm/cell", gated),
        **under("simple/cell", {"i/kernel": "io", "i/bias": None, "h/kernel": "io"}),
        "logits/kernel": None,
        "logits/bias": None,
    }


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.RNN(nn.GRUCell(6, parent=None), name="gru")(x)
        x = nn.RNN(nn.OptimizedLSTMCell(6, parent=None), name="lstm")(x)
        return nn.Dense(2, name="logits")(nn.RNN(nn.SimpleCell(6, parent=None), name="simple")(x))


class Unnamed(nn.Module):
    """What nothing tells: a window that is not square and a general dense layer, both without a bias."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (3, 5), use_bias=False, name="down")(x).mean((1, 2))
        return nn.Dense(2)(nn.DenseGeneral((3, 5), use_bias=False)(x).reshape(x.shape[0], -1))


UNNAMED = {"down/kernel": None, "DenseGeneral_0/kernel": None, "Dense_0/kernel": "io", "Dense_0/bias": None}


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    table: Table
    unknown: tuple[str, ...] = ()

    def init(self) -> dict[str, Any]:
        return self.build().init(jax.random.key(0), self.inputs())

    def inputs(self) -> jax.Array:
        return jax.random.normal(jax.random.key(1), self.shape)

    def loss(self, variables: dict[str, Any]) -> jax.Array:
        outputs, _ = self.build().apply(variables, self.inputs(), mutable=["batch_stats"])
        return squared(outputs, jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape))


CASES = {
    "vision": Case(LinenVision, (2, 5, 6, 3), VISION),
    "recurrent": Case(Recurrent, (2, 3, 4), cells()),
    "unnamed": Case(Unnamed, (2, 6, 6, 3), UNNAMED, ("down/kernel", "DenseGeneral_0/kernel")),
    "in a loop": Case(
        lambda: LinenStack(2, 3, scan=False),
        (2, 5, 12),
        {
            **under("block_0", block()),
            **under("block_1", block()),
            **{path: layout for path, layout in stack_of().items() if not path.startswith("blocks/")},
        },
    ),
    **{
        f"scanned, {layers} layers of {heads} heads, width {width}, bias={bias}, norms={norms}": Case(
            lambda layers=layers, heads=heads, bias=bias, norms=norms: LinenStack(layers, heads, bias, norms),
            (2, 5, width),
            stack_of(bias, norms),
        )
        for layers, heads, width, bias, norms in (
            (2, 3, 12, True, True),
            (3, 3, 12, True, True),
            (2, 3, 12, False, True),
            (3, 3, 12, False, True),
            (3, 3, 12, True, False),
            (2, 3, 12, False, False),
            (3, 3, 12, False, False),
            (4, 4, 4, True, True),
            (4, 4, 4, True, False),
            (4, 4, 4, False, False),
        )
    },
    "boxed": Case(lambda: LinenStack(2, 3, boxed=True), (2, 5, 12), stack_of()),
    "experts": Case(lambda: LinenScannedMoE(2, 3), (2, 5, 4), experts()),
    "as many experts as layers": Case(lambda: LinenScannedMoE(3, 3), (2, 5, 4), experts()),
    # Stacked in front or on axis 1: the experts look the same both ways, the router doesn't.
    "as many experts as layers and as wide, no norms": Case(
        lambda: LinenScannedMoE(4, 4, False), (2, 5, 4), experts(False) | {ROUTER: None}, (ROUTER,)
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_every_parameter_has_its_layout(case: Case):
    variables = jax.eval_shape(case.init)
    layouts = dict.fromkeys(case.unknown)
    assert shown(variables["params"], layouts) == case.table
    inside = {"params": variables["params"]}  # as `init` returns it
    assert shown(inside, dict.fromkeys(f"params/{path}" for path in case.unknown)) == under("params", case.table)
    unboxed = nn.meta.unbox(variables["params"])
    assert shown(unboxed, layouts) == case.table


def test_gradients_have_the_same_layouts_and_update_does_not_warn(case: Case):
    optimizer = mo.muon(1e-2, orthogonalizer=mo.polar_factor())  # which is traced fastest

    def update(variables: dict[str, Any]) -> tuple[Any, Any]:
        params = variables["params"]
        gradients = jax.grad(lambda params: case.loss({**variables, "params": params}))(params)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of init have a test of their own
            state = optimizer.init(params)
        return gradients, optimizer.update(gradients, state, params)[0]

    gradients, updates = jax.eval_shape(update, jax.eval_shape(case.init))
    assert shown(gradients, dict.fromkeys(case.unknown)) == case.table
    assert jax.tree.structure(updates) == jax.tree.structure(gradients)


# What compiles differently; the tables above cover the rest.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("vision", marks=pytest.mark.slow),
        pytest.param("unnamed", marks=pytest.mark.slow),
        "boxed",
        "as many experts as layers",
    ],
)
def test_two_steps_of_train_state(name: str):
    case = CASES[name]
    variables = jax.jit(case.init)()
    others = {key: value for key, value in variables.items() if key != "params"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = TrainState.create(apply_fn=case.build().apply, params=variables["params"], tx=clipped_muon())
    state = state.replace(step=jnp.zeros((), int))  # Flax's Python 0 would cost a retrace
    assert len(caught) == bool(case.unknown)
    assert all(repr(path) in str(warning.message) for warning in caught for path in case.unknown)

    traces = []

    @jax.jit
    def step(state: TrainState) -> tuple[TrainState, jax.Array]:
        traces.append(state)
        loss, gradients = jax.value_and_grad(lambda params: case.loss({**others, "params": params}))(state.params)
        return state.apply_gradients(grads=gradients), loss

    losses = []
    for _ in range(3):
        state, loss = step(state)
        losses.append(float(loss))
    assert losses[2] < losses[1] < losses[0]
    assert len(traces) == 1
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), variables["params"], state.params)
    unchanged = {path for path, value in zip(shown_paths(changed), jax.tree.leaves(changed), strict=True) if not value}
    # A key's bias cancels in the softmax: its gradient is rounding, or nothing.
    assert all(path.endswith("key/bias") for path in unchanged)


def shown_paths(tree: Any) -> list[str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
