"""What is frozen does not move, to the bit: by zero gradients under `hold_idle`, by partitions, filters and masks."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P
from meshes import EXPLICIT, mesh_of, shardings

import muon_optax as mo

RATE, DECAY = 3e-3, 0.1
SHAPES = {"table": (12, 8), "backbone": (8, 16), "scale": (16,), "experts": (3, 8, 4), "head": (16, 4)}
LAYOUTS = {"table": None, "backbone": "io", "scale": None, "experts": "bio", "head": None}
FROZEN = ("table", "backbone", "scale", "experts")
TRAINED, STILL = 20, 50


def tree(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.standard_normal(shape), jnp.float32) for path, shape in SHAPES.items()}


def muon(**arguments: Any) -> Any:
    mask = dict.fromkeys(SHAPES, True)  # decay everywhere, so that nothing is still by chance
    return mo.muon(
        **{"learning_rate": RATE, "weight_decay": DECAY, "weight_decay_mask": mask, "layouts": LAYOUTS} | arguments
    )


OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "muon": muon,
    "8 bits": lambda: muon(momentum=mo.quantized_trace(0.95)),
    "average": lambda: muon(momentum=mo.nesterov_ema(0.95, debias=True)),
    "normuon": lambda: mo.recipes.normuon(RATE, layouts=LAYOUTS),
    "muon_h": lambda: mo.recipes.muon_h(RATE, adamw_learning_rate=RATE, layouts=LAYOUTS, heads=("head",)),
    "muon_speedrun": lambda: mo.recipes.muon_speedrun(RATE, adamw_learning_rate=RATE, layouts=LAYOUTS),
    "adamw": lambda: optax.adamw(RATE, weight_decay=DECAY),
    "in a chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), muon()),
}


def run(optimizer: Any, params: Any, state: Any, seeds: range, idle: tuple[str, ...] = (), rows: Any = None) -> Any:
    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for seed in seeds:
        gradients = {path: jnp.zeros_like(leaf) if path in idle else leaf for path, leaf in tree(seed).items()}
        for path in rows or ():
            gradients[path] = gradients[path].at[rows[path]].set(0)
        params, state = step(params, state, gradients)
    return params, state


def belonging(state: Any, path: str) -> list[Any]:
    """What a state keeps of a parameter: the leaves whose paths end so."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [
        leaf for keys, leaf in leaves if jax.tree_util.keystr(keys, simple=True, separator="/").endswith(f"/{path}")
    ]


