"""What `carry_over` refuses, what it leaves to the user's choice, and the states and trees that people have."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trees
from flax import nnx
from golden_states import make as golden
from test_golden_states import RECORDS, WITHIN, counts, step
from test_golden_states import state_of as golden_state
from trees import assert_trees_equal

import muon_optax as mo

RATE = 0.02
SHAPES = {"embedding": (6, 4), "up": (4, 8), "bias": (8,), "head": (4, 6)}
LAYOUTS = {"embedding": None, "up": "io", "bias": None, "head": None}


def tree(seed: int, **shapes: tuple[int, ...]) -> Any:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.standard_normal(shape), jnp.float32) for path, shape in (SHAPES | shapes).items()}


def after(optimizer: Any, steps: int = 3, **shapes: tuple[int, ...]) -> Any:
    params, update = tree(0, **shapes), jax.jit(optimizer.update)
    state = optimizer.init(params)
    for seed in range(1, steps + 1):
        _, state = update(tree(seed, **shapes), state, params)
    return state


def muon(**arguments: Any) -> Any:
    return mo.muon(RATE, **{"layouts": LAYOUTS} | arguments)


def momentum_of(state: Any) -> Any:
    return state.inner_states["muon"].inner_state[0]


# Refusals.


def test_strict_refuses_a_wider_layer_by_path() -> None:
    wider = muon().init(tree(0, up=(4, 16), bias=(16,)))
    with pytest.raises(ValueError, match=r"3 arrays .* momentum of 'up': of shape \(4, 16\) in the fresh state"):
        mo.carry_over(after(muon()), wider, strict=True)
    _, report = mo.carry_over(after(muon()), wider)
    assert [(row.path, row.what) for row in report.dropped] == [
        ("bias", "first moment"), ("bias", "second moment"), ("up", "momentum"),
    ]  # fmt: skip
    assert {row.path for row in report.afresh} == {"bias", "up"}


def test_strict_passes_what_is_only_added_and_what_is_zero() -> None:
    grown = muon(layouts=LAYOUTS | {"third": "io"}).init(tree(0, third=(4, 4)))
    state, report = mo.carry_over(after(muon()), grown, strict=True)
    assert [(row.path, row.why) for row in report.afresh] == [("third", "the earlier state keeps nothing of it")]
    assert not momentum_of(state).trace["third"].any()
    to_adamw = muon(layouts=LAYOUTS | {"up": None}).init(tree(0))
    mo.carry_over(muon().init(tree(0)), to_adamw, strict=True)
    with pytest.raises(
        ValueError, match=r"1 array of the earlier state .* momentum of 'up': the fresh state keeps first"
    ):
        mo.carry_over(after(muon()), to_adamw, strict=True)


def test_strict_refuses_to_drop_half_of_an_accumulation() -> None:
    several = optax.MultiSteps(muon(), 2)
    mo.carry_over(after(several, 2), muon().init(tree(0)), strict=True)
    with pytest.raises(ValueError, match="MultiStepsState"):
        mo.carry_over(after(several, 3), muon().init(tree(0)), strict=True)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "an unknown path": (
        lambda: mo.carry_over(after(muon()), muon().init(tree(0)), renamed={"down": "up"}),
        r"renamed has 'down', .* it knows 'bias', 'embedding', 'head', 'up'\.",
    ),
    "two of one name": (
        lambda: mo.carry_over(after(muon()), muon().init(tree(0)), renamed={"embedding": "head"}),
        "calls both '(embedding|head)' and '(embedding|head)' 'head'",
    ),
    "params": (
        lambda: mo.carry_over(tree(0), muon().init(tree(0))),
        "The earlier state is a dict, which holds no state",
    ),
    "a fresh that is none": (
        lambda: mo.carry_over(after(muon()), tree(0)),
        "The fresh state is a dict, which holds no state",
    ),
    "shapes": (
        lambda: mo.carry_over(after(muon()), jax.eval_shape(muon().init, tree(0))),
        "The fresh state holds shapes and no arrays",
    ),
    "momentum": (
        lambda: mo.carry_over(after(muon()), muon().init(tree(0)), momentum=1.0),
        "momentum=1.0 is not allowed",
    ),
    "momentum_from": (
        lambda: mo.carry_over(after(muon()), muon().init(tree(0)), momentum_from="mu"),
        "momentum_from='mu' is not allowed: use 'first moment' or None",
    ),
    "block_size": (
        lambda: mo.carry_over(after(muon()), muon(momentum=mo.quantized_trace(0.95, block_size=4)).init(tree(0))),
        r"block_size=128 does not fit the codes of 'up', of shape \(4, 8\) with 2 scales a row",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    convert, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        convert()


# Choices.


def test_first_moments_as_momentum() -> None:
    """An average of gradients becomes their sum: 20 times, at a momentum of 0.95."""
    adamw = after(optax.adamw(RATE))
    state, report = mo.carry_over(adamw, muon().init(tree(0)), momentum_from="first moment")
    np.testing.assert_allclose(momentum_of(state).trace["up"], adamw[0].mu["up"] / 0.05, rtol=1e-6)
    assert [(row.path, row.why) for row in report.carried if row.what == "momentum"] == [
        ("up", "from the first moment, average to sum")
    ]
    without, report = mo.carry_over(adamw, muon().init(tree(0)))
    assert not momentum_of(without).trace["up"].any()
    assert [(row.path, row.what) for row in report.dropped] == [("up", "first moment"), ("up", "second moment")]
    for one in (state, without):  # the moments of all else, and all counters, go on
        np.testing.assert_array_equal(one.inner_states["adamw"].inner_state[0].nu["bias"], adamw[0].nu["bias"])
        assert set(counts(one)) == {3}


def test_other_blocks_and_another_momentum() -> None:
    few = muon(momentum=mo.quantized_trace(0.9, block_size=4))
    state, report = mo.carry_over(after(muon(momentum=0.9)), few.init(tree(0)), block_size=4)
    assert [row.why for row in report.carried if row.path == "up"] == ["sum to 8 bits"]
    back, _ = mo.carry_over(state, muon(momentum=optax.ema(0.9)).init(tree(0)), block_size=4, momentum=0.9)
    want = 0.1 * momentum_of(after(muon(momentum=0.9))).trace["up"]
    assert_trees_equal(momentum_of(back).ema["up"], want, 1e-2)


def test_a_step_that_is_given_goes_before_what_was_counted() -> None:
    state, _ = mo.carry_over(after(muon()), muon().init(tree(0)), step=1000)
    assert set(counts(state)) == {1000}


def test_without_any_counter_all_begin_at_zero_and_the_report_says_so() -> None:
    state, report = mo.carry_over(golden_state("muon, sgd"), golden.SETTINGS["muon, sgd"]().init(golden.tree(0)))
    assert set(counts(state)) == {0}
    assert {row.why for row in report.afresh} == {"the earlier state counts no steps: pass step="}


def test_subtrees_are_renamed_and_two_may_swap() -> None:
    params = {name: {"kernel": jnp.full((4, 8), value)} for name, value in (("a", 1.0), ("b", 2.0))}
    optimizer = mo.muon(RATE, layouts={"*/kernel": "io"})
    _, state = optimizer.update(params, optimizer.init(params), params)
    swapped, report = mo.carry_over(state, optimizer.init(params), renamed={"a": "b", "b": "a"}, strict=True)
    assert [row.why for row in report.carried if row.path == "a/kernel"] == ["was b/kernel"]
    trace = momentum_of(swapped).trace
    assert (float(trace["a"]["kernel"][0, 0]), float(trace["b"]["kernel"][0, 0])) == (2.0, 1.0)
    deeper = mo.muon(RATE, layouts={"model/*/kernel": "io"})
    state, _ = mo.carry_over(
        state, deeper.init({"model": params}), renamed={"a": "model/a", "b": "model/b"}, strict=True
    )
    assert float(momentum_of(state).trace["model"]["b"]["kernel"][0, 0]) == 2.0


def test_an_average_around_the_optimizer_is_not_its_momentum() -> None:
    around = optax.chain(optax.ema(0.9), muon())
    before = after(around)
    state, report = mo.carry_over(before, muon().init(tree(0)))
    assert_trees_equal(momentum_of(state), momentum_of(before[1]))
    assert {(row.what, row.path) for row in report.dropped} == {("momentum", path) for path in SHAPES}


def test_injected_rates_are_those_of_now() -> None:
    injected = [optax.inject_hyperparams(optax.adamw)(rate) for rate in (0.1, 0.2)]
    state, report = mo.carry_over(after(injected[0]), injected[1].init(tree(0)), strict=True)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.2)
    assert {row.what for row in report.rows if row.outcome == "setting"} == {
        "InjectStatefulHyperparamsState.hyperparams"
    }
    assert int(state.count) == 3


def test_the_radii_of_the_first_step_go_on() -> None:
    optimizer = mo.recipes.muon_h(RATE, adamw_learning_rate=RATE, layouts=LAYOUTS, heads=("head",))
    before = after(optimizer)
    fresh = optimizer.init(jax.tree.map(lambda leaf: 2 * leaf, tree(0)))
    state, _ = mo.carry_over(before, fresh, strict=True)
    assert_trees_equal(state, before)


def test_each_radius_goes_with_its_own_leaf() -> None:
    """Radii of matrices of any size have one shape: two may swap their names, and a list may get another order."""
    params = {name: jnp.full((4, 8), value) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    optimizer = mo.recipes.muon_h(RATE, adamw_learning_rate=RATE, layouts=dict.fromkeys(params, "io"), heads=())
    _, before = optimizer.update(params, optimizer.init(params), params)
    turned = {"a": "b", "b": "c", "c": "a"}
    state, report = mo.carry_over(before, optimizer.init(params), renamed=turned, strict=True)
    assert not report.afresh
    radii, earlier = (each.inner_states["muon"].inner_state[-1].radii for each in (state, before))
    assert {turned[path]: float(radius[0, 0]) for path, radius in earlier.items()} == {
        path: float(radius[0, 0]) for path, radius in radii.items()
    }


CHANGED = "the parameter's size has changed"
RESIZED = {
    "radii of a sphere": (
        lambda: mo.recipes.muon_h(RATE, adamw_learning_rate=RATE, layouts=LAYOUTS, heads=()), "radii",
    ),
    "second moments of outputs": (lambda: mo.recipes.normuon(RATE, layouts=LAYOUTS), "moments"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESIZED)
def test_nothing_of_a_parameter_of_another_size_goes_on(name: str) -> None:
    """What is kept of its rows or matrices has the shape that it had, and is that of another matrix."""
    build, field = RESIZED[name]
    before, longer = after(build()), tree(1, up=(6, 8))
    fresh = build().init(longer)
    state, report = mo.carry_over(before, fresh)
    part, own, old = (
        next(part for part in each.inner_states["muon"].inner_state if hasattr(part, field))
        for each in (state, fresh, before)
    )
    assert getattr(old, field)["up"].shape == getattr(own, field)["up"].shape
    assert_trees_equal(getattr(part, field)["up"], getattr(own, field)["up"])
    rows = {row.what: row.why for row in report.afresh if row.path == "up"}
    assert rows == {"momentum": "of shape (4, 8) in the earlier state", f"{type(part).__name__}.{field}": CHANGED}
    assert {(row.what, row.path) for row in report.dropped} == {(what, "up") for what in rows}


def test_a_state_can_be_donated() -> None:
    optimizer, params = muon(), tree(0)
    state, _ = mo.carry_over(after(optimizer), optimizer.init(params))
    jax.jit(optimizer.update, donate_argnums=1)(tree(9), state, params)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


OTHERS = {
    "amsgrad": optax.amsgrad(RATE), "adabelief": optax.adabelief(RATE), "adafactor": optax.adafactor(RATE),
    "schedule_free": optax.contrib.schedule_free_adamw(RATE), "apply_if_finite": optax.apply_if_finite(muon(), 2),
    "conditionally_mask": optax.conditionally_mask(muon(), lambda step: step >= 0),
    "block periodic": mo.partition_by_layout(
        optax.chain(optax.trace(0.9), mo.orthogonalize_block_periodic(mo.polar_factor())), optax.rmsprop(RATE), LAYOUTS
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_the_state_of_any_optimizer_is_carried_to_itself(name: str) -> None:
    before = after(OTHERS[name])
    state, report = mo.carry_over(before, OTHERS[name].init(tree(0)), strict=True)
    assert not report.afresh
    assert_trees_equal(state, before)


def test_amsgrads_moments_are_adams() -> None:
    before = after(optax.amsgrad(RATE))
    state, report = mo.carry_over(before, optax.adam(RATE).init(tree(0)))
    assert_trees_equal((state[0].mu, state[0].nu), (before[0].mu, before[0].nu))
    assert {row.what for row in report.dropped} == {"ScaleByAmsgradState.nu_max"}


# Trees and frameworks.


@pytest.mark.parametrize("kind", trees.KINDS)
def test_every_kind_of_tree(kind: str) -> None:
    params = trees.KINDS[kind](**trees.arrays())

    def matrices(params: Any) -> Any:
        return dict.fromkeys(mo.assign_layouts(params), "io")

    before, now = (mo.muon(RATE, momentum=kept, layouts=matrices) for kept in (0.95, mo.nesterov_ema(0.95)))
    _, state = before.update(params, before.init(params), params)
    got, report = mo.carry_over(state, now.init(params), strict=True)
    assert not report.afresh
    want = [0.05 * leaf for leaf in jax.tree.leaves(momentum_of(state).trace)]
    for one, other in zip(jax.tree.leaves(momentum_of(got).ema), want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_state_of_an_nnx_optimizer() -> None:
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    layouts = {"kernel": "io", "bias": None}
    before, now = (
        nnx.Optimizer(model, mo.muon(RATE, momentum=m, layouts=layouts), wrt=nnx.Param) for m in (0.95, optax.ema(0.95))
    )
    before.update(model, nnx.grad(lambda model: (model(jnp.ones((1, 4))) ** 2).sum())(model))
    now.opt_state, report = mo.carry_over(before.opt_state, now.opt_state, strict=True)
    assert not report.afresh
    (average, *_), (trace, *_) = (optimizer.opt_state.inner_states["muon"].inner_state for optimizer in (now, before))
    np.testing.assert_allclose(average.ema["kernel"][...], 0.05 * trace.trace["kernel"][...], rtol=1e-6)
    now.update(model, nnx.grad(lambda model: (model(jnp.ones((1, 4))) ** 2).sum())(model))
    assert int(average.count[...]) == 2


# States of 7b40106.


@pytest.mark.parametrize("name", golden.SETTINGS)
def test_a_golden_state_is_carried_over(name: str) -> None:
    optimizer = golden.SETTINGS[name]()
    state, report = mo.carry_over(golden_state(name), optimizer.init(golden.tree(0)), strict=True)
    assert jax.tree.structure(state) == jax.tree.structure(optimizer.init(golden.tree(0)))
    assert not [row for row in report.afresh if row.path]
    updates, _ = step(optimizer, state, golden.STEPS + 1, name)
    want = golden.decode(RECORDS[name]["updates"], {})
    if name.startswith("muon_speedrun"):  # as in test_golden_states.py
        updates, want = ({path: leaves[path] for path in ("embedding", "head")} for leaves in (updates, want))
    assert_trees_equal(updates, want, WITHIN)


# The report.


def test_the_report_as_text() -> None:
    layers = {f"layers/{number}/w": (4, 8) for number in range(3)}
    layouts = LAYOUTS | dict.fromkeys(layers, "io")
    grown = dict.fromkeys(("layers/3/w", "up", *layers), "io")
    before, now = muon(layouts=layouts), muon(layouts=LAYOUTS | grown, momentum_dtype=jnp.bfloat16)
    _, report = mo.carry_over(after(before, **layers), now.init(tree(0, **layers, **{"layers/3/w": (4, 8)})))
    lines = str(report).splitlines()
    assert lines[0].split() == ["outcome", "path", "shape", "what", "why"]
    assert "afresh   layers/3/w          [4, 8]  momentum       the earlier state keeps nothing of it" in lines
    assert "carried  layers/{0..2}/w x3  [4, 8]  momentum       float32 to bfloat16" in lines
    assert lines[-1] == "0 dropped, 1 afresh, 11 carried."
    assert len(report.table(every_row=True).splitlines()) == len(report.rows) + 3


def test_first_moments_point_further_along_the_mean_gradient() -> None:
    """What docs/resume.md says of the first step after AdamW, with 300 steps of it on noisy batches."""
    key = jax.random.key(0)
    student, teacher = (
        {name: jax.random.normal(jax.random.fold_in(key, start + i), (32, 32)) / 32**0.5 for i, name in enumerate("ab")}
        for start in (0, 10)
    )

    def outputs(params: Any, inputs: jax.Array) -> jax.Array:
        return jnp.tanh(inputs @ params["a"]) @ params["b"]

    @jax.jit
    def gradient(params: Any, key: jax.Array) -> Any:
        inputs = jax.random.normal(key, (64, 32))
        return jax.grad(lambda params: jnp.mean((outputs(params, inputs) - outputs(teacher, inputs)) ** 2))(params)

    adamw, muon = optax.adamw(3e-3), mo.muon(3e-3, layouts={"a": "io", "b": "io"})

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        updates, state = adamw.update(gradient(params, key), state, params)
        return optax.apply_updates(params, updates), state

    params, state = student, adamw.init(student)
    for number in range(300):
        params, state = step(params, state, jax.random.fold_in(key, 1000 + number))
    batches = [gradient(params, jax.random.fold_in(key, 77 + number)) for number in range(50)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 50, *batches)

    def cosines(momentum_from: Any) -> list[float]:
        carried, _ = mo.carry_over(state, muon.init(params), momentum_from=momentum_from)
        updates, _ = muon.update(batches[0], carried, params)
        pairs = [(updates[name].ravel(), mean[name].ravel()) for name in "ab"]
        return [-float(u @ g / jnp.linalg.norm(u) / jnp.linalg.norm(g)) for u, g in pairs]

    (a, b), (a_without, b_without) = cosines("first moment"), cosines(None)
    assert a > a_without + 0.01
    assert b > b_without + 0.02
