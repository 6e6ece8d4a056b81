"""Faults that users of such optimizers have reported, each as its kind, with the right value."""

import sys
from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import trees

import muon_optax as mo
from muon_optax._layouts import paths
from muon_optax._layouts.assigning import resolve

PARAMS = {
    "kernel": jnp.asarray(oracle.gaussian(4, 8, seed=0), jnp.float32),
    "embedding": jnp.asarray(oracle.gaussian(10, 8, seed=1), jnp.float32),
    "bias": jnp.ones(8),
}
ADAMW = optax.adamw(0.1)


def updates_of(optimizer: Any, params: Any, gradients: Any) -> Any:
    state, updates = optimizer.init(params), None
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
    return updates


@pytest.mark.parametrize(
    "adamw, others",
    [
        (optax.contrib.split_real_and_imaginary(ADAMW), {"modes": jnp.full(6, 1 + 2j, jnp.complex64)}),
        (optax.contrib.galore(0.1, rank=2), {"embedding": PARAMS["embedding"]}),
        (optax.flatten(ADAMW), {"embedding": PARAMS["embedding"], "bias": PARAMS["bias"]}),
    ],
    ids=["split-complex", "low-rank", "flattened"],
)
def test_any_state_that_init_makes_is_taken(adamw: Any, others: Any) -> None:
    params = {"kernel": PARAMS["kernel"], **others}
    got = updates_of(mo.muon(0.1, adamw=adamw), params, [params, params])
    want = updates_of(adamw, others, [others, others])
    for name in others:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-7)


GROUPS = {"a": {"router": {"kernel": jnp.ones((4, 4))}, "up": jnp.ones((4, 8))}, "b": {"up": jnp.ones((4, 8))}}


@pytest.mark.parametrize("layouts", [{"*/router/kernel": None}, mo.default_layouts(GROUPS)], ids=["glob", "paths"])
def test_groups_share_the_layouts_of_the_whole_model(layouts: Any) -> None:
    groups = {name: mo.muon(0.1, layouts=layouts) for name in GROUPS}
    optimizer = optax.partition(groups, {"a": "a", "b": "b"})
    alone = updates_of(mo.muon(0.1), {"b": GROUPS["b"]}, [{"b": GROUPS["b"]}])
    trees.assert_trees_equal(updates_of(optimizer, GROUPS, [GROUPS])["b"], alone["b"], 1e-2)


def test_layouts_may_name_what_is_none_and_nothing_else() -> None:
    part = {"a": None, "b": GROUPS["b"]}
    assert str(mo.assign_layouts(part, mo.default_layouts(GROUPS))["b/up"]) == "io"
    for tree in (part, GROUPS):
        with pytest.raises(ValueError, match=r"'\*/rooter/kernel', which matches no parameter"):
            mo.assign_layouts(tree, {"*/rooter/kernel": None})


@pytest.mark.parametrize(
    "name, value",
    [
        ("weight_decay_mask", lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)),
        ("momentum_dtype", jnp.bfloat16),
        ("orthogonalizer", lambda matrices: matrices),
        ("layouts", mo.default_layouts),
    ],
    ids=["mask", "dtype", "orthogonalizer", "layouts"],
)
def test_what_inject_hyperparams_calls_as_a_schedule_is_named(name: str, value: Any) -> None:
    arguments = {"learning_rate": 0.1, name: value}
    with pytest.raises((TypeError, ValueError), match=rf"(?s)inject_hyperparams.*{name}|{name}.*inject_hyperparams"):
        optax.inject_hyperparams(mo.muon)(**arguments).init(PARAMS)
    named = optax.inject_hyperparams(mo.muon, static_args=(name,))(**arguments)
    got = updates_of(named, PARAMS, [PARAMS])
    trees.assert_trees_equal(got, updates_of(mo.muon(**arguments), PARAMS, [PARAMS]), 1e-2)


def test_a_state_that_lost_its_masked_nodes_is_mended_by_the_line_that_the_message_gives() -> None:
    optimizer = mo.muon(0.1)
    state = optimizer.init(PARAMS)
    lost = jax.tree.map(lambda leaf: None if paths.is_hidden(leaf) else leaf, state, is_leaf=paths.is_hidden)
    with pytest.raises(ValueError, match=r"MaskedNode became None.*jax\.tree\.unflatten"):
        optimizer.update(PARAMS, lost, PARAMS)
    structure = jax.tree.structure(jax.eval_shape(optimizer.init, PARAMS))
    trees.assert_trees_equal(jax.tree.unflatten(structure, jax.tree.leaves(lost)), state)


