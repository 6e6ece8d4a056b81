"""A state under other settings: every pair goes on as the settings of now would, or is refused by what changed."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import muon_optax as mo

pytestmark = pytest.mark.no_cover  # as in test_contract.py

SHAPES = {
    "embedding": (6, 4), "q_proj": (4, 4), "k_proj": (4, 4), "up": (4, 8), "down": (8, 4), "bias": (8,), "head": (4, 6),
}  # fmt: skip
LAYOUTS = {"embedding": None, "q_proj": "io", "k_proj": "io", "up": "io", "down": "io", "bias": None, "head": None}
STEPS = 2


class Setting(NamedTuple):
    """An optimizer, what its state keeps beside the plain ``muon``'s, by the argument that says so, and its model."""

    build: Callable[[], Any]
    keeps: Mapping[str, str] = {}
    shapes: Mapping[str, tuple[int, ...]] = SHAPES
    extra: Mapping[str, Any] = {}


def muon(**arguments: Any) -> Callable[[], Any]:
    return lambda: mo.muon(**{"learning_rate": 0.02, "layouts": LAYOUTS} | arguments)


def falling(value: float) -> optax.Schedule:
    return optax.linear_schedule(value, 0.0, 10)


def first_axes(params: Any) -> Any:
    return {path: path != "embedding" for path in params}


def without(*paths: str) -> dict[str, tuple[int, ...]]:
    return {path: shape for path, shape in SHAPES.items() if path not in paths}


def normuon(**arguments: Any) -> Callable[[], Any]:
    return lambda: mo.recipes.normuon(0.02, **{"layouts": LAYOUTS} | arguments)


def muon_h(**arguments: Any) -> Callable[[], Any]:
    return lambda: mo.recipes.muon_h(
        0.02, **{"adamw_learning_rate": 0.003, "layouts": LAYOUTS, "heads": ("head",)} | arguments
    )


def muon_speedrun(**arguments: Any) -> Callable[[], Any]:
    plain = {"learning_rate": 0.02, "adamw_learning_rate": 0.003, "layouts": LAYOUTS}
    return lambda: mo.recipes.muon_speedrun(**plain | arguments)


