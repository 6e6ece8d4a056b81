"""States of commit 7b40106, which counts steps for schedules only, go on: with the updates that they gave there."""

import json
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from golden_states.make import LAYOUTS, SETTINGS, STEPS, decode, extra_of, falling, kinds_of, rising, tree
from places import TESTS
from trees import assert_trees_equal

import muon_optax as mo

FILES = sorted((TESTS / "golden_states" / "7b40106").glob("*.json"))
RECORDS = {record["name"]: record for record in (json.loads(file.read_text()) for file in FILES)}
# Two programs in bfloat16: a sum in another order turns last bits. The state before the step is the same to the bit.
WITHIN = 2e-2


@cache
def kinds() -> dict[str, type]:
    found = {kind.__name__: kind for kind in (optax.EmptyState, optax.TraceState)}
    for build in SETTINGS.values():
        found |= kinds_of(build().init(tree(0)))
    return found


def state_of(name: str) -> Any:
    return decode(RECORDS[name]["state"], kinds())


def step(optimizer: Any, state: Any, seed: int, name: str = "") -> tuple[Any, Any]:
    return jax.jit(optimizer.update)(tree(seed), state, tree(0), **extra_of(name))


def counts(state: Any) -> list[int]:
    return [int(leaf) for leaf in jax.tree.leaves(state) if not leaf.shape and jnp.issubdtype(leaf.dtype, jnp.integer)]


def test_all_are_here() -> None:
    assert RECORDS.keys() == SETTINGS.keys()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_state_goes_on(name: str) -> None:
    optimizer, before = SETTINGS[name](), state_of(name)
    updates, after = step(optimizer, before, STEPS + 1, name)
    want = decode(RECORDS[name]["updates"], kinds())
    if name.startswith("muon_speedrun"):  # whose matrices follow the record since, with other coefficients and decay
        updates, want = ({path: leaves[path] for path in ("embedding", "head")} for leaves in (updates, want))
    assert_trees_equal(updates, want, WITHIN)
    # A compiled step, a scan and a wrapper find the state as they left it.
    grown = jax.tree.structure(after) != jax.tree.structure(before)
    assert grown == (name == "muon, sgd")  # which had no counter to tell the step
    assert jax.tree.structure(step(optimizer, after, 5, name)[1]) == jax.tree.structure(after)


CHANGED = {
    "rate": (lambda: mo.muon(falling(0.02), layouts=LAYOUTS), 0.7),
    "AdamW's rate": (lambda: mo.muon(0.02, adamw_learning_rate=falling(0.02), layouts=LAYOUTS), None),
    "momentum": (lambda: mo.muon(0.02, momentum=lambda step: 0.95, layouts=LAYOUTS), 1.0),
    "mask": (lambda: mo.muon(0.02, weight_decay_mask={"": True}, layouts=LAYOUTS), 1.0),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_schedule_goes_on_at_the_step_of_an_old_run(change: str) -> None:
    build, factor = CHANGED[change]
    updates, _ = step(build(), state_of("muon"), STEPS + 1)
    want = decode(RECORDS["muon"]["updates"], kinds())
    if factor is not None:
        assert_trees_equal(updates["up"]["kernel"], factor * want["up"]["kernel"], WITHIN)
    if change == "AdamW's rate":
        assert_trees_equal(updates["embedding"], 0.7 * want["embedding"], WITHIN)


def test_a_momentum_schedule_goes_on_at_the_step_of_an_old_run() -> None:
    optimizer = mo.muon(0.02, momentum=rising, layouts=LAYOUTS)
    late, _ = step(optimizer, state_of("muon"), STEPS + 1)
    want, _ = step(mo.muon(0.02, momentum=rising(STEPS), layouts=LAYOUTS), state_of("muon"), STEPS + 1)
    assert_trees_equal(late, want, WITHIN)


def test_without_any_counter_the_count_starts_at_zero() -> None:
    _, after = step(SETTINGS["muon, sgd"](), state_of("muon, sgd"), STEPS + 1)
    assert counts(after) == [1, 1, 1]


def test_counters_are_left_over_where_a_number_of_optaxs_own_adamw_needs_none() -> None:
    optimizer = mo.muon(0.02, layouts=LAYOUTS)
    _, state = step(optimizer, optimizer.init(tree(0)), 1)
    plain = mo.muon(0.02, layouts=LAYOUTS, adamw=optax.adamw(0.02, b2=0.95, weight_decay=0.1))
    _, after = step(plain, state, 2)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert set(counts(after)) == {2}


def test_a_chain_by_hand_has_the_structure_to_restore_into() -> None:
    """As docs/reliability.md says."""
    chain = optax.chain(
        optax.trace(0.95), mo.orthogonalize_via_newton_schulz(), mo.scale_by_shape(), optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(0.02),
    )  # fmt: skip
    by_hand = mo.partition_by_layout(chain, optax.adamw(0.02, mask=lambda params: True), LAYOUTS)
    assert jax.tree.structure(by_hand.init(tree(0))) == jax.tree.structure(state_of("muon"))


def test_an_old_state_in_a_scan() -> None:
    optimizer, state = SETTINGS["muon"](), state_of("muon")
    gradients = jax.tree.map(lambda *leaves: jnp.stack(leaves), tree(4), tree(5))
    after, updates = jax.lax.scan(
        lambda state, gradient: optimizer.update(gradient, state, tree(0))[::-1], state, gradients
    )
    first, once = step(optimizer, state, 4)
    assert_trees_equal(jax.tree.map(lambda leaf: leaf[0], updates), first, WITHIN)
    assert_trees_equal(after, step(optimizer, once, 5)[1], WITHIN)
