"""One init and update on small models of packages that others wrote: which arrays became matrices."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from places import ROOT
from snippets import run, snippets

import muon_optax as mo

# Importing them brings deprecation warnings of their own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def keras_convolutions(keras: ModuleType) -> Any:
    layers = [keras.layers.Conv2D(8, 3), keras.layers.Flatten(), keras.layers.Dense(6), keras.layers.Dense(4)]
    layers[-1].name = "logits"
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers], name="model")
    return {variable.path: variable.value for variable in model.trainable_variables}


def equimo_transformer(models: ModuleType) -> Any:
    sizes = {"img_size": 16, "in_channels": 3, "dim": 16, "patch_size": 4, "num_classes": 4}
    model = models.VisionTransformer(num_heads=[2], depths=[1], key=jax.random.key(0), **sizes)
    return eqx.filter(model, eqx.is_inexact_array)


def flowjax_flow(flows: ModuleType) -> Any:
    base = importlib.import_module("flowjax.distributions").Normal(jnp.zeros(3))
    model = flows.masked_autoregressive_flow(jax.random.key(0), base_dist=base, flow_layers=2, nn_width=8)
    return eqx.filter(model, eqx.is_inexact_array)


def e3nn_linear(e3nn: ModuleType) -> Any:
    inputs = e3nn.normal("8x0e + 3x1o", jax.random.key(0), (2,))
    return e3nn.flax.Linear("4x0e + 2x1o").init(jax.random.key(0), inputs)["params"]


CASES = {
    "keras": ("keras", keras_convolutions, {"/conv2d/kernel": "iiio", "/dense/kernel": "io", "/logits/kernel": None}),
    "equimo": (
        "equimo.models",
        equimo_transformer,
        {
            "/attn/qkv/weight": "oi",
            "/mlp/fc2/weight": "oi",
            "patch_embed/proj/weight": "oiii",
            "head/weight": None,
            "pos_embed/weight": None,
            "reg_tokens": None,
        },
    ),
    "flowjax": ("flowjax.flows", flowjax_flow, {"/layers/0/bias": None, "/layers/0/weight/args/1": "boi"}),
    "e3nn": ("e3nn_jax", e3nn_linear, {"w[0,0] 8x0e,4x0e": "io", "w[1,1] 3x1o,2x1o": "io"}),
}


@pytest.mark.parametrize("module, build, expected", CASES.values(), ids=CASES.keys())
def test_one_update(
    module: str, build: Callable[[ModuleType], Any], expected: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    package = pytest.importorskip(module, reason=f"{module} is not installed: see the extra third-party")
    params = build(package)
    layouts = mo.assign_layouts(params)
    for ending, axes in expected.items():
        found = {layout and str(layout) for path, layout in layouts.items() if path.endswith(ending)}
        assert found == {axes}, ending
    optimizer = mo.muon(1e-2)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    assert all(bool(jnp.isfinite(leaf).all() and (leaf != 0).any()) for leaf in jax.tree.leaves(updates))


def test_tunix_trains_adapters_by_the_code_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tunix.sft.peft_trainer", reason="tunix is not installed: see the extra third-party")
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "trainers.md"
    [code] = [part for part in snippets(page.read_text("utf-8")) if "PeftTrainer(" in part.code]
    names = run([code], page)
    fresh, trained, tokens = names["LanguageModel"](nnx.Rngs(0)), names["model"], names["tokens"]

    def loss(model: nnx.Module) -> jax.Array:
        logits, _ = model(tokens, None, None, None)
        return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()

    def leaves(kind: nnx.filterlib.Filter) -> list[tuple[jax.Array, jax.Array]]:
        both = (jax.tree.leaves(nnx.state(model, kind)) for model in (fresh, trained))
        return list(zip(*both, strict=True))

    base = leaves(nnx.All(nnx.Param, nnx.Not(nnx.LoRAParam)))
    assert base
    assert all((before == after).all() for before, after in base)
    assert [bool((before != after).all()) for before, after in leaves(nnx.LoRAParam)] == [True, True]
    assert loss(trained) < loss(fresh)
