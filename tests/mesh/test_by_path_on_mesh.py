"""Settings by path on eight devices: the plan, bytes and collectives of an update without them."""

from collections import Counter
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AUTO, AUTO_FIRST, assert_near, given, lie_alike, mesh_of, random_tree, shardings

import muon_optax as mo
from benchmarks.shared.hlo_collectives import Collective, collectives
from benchmarks.shared.hlo_products import product_flops

ONE, TWO = (mo.newton_schulz(mo.CUBIC[:steps], dtype=jnp.float32) for steps in (1, 2))
LAYERS = 16
SHAPES = {f"layers/{layer}/{name}": (16, 16) if name == "q" else (16, 32) for layer in range(LAYERS) for name in "qu"}
SHAPES |= {"embed": (64, 16), "scale": (16,), "experts": (4, 16, 8), "fused": (16, 32)}
LAYOUTS = dict.fromkeys(SHAPES, "io") | {
    "embed": None, "scale": None, "experts": "bio", "fused": mo.Layout("io", split=(16, 8, 8)),
}  # fmt: skip
SPECS = dict.fromkeys(SHAPES, P("data", "model")) | {"scale": P("data"), "experts": P("data", None, "model")}
PLAIN = {
    "layers/1*/*": mo.Settings(learning_rate=0.5, weight_decay=2.0),
    "experts": mo.Settings(momentum=0.5, scale="mup"),
    "embed": mo.Settings(learning_rate=lambda step: 1.0 + step, weight_decay=0.0),
    "*/q": mo.Settings(learning_rate=lambda step: 3.0 + step, momentum=lambda step: 0.5 + 0.1 * step),
}
LATE = {"layers/[89]/*": mo.Settings(orthogonalizer=TWO), "layers/1?/*": mo.Settings(orthogonalizer=TWO)}
BOTH = {"layers/[89]/*": mo.Settings(orthogonalizer=TWO, learning_rate=0.5)} | LATE | {"embed": PLAIN["embed"]}
BY_PATH: dict[str, dict[str, mo.Settings] | None] = {"none": None, "plain": PLAIN, "late": LATE, "both": BOTH}
PARAMS, GRADIENTS = random_tree(SHAPES, 1), random_tree(SHAPES, 2)


def muon(by_path: Any = None, **options: Any) -> Any:
    arguments = {"layouts": LAYOUTS, "orthogonalizer": ONE, "by_path": by_path}
    return mo.muon(optax.linear_schedule(0.1, 0.0, 100), **arguments | options)


@cache
def places(kind: AxisType) -> dict[str, NamedSharding]:
    return shardings(mesh_of(kind, data=4, model=2), SPECS)


@cache
def program(name: str, kind: AxisType = AUTO) -> Any:
    """An update, compiled for the mesh."""
    optimizer = muon(BY_PATH[name], shardings=given(kind, places(kind)))
    params = jax.device_put(PARAMS, places(kind))
    state = mo.init_sharded(optimizer, params, places(kind))
    return jax.jit(optimizer.update).lower(params, state, params).compile(), params, state


def sent(name: str, kind: AxisType = AUTO) -> Counter[Collective]:
    counted: Counter[Collective] = Counter()
    for one in collectives(program(name, kind)[0].as_text()):
        counted[one._replace(times=1)] += one.times
    return counted


@pytest.mark.parametrize("kind", AUTO_FIRST)
def test_factors_momentum_and_scale_send_what_is_sent_without(kind: AxisType) -> None:
    assert sent("plain", kind) == sent("none", kind)
    one, other = (mo.plan(PARAMS, places(kind), LAYOUTS, orthogonalizer=ONE, by_path=own) for own in (PLAIN, None))
    assert str(one) == str(other)
    assert (one.uses, one.leaves, one.owned) == (other.uses, other.leaves, other.owned)


@pytest.mark.parametrize("name", [pytest.param("late", marks=pytest.mark.slow), "both"])
def test_steps_by_path_take_one_collective_each_way_a_stack(name: str) -> None:
    plan = mo.plan(PARAMS, places(AUTO), LAYOUTS, orthogonalizer=ONE, by_path=BY_PATH[name])
    without = mo.plan(PARAMS, places(AUTO), LAYOUTS, orthogonalizer=ONE)
    stacks = [stack for batch in plan.batches for stack in batch]
    ways = sum((stack.there.devices > 1) + (stack.back.devices > 1) for stack in stacks)
    found = sent(name)
    assert plan.collectives == {"all-to-all": ways}
    kinds = Counter()
    for one, times in found.items():
        kinds[one.kind] += times
    assert kinds["all-to-all"] == ways
    assert kinds - Counter(plan.collectives) == kinds_of_adamw()
    sent_bytes = sum(times * one.sent_bytes for one, times in found.items() if one.kind == "all-to-all")
    assert plan.bytes == pytest.approx(sent_bytes, rel=1e-12)
    # Both halves of 16 layers fill eight devices, so the same bytes go in two stacks for one.
    assert plan.bytes == without.bytes
    assert product_flops(program(name)[0].as_text()) == pytest.approx(plan.flops)


