"""Settings by path: what each parameter would do alone under its own optimizer, in one call and one state."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from places import TESTS
from trees_as_text import tree_of

import muon_optax as mo
from muon_optax._layouts.paths import named_leaves

RATE, DECAY, SAME = 0.02, 0.1, 1e-5
# Which function runs where is what is asked here, and these compile at once. The mesh's tests run Newton-Schulz.
TANH, ARCTAN = jnp.tanh, jnp.arctan
SHAPES = {
    "embed/table": (10, 6),
    **{
        f"layers/{layer}/{name}": shape
        for layer in range(2)
        for name, shape in {"q/kernel": (6, 6), "up/kernel": (6, 8), "up/bias": (8,), "norm/scale": (6,)}.items()
    },
    "lm_head/kernel": (6, 10),
}


def nested(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Any:
    rng, tree = np.random.default_rng(seed), {}
    for path, shape in shapes.items():
        *scopes, name = path.split("/")
        node = tree
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[name] = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return tree


def rising(step: Any) -> Any:
    return 0.5 + 0.25 * step


def run(optimizer: Any, shapes: Mapping[str, tuple[int, ...]] = SHAPES, steps: int = 3, state: Any = None) -> Any:
    """The updates of each step, and the last state."""
    params, update, found = nested(shapes, 0), jax.jit(optimizer.update), []
    state = optimizer.init(params) if state is None else state
    for step in range(1, steps + 1):
        updates, state = update(nested(shapes, step), state, params)
        params = optax.apply_updates(params, updates)
        found.append(updates)
    return found, state


def alone(params: Any, given: Callable[[str], mo.Settings], layouts: Mapping[str, Any], **arguments: Any) -> Any:
    """Every parameter under an optimizer of its own, which has its settings as plain arguments."""

    def optimizer(path: str) -> optax.GradientTransformation:
        own = given(path)
        values: dict[str, Any] = {"orthogonalizer": TANH, "layouts": {path: layouts[path]}} | arguments
        for name, value in {"learning_rate": RATE, "weight_decay": DECAY}.items():
            factor, value = getattr(own, name), arguments.get(name, value)
            values[name] = value if factor is None else times(value, factor)
        values |= {name: own.given[name] for name in ("momentum", "scale", "orthogonalizer") if name in own.given}
        return mo.muon(values.pop("learning_rate"), **values)

    leaves = named_leaves(params)
    labels = jax.tree.unflatten(jax.tree.structure(params), [leaf.path for leaf in leaves])
    return optax.partition({leaf.path: optimizer(leaf.path) for leaf in leaves}, labels)


def times(value: Any, factor: Any) -> Any:
    if not callable(value) and not callable(factor):
        return value * factor
    return lambda step: (value(step) if callable(value) else value) * (factor(step) if callable(factor) else factor)


def assert_near(got: Any, want: Any) -> None:
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        largest = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=SAME * largest, err_msg=jax.tree_util.keystr(path))


USES: dict[str, dict[str, mo.Settings]] = {
    "rate, both branches": {"layers/*": mo.Settings(learning_rate=0.5), "embed*": mo.Settings(learning_rate=3)},
    "a schedule of rates": {"*q/*": mo.Settings(learning_rate=rising), "embed*": mo.Settings(learning_rate=rising)},
    "decay": {"layers/0/*": mo.Settings(weight_decay=0), "embed*": mo.Settings(weight_decay=rising)},
    "momentum": {"layers/0/*": mo.Settings(momentum=0.5), "layers/1/*": mo.Settings(momentum=lambda s: 0.9 - 0.1 * s)},
    "scale": {"*up/*": mo.Settings(scale="mup"), "*q/*": mo.Settings(scale=lambda fan_in, fan_out: fan_in / fan_out)},
    "steps": {"layers/1/*": mo.Settings(orthogonalizer=ARCTAN)},
    "all, overlapping": {
        "layers/1/*": mo.Settings(
            learning_rate=0.1, weight_decay=10, momentum=0.7, scale="keller", orthogonalizer=ARCTAN
        ),
        "*/kernel": mo.Settings(learning_rate=2.0),
        "layers/1/up/kernel": mo.Settings(),  # an exact path, so before the globs
    },
}
LAYERS = [
    {f"layers/{layer}/{name}" for name in ("q/kernel", "up/kernel", "up/bias", "norm/scale")} for layer in range(2)
]
MATRICES = [{f"layers/{layer}/{name}" for name in ("q/kernel", "up/kernel")} for layer in range(2)]
QUERIES = {f"layers/{layer}/q/kernel" for layer in range(2)}
ACT: dict[str, set[str]] = {
    "rate, both branches": {"embed/table"}.union(*LAYERS),
    "a schedule of rates": {"embed/table"} | QUERIES,  # of the third step: 1.0 after 0.5 and 0.75, by what came before
    "decay": {"embed/table"} | MATRICES[0],
    "momentum": MATRICES[0] | MATRICES[1],
    "scale": set().union(*MATRICES),
    "steps": MATRICES[1],
    "all, overlapping": LAYERS[1] - {"layers/1/up/kernel"} | MATRICES[0] | {"lm_head/kernel"},
}


def acting(by_path: Mapping[str, mo.Settings]) -> Callable[[str], mo.Settings]:
    """The definition: an exact path, then the first glob; globs here hold stars only."""

    def given(path: str) -> mo.Settings:
        if path in by_path:
            return by_path[path]
        return next((own for glob, own in by_path.items() if star_matches(glob, path)), mo.Settings())

    return given


def star_matches(glob: str, path: str) -> bool:
    first, *rest = glob.split("*")
    if not rest or not path.startswith(first):
        return glob == path
    path = path[len(first) :]
    for part in rest[:-1]:
        if part not in path:
            return False
        path = path.split(part, 1)[1]
    return path.endswith(rest[-1])


@cache
def layouts_of() -> dict[str, Any]:
    return mo.assign_layouts(nested(SHAPES, 0))


@pytest.mark.parametrize("use", USES)
def test_equals_single_leaves(use: str) -> None:
    got, _ = run(mo.muon(RATE, orthogonalizer=TANH, by_path=USES[use]))
    want, _ = run(alone(nested(SHAPES, 0), acting(USES[use]), layouts_of()))
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)
    plain, _ = run(mo.muon(RATE, orthogonalizer=TANH))
    differing = {
        leaf.path
        for leaf, one in zip(named_leaves(got[-1]), jax.tree.leaves(plain[-1]), strict=True)
        if not np.allclose(leaf.value, one, rtol=1e-3, atol=0)
    }
    assert differing == ACT[use]


BASES: dict[str, dict[str, Any]] = {
    "schedules": {"learning_rate": optax.linear_schedule(0.02, 0.0, 10), "weight_decay": lambda step: 0.1 + step},
    "mask": {"weight_decay_mask": lambda params: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)},
    "adamw_learning_rate": {"adamw_learning_rate": 0.001},
}
FACTORS = {
    "layers/0/*": mo.Settings(learning_rate=0.5, weight_decay=2),
    "embed*": mo.Settings(learning_rate=rising, weight_decay=rising),
}


@pytest.mark.parametrize("base", BASES)
def test_factors_multiply_what_the_optimizer_has(base: str) -> None:
    arguments = {"learning_rate": RATE, "orthogonalizer": TANH} | BASES[base]
    got, _ = run(mo.muon(**arguments, by_path=FACTORS))
    rate_of_adamw = arguments.pop("adamw_learning_rate", None)

    def given(path: str) -> mo.Settings:
        own = acting(FACTORS)(path)
        if rate_of_adamw is None or layouts_of()[path] is not None:
            return own
        # Alone, a parameter of AdamW is at AdamW's rate.
        return mo.Settings(
            learning_rate=times(own.learning_rate or 1.0, rate_of_adamw / RATE), weight_decay=own.weight_decay
        )

    want, _ = run(alone(nested(SHAPES, 0), given, layouts_of(), **arguments))
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("adamw", [optax.adamw(0.003), optax.sgd(0.1)], ids=["adamw", "sgd"])
def test_a_rate_acts_on_the_update_of_any_other_transform(adamw: Any) -> None:
    by_path = {
        "layers/0/*": mo.Settings(learning_rate=0.5, weight_decay=2),
        "embed*": mo.Settings(learning_rate=rising),
    }
    got, state = run(mo.muon(RATE, orthogonalizer=TANH, adamw=adamw, by_path=by_path))
    plain, _ = run(mo.muon(RATE, orthogonalizer=TANH, adamw=adamw), steps=1)
    first = jax.tree.map(lambda leaf: leaf, plain[0])
    first["embed"]["table"] *= 0.5
    first["layers"]["0"]["up"]["bias"] *= 0.5
    first["layers"]["0"]["norm"]["scale"] *= 0.5
    # Of Muon's own the rate and the decay are multiplied as ever.
    matrices, _ = run(mo.muon(RATE, orthogonalizer=TANH, by_path=by_path), steps=1)
    for leaf, other, own in zip(named_leaves(got[0]), jax.tree.leaves(first), jax.tree.leaves(matrices), strict=True):
        want = other if layouts_of()[leaf.path] is None else own
        np.testing.assert_allclose(leaf.value, want, rtol=1e-6, err_msg=leaf.path)
    # The third step's factor is 1, so what trains the table sees the step.
    later, _ = run(mo.muon(RATE, orthogonalizer=TANH, adamw=adamw), state=state, steps=1)
    again, _ = run(mo.muon(RATE, orthogonalizer=TANH, adamw=adamw, by_path=by_path), state=state, steps=1)
    np.testing.assert_allclose(again[0]["embed"]["table"], 1.25 * later[0]["embed"]["table"], rtol=1e-6)


REAL: dict[str, dict[str, mo.Settings]] = {
    "hf_gpt2": {  # rates by layer, and norms
        "*/h/0/*": mo.Settings(learning_rate=0.5, weight_decay=2),
        "*wte*": mo.Settings(learning_rate=3),
        "*/ln_*": mo.Settings(learning_rate=0.1),
    },
    "maxtext_mixtral-8x7b_scan": {  # a router
        "*/gate/kernel": mo.Settings(learning_rate=0.1),
        "*/MoeBlock_0/*": mo.Settings(weight_decay=0, scale="mup"),
        "*": mo.Settings(learning_rate=2),
    },
    "hk_layers": {"attn/*": mo.Settings(momentum=0.5), "*/w": mo.Settings(learning_rate=rising)},
    "openpi_pi0_lora": {"*lora_b": mo.Settings(learning_rate=16), "PaliGemma/img/*": mo.Settings(weight_decay=0)},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "maxtext_mixtral-8x7b_scan")) for name in REAL]
)
def test_equals_single_leaves_on_real_trees(name: str) -> None:
    """Paths and layouts are those of the model, sizes at most 4."""
    leaves = json.loads((TESTS / "real_models" / f"{name}.json").read_text("utf-8"))["leaves"]
    real, shapes = tree_of(leaves), {path: tuple(min(size, 4) for size in shape) for path, shape, *_ in leaves}
    layouts = {
        path: layout and mo.Layout(layout.axes)  # the blocks of a fused projection have the real sizes
        for path, layout in mo.assign_layouts(real).items()
    }
    by_path = REAL[name]
    got, _ = run(mo.muon(RATE, orthogonalizer=TANH, layouts=layouts, by_path=by_path), shapes, 2)
    want, _ = run(alone(nested(shapes, 0), acting(by_path), layouts), shapes, 2)
    for one, other in zip(got, want, strict=True):
        assert_near(one, other)


RECIPES = {
    "normuon": lambda **arguments: mo.recipes.normuon(RATE, **arguments),
    "muon_clip": lambda **arguments: mo.recipes.muon_clip(RATE, **arguments),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_take_settings_too(recipe: str) -> None:
    build, params = RECIPES[recipe], nested({"q_proj": (4, 6), "k_proj": (4, 6), "bias": (6,)}, 0)
    extra = {"max_logits": jnp.array([50.0, 50.0])} if recipe == "muon_clip" else {}
    by_path = {"q_*": mo.Settings(learning_rate=2.0, weight_decay=0), "bias": mo.Settings(learning_rate=0.5)}
    plain, ours = build(weight_decay=0.0), build(by_path=by_path)
    gradients = nested({"q_proj": (4, 6), "k_proj": (4, 6), "bias": (6,)}, 1)
    want, _ = plain.update(gradients, plain.init(params), params, **extra)
    got, state = ours.update(gradients, ours.init(params), params, **extra)
    np.testing.assert_allclose(got["q_proj"], 2 * want["q_proj"], rtol=1e-6)
    np.testing.assert_allclose(got["bias"], 0.5 * want["bias"], rtol=1e-6)
    np.testing.assert_allclose(got["k_proj"], want["k_proj"] - RATE * DECAY * params["k_proj"], rtol=1e-5)
    assert jax.tree.structure(state) == jax.tree.structure(plain.init(params))


# The state and the loops around a step.


@pytest.mark.parametrize("use", USES)
def test_the_state_knows_nothing_of_it(use: str) -> None:
    params = nested(SHAPES, 0)
    plain, ours = mo.muon(RATE), mo.muon(RATE, by_path=USES[use])
    assert jax.eval_shape(ours.init, params) == jax.eval_shape(plain.init, params)


def test_a_run_goes_on_with_other_settings() -> None:
    """Momentum and counters are those of the run, so schedules of factors go on at its step."""
    params = nested(SHAPES, 0)
    _, state = run(mo.muon(RATE, orthogonalizer=TANH), steps=2)
    for use in ("a schedule of rates", "all, overlapping", "momentum"):
        ours = mo.muon(RATE, orthogonalizer=TANH, by_path=USES[use])
        carried, report = mo.carry_over(state, ours.init(params), strict=True)
        assert not report.dropped
        assert not report.afresh
        (got,), after = run(ours, state=state, steps=1)
        (again,), _ = run(ours, state=carried, steps=1)
        single = alone(params, acting(USES[use]), layouts_of())
        _, singles = run(single, steps=0)
        filled, _ = mo.carry_over(state, singles)
        (want,), _ = run(single, state=filled, steps=1)
        assert_near(got, want)
        assert_near(again, want)
        assert jax.tree.structure(after) == jax.tree.structure(state)


def test_scan_and_multi_steps() -> None:
    use = USES["all, overlapping"] | {"embed*": mo.Settings(learning_rate=rising)}
    optimizer = mo.muon(RATE, orthogonalizer=TANH, by_path=use)
    want, last = run(optimizer)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(nested(SHAPES, step) for step in (1, 2, 3)))

    def step(carry: Any, gradient: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), updates

    params = nested(SHAPES, 0)
    (_, state), updates = jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), stacked))()
    assert_near(jax.tree.map(lambda leaf: leaf[-1], updates), want[-1])
    assert_near(state, last)
    accumulating = optax.MultiSteps(optimizer, 2)
    held = accumulating.init(params)
    for _ in range(2):
        updates, held = accumulating.update(nested(SHAPES, 1), held, params)
    assert_near(updates, want[0])


def test_injected_rates_are_multiplied() -> None:
    by_path = {"layers/0/*": mo.Settings(learning_rate=0.5)}
    injected = optax.inject_hyperparams(mo.muon, static_args=("momentum",))(
        RATE, orthogonalizer=None, scale="moonlight", by_path=by_path
    )
    got, state = run(injected, steps=1)
    state.hyperparams["learning_rate"] = jnp.asarray(2 * RATE)
    (first,), (doubled,) = got, run(injected, steps=1, state=injected.init(nested(SHAPES, 0))._replace(
        hyperparams=state.hyperparams))[0]  # fmt: skip
    plain, _ = run(mo.muon(RATE), steps=1)
    np.testing.assert_allclose(first["layers"]["0"]["q"]["kernel"], 0.5 * plain[0]["layers"]["0"]["q"]["kernel"], 1e-2)
    np.testing.assert_allclose(doubled["layers"]["0"]["q"]["kernel"], 2 * first["layers"]["0"]["q"]["kernel"], 1e-2)
    np.testing.assert_allclose(doubled["embed"]["table"], 2 * plain[0]["embed"]["table"], rtol=1e-5)


def test_an_injected_factor_may_change_on_the_way() -> None:
    def build(router: Any) -> Any:
        return mo.muon(RATE, orthogonalizer=TANH, by_path={"*q/*": mo.Settings(learning_rate=router)})

    injected = optax.inject_hyperparams(build)(0.1)
    params = nested(SHAPES, 0)
    state = injected.init(params)
    first, _ = injected.update(nested(SHAPES, 1), state, params)
    state.hyperparams["router"] = jnp.asarray(0.2)
    second, _ = injected.update(nested(SHAPES, 1), state, params)
    np.testing.assert_allclose(second["layers"]["0"]["q"]["kernel"], 2 * first["layers"]["0"]["q"]["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(second["layers"]["0"]["up"]["kernel"], first["layers"]["0"]["up"]["kernel"])


def test_bfloat16_keeps_its_dtypes() -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), nested(SHAPES, 0))
    optimizer = mo.muon(RATE, by_path=FACTORS | USES["all, overlapping"])
    state = jax.eval_shape(optimizer.init, params)
    updates, after = jax.eval_shape(optimizer.update, params, state, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert after == state


@pytest.mark.parametrize("shapes", [{"up": (4, 6)}, {"bias": (6,)}], ids=["matrices", "others"])
def test_a_branch_may_be_empty(shapes: dict[str, tuple[int, ...]]) -> None:
    given = mo.Settings(learning_rate=0.5, weight_decay=rising if "up" in shapes else 0)
    layouts = {"up": "io"} if "up" in shapes else {"bias": None}
    (got,), state = run(mo.muon(RATE, layouts=layouts, by_path={"*": given}), shapes, 1)
    # The factor on the decay begins at a half.
    (want,), plain = run(mo.muon(RATE / 2, weight_decay=DECAY / 2, layouts=layouts), shapes, 1)
    assert_near(got, want)
    assert_near(state, plain)


# What is refused.

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing matches": (
        {"layers/*": mo.Settings(), "router/*": mo.Settings(learning_rate=0.1)},
        r"by_path names 'router/\*', which matches no parameter. The paths are: 'embed/table', ",
    ),
    "shadowed": (
        {"embed*": mo.Settings(), "layers/*": mo.Settings(), "layers/0/*": mo.Settings(learning_rate=0.1)},
        r"by_path\['layers/0/\*'\] never acts: .* is taken by 'layers/\*'. Put it before",
    ),
    "shadowed by two": (
        {
            "*/kernel": mo.Settings(),
            "*/scale": mo.Settings(),
            "*/bias": mo.Settings(),
            "layers/*": mo.Settings(scale="mup"),
        },
        r"by_path\['layers/\*'\] never acts: .* taken by '\*/kernel', '\*/bias', '\*/scale'|taken by '\*/kernel'",
    ),
    "momentum of AdamW's": (
        {"embed*": mo.Settings(momentum=0.5)},
        r"by_path\['embed\*'\] sets momentum, which only matrices have, and AdamW trains .* such as 'embed/table'",
    ),
    "several of AdamW's": (
        {"*/bias": mo.Settings(scale="mup", orthogonalizer=TANH, learning_rate=2.0)},
        r"by_path\['\*/bias'\] sets scale, orthogonalizer, .* Leave them out",
    ),
    "decay of biases": (
        {"*/bias": mo.Settings(weight_decay=2.0)},
        r"by_path\['\*/bias'\] sets weight_decay, .* nothing that it acts on decays: 'layers/0/up/bias' is a bias",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_nothing_is_refused_at_init(case: str) -> None:
    by_path, message = REFUSED[case]
    optimizer, params = mo.muon(RATE, by_path=by_path), nested(SHAPES, 0)
    with pytest.raises(ValueError, match=message):
        optimizer.init(params)
    # A state restored from a run without it is checked as well.
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, mo.muon(RATE).init(params), params)


def test_update_without_params_is_refused_as_without_settings() -> None:
    params = nested(SHAPES, 0)
    for by_path in (None, FACTORS):
        optimizer = mo.muon(RATE, by_path=by_path)
        with pytest.raises(ValueError, match="You are using a transformation that requires the current value of param"):
            optimizer.update(params, optimizer.init(params))


def test_decay_that_is_not_ours_is_refused() -> None:
    params = nested(SHAPES, 0)
    both = {"*": mo.Settings(weight_decay=0.5)}
    with pytest.raises(ValueError, match=r"the transform in adamw= trains 'embed/table' with a decay of its own"):
        mo.muon(RATE, adamw=optax.adamw(0.01), by_path=both).init(params)
    masked = {"layers/0/*": mo.Settings(weight_decay=2.0)}
    mask = {"embed": True, "layers": {"0": False, "1": True}, "lm_head": True}
    with pytest.raises(ValueError, match=r"nothing that it acts on decays: 'layers/0/norm/scale'"):
        mo.muon(RATE, weight_decay_mask=mask, by_path=masked).init(params)
    mo.muon(RATE, weight_decay_mask=mask, by_path={"layers/[01]/*": mo.Settings(weight_decay=2.0)}).init(params)
    # A matrix decays, whatever its name.
    named = {"norm": {"scale": jnp.ones((4, 6))}}
    mo.muon(RATE, layouts={"norm/scale": "io"}, by_path={"norm*": mo.Settings(weight_decay=2.0)}).init(named)
    # Zero is what happens anyway.
    mo.muon(RATE, by_path={"*/bias": mo.Settings(weight_decay=0)}).init(params)
    # A mask may stop above the leaves.
    early = mo.muon(RATE, weight_decay_mask=lambda params: jax.tree.map(lambda _: True, params), by_path=both)
    early.init(params)


def test_a_part_of_a_model_takes_the_settings_of_the_whole() -> None:
    params = nested(SHAPES, 0)
    by_path = {"layers/*": mo.Settings(scale="mup"), "gone/*": mo.Settings(momentum=0.5)}
    optimizer = mo.muon(RATE, by_path=by_path)
    optax.masked(optimizer, {"embed": True, "layers": False, "lm_head": True}).init(params)
    optimizer.init(params | {"gone": None})
    visible = jax.tree.map(lambda leaf: leaf.ndim == 1, params)
    optax.masked(mo.muon(RATE, by_path={"*/up/*": mo.Settings(weight_decay=2.0)}), visible).init(params)
    with pytest.raises(ValueError, match=r"by_path names 'gone/\*'"):
        optimizer.init(params)


ARGUMENTS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no mapping": (lambda: mo.muon(RATE, by_path=[("*", 0.1)]), TypeError, r"by_path=\[.* give a mapping such as"),
    "a number": (lambda: mo.muon(RATE, by_path={"*": 0.1}), TypeError, r"by_path has 0.1 at '\*': give Settings"),
    "a negative factor": (lambda: mo.Settings(learning_rate=-1), ValueError, r"learning_rate=-1 is not allowed"),
    "a factor of infinity": (lambda: mo.Settings(weight_decay=float("inf")), ValueError, r"weight_decay=inf"),
    "a text": (lambda: mo.Settings(learning_rate="half"), TypeError, r"learning_rate='half' is not a number"),
    "momentum of one": (lambda: mo.Settings(momentum=1.0), ValueError, r"momentum=1.0 is not allowed"),
    "a transform": (lambda: mo.Settings(momentum=optax.trace(0.9)), TypeError, r"momentum=.* is not a number"),
    "an unknown scale": (lambda: mo.Settings(scale="big"), ValueError, r"The scale 'big' is not known"),
    "coefficients": (lambda: mo.Settings(orthogonalizer=mo.KELLER), TypeError, r"is not a function: pass one"),
    "an orthogonalizer of two": (
        lambda: mo.Settings(orthogonalizer=lambda matrices, steps: matrices),
        TypeError,
        r"orthogonalizer=<lambda> can't be called with \(matrices\)",
    ),
    "momentum beside a transform": (
        lambda: mo.muon(RATE, momentum=mo.quantized_trace(0.9), by_path={"*": mo.Settings(momentum=0.5)}),
        ValueError,
        r"by_path\['\*'\] sets momentum, which says nothing beside a transform in momentum=",
    ),
    "a schedule that begins at one": (
        lambda: mo.muon(RATE, by_path={"*": mo.Settings(momentum=lambda step: 1.0)}).init(nested(SHAPES, 0)),
        ValueError,
        r"decay\(0\)=1.0 is not allowed",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_are_refused_where_they_are_written(case: str) -> None:
    build, error, message = ARGUMENTS[case]
    with pytest.raises(error, match=message):
        build()
