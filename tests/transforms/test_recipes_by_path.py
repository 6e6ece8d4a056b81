"""Settings by path in the recipes: each parameter goes as under a chain of public parts that is its own."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from meshes import mesh_of, random_tree, shardings

import muon_optax as mo
from muon_optax import recipes

RATE, ADAM, DECAY, SAME = 0.02, 0.003, 1.2, 1e-5
SHAPES = {"embed": (16, 8), "q0": (8, 8), "q1": (8, 8), "up0": (8, 16), "up1": (8, 16), "bias": (8,), "head": (8, 16)}
LAYOUTS = {path: "io" if path[:2] in ("q0", "q1", "up") else None for path in SHAPES}
PARAMS, GRADIENTS = random_tree(SHAPES, 0), [random_tree(SHAPES, 1 + step) for step in range(3)]
SINE = jnp.sin  # which function runs where is what is asked


def rising(step: Any) -> Any:
    return 0.5 + 0.25 * step


def times(value: Any, factor: Any) -> Any:
    """A schedule, whatever the two are."""
    each = [one if callable(one) else (lambda _, one=one: one) for one in (value, 1.0 if factor is None else factor)]
    return lambda step: each[0](step) * each[1](step)


def given(own: mo.Settings, name: str, everywhere: Any) -> Any:
    return own.given.get(name, everywhere)


def leaf_of_muon_h(path: str, own: mo.Settings, rate: Any) -> optax.GradientTransformation:
    layouts = {path: LAYOUTS[path] or "io"}
    if LAYOUTS[path]:
        return optax.chain(
            mo.scheduled_trace(given(own, "momentum", 0.95), nesterov=True),
            mo.orthogonalize(given(own, "orthogonalizer", mo.newton_schulz(mo.YOU_JIACHENG)), layouts=layouts),
            mo.scale_by_hyperball(times(rate, own.learning_rate), layouts=layouts),
        )
    adam, factor = optax.scale_by_adam(b1=0.9, b2=0.95), times(ADAM, own.learning_rate)
    if path == "head":
        return optax.chain(adam, mo.scale_by_hyperball(factor, layouts=layouts))
    return optax.chain(adam, optax.scale_by_learning_rate(factor))


def leaf_of_muon_speedrun(path: str, own: mo.Settings, rate: Any) -> optax.GradientTransformation:
    layouts = {path: LAYOUTS[path]}
    if LAYOUTS[path]:
        own_rate = times(rate, own.learning_rate)
        return optax.chain(
            mo.scheduled_trace(given(own, "momentum", optax.linear_schedule(0.85, 0.95, 300)), nesterov=True),
            mo.orthogonalize(
                given(own, "orthogonalizer", mo.newton_schulz(recipes._coefficients_of_the_record())), layouts=layouts
            ),
            mo.scale_by_normuon(0.9, axis="longer", layouts=layouts),
            mo.add_cautious_decayed_weights(times(own_rate, times(DECAY, own.weight_decay))),
            mo.scale_by_shape(given(own, "scale", "keller"), layouts=layouts),
            optax.scale_by_learning_rate(own_rate),
        )
    decay = times(1e-4, own.weight_decay) if path in ("embed", "head") else 0.0
    return optax.adamw(times(ADAM, own.learning_rate), b1=0.9, b2=0.95, weight_decay=decay)


BUILD: dict[str, Callable[..., Any]] = {
    "muon_h": lambda rate=RATE, **arguments: recipes.muon_h(
        rate, adamw_learning_rate=ADAM, layouts=LAYOUTS, heads=("head",), **arguments
    ),
    "muon_speedrun": lambda rate=RATE, **arguments: recipes.muon_speedrun(
        rate, adamw_learning_rate=ADAM, layouts=LAYOUTS, **arguments
    ),
}
LEAF = {"muon_h": leaf_of_muon_h, "muon_speedrun": leaf_of_muon_speedrun}
RATES = {
    "?0": mo.Settings(learning_rate=0.5),
    "embed": mo.Settings(learning_rate=rising),
    "head": mo.Settings(learning_rate=2.0),
    "up1": mo.Settings(learning_rate=rising),
}
MATRICES = {
    "up?": mo.Settings(momentum=0.5),
    "q0": mo.Settings(momentum=lambda step: 0.9 - 0.1 * step, orthogonalizer=SINE, learning_rate=3.0),
}
ONLY_SPEEDRUN = {
    "?0": mo.Settings(weight_decay=0.0),
    "[eh]*": mo.Settings(weight_decay=100.0, learning_rate=2.0),
    "*1": mo.Settings(weight_decay=lambda step: 1.0 + step, scale="mup", learning_rate=2.0),
}
USES: dict[str, tuple[str, Mapping[str, mo.Settings]]] = {
    **{f"{recipe}, rates": (recipe, RATES) for recipe in BUILD},
    **{f"{recipe}, matrices": (recipe, MATRICES) for recipe in BUILD},
    "muon_speedrun, decay and scale": ("muon_speedrun", ONLY_SPEEDRUN),
}


def acting(by_path: Mapping[str, mo.Settings], path: str) -> mo.Settings:
    """What acts on a path; the globs above say it in three ways."""
    words = {"?0": {"q0"}, "up?": {"up0", "up1"}, "[eh]*": {"embed", "head"}, "*1": {"q1", "up1"}}
    return next((own for glob, own in by_path.items() if path in words.get(glob, {glob})), mo.Settings())


def run(optimizer: Any, params: Any = PARAMS, gradients: Any = GRADIENTS, state: Any = None) -> Any:
    update, state = jax.jit(optimizer.update), optimizer.init(params) if state is None else state
    for own in gradients:
        updates, state = update(own, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_near(got: Any, want: Any) -> None:
    for path in want:
        moved = np.abs(np.asarray(want[path]) - np.asarray(PARAMS[path])).max()
        np.testing.assert_allclose(got[path], want[path], rtol=0, atol=SAME * max(0.1, moved), err_msg=path)


@pytest.mark.parametrize(
    "rate",
    [
        pytest.param(RATE, id="number"),
        pytest.param(optax.linear_schedule(RATE, 0.0, 10), id="schedule", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("use", USES)
def test_each_parameter_goes_as_it_would_alone(use: str, rate: Any) -> None:
    recipe, by_path = USES[use]
    got = run(BUILD[recipe](rate, by_path=by_path))
    alone = optax.partition(
        {path: LEAF[recipe](path, acting(by_path, path), rate) for path in SHAPES}, {path: path for path in SHAPES}
    )
    assert_near(got, run(alone))
    # And nothing else moves otherwise than without settings.
    plain = run(BUILD[recipe](rate))
    differing = {path for path in SHAPES if not np.allclose(got[path], plain[path], rtol=1e-6, atol=0)}
    assert differing == {path for path in SHAPES if acting(by_path, path) != mo.Settings()}


@pytest.mark.parametrize("use", USES)
def test_the_state_knows_nothing_of_it(use: str) -> None:
    recipe, by_path = USES[use]
    assert jax.eval_shape(BUILD[recipe](by_path=by_path).init, PARAMS) == jax.eval_shape(BUILD[recipe]().init, PARAMS)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", BUILD)
def test_on_a_mesh_as_on_one_device(recipe: str) -> None:
    places = shardings(mesh_of(data=8), {path: P("data") for path in SHAPES})
    one, two = (mo.newton_schulz(mo.CUBIC[:steps], dtype=jnp.float32) for steps in (1, 2))
    by_path = {
        "q?": mo.Settings(learning_rate=3.0, orthogonalizer=two),
        "up?": mo.Settings(momentum=0.5, orthogonalizer=one),
        "head": RATES["head"],
    }
    optimizer = BUILD[recipe](by_path=by_path, shardings=places)
    params = jax.device_put(PARAMS, places)
    gradients = [jax.device_put(own, places) for own in GRADIENTS]
    got = run(optimizer, params, gradients, mo.init_sharded(optimizer, params, places))
    assert_near(jax.device_get(got), run(BUILD[recipe](by_path=by_path)))


REFUSED: dict[str, tuple[str, Mapping[str, mo.Settings], str]] = {
    "decay on a sphere": (
        "muon_h",
        {"up?": mo.Settings(learning_rate=2.0, weight_decay=0.0)},
        r"by_path\['up\?'\] sets weight_decay, which has no meaning in muon_h: nothing decays there",
    ),
    "scale on a sphere": (
        "muon_h",
        {"q0": mo.Settings(), "up?": mo.Settings(scale="mup")},
        r"by_path\['up\?'\] sets scale, which has no meaning in muon_h: each step has the size",
    ),
    "momentum beside a transform": (
        "muon_h",
        {"up?": mo.Settings(momentum=0.5)},
        r"by_path\['up\?'\] sets momentum, which says nothing beside a transform in momentum=",
    ),
    "no mapping": ("muon_speedrun", [("up?", 0.1)], r"by_path=\[.* give a mapping such as"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_where_it_is_written(case: str) -> None:
    recipe, by_path, message = REFUSED[case]
    arguments = {"momentum": mo.nesterov_ema(0.9)} if "transform" in case else {}
    with pytest.raises((TypeError, ValueError), match=message):
        BUILD[recipe](by_path=by_path, **arguments)


@pytest.mark.parametrize("recipe", BUILD)
def test_a_glob_that_matches_nothing_is_refused_at_init(recipe: str) -> None:
    optimizer = BUILD[recipe](by_path={"router": mo.Settings(learning_rate=0.1)})
    with pytest.raises(ValueError, match=r"by_path names 'router', which matches no parameter"):
        optimizer.init(PARAMS)
