"""A state carried over from each setting to each other: equal to a fresh state whose arrays are set one by one."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from meshes import mesh_of, shardings
from test_settings import LAYOUTS, SHAPES, falling, first_axes, tree

import muon_optax as mo

pytestmark = pytest.mark.no_cover  # as in test_contract.py
STEPS = 3
MOMENTUM = 0.95

# What a field holds. A branch may say otherwise.
MEANING = {
    "trace": "momentum", "ema": "momentum", "codes": "momentum", "scales": "scales", "mu": "first moment",
    "nu": "second moment", "moments": "rows", "radii": "radii", "acc_grads": "sums",
}  # fmt: skip
COUNTERS = ("count", "step", "gradient_step")


class Setting(NamedTuple):
    """An optimizer, its model, and what its fields mean where that is not the usual."""

    build: Callable[[], Any] | None
    shapes: Mapping[str, tuple[int, ...]] = SHAPES
    meaning: Mapping[str, str] = {}
    renamed: Mapping[str, str] = {}  # from the usual paths to its own
    calls: int = STEPS
    extra: Mapping[str, Any] = {}


def muon(**arguments: Any) -> Callable[[], Any]:
    return lambda: mo.muon(**{"learning_rate": 0.02, "layouts": LAYOUTS} | arguments)


def under(names: Mapping[str, str], by_path: Mapping[str, Any]) -> dict[str, Any]:
    return {names.get(path, path): value for path, value in by_path.items()}


@cache
def zero_plan() -> Any:
    mesh = mesh_of(data=4)
    places = shardings(mesh, dict.fromkeys(SHAPES, P()))
    return mo.plan(jax.device_put(tree(0, SHAPES), places), places, layouts=LAYOUTS, over="data")


NAMES = {"up": "block/up", "bias": "block/bias", "head": "output/head"}
MORE = SHAPES | {"third": (4, 4)}
SETTINGS = {
    "float32": Setting(muon()),
    "bfloat16": Setting(muon(momentum_dtype=jnp.bfloat16)),
    "8 bits": Setting(muon(momentum=mo.quantized_trace(MOMENTUM, nesterov=True))),
    "4 bits": Setting(muon(momentum=mo.quantized_trace(MOMENTUM, nesterov=True, bits=4))),
    "average": Setting(muon(momentum=mo.nesterov_ema(MOMENTUM, debias=True))),
    "scheduled": Setting(muon(momentum=lambda step: 0.8 + 0.01 * step, learning_rate=falling(0.02))),
    "mask": Setting(muon(weight_decay_mask={path: path == "up" for path in SHAPES})),
    "up to AdamW": Setting(muon(layouts=LAYOUTS | {"up": None})),
    "all to AdamW": Setting(muon(layouts=dict.fromkeys(SHAPES))),
    "embedding to Muon": Setting(muon(layouts=LAYOUTS | {"embedding": "io"})),
    "masked adamw": Setting(muon(adamw=optax.masked(optax.adamw(0.003), first_axes))),
    "sgd": Setting(muon(adamw=optax.sgd(0.1, momentum=0.9))),
    "lion": Setting(muon(adamw=optax.lion(0.001)), meaning={"adamw/mu": "lion"}),
    "normuon": Setting(lambda: mo.recipes.normuon(0.02, layouts=LAYOUTS)),
    "muon_h": Setting(lambda: mo.recipes.muon_h(0.02, adamw_learning_rate=0.003, layouts=LAYOUTS, heads=("head",))),
    "muon_speedrun": Setting(lambda: mo.recipes.muon_speedrun(0.02, adamw_learning_rate=0.003, layouts=LAYOUTS)),
    "muon_clip": Setting(
        lambda: mo.recipes.muon_clip(0.02, layouts=LAYOUTS), extra={"max_logits": jnp.array([50.0, 200.0])}
    ),
    "ZeRO-1": Setting(lambda: mo.muon(0.02, layouts=LAYOUTS, shardings=zero_plan())),
    "optax.adamw": Setting(lambda: optax.adamw(0.003)),
    "optax.contrib.muon": Setting(lambda: optax.contrib.muon(0.02), meaning={"muon/mu": "momentum"}),
    "torch": Setting(None),
    "a layer more": Setting(muon(layouts=LAYOUTS | {"third": "io"}), MORE),
    "a wider layer": Setting(muon(), SHAPES | {"up": (4, 16), "bias": (16,)}),
    "renamed": Setting(muon(layouts=under(NAMES, LAYOUTS)), under(NAMES, SHAPES), renamed=NAMES),
    "chain": Setting(lambda: optax.chain(optax.clip_by_global_norm(1.0), muon()())),
    "MultiSteps": Setting(lambda: optax.MultiSteps(muon()(), 2), calls=2 * STEPS),
    "inject_hyperparams": Setting(
        lambda: optax.inject_hyperparams(mo.muon, static_args=("layouts", "momentum"))(
            0.02, momentum=MOMENTUM, layouts=LAYOUTS
        )
    ),
}  # fmt: skip


def flat(params: Any) -> Any:
    return {path: jnp.asarray(leaf) for path, leaf in params.items()}


@cache
def prepared(name: str) -> tuple[Any, Any, Any]:
    """The optimizer, its parameters and its compiled update."""
    setting = SETTINGS[name]
    assert setting.build is not None
    optimizer, params = setting.build(), tree(0, setting.shapes)
    if name == "ZeRO-1":
        params = jax.device_put(params, zero_plan().shardings)
    return optimizer, params, jax.jit(optimizer.update)


@cache
def fresh_of(name: str) -> Any:
    optimizer, params, _ = prepared(name)
    return mo.init_sharded(optimizer, params, zero_plan()) if name == "ZeRO-1" else optimizer.init(params)


@cache
def state_of(name: str) -> Any:
    setting = SETTINGS[name]
    if setting.build is None:
        return torch_state()
    (_, params, update), state = prepared(name), fresh_of(name)
    for call in range(1, setting.calls + 1):
        _, state = update(tree(call, setting.shapes), state, params, **setting.extra)
    return state


def torch_state() -> dict[str, dict[str, Any]]:
    state = state_of("average")
    (average, *_), (adam, *_) = (state.inner_states[label].inner_state for label in ("muon", "adamw"))
    matrices = {path: {"momentum_buffer": np.asarray(average.ema[path])} for path in SHAPES if LAYOUTS[path]}
    return matrices | {
        path: {"exp_avg": np.asarray(adam.mu[path]), "exp_avg_sq": np.asarray(adam.nu[path]), "step": STEPS}
        for path in SHAPES
        if not LAYOUTS[path]
    }


class Array(NamedTuple):
    """One leaf of a state, as its path says."""

    number: int
    place: str  # of its transform
    field: str
    path: str
    means: str  # empty for a counter, a setting or a flag
    value: Any

    @property
    def average(self) -> bool:
        return self.field == "ema" or (self.means == "momentum" and self.field in ("mu", "momentum_buffer"))


def arrays_of(state: Any, setting: Setting) -> list[Array]:
    if setting.build is None:
        names = {"momentum_buffer": "momentum", "exp_avg": "first moment", "exp_avg_sq": "second moment", "step": ""}
        flat = [(path, name, value) for path, entry in state.items() for name, value in entry.items()]
        return [Array(i, path, name, path, names[name], value) for i, (path, name, value) in enumerate(flat)]
    found = []
    for number, (keys, value) in enumerate(jax.tree_util.tree_leaves_with_path(state)):
        parts = jax.tree_util.keystr(keys, simple=True, separator="/").split("/")
        path = next((p for p in sorted(setting.shapes, key=len, reverse=True) if "/".join(parts).endswith(f"/{p}")), "")
        own = parts[: len(parts) - len(path.split("/"))] if path else parts
        label = next((part for part in reversed(own) if part in ("muon", "adamw", "adam", "head")), "")
        means = MEANING.get(own[-1], "") if path else ""
        means = setting.meaning.get(f"{label}/{own[-1]}", means) if path else ""
        found.append(Array(number, "/".join(own[:-1]), own[-1], path, means, value))
    return found


def momentum_of(array: Array, arrays: list[Array]) -> np.ndarray:
    """In float32, codes decoded: rows are shorter than a block."""
    value = np.asarray(array.value)
    if array.field != "codes":
        return np.asarray(value, np.float32)
    (scales,) = (np.asarray(one.value) for one in arrays if one.means == "scales" and one.path == array.path)
    if value.dtype == np.uint8:
        low, high = (value & 15).astype(np.int8), (value >> 4).astype(np.int8)
        value = np.stack([low, high], -1).reshape(*value.shape[:-1], -1)
        value = np.where(value > 7, value - 16, value)
    return value.astype(np.float32) * scales


def as_kept(momentum: np.ndarray, average: bool, like: Array) -> Any:
    """A float32 momentum as ``like`` keeps it."""
    if like.average != average:
        momentum = momentum * np.float32(1 - MOMENTUM if like.average else 1 / (1 - MOMENTUM))
    if like.field not in ("codes", "scales"):
        return momentum
    limit = 127 if np.shape(like.value)[-1] == momentum.shape[-1] and like.value.dtype == np.int8 else 7
    return momentum, limit


def coded(momentum: np.ndarray, like: Array, limit: int) -> np.ndarray:
    scales = np.abs(momentum).max(-1, keepdims=True) / np.float32(limit)
    codes = np.round(momentum / scales).astype(np.int8)
    if like.field == "scales":
        return scales
    return (
        codes
        if limit == 127
        else (codes[..., 0::2] & 15).astype(np.uint8) | ((codes[..., 1::2] & 15) << 4).astype(np.uint8)
    )


class ByHand(NamedTuple):
    """A fresh state with the arrays of another, and what of the two was not used."""

    state: Any
    carried: set[int]
    dropped: set[int]


def by_hand(before: str, now: str) -> ByHand:
    one, other = SETTINGS[before], SETTINGS[now]
    given, fresh = arrays_of(state_of(before), one), arrays_of(fresh_of(now), other)
    usual = {own: path for path, own in one.renamed.items()}, {own: path for path, own in other.renamed.items()}
    held = {(usual[0].get(array.path, array.path), array.means): array for array in given if array.means}
    bits = 127 if any(a.field == "codes" and a.value.dtype == np.int8 for a in fresh) else 7
    leaves, carried, used = [array.value for array in fresh], set(), set()
    for array in fresh:
        path = usual[1].get(array.path, array.path)
        found = held.get((path, "momentum" if array.means == "scales" else array.means))
        if not array.means or found is None:
            continue
        whole = momentum_of(found, given) if found.means == "momentum" else np.asarray(found.value)
        shape = other.shapes[array.path] if found.means == "momentum" else np.shape(array.value)
        if whole.shape != shape:
            continue
        if found.means == "momentum":
            kept = as_kept(whole, found.average, array)
            whole = coded(*kept[:1], array, bits) if isinstance(kept, tuple) else kept
        leaves[array.number] = jnp.asarray(whole, array.value.dtype)
        carried.add(array.number)
        used |= {
            a.number
            for a in given
            if a.path == found.path and a.means in (found.means, "scales" if found.field == "codes" else found.means)
        }
    for array in fresh:
        beside = [a.number for a in fresh if a.place == array.place and a.means and a.means != "sums"]
        alone = array.field == "count" and beside and not carried.intersection(beside)
        if array.field in COUNTERS and not array.path and not alone:
            leaves[array.number] = jnp.asarray(STEPS, jnp.int32)
            carried.add(array.number)
        if array.field == "mini_step" and before == now:
            carried.add(array.number)
    dropped = {array.number for array in given if array.means} - used
    if not any(array.number in carried and array.field in COUNTERS for array in fresh):
        dropped |= {array.number for array in given if array.field in COUNTERS}
    return ByHand(jax.tree.unflatten(jax.tree.structure(fresh_of(now)), leaves), carried, dropped)


def new_names(before: str, now: str) -> dict[str, str]:
    one, other = SETTINGS[before], SETTINGS[now]
    pairs = {one.renamed.get(path, path): other.renamed.get(path, path) for path in SHAPES}
    return {old: new for old, new in pairs.items() if old != new}


def placed_like(state: Any, like: Any) -> Any:
    return jax.tree.map(lambda array, other: jax.device_put(array, other.sharding), state, like)


# XLA multiplies by 1/127 where NumPy divides: the last bit of a scale, and then some of an update in bfloat16.
ROUNDED = ("8 bits", "4 bits")


def assert_close(got: Any, want: Any, within: float, name: str = "") -> None:
    """Equal to the bit, or within a share of the norm; NaN fails."""
    one, other = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.linalg.norm(one - other) <= within * np.linalg.norm(other), name


def check_pair(before: str, now: str) -> None:
    earlier, fresh, want = state_of(before), fresh_of(now), by_hand(before, now)
    got, report = mo.carry_over(earlier, fresh, renamed=new_names(before, now))
    assert jax.tree.structure(got) == jax.tree.structure(fresh)
    leaves = [*map(jax.tree_util.keystr, dict(jax.tree_util.tree_leaves_with_path(got)))]
    for name, one, other, place in zip(leaves, *map(jax.tree.leaves, (got, want.state, fresh)), strict=True):
        assert (one.dtype, one.sharding) == (place.dtype, place.sharding), name
        # A momentum of bfloat16 in 4 bits may lie between two codes.
        half_way = now == "4 bits" and one.dtype == jnp.uint8
        assert_close(one, other, 4e-2 if half_way else 2e-7 if now in ROUNDED else 0.0, name)
    # Each array of both states is in one row, and the rows say what happened.
    numbers = [sorted(n for row in report.rows for n in getattr(row, side)) for side in ("earlier", "fresh")]
    count = len(arrays_of(earlier, SETTINGS[before]))
    assert numbers == [[*range(count)], [*range(len(leaves))]]
    assert {n for row in report.carried for n in row.fresh} == want.carried
    assert {n for row in report.dropped for n in row.earlier} - set(flags(before)) == want.dropped
    _, params, update = prepared(now)
    setting = SETTINGS[now]
    states = [got, placed_like(want.state, fresh)]
    for _ in range(2 if now == "MultiSteps" else 1):
        results = [update(tree(9, setting.shapes), state, params, **setting.extra) for state in states]
        states = [after for _, after in results]
        for one, other in zip(*map(jax.tree.leaves, results), strict=True):
            assert_close(one, other, 4e-2 if now in ROUNDED else 0.0)


def flags(before: str) -> list[int]:
    return [a.number for a in arrays_of(state_of(before), SETTINGS[before]) if not a.means and a.field == "mini_step"]


TARGETS = [name for name, setting in SETTINGS.items() if setting.build is not None]


# From one of each kind to all; the slow run tries all pairs.
KINDS = ["float32", "8 bits", "muon_speedrun", "optax.contrib.muon", "torch", "renamed"]
BEFORES = [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]


@pytest.mark.parametrize("now", TARGETS)
@pytest.mark.parametrize("before", BEFORES)
def test_from_each_to_each(before: str, now: str) -> None:
    check_pair(before, now)
