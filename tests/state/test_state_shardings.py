"""Where momentum lives: with its parameter, or once across the mesh (ZeRO-1)."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AUTO, EXPLICIT, KINDS, ONE_STEP, assert_near, lie_alike, mesh_of, random_tree, shardings, types

import muon_optax as mo

SHAPES = {
    "kernel": (16, 32),
    "query": (16, 4, 8),
    "experts": (4, 16, 8),
    "embedding": (10, 16),
    "bias": (32,),
    "odd": (3,),
}
LAYOUTS = {"query": "ioo", "experts": "bio"}
SPECS = {"kernel": P("data", "model"), "query": P(None, "model"), "embedding": P(None, "data"), "bias": P("data")}
PARAMS, GRADIENTS = random_tree(SHAPES, 30), random_tree(SHAPES, 31)


def places_on(mesh, specs=SPECS):
    return shardings(mesh, {name: specs.get(name, P()) for name in SHAPES})


def muon(passed=None):
    return mo.muon(0.1, layouts=LAYOUTS, orthogonalizer=ONE_STEP, shardings=passed)


def zero1(kind, specs, over="data", **axes):
    """Parameters, gradients, the plan that spreads their state, and an optimizer that follows it."""
    places = places_on(mesh_of(kind, **axes), specs)
    plan = mo.plan(PARAMS, places, LAYOUTS, orthogonalizer=ONE_STEP, over=over)
    return jax.device_put(PARAMS, places), jax.device_put(GRADIENTS, places), plan, muon(plan)


@cache
def one_step():
    """The updates of one device."""
    return jax.jit(muon().update)(GRADIENTS, muon().init(PARAMS), PARAMS)[0]


def momenta(state):
    return state.inner_states["muon"].inner_state[0].trace


def moments(state):
    return state.inner_states["adamw"].inner_state[0]


def test_state_lies_as_its_parameters_and_counters_everywhere():
    mesh = mesh_of(data=4, model=2)
    state = mo.state_shardings(muon(), PARAMS, places_on(mesh))
    for name in ("kernel", "query"):
        assert momenta(state)[name] == NamedSharding(mesh, SPECS[name])
    for moment in (moments(state).mu, moments(state).nu):
        assert {name: moment[name].spec for name in ("embedding", "bias", "odd")} == {
            "embedding": P(None, "data"),
            "bias": P("data"),
            "odd": P(),
        }
    assert moments(state).count == NamedSharding(mesh, P())
    abstract = jax.eval_shape(muon().init, PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)


def test_parameters_on_a_mesh_tell_by_themselves():
    places = places_on(mesh_of(data=4, model=2))
    on_mesh = jax.device_put(PARAMS, places)
    assert mo.state_shardings(muon(), on_mesh) == mo.state_shardings(muon(), PARAMS, places)


def test_any_transform_has_shardings():
    """State of another shape than its parameter belongs to none."""
    place = NamedSharding(mesh_of(data=4), P("data"))
    params = {"w": np.ones((8, 4), np.float32), "inner": {"w": np.ones((4, 8), np.float32)}}
    optimizer = optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=2), optax.ema(0.9))
    state = mo.state_shardings(optimizer, params, jax.tree.map(lambda _: place, params))
    specs = {
        "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    assert {path for path, spec in specs.items() if spec == P("data")} == {"1/ema/w", "1/ema/inner/w"}
    assert len(specs) > 4


def test_state_is_made_where_it_lives():
    places = places_on(mesh_of(data=4, model=2))
    params = jax.device_put(PARAMS, places)
    state = mo.init_sharded(muon(places), params)
    assert lie_alike(state, mo.state_shardings(muon(), params))
    assert_near(state, muon().init(jax.tree.map(jnp.asarray, PARAMS)), 0.0)
    assert momenta(state)["kernel"].addressable_shards[0].data.shape == (4, 16)
    # What it is for: under Auto axes jit alone forgets.
    forgetful = jax.jit(muon(places).init)(params)
    assert momenta(forgetful)["kernel"].addressable_shards[0].data.shape == (16, 32)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_zero1_keeps_momentum_once(kind):
    params, gradients, plan, optimizer = zero1(kind, {}, data=8)
    state = mo.init_sharded(optimizer, params, plan)
    shards = {
        name: leaf.addressable_shards[0].data.shape for name, leaf in momenta(state).items() if hasattr(leaf, "shape")
    }
    # The longest axis that eight devices divide, and of a stack none of its own.
    assert shards == {"kernel": (16, 4), "query": (2, 4, 8), "experts": (4, 2, 8)}
    for moment in (moments(state).mu, moments(state).nu):
        assert moment["embedding"].addressable_shards[0].data.shape == (10, 2)
        assert moment["bias"].addressable_shards[0].data.shape == (4,)
        assert moment["odd"].addressable_shards[0].data.shape == (3,)

    update = jax.jit(optimizer.update)
    one, other = state, muon().init(jax.tree.map(jnp.asarray, PARAMS))
    plain = jax.jit(muon().update)
    for _ in range(2):
        updates, one = update(gradients, one, params)
        expected, other = plain(GRADIENTS, other, PARAMS)
    assert_near(updates, expected)
    assert_near(one, other)
    assert lie_alike(one, state)
    assert types(one) == types(state)
    assert types(updates) == types(params)
    assert all(update.sharding.is_fully_replicated for update in updates.values())


def test_zero1_needs_no_plan_under_explicit_axes():
    """The momentum's own type says how it comes, and the parameter's how the update goes."""
    params, gradients, plan, _ = zero1(EXPLICIT, {}, data=8)
    state = mo.init_sharded(muon(), params, plan)
    updates, after = jax.jit(muon().update)(gradients, state, params)
    assert_near(updates, one_step())
    assert types(after) == types(state)
    assert types(updates["kernel"]) == types(params["kernel"])


@pytest.mark.parametrize(
    "kind, replica, model",
    [
        pytest.param(AUTO, 2, 2, id="Auto, 2 x 2 x 2"),
        pytest.param(EXPLICIT, 2, 2, id="Explicit, 2 x 2 x 2"),
        pytest.param(EXPLICIT, 4, 1, id="Explicit, an axis of one device"),
    ],
)
def test_zero1_on_top_of_fsdp(kind, replica, model):
    """Momentum that is divided already is divided once more, over the replicas."""
    specs = {"kernel": P("data"), "query": P(None, "model"), "experts": P("data"), "bias": P("model")}
    params, gradients, plan, optimizer = zero1(kind, specs, over="replica", replica=replica, data=2, model=model)
    state = mo.init_sharded(optimizer, params, plan)
    per_device = momenta(state)["kernel"].addressable_shards[0].data.size
    assert per_device == 16 * 32 // (2 * replica)
    updates, after = jax.jit(optimizer.update)(gradients, state, params)
    assert_near(updates, one_step())
    assert types(after) == types(state)
    for name in ("kernel", "query", "experts"):
        assert types(updates[name]) == types(params[name])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_zero1_takes_a_plan_and_nothing_of_jit(kind):
    """Without out_shardings the state stays spread, parameters stay whole, and nothing is compiled twice."""
    params, gradients, plan, optimizer = zero1(kind, {}, data=8)
    state = mo.init_sharded(optimizer, params, plan)

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def places(state):
        return types(state) if kind is EXPLICIT else [leaf.sharding for leaf in jax.tree.leaves(state)]

    own = places(state)
    for _ in range(2):
        params, state = step(params, state, gradients)
        assert places(state) == own
        assert all(leaf.sharding.is_fully_replicated for leaf in params.values())
    if kind is AUTO:
        assert lie_alike(optimizer.init(params), state)


MODEL = {"q_proj": (16, 32), "k_proj": (16, 32), "up": (16, 64), "head": (16, 24), "bias": (64,)}
RECIPES = {
    "normuon": lambda **given: mo.recipes.normuon(0.1, **given),
    "muon_clip": lambda **given: mo.recipes.muon_clip(0.1, threshold=10.0, **given),
    "muon_h": lambda **given: mo.recipes.muon_h(0.1, adamw_learning_rate=0.1, heads=("head",), **given),
    "muon_speedrun": lambda **given: mo.recipes.muon_speedrun(0.1, adamw_learning_rate=0.1, **given),
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_recipe_takes_a_plan(kind, name):
    """As muon: under Auto axes init alone spreads the state, and a step finds it as it left it."""
    arrays, gradients, layouts = random_tree(MODEL, 40), random_tree(MODEL, 41), {"head": None}
    extra = {"max_logits": jnp.array([50.0, 1.0])} if name == "muon_clip" else {}
    places = shardings(mesh_of(kind, data=8), {path: P() for path in MODEL})
    plan = mo.plan(arrays, places, layouts, over="data")
    optimizer, plain = RECIPES[name](layouts=layouts, shardings=plan), RECIPES[name](layouts=layouts)
    params = jax.device_put(arrays, places)
    state = jax.jit(optimizer.init)(params) if kind is AUTO else mo.init_sharded(optimizer, params, plan)
    whole = (state[0] if name == "muon_clip" else state).inner_states
    kept = whole["muon"].inner_state[0].trace["up"]
    assert kept.addressable_shards[0].data.size == 16 * 64 // 8
    updates, after = jax.jit(optimizer.update)(jax.device_put(gradients, places), state, params, **extra)
    assert types(after) == types(state)
    assert lie_alike(after, state)
    want, _ = jax.jit(plain.update)(gradients, plain.init(arrays), arrays, **extra)
    assert_near(updates, want, 3e-2)  # two programs in bfloat16
    assert all(leaf.sharding.is_fully_replicated for leaf in updates.values())


def test_zero1_inside_shard_map_and_behind_wrappers():
    """Where all is local nothing is constrained; a wrapper's own state is everywhere."""
    params, gradients, plan, optimizer = zero1(AUTO, {}, data=8)
    local = jax.shard_map(
        lambda gradients, params: optimizer.update(gradients, muon().init(params), params)[0],
        mesh=plan.mesh,
        in_specs=P(),
        out_specs=P(),
        check_vma=False,
    )
    assert_near(jax.jit(local)(gradients, params), one_step())
    wrapped = optax.MultiSteps(optimizer, 2)
    state = mo.init_sharded(wrapped, params, plan)
    for _ in range(2):
        updates, state = jax.jit(wrapped.update)(gradients, state, params)
    assert_near(updates, one_step())
    assert momenta(state.inner_opt_state)["kernel"].addressable_shards[0].data.shape == (16, 4)