def test_an_unfiltered_model_is_taken_where_gradients_are_none() -> None:
    model, optimizer = trees.Module(**trees.arrays()), mo.muon(0.1)
    filtered = eqx.filter(model, eqx.is_inexact_array)
    got, _ = optimizer.update(filtered, optimizer.init(filtered), model)
    trees.assert_trees_equal(got, optimizer.update(filtered, optimizer.init(filtered), filtered)[0])


def test_experts_that_get_no_token_keep_still() -> None:
    first = jnp.asarray(oracle.gaussian(3, 4, 8), jnp.float32)
    second = first.at[1].set(0.0).at[0, 2].set(0.0)  # a row of zeros does not make a matrix idle
    params, layouts = {"experts": first}, {"experts": "bio"}
    plain = mo.muon(0.1, layouts=layouts)
    gradients = [{"experts": first}, {"experts": second}]
    got = updates_of(mo.hold_idle_matrices(plain, layouts), params, gradients)["experts"]
    want = updates_of(plain, params, gradients)["experts"]
    assert float(jnp.linalg.norm(want[1])) > 0.03  # momentum alone moves it at full size
    assert not got[1].any()
    np.testing.assert_array_equal(got[jnp.array([0, 2])], want[jnp.array([0, 2])])


@pytest.mark.parametrize("eps_root, finite", [(0.0, False), (1e-8, True)], ids=["default", "documented"])
def test_a_gradient_through_adamw_where_a_unit_is_off(eps_root: float, finite: bool) -> None:
    optimizer = mo.muon(0.1, adamw=optax.adamw(0.1, eps_root=eps_root))

    def outer(scale: jax.Array) -> jax.Array:
        gradient = {"kernel": PARAMS["kernel"] * scale, "bias": jnp.arange(8.0) * scale}
        params = {name: PARAMS[name] for name in gradient}
        updates, _ = optimizer.update(gradient, optimizer.init(params), params)
        return updates["bias"].sum()

    assert bool(jnp.isfinite(jax.grad(outer)(1.0))) == finite


@pytest.mark.parametrize("rate", [0.3, lambda step: 0.3], ids=["number", "schedule"])
def test_adamw_learning_rate_holds_for_its_branch_alone(rate: Any) -> None:
    got = updates_of(mo.muon(0.1, adamw_learning_rate=rate), PARAMS, [PARAMS, PARAMS])
    slow, fast = (updates_of(mo.muon(value), PARAMS, [PARAMS, PARAMS]) for value in (0.1, 0.3))
    trees.assert_trees_equal(got, {**fast, "kernel": slow["kernel"]}, 1e-5)


LAYERS = {"layers": [{"w": jnp.ones((3, 5, 7, 6))} for _ in range(3)], "up": jnp.ones((4, 6))}
ENTRIES = {
    "assign": lambda: mo.assign_layouts(LAYERS),
    "label": lambda: mo.label_params(LAYERS),
    "summarize": lambda: mo.summarize(LAYERS),
    "muon": lambda: mo.muon(0.1).init(LAYERS),
    "partition": lambda: mo.partition_by_layout(optax.sgd(0.1), ADAMW).init(LAYERS),
    "jit": lambda: jax.jit(mo.muon(0.1).init)(LAYERS),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_warning_groups_layers_and_blames_the_users_line(entry: str) -> None:
    with pytest.warns(UserWarning, match=r"'layers/\{0\.\.2\}/w' x3 .*Give 'layers/\*/w' a letter") as caught:
        ENTRIES[entry]()
    assert [warning.filename for warning in caught] == [__file__]


def test_integers_are_refused_in_one_voice(recwarn: pytest.WarningsRecorder) -> None:
    params = {"table": jnp.ones((3, 4), jnp.int32), "kernel": jnp.ones((4, 4))}
    assert mo.assign_layouts(params)["table"] is None
    with pytest.raises(ValueError, match="'table' has dtype int32"):
        mo.muon(0.1).init(params)
    assert not recwarn.list


def test_raveled_parameters_are_warned_about_once() -> None:
    with pytest.warns(UserWarning, match="No parameter is seen as a matrix") as caught:
        optax.flatten(mo.muon(0.1)).init(PARAMS)
    assert len(caught) == 1


def test_an_update_walks_the_tree_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return function(*arguments)

        return call

    functions = {"named_leaves": paths.named_leaves, "resolve": resolve.resolve}
    for module in [module for name, module in sys.modules.items() if name.startswith("muon_optax.")]:
        for name, function in functions.items():
            if vars(module).get(name) is function:
                monkeypatch.setattr(module, name, counted(name, function))
    optimizer = mo.muon(0.1)
    state = optimizer.init(PARAMS)
    assert calls == {"named_leaves": 4, "resolve": 1}
    calls.clear()
    jax.eval_shape(optimizer.update, PARAMS, state, PARAMS)
    assert calls["resolve"] == 1
    assert calls["named_leaves"] <= 6