TO_ADAMW, TO_MUON = LAYOUTS | {"up": None}, LAYOUTS | {"embedding": "io"}
FEW = {path: layout for path, layout in LAYOUTS.items() if path != "down"}
MORE = LAYOUTS | {"third": "io"}
NORMUON, SPEEDRUN = {"recipe": "second moments", "axis": "output"}, {"recipe": "second moments", "axis": "longer"}
SPHERES = {"recipe": "spheres", "adamw": "head and Adam"}
BY_PATH = {
    "up": mo.Settings(learning_rate=0.5, weight_decay=2.0, momentum=0.8, scale="mup", orthogonalizer=mo.polar_factor()),
    "embedding": mo.Settings(learning_rate=falling(1.0), weight_decay=falling(1.0)),
}
FALLING = {"*": mo.Settings(learning_rate=falling(1.0), momentum=falling(0.9))}
SETTINGS = {
    "default": Setting(muon()),
    "rate": Setting(muon(learning_rate=falling(0.02))),
    "decay": Setting(muon(weight_decay=falling(0.1))),
    "decay and rate": Setting(muon(weight_decay=falling(0.1), learning_rate=falling(0.02))),
    "no decay": Setting(muon(weight_decay=0.0)),
    "other momentum": Setting(muon(momentum=0.9)),
    "scheduled momentum": Setting(muon(momentum=lambda step: 0.8 + 0.01 * step)),
    "no nesterov": Setting(muon(nesterov=False)),
    "bfloat16 momentum": Setting(muon(momentum_dtype=jnp.bfloat16)),
    "optax.trace": Setting(muon(momentum=optax.trace(0.9))),
    "quantized": Setting(muon(momentum=mo.quantized_trace(0.95)), {"momentum": "8 bits"}),
    "4 bits": Setting(muon(momentum=mo.quantized_trace(0.95, bits=4)), {"momentum": "4 bits"}),
    "average": Setting(muon(momentum=mo.nesterov_ema(0.95)), {"momentum": "average"}),
    "optax.ema": Setting(muon(momentum=optax.ema(0.95)), {"momentum": "average"}),
    "scale": Setting(muon(scale="keller")),
    "orthogonalizer": Setting(muon(orthogonalizer=mo.polar_factor())),
    "up to AdamW": Setting(muon(layouts=TO_ADAMW), {"layouts": "up"}),
    "embedding to Muon": Setting(muon(layouts=TO_MUON), {"layouts": "embedding"}),
    "other letters": Setting(muon(layouts=LAYOUTS | {"up": "oi"})),
    "mask, a tree": Setting(muon(weight_decay_mask={path: path == "up" for path in SHAPES})),
    "mask, a function": Setting(muon(weight_decay_mask=first_axes)),
    "AdamW's rate": Setting(muon(adamw_learning_rate=0.003)),
    "AdamW's schedule": Setting(muon(adamw_learning_rate=falling(0.003))),
    "optax.adamw": Setting(muon(adamw=optax.adamw(0.003))),
    "optax.adamw, masked decay": Setting(muon(adamw=optax.adamw(falling(0.003), mask=first_axes))),
    "optax.adam": Setting(muon(adamw=optax.adam(0.003))),
    "masked adamw": Setting(muon(adamw=optax.masked(optax.adamw(0.003), first_axes)), {"mask": "not the embedding"}),
    "sgd": Setting(muon(adamw=optax.sgd(0.1)), {"adamw": "sgd"}),
    "lion": Setting(muon(adamw=optax.lion(0.001)), {"adamw": "lion"}),
    "adabelief": Setting(muon(adamw=optax.adabelief(0.001)), {"adamw": "adabelief"}),
    "by path": Setting(muon(by_path=BY_PATH)),
    "by path, other optimizer": Setting(muon(adamw=optax.sgd(0.1), by_path=FALLING), {"adamw": "sgd"}),
    "held idle": Setting(lambda: mo.hold_idle_matrices(muon()(), LAYOUTS)),
    "by hand": Setting(
        lambda: mo.partition_by_layout(
            optax.chain(
                optax.trace(0.95, nesterov=True),
                mo.orthogonalize_via_newton_schulz(),
                mo.scale_by_shape(),
                optax.add_decayed_weights(0.1),
                optax.scale_by_learning_rate(0.02),
            ),
            optax.adamw(0.02, b2=0.95, weight_decay=0.1),
            LAYOUTS,
        )
    ),
    "normuon": Setting(normuon(), NORMUON),
    "normuon, by path": Setting(normuon(by_path=BY_PATH), NORMUON),
    "normuon, momentum": Setting(normuon(momentum=falling(0.9)), NORMUON),
    "normuon, longer": Setting(normuon(axis="longer"), SPEEDRUN),
    "normuon, other letters": Setting(normuon(layouts=LAYOUTS | {"up": "oi"}), NORMUON | {"letters": "up"}),
    "muon_h": Setting(muon_h(), SPHERES),
    "muon_h, rates": Setting(muon_h(adamw_learning_rate=falling(0.003)), SPHERES),
    "muon_h, no heads": Setting(muon_h(heads=()), SPHERES | {"heads": "none"}),
    "muon_speedrun": Setting(muon_speedrun(), SPEEDRUN),
    "muon_speedrun, rates": Setting(muon_speedrun(learning_rate=falling(0.02), momentum=0.95), SPEEDRUN),
    "muon_clip": Setting(
        lambda: mo.recipes.muon_clip(0.02, layouts=LAYOUTS),
        {"recipe": "clipped"},
        extra={"max_logits": jnp.array([50.0, 200.0])},
    ),
    "injected adamw": Setting(muon(adamw=optax.inject_hyperparams(optax.adamw)(0.003)), {"adamw": "injected"}),
    "injected sgd": Setting(muon(adamw=optax.inject_hyperparams(optax.sgd)(0.003)), {"adamw": "injected sgd"}),
    "injected schedule": Setting(
        muon(adamw=optax.inject_hyperparams(optax.adamw)(falling(0.003))), {"adamw": "injected schedule"}
    ),
    "a layer fewer": Setting(muon(layouts=FEW), {"model": "fewer"}, without("down")),
    "a layer more": Setting(muon(layouts=MORE), {"model": "more"}, SHAPES | {"third": (4, 4)}),
    "a wider layer": Setting(muon(), {"model": "wider"}, SHAPES | {"up": (4, 16), "bias": (16,)}),
}
# What the message says of each argument.
SAID = {
    "momentum": r"momentum=",
    "layouts": r"layouts= or the default rules changed",
    "letters": r"layouts=",
    "axis": r"axis=",
    "adamw": r"adamw= was replaced|What Inject\w+ wraps \(adamw=\) changed",
    "mask": r"mask around ScaleByAdamState changed|a mask hid it from `init`",
    "heads": r"heads=",
    "recipe": r"another recipe|wrapper or chain|`init` of muon_clip",
    "model": r"The updates are not the tree of init: '(down|third|up|bias)' has shape",
}