def assert_same_bits(one: Any, other: Any) -> None:
    pairs = [*zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
    assert pairs
    for got, want in pairs:
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_without_a_gradient_moves(name: str) -> None:
    """After 20 steps with gradients come 50 without: parameters and what is kept of them stay, all else goes on."""
    optimizer = mo.hold_idle(OPTIMIZERS[name]())
    params, state = run(optimizer, tree(0), optimizer.init(tree(0)), range(1, TRAINED + 1))
    later, after = run(optimizer, params, state, range(100, 100 + STILL), FROZEN)
    for path in FROZEN:
        assert_same_bits(later[path], params[path])
        assert_same_bits(belonging(after, path), belonging(state, path))
    assert float(jnp.linalg.norm(later["head"] - params["head"])) > 1e-2
    counts = [int(leaf) for leaf in jax.tree.leaves(after) if leaf.ndim == 0]
    assert counts
    assert set(counts) == {TRAINED + STILL}


def test_without_it_all_of_them_move() -> None:
    """The test above can fail: plain Muon moves the matrix by its momentum and all by decay."""
    params, state = run(muon(), tree(0), muon().init(tree(0)), range(1, TRAINED + 1))
    later, _ = run(muon(), params, state, range(100, 100 + STILL), FROZEN)
    moved = {
        path: float(jnp.linalg.norm(later[path] - params[path]) / jnp.linalg.norm(params[path])) for path in FROZEN
    }
    assert min(moved.values()) > 1e-2
    assert moved["backbone"] > 2e-2  # decay alone takes 50 times 3e-4


@pytest.mark.parametrize("held", [False, True], ids=["plain", "held"])
def test_a_thousand_steps_without_a_gradient(held: bool) -> None:
    """What docs/resume.md says of decay: a rate of 3e-3 and a decay of 0.1 leave 74% of what never had a gradient."""
    optimizer = mo.hold_idle(muon()) if held else muon()
    params, state = run(optimizer, tree(0), optimizer.init(tree(0)), range(1, TRAINED + 1), ("scale",))
    gradients = {path: jnp.zeros_like(leaf) if path in FROZEN else leaf for path, leaf in tree(100).items()}

    def step(carried: Any, _: None) -> Any:
        updates, state = optimizer.update(gradients, carried[1], carried[0])
        return (optax.apply_updates(carried[0], updates), state), None

    (later, after), _ = jax.jit(lambda carried: jax.lax.scan(step, carried, length=1000))((params, state))
    if held:
        for path in FROZEN:
            assert_same_bits((later[path], belonging(after, path)), (params[path], belonging(state, path)))
        assert_same_bits(later["scale"], tree(0)["scale"])
        return
    kept = float(jnp.linalg.norm(later["scale"]) / jnp.linalg.norm(params["scale"]))
    assert kept == pytest.approx(0.741, abs=1e-3)
    for path in ("backbone", "table"):  # by momentum, by decay
        assert float(jnp.linalg.norm(later[path] - params[path]) / jnp.linalg.norm(params[path])) > 0.25


def test_with_gradients_it_changes_no_bit() -> None:
    plain, held = muon(), mo.hold_idle(muon(), per_row=["table", "experts"])
    assert_same_bits(*(run(one, tree(0), one.init(tree(0)), range(1, 4)) for one in (plain, held)))


def test_training_goes_on_where_it_was() -> None:
    optimizer = mo.hold_idle(muon(), per_row=["table"])
    params, state = run(optimizer, tree(0), optimizer.init(tree(0)), range(1, 4))
    paused = run(optimizer, *run(optimizer, params, state, range(50, 60), FROZEN), range(4, 6))
    straight = run(optimizer, params, state, range(4, 6))
    # A matrix takes the same steps; Adam's corrections of bias have gone on meanwhile.
    for path in ("backbone", "experts"):
        assert_same_bits(paused[0][path], straight[0][path])


def test_rows_of_a_table_and_experts_of_a_stack() -> None:
    rows = {"table": np.array([0, 3, 4]), "experts": np.array([1])}
    optimizer = mo.hold_idle(muon(), per_row=["table", "exp*"])
    params, state = run(optimizer, tree(0), optimizer.init(tree(0)), range(1, TRAINED + 1))
    later, after = run(optimizer, params, state, range(100, 100 + STILL), rows=rows)
    for path, still in rows.items():
        assert_same_bits(later[path][still], params[path][still])
        for one, other in zip(belonging(after, path), belonging(state, path), strict=True):
            np.testing.assert_array_equal(one[still], other[still])
        others = np.setdiff1d(np.arange(SHAPES[path][0]), still)
        assert bool(jnp.all(jnp.any(later[path][others] != params[path][others], axis=-1)))


@pytest.mark.parametrize("name", ["8 bits", "normuon", "muon_h"])
def test_what_is_kept_in_other_shapes_is_held_by_rows(name: str) -> None:
    """Codes, scales and statistics of experts have as many rows as the experts."""
    optimizer = mo.hold_idle(OPTIMIZERS[name](), per_row=["experts"])
    params, state = run(optimizer, tree(0), optimizer.init(tree(0)), range(1, 4))
    _, after = run(optimizer, params, state, range(4, 8), rows={"experts": np.array([1])})
    kept = [*zip(belonging(after, "experts"), belonging(state, "experts"), strict=True)]
    assert len(kept) == 2
    for one, other in kept:
        np.testing.assert_array_equal(one[1], other[1])
    assert bool(jnp.any(kept[0][0][0] != kept[0][1][0]))


def test_on_a_mesh() -> None:
    mesh = mesh_of(EXPLICIT, data=4)
    specs = dict.fromkeys(SHAPES, P()) | {"table": P("data"), "backbone": P(None, "data")}
    params = jax.device_put(tree(0), shardings(mesh, specs))
    optimizer = mo.hold_idle(muon(), per_row=["table"])
    with jax.set_mesh(mesh):
        state = mo.init_sharded(optimizer, params)
        gradients = jax.device_put(tree(1), shardings(mesh, specs))
        _, state = jax.jit(optimizer.update)(gradients, state, params)
        gradients = gradients | {"backbone": jnp.zeros_like(gradients["backbone"])}
        updates, after = jax.jit(optimizer.update)(gradients, state, params)
    assert not updates["backbone"].any()
    assert_same_bits(belonging(after, "backbone"), belonging(state, "backbone"))
    assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)