def kinds_of_adamw() -> Counter[str]:
    """What an update sends beside the plan's all-to-all, with or without settings by path."""
    kinds: Counter[str] = Counter()
    for one, times in sent("none").items():
        kinds[one.kind] += times * (one.kind != "all-to-all")
    return +kinds


@cache
def on_one_device(name: str) -> Any:
    return steps(muon(BY_PATH[name]), PARAMS, GRADIENTS)


def steps(optimizer: Any, params: Any, gradients: Any, state: Any = None) -> Any:
    update, state = jax.jit(optimizer.update), optimizer.init(params) if state is None else state
    for _ in range(3):
        updates, state = update(gradients, state, params)
    return updates, state


@pytest.mark.parametrize("kind", AUTO_FIRST)
@pytest.mark.parametrize("name", ["plain", "both"])
def test_training_goes_as_on_one_device(name: str, kind: AxisType) -> None:
    optimizer = muon(BY_PATH[name], shardings=given(kind, places(kind)))
    _, params, state = program(name, kind)
    updates, after = steps(optimizer, params, jax.device_put(GRADIENTS, places(kind)), state)
    want, want_after = on_one_device(name)
    assert_near(jax.device_get(updates), jax.device_get(want))
    assert_near(jax.device_get(after), jax.device_get(want_after))
    assert lie_alike(updates, places(kind))


@pytest.mark.slow
def test_zero_1_follows_a_plan_made_with_the_same_settings() -> None:
    whole = shardings(mesh_of(data=8), dict.fromkeys(SHAPES, P()))
    plan = mo.plan(PARAMS, whole, LAYOUTS, orthogonalizer=ONE, over="data", by_path=BOTH)
    optimizer, params = muon(BOTH, shardings=plan), jax.device_put(PARAMS, whole)
    updates, after = steps(
        optimizer, params, jax.device_put(GRADIENTS, whole), mo.init_sharded(optimizer, params, plan)
    )
    assert_near(jax.device_get(updates), jax.device_get(on_one_device("both")[0]))
    trace = after.inner_states["muon"].inner_state[0].trace
    assert trace["layers/8/q"].sharding.spec == P("data")


def test_a_plan_shows_whose_steps_are_others() -> None:
    # The two globs give one function, under the name of the first.
    text = str(mo.plan(PARAMS, places(AUTO), LAYOUTS, orthogonalizer=ONE, by_path=LATE))
    lines = [line for line in text.splitlines() if " of 16 x 16:" in line]
    (own,) = [line for line in lines if "orthogonalized" in line]
    assert own.startswith("8 of 16 x 16: 1 a device")
    assert own.endswith(", orthogonalized as 'layers/[89]/*' says")
    # Equal to everybody's, it is no kind of its own.
    same = {"layers/8/*": mo.Settings(orthogonalizer=mo.newton_schulz(mo.CUBIC[:1], dtype=jnp.float32))}
    assert "says" not in str(mo.plan(PARAMS, places(AUTO), LAYOUTS, orthogonalizer=ONE, by_path=same))


def test_a_plan_made_with_other_settings_is_refused() -> None:
    late, others = r"the orthogonalizer of 'layers/\[89\]/\*'", "the one of all others"
    for made, used, there, here in [(None, LATE, others, late), (LATE, None, late, others)]:
        plan = mo.plan(PARAMS, places(AUTO), LAYOUTS, orthogonalizer=ONE, by_path=made)
        optimizer = muon(used, shardings=plan)
        with pytest.raises(
            ValueError, match=rf"settings by path: 'layers/10/q' has {there} in the plan .* {here} here"
        ):
            jax.eval_shape(optimizer.update, PARAMS, optimizer.init(PARAMS), PARAMS)
    # Rates and the like are no part of a plan.
    optimizer = muon(PLAIN, shardings=mo.plan(PARAMS, places(AUTO), LAYOUTS, orthogonalizer=ONE))
    jax.eval_shape(optimizer.update, PARAMS, optimizer.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"by_path names 'nobody'"):
        mo.plan(PARAMS, places(AUTO), LAYOUTS, by_path={"nobody": mo.Settings()})


def test_other_dtypes_travel_by_path() -> None:
    """Half in bfloat16 and half in float32: what each function multiplies in."""
    wide, narrow = (mo.newton_schulz(mo.CUBIC[:1], dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    tree = {str(layer): np.ones((16, 16), np.float32) for layer in range(16)}
    where = shardings(mesh_of(data=8), dict.fromkeys(tree, P("data")))
    by_path = {"[0-7]": mo.Settings(orthogonalizer=narrow)}
    plan, all_wide = (mo.plan(tree, where, orthogonalizer=wide, by_path=own) for own in (by_path, None))
    assert plan.bytes == 0.75 * all_wide.bytes
    assert {use.dtype for path, use in plan.uses.items() if path in map(str, range(8))} == {"bfloat16"}