def tree(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    return {
        path: jnp.asarray(np.cos(seed + index + 1.7 * np.arange(np.prod(shape)) ** 1.5).reshape(shape), jnp.float32)
        for index, (path, shape) in enumerate(shapes.items())
    }


@cache
def state_of(name: str) -> Any:
    setting = SETTINGS[name]
    optimizer, params = setting.build(), tree(0, setting.shapes)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step in range(1, STEPS + 1):
        _, state = update(tree(step, setting.shapes), state, params, **setting.extra)
    return state


def key_of(path: Any) -> str:
    """A leaf's place, whatever masks are around it and however its counter is called."""
    names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    return "/".join("count" if name == "step" else name for name in names if name != "inner_state")


def by_hand(state: Any, fresh: Any) -> Any:
    """The arrays of ``state`` in the structure of ``fresh``, all counters at the run's step."""
    arrays = {key_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}

    def place(path: Any, leaf: Any) -> Any:
        counts = not leaf.shape and jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.asarray(STEPS, leaf.dtype) if counts else arrays[key_of(path)]

    return jax.tree_util.tree_map_with_path(place, fresh)


def differing(before: Setting, now: Setting) -> list[str]:
    return [name for name in SAID if before.keeps.get(name) != now.keeps.get(name)]


def failure(before: str, now: str) -> str | None:
    """What is wrong with the pair, or None."""
    setting = SETTINGS[now]
    optimizer, params, gradients = setting.build(), tree(0, setting.shapes), tree(9, setting.shapes)
    state, changed = state_of(before), differing(SETTINGS[before], setting)
    try:
        updates, after = optimizer.update(gradients, state, params, **setting.extra)
    except ValueError as error:
        if not changed:
            return f"refused, and nothing changed: {error}"
        if not any(re.search(SAID[name], str(error)) for name in changed):
            return f"does not name {changed}: {error}"
        return None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if changed:
        return f"taken, and {changed} changed"
    want, _ = optimizer.update(gradients, by_hand(state, optimizer.init(params)), params, **setting.extra)
    if jax.tree.structure(after) != jax.tree.structure(state):
        return "the state has another structure"
    pairs = zip(*map(jax.tree.leaves, (updates, want)), strict=True)
    same = all(np.isfinite(one).all() and (one == other).all() for one, other in pairs)
    return None if same else "other updates than those of the same arrays in a fresh state"


# One of each kind, and the plain one: all pairs of the others say the same.
KINDS = ["default", "rate", "by hand", "quantized", "up to AdamW", "masked adamw", "sgd", "normuon", "muon_h"]
KINDS += ["muon_clip", "a layer fewer"]


@pytest.mark.parametrize(
    "befores", [pytest.param(KINDS, id="kinds"), pytest.param(list(SETTINGS), marks=pytest.mark.slow, id="all")]
)
@pytest.mark.parametrize("now", SETTINGS)
@pytest.mark.filterwarnings("ignore:momentum_dtype=bfloat16 has no effect:UserWarning")
def test_every_state_goes_on_or_is_refused_by_what_changed(now: str, befores: list[str]) -> None:
    failures = {before: failure(before, now) for before in befores}
    assert not {before: found for before, found in failures.items() if found}


def test_the_table_has_both_answers() -> None:
    answers = [not differing(before, now) for before in SETTINGS.values() for now in SETTINGS.values()]
    assert (len(SETTINGS), len(answers), sum(answers)) == (51, 2601, 575)


# Around whole optimizers. What a wrapped step returns was compared above: here it is only traced.
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda optimizer: optax.chain(optax.clip_by_global_norm(1.0), optimizer),
    "MultiSteps": lambda optimizer: optax.MultiSteps(optimizer, 2),
    "apply_if_finite": lambda optimizer: optax.apply_if_finite(optimizer, 2),
    "masked": lambda optimizer: optax.masked(optimizer, lambda params: {path: path != "bias" for path in params}),
    "partition": lambda optimizer: optax.partition(
        {"ours": optimizer, "sgd": optax.sgd(0.1)},
        lambda params: {path: "sgd" if path == "bias" else "ours" for path in params},
    ),
    "inject_hyperparams": lambda optimizer: optax.inject_hyperparams(
        lambda factor: optax.chain(optimizer, optax.scale(factor))
    )(1.0),
    "conditionally_mask": lambda optimizer: optax.conditionally_mask(optimizer, lambda step: step >= 0),
}