def test_rows_are_held_only_where_they_are_named() -> None:
    params, some = {"table": jnp.ones((3, 2))}, {"table": jnp.zeros((3, 2)).at[0].set(1)}
    for per_row, want in (((), [1.9, 0.9, 0.9]), (["tab*"], [1.9, 0, 0])):
        optimizer = mo.hold_idle(optax.trace(0.9), per_row=per_row)
        updates, _ = optimizer.update(some, optimizer.update(params, optimizer.init(params))[1])
        np.testing.assert_allclose(updates["table"][:, 0], want, rtol=1e-6)


def test_what_is_kept_in_no_rows_is_held_while_all_are_idle() -> None:
    """Whatever its type, but for counters, whose name may be a parameter's."""

    def init(params: Any) -> Any:
        return {"codes": {"table": jnp.zeros(2, jnp.int32)}, "sum": {"table": jnp.zeros(())}, "table": jnp.int32(0)}

    inner = optax.GradientTransformation(
        init, lambda updates, state, _: (updates, jax.tree.map(lambda n: n + 1, state))
    )
    optimizer, params = mo.hold_idle(inner, per_row=["table"]), {"table": jnp.ones((3, 2))}
    _, state = optimizer.update({"table": jnp.zeros((3, 2)).at[0].set(1)}, optimizer.init(params))
    _, state = optimizer.update({"table": jnp.zeros((3, 2))}, state)
    assert (state["codes"]["table"].tolist(), float(state["sum"]["table"]), int(state["table"])) == ([1, 1], 1, 2)


def test_refused() -> None:
    with pytest.raises(TypeError, match=r"per_row='table' is not allowed: use a sequence"):
        mo.hold_idle(muon(), per_row="table")
    with pytest.raises(ValueError, match="per_row has 'tables', which matches no parameter with axes"):
        mo.hold_idle(muon(), per_row=["tables"]).init(tree(0))


# Each framework's own way.


def test_optax_partition_with_set_to_zero() -> None:
    def labels(params: Any) -> Any:
        return {path: "frozen" if path in FROZEN else "trained" for path in params}

    params, state = run(muon(), tree(0), muon().init(tree(0)), range(1, TRAINED + 1))
    # Within a partition the others are hidden: the layouts are said.
    optimizer = optax.partition({"trained": muon(), "frozen": optax.set_to_zero()}, labels)
    fresh = optimizer.init(params)
    state, report = mo.carry_over(state, fresh)
    assert {row.path for row in report.dropped} == set(FROZEN)
    later, _ = run(optimizer, params, state, range(100, 100 + STILL))
    assert_same_bits({path: later[path] for path in FROZEN}, {path: params[path] for path in FROZEN})
    assert bool(jnp.any(later["head"] != params["head"]))


def test_a_mask_and_set_to_zero() -> None:
    """`optax.masked` alone hands on the gradients of what it hides: they are to be zeroed."""
    params, _ = run(muon(), tree(0), muon().init(tree(0)), range(1, TRAINED + 1))
    frozen = {path: path in FROZEN for path in SHAPES}
    trained = {path: path not in FROZEN for path in SHAPES}
    optimizer = optax.chain(
        optax.masked(muon(weight_decay_mask=None), trained), optax.masked(optax.set_to_zero(), frozen)
    )
    later, _ = run(optimizer, params, optimizer.init(params), range(100, 100 + STILL))
    assert_same_bits({path: later[path] for path in FROZEN}, {path: params[path] for path in FROZEN})
    assert bool(jnp.any(later["head"] != params["head"]))


def test_wrt_in_nnx() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            rngs = nnx.Rngs(0)
            self.backbone, self.head = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.head(nnx.relu(self.backbone(x)))

    def loss(model: Model) -> jax.Array:
        return ((model(jnp.ones((2, 8))) - 1) ** 2).sum()

    model = Model()
    optimizer = nnx.Optimizer(model, mo.muon(RATE), wrt=nnx.Param)
    for _ in range(TRAINED):
        optimizer.update(model, nnx.grad(loss)(model))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    head = nnx.All(nnx.Param, nnx.PathContains("head"))
    later = nnx.Optimizer(model, mo.muon(RATE, layouts={"head/kernel": "io"}), wrt=head)
    step = nnx.jit(lambda model, later: later.update(model, nnx.grad(loss, argnums=nnx.DiffState(0, head))(model)))
    for _ in range(STILL):
        step(model, later)
    after = nnx.state(model, nnx.Param)
    assert_same_bits(after["backbone"], before["backbone"])
    assert bool(jnp.any(after["head"]["kernel"][...] != before["head"]["kernel"][...]))