def test_gradients_are_scattered_and_updates_gathered_once():
    params, *_ = zero1(AUTO, {}, data=8)
    matrices = {name: params[name] for name in ("kernel", "query")}
    plan = mo.plan(matrices, None, {"query": "ioo"}, orthogonalizer=ONE_STEP, over="data")
    optimizer = mo.muon(0.1, layouts={"query": "ioo"}, orthogonalizer=ONE_STEP, shardings=plan)
    state = mo.init_sharded(optimizer, matrices, plan)
    text = jax.jit(optimizer.update).lower(matrices, state, matrices).compile().as_text()
    found = tuple(text.count(f" {name}(") for name in ("all-to-all", "all-gather", "all-reduce"))
    assert found == (plan.collectives["all-to-all"], plan.collectives["all-gather"], 0)


REFUSALS = {
    "no mesh": (
        lambda: mo.state_shardings(muon(), {"kernel": jnp.ones((4, 4))}),
        r"state_shardings: no parameter lies on a mesh. Give a tree of NamedShardings like the parameters",
    ),
    "a path too few": (
        lambda: mo.state_shardings(muon(), PARAMS, places_on(mesh_of(data=2), {}) | {"bias": None}),
        r"'bias' has no sharding",
    ),
    "a path too many": (
        lambda: mo.state_shardings(muon(), {"kernel": PARAMS["kernel"]}, places_on(mesh_of(data=2), {})),
        r"is not a parameter \(0 missing, 5 too many\)",
    ),
    "a spec longer than the array": (
        lambda: mo.state_shardings(muon(), PARAMS, places_on(mesh_of(data=2), {"bias": P(None, "data")})),
        r"'bias' has 1 axes, but its sharding P\(None, 'data'\) on the mesh \{'data': 2\} names 2",
    ),
    "a plan of other shapes": (
        lambda: mo.state_shardings(
            muon(), PARAMS | {"kernel": PARAMS["kernel"].T}, mo.plan(PARAMS, places_on(mesh_of(data=2), {}), LAYOUTS)
        ),
        r"'kernel' has shape \(16, 32\) in the plan for the mesh \{'data': 2\} and \(32, 16\) here",
    ),
}


@pytest.mark.parametrize("do, message", REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_fit_is_refused(do, message):
    with pytest.raises(ValueError, match=message):
        do()