@cache
def wrapped_state_of(wrapper: str, name: str) -> Any:
    setting = SETTINGS[name]
    return jax.eval_shape(WRAPPERS[wrapper](setting.build()).init, tree(0, setting.shapes))


def wrapped_failure(wrapper: str, before: str, now: str) -> str | None:
    state, other = wrapped_state_of(wrapper, before), SETTINGS[now]
    changed = differing(SETTINGS[before], other)
    params, optimizer = tree(0, other.shapes), WRAPPERS[wrapper](other.build())
    try:
        _, after = jax.eval_shape(optimizer.update, params, state, params)
    except ValueError as error:
        told = any(re.search(SAID[name], str(error)) for name in changed)
        # The sums of optax.MultiSteps are of the old model, which Optax itself finds first.
        foreign = wrapper == "MultiSteps" and "model" in changed
        return None if told or foreign else f"does not name {changed}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if not changed and jax.tree.structure(after) == jax.tree.structure(state) else f"taken: {changed}"


ALIKE = ("apply_if_finite", "masked", "conditionally_mask")  # to those that the default run takes


@pytest.mark.parametrize(
    "wrapper", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in WRAPPERS]
)
def test_wrappers_pass_on_what_changed(wrapper: str) -> None:
    kinds = [name for name in KINDS if name != "muon_clip"]  # whose maxima wrappers don't hand on alike
    failures = {(before, now): wrapped_failure(wrapper, before, now) for before in kinds for now in kinds}
    assert not {pair: found for pair, found in failures.items() if found}


def test_the_remedy_of_other_routes_is_right() -> None:
    both = LAYOUTS | {"up": None, "embedding": "io", "head": "io"}
    optimizer, params = muon(layouts=both)(), tree(0, SHAPES)
    with pytest.raises(ValueError, match=r"'embedding' was trained by AdamW .* goes to Muon now \(3 such") as refusal:
        optimizer.update(params, state_of("default"), params)
    assert "layouts={'embedding': None, 'head': None} sends them back to AdamW" in str(refusal.value)
    assert "the layout that it had takes 'up' back to Muon" in str(refusal.value)
    back = muon(layouts=both | {"embedding": None, "head": None, "up": "io"})()
    updates, _ = back.update(params, state_of("default"), params)
    want, _ = muon()().update(params, state_of("default"), params)
    for path in SHAPES:
        np.testing.assert_array_equal(updates[path], want[path])


@pytest.mark.parametrize("given", [{"up": None}, {}], ids=["None", "left out"])
def test_gradients_are_blamed_where_they_are_incomplete(given: dict[str, Any]) -> None:
    params = tree(0, SHAPES)
    partial = {path: leaf for path, leaf in params.items() if path != "up"} | given
    optimizer = mo.muon(0.02, layouts=LAYOUTS if given else {path: LAYOUTS[path] for path in partial})
    with pytest.raises(ValueError, match=r"'up' has shape none \(missing\) in the updates .* Pass gradients of"):
        optimizer.update(partial, state_of("default"), params if given else partial)


INSIDE = {
    "a chain": (lambda optimizer: optax.chain(optax.clip_by_global_norm(1.0), optimizer), r"give state\[1\]\."),
    "MultiSteps": (lambda optimizer: optax.MultiSteps(optimizer, 2), r"give state\.inner_opt_state\."),
}


@pytest.mark.parametrize("wrapper", INSIDE)
def test_the_state_of_a_wrapper_is_found_inside(wrapper: str) -> None:
    wrap, message = INSIDE[wrapper]
    params = tree(0, SHAPES)
    with pytest.raises(ValueError, match=message):
        muon()().update(params, wrap(muon()()).init(params), params)