def test_partition_in_equinox() -> None:
    model = eqx.nn.MLP(8, 4, 16, 2, key=jax.random.key(0))

    def loss(trained: Any, frozen: Any) -> jax.Array:
        return ((eqx.combine(trained, frozen)(jnp.ones(8)) - 1) ** 2).sum()

    def train(model: Any, chosen: Any, steps: int) -> Any:
        trained, frozen = eqx.partition(model, chosen)
        optimizer = mo.muon(RATE)
        state = optimizer.init(trained)

        @eqx.filter_jit
        def step(trained: Any, state: Any) -> Any:
            updates, state = optimizer.update(eqx.filter_grad(loss)(trained, frozen), state, trained)
            return eqx.apply_updates(trained, updates), state

        for _ in range(steps):
            trained, state = step(trained, state)
        return eqx.combine(trained, frozen)

    everything = jax.tree.map(eqx.is_inexact_array, model)
    model = train(model, everything, TRAINED)
    last = jax.tree.map(lambda _: False, model)
    last = eqx.tree_at(lambda tree: (tree.layers[-1].weight, tree.layers[-1].bias), last, (True, True))
    later = train(model, last, STILL)
    for one, other in zip(later.layers[:-1], model.layers[:-1], strict=True):
        assert_same_bits((one.weight, one.bias), (other.weight, other.bias))
    assert bool(jnp.any(later.layers[-1].weight != model.layers[-1].weight))


def test_partition_in_haiku() -> None:
    def forward(x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(hk.Linear(16, name="backbone")(x))
        return hk.Linear(4, name="top")(jax.nn.relu(hk.Linear(16, name="adapter")(hidden)))

    network = hk.without_apply_rng(hk.transform(forward))
    params = network.init(jax.random.key(0), jnp.ones((2, 8)))

    def train(params: Any, is_trained: Callable[..., bool], steps: int) -> Any:
        trained, frozen = hk.data_structures.partition(is_trained, params)
        optimizer = mo.muon(RATE, layouts={"adapter/w": "io"})
        state = optimizer.init(trained)

        def loss(trained: Any) -> jax.Array:
            return ((network.apply(hk.data_structures.merge(trained, frozen), jnp.ones((2, 8))) - 1) ** 2).sum()

        @jax.jit
        def step(trained: Any, state: Any) -> Any:
            updates, state = optimizer.update(jax.grad(loss)(trained), state, trained)
            return optax.apply_updates(trained, updates), state

        for _ in range(steps):
            trained, state = step(trained, state)
        return hk.data_structures.merge(trained, frozen)

    params = train(params, lambda module, name, value: True, TRAINED)
    later = train(params, lambda module, name, value: module == "adapter", STILL)
    for module in ("backbone", "top"):
        assert_same_bits(later[module], params[module])
    assert bool(jnp.any(later["adapter"]["w"] != params["adapter"]["w"]))


# The warning.


def test_what_decays_without_ever_getting_a_gradient_is_named() -> None:
    optimizer = muon()
    params, state = run(optimizer, tree(0), optimizer.init(tree(0)), range(1, 4), ("backbone", "table"))
    with pytest.warns(mo.MuonWarning, match=r"2 parameters never got a gradient and move .*'backbone' \(by 0.0003 of"):
        shares = mo.diagnostics.moved_without_gradient(optimizer, state, params)
    assert shares == {path: pytest.approx(RATE * DECAY, rel=1e-3) for path in ("backbone", "table")}


def test_nothing_is_named_that_is_held_or_trained() -> None:
    for optimizer, idle in ((mo.hold_idle(muon()), FROZEN), (muon(), ())):
        params, state = run(optimizer, tree(0), optimizer.init(tree(0)), range(1, 4), idle)
        assert mo.diagnostics.moved_without_gradient(optimizer, state, params) == {}
