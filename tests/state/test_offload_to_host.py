"""Momentum in the host's memory: the bits of device memory, in every way of running, and nothing else moved there."""

import os
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec as P
from meshes import AUTO, AUTO_FIRST, EXPLICIT, ONE_STEP, mesh_of, random_tree, shardings

import muon_optax as mo
from muon_optax._transforms.momenta.offload_to_host import _batches

SHAPES = {"down": (32, 16), "query": (16, 16), "up": (16, 64), "wide": (16, 32), "bias": (32,)}
PARAMS = random_tree(SHAPES, 50)
GRADIENTS = [random_tree(SHAPES, 51 + step) for step in range(3)]
MOMENTA = {
    "scheduled_trace": lambda: mo.scheduled_trace(0.95, nesterov=True),
    "schedule": lambda: mo.scheduled_trace(lambda step: 0.9 + 0.01 * step, nesterov=True),
    "bfloat16": lambda: mo.scheduled_trace(0.95, True, jnp.bfloat16),
    "optax.trace": lambda: optax.trace(0.9),
    "8 bits": lambda: mo.quantized_trace(0.95, nesterov=True, block_size=8),
    "4 bits": lambda: mo.quantized_trace(0.95, bits=4, block_size=8),
    "average": lambda: mo.nesterov_ema(0.95, debias=True),
}
# Of a sum of two products XLA for CPUs may round one product or both, and decides it anew in each program. With
# optimizations it does so in the averages, and (jaxlib 0.12) in the last step of ZeRO-1's updates.
OPTIMIZED = "--xla_backend_optimization_level=0" not in os.environ.get("XLA_FLAGS", "")
ROUNDINGS = {"average": 1e-5}  # of parameters; momenta have the same bits always
FIRST = "scheduled_trace"


def muon(momentum=FIRST, batches=3, passed=None):
    """``batches`` of zero: in device memory."""
    transform = MOMENTA[momentum]()
    transform = mo.offload_to_host(transform, batches=batches) if batches else transform
    return mo.muon(0.1, momentum=transform, orthogonalizer=ONE_STEP, shardings=passed)


def train(optimizer, params=PARAMS, state=None, gradients=GRADIENTS, **arguments):
    """Three steps of a jitted, donated update, and the state that they leave."""

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1), **arguments)
    # Copies: what is donated is gone.
    params = jax.tree.map(jnp.array, params)
    state = optimizer.init(params) if state is None else state
    for own in gradients:
        params, state = step(params, state, own)
    return params, state


@cache
def expected(momentum=FIRST):
    return train(muon(momentum, batches=0))


def assert_same_bits(got, want, within=0.0):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        name = jax.tree_util.keystr(path)
        assert one.dtype == other.dtype, name
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=within, atol=within, err_msg=name)


def kinds(state):
    """Where the arrays of matrices, those of AdamW and the counters lie."""
    arrays = {label: jax.tree.leaves(branch) for label, branch in state.inner_states.items()}
    found = {label: {leaf.sharding.memory_kind for leaf in leaves if leaf.ndim} for label, leaves in arrays.items()}
    counters = {leaf.sharding.memory_kind for leaves in arrays.values() for leaf in leaves if not leaf.ndim}
    return found | {"counters": counters}


HOSTED = {"muon": {"pinned_host"}, "adamw": {"device"}, "counters": {"device"}}


@pytest.mark.parametrize(
    "momentum",
    [name if name in (FIRST, "8 bits", "average") else pytest.param(name, marks=pytest.mark.slow) for name in MOMENTA],
)
def test_on_one_device_the_bits_are_those_of_device_memory(momentum):
    params, state = train(muon(momentum))
    want, kept = expected(momentum)
    assert_same_bits(params, want, ROUNDINGS.get(momentum, 0.0))
    assert_same_bits(state, kept)
    assert kinds(state) == HOSTED
    assert {leaf.sharding.memory_kind for leaf in params.values()} == {"device"}


@pytest.mark.parametrize("batches", [1, pytest.param(2, marks=pytest.mark.slow), 100])
def test_any_number_of_batches_gives_the_same(batches):
    assert_same_bits(train(muon(batches=batches)), expected())


def test_without_jit_and_in_a_scan():
    optimizer = muon()
    plain, params, state = muon(batches=0), PARAMS, muon(batches=0).init(PARAMS)
    want = plain.update(GRADIENTS[0], state, params)
    got = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
    assert_same_bits(got, want)
    assert kinds(got[1]) == HOSTED
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADIENTS)

    def scanned(optimizer):
        def step(carry, gradients):
            params, state = carry
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (jax.tree.map(jnp.array, PARAMS), optimizer.init(PARAMS))
        return jax.jit(lambda start, stacked: jax.lax.scan(step, start, stacked)[0])(start, stacked)

    after = scanned(optimizer)
    assert_same_bits(after, scanned(plain))
    assert kinds(after[1]) == HOSTED


def test_in_multi_steps():
    wrapped = [optax.MultiSteps(muon(batches=batches), 2) for batches in (3, 0)]
    got, want = (train(one, gradients=GRADIENTS[:2] * 2) for one in wrapped)
    assert_same_bits(got, want)
    assert kinds(got[1].inner_opt_state) == HOSTED


def on_mesh(kind, momentum, batches, over=None):
    places = shardings(mesh_of(kind, data=8), dict.fromkeys(SHAPES, P() if over else P("data")))
    plan = mo.plan(PARAMS, places, orthogonalizer=ONE_STEP, over=over)
    optimizer = muon(momentum, batches, plan)
    params = jax.device_put(PARAMS, places)
    state = mo.init_sharded(optimizer, params, plan)
    before = [leaf.sharding for leaf in jax.tree.leaves(state)]
    gradients = [jax.device_put(own, places) for own in GRADIENTS]
    params, after = train(optimizer, params, state, gradients)
    return (params, after), before, mo.state_shardings(optimizer, params, plan)


ON_MESH = [(FIRST, AUTO), (FIRST, EXPLICIT), ("8 bits", EXPLICIT), *((name, AUTO) for name in MOMENTA if name != FIRST)]


@pytest.mark.parametrize("over", [None, "data"], ids=["FSDP", "ZeRO-1"])
@pytest.mark.parametrize(
    "momentum, kind",
    [
        pytest.param(*one, id=f"{one[0]}, {one[1].name}", marks=[pytest.mark.slow] * (one != ON_MESH[0]))
        for one in ON_MESH
    ],
)
def test_on_a_mesh(kind, momentum, over):
    got, before, wanted = on_mesh(kind, momentum, 3, over)
    want, _, plain = on_mesh(kind, momentum, 0, over)
    assert_same_bits(got[0], want[0], max(ROUNDINGS.get(momentum, 0.0), 1e-6 if over and OPTIMIZED else 0.0))
    assert_same_bits(got[1], want[1])
    assert kinds(got[1]) == HOSTED
    # Init puts it there, updates leave it there, and it is divided as in device memory.
    for leaf, start, place, other in zip(*map(jax.tree.leaves, (got[1], before, wanted, plain)), strict=True):
        assert leaf.sharding.memory_kind == start.memory_kind == place.memory_kind
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
        assert leaf.sharding.is_equivalent_to(other.with_memory_kind(place.memory_kind), leaf.ndim)


def losses(batches, over, specs, steps=10):
    """Those of a run of a small network on eight devices."""
    shapes = {f"layer_{number}": (16, 16) for number in range(4)}
    places = shardings(mesh_of(data=8), dict.fromkeys(shapes, specs))
    plan = mo.plan(random_tree(shapes, 0), places, orthogonalizer=ONE_STEP, over=over)
    optimizer, params = muon(batches=batches, passed=plan), jax.device_put(random_tree(shapes, 0), places)
    x = random_tree({"x": (64, 16)}, 1)["x"]

    def loss(params):
        y = x
        for layer in params.values():
            y = jnp.tanh(y @ layer)
        return jnp.mean(jnp.square(y - x))

    def step(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, found = mo.init_sharded(optimizer, params, plan), []
    kept = mo.state_shardings(optimizer, params, plan)
    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(places, kept, None))
    for _ in range(steps):
        params, state, value = step(params, state)
        found.append(float(value))
    return found


@pytest.mark.parametrize(
    "over, specs",
    [
        pytest.param(None, P("data"), id="FSDP"),
        pytest.param("data", P(), id="ZeRO-1", marks=pytest.mark.slow),
        pytest.param(None, P(), id="replicated", marks=pytest.mark.slow),
    ],
)
def test_ten_losses_of_a_run_are_those_of_device_memory(over, specs):
    """Elsewhere offload changed losses in silence (DeepSpeed #8463), and none of its runs failed."""
    got, want = losses(3, over, specs), losses(0, over, specs)
    assert len(set(want)) == 10
    np.testing.assert_allclose(got, want, rtol=1e-6 if over and OPTIMIZED else 0.0)


def test_with_out_shardings_a_step_donates_in_any_order():
    """Without them JAX pairs donated arrays and results by shape alone, whatever their memory."""
    places = shardings(mesh_of(data=8), dict.fromkeys(SHAPES, P("data")))
    optimizer = muon(passed=places)
    params = jax.device_put(PARAMS, places)
    where = mo.state_shardings(optimizer, params)
    step = jax.jit(
        lambda state, gradients, params: optimizer.update(gradients, state, params)[::-1],
        donate_argnums=(0, 1),
        out_shardings=(where, places),
    )
    gradients = jax.device_put(GRADIENTS[0], places)
    state, updates = step(mo.init_sharded(optimizer, params), gradients, params)
    assert kinds(state) == HOSTED
    assert {leaf.sharding.memory_kind for leaf in updates.values()} == {"device"}


@pytest.mark.parametrize("kind", AUTO_FIRST)
def test_inside_shard_map(kind):
    mesh = mesh_of(kind, data=8)
    stacks = {name: np.stack([leaf] * 8) for name, leaf in PARAMS.items()}
    results = {}
    for batches in (3, 0):
        optimizer = muon(batches=batches)

        def local(params, optimizer=optimizer):
            own = jax.tree.map(lambda leaf: leaf[0], params)
            updates, state = optimizer.update(own, optimizer.init(own), own)
            kept = jax.device_put(state.inner_states["muon"].inner_state[0].trace["up"], jax.memory.Space.Device)
            return jax.tree.map(lambda leaf: leaf[None], (updates, kept))

        mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
        results[batches] = jax.jit(mapped)(jax.device_put(stacks, jax.NamedSharding(mesh, P("data"))))
    assert_same_bits(results[3], results[0])


def test_a_checkpoint_comes_back_to_the_host(tmp_path):
    places = shardings(mesh_of(data=8), dict.fromkeys(SHAPES, P("data")))
    optimizer, params = muon(passed=places), jax.device_put(PARAMS, places)
    state = mo.init_sharded(optimizer, params)
    _, state = jax.jit(optimizer.update)(jax.device_put(GRADIENTS[0], places), state, params)
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        mo.state_shardings(optimizer, params),
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", target)
    assert_same_bits(restored, state)
    assert kinds(restored) == HOSTED


@pytest.mark.parametrize("before, after", [(0, 3), (3, 0)], ids=["to the host", "to the device"])
@pytest.mark.parametrize("momentum", [FIRST, pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_state_is_carried_over(before, after, momentum):
    """Between memories with nothing lost, and into another dtype on the way."""
    fresh = muon(momentum, after)
    state, report = mo.carry_over(train(muon(batches=before))[1], fresh.init(PARAMS), strict=True)
    want, _ = mo.carry_over(expected()[1], muon(momentum, 0).init(PARAMS), strict=True)
    assert_same_bits(state, want)
    assert kinds(state) == (HOSTED if after else HOSTED | {"muon": {"device"}})
    assert not report.dropped


def test_adamws_moments_too():
    # Its decay asks for the parameters.
    adamw = optax.adamw(0.1, weight_decay=0.5)
    want, got = (train(one) for one in (adamw, mo.offload_to_host(adamw, batches=2)))
    assert_same_bits(got, want)
    assert {leaf.sharding.memory_kind for leaf in got[1][0].nu.values()} == {"pinned_host"}


def test_summarize_counts_what_lies_on_the_host():
    table = mo.summarize(PARAMS, optimizer=muon())
    matrices = 4 * sum(leaf.size for leaf in PARAMS.values() if leaf.ndim > 1)
    assert sum(row.host_bytes for row in table.rows) == matrices
    assert f"{matrices + 2 * 4 * 32:,} bytes, {matrices:,} of them in host memory." in str(table)
    assert "host memory" not in str(mo.summarize(PARAMS, optimizer=muon(batches=0)))


@pytest.mark.parametrize("over", [None, "data"], ids=["FSDP", "ZeRO-1"])
@pytest.mark.parametrize("batches", [0, 3], ids=["device", "host"])
def test_plan_and_summary_say_what_a_device_keeps(batches, over):
    """The bytes of the arrays that are there, by memory."""
    places = shardings(mesh_of(data=8), dict.fromkeys(SHAPES, P() if over else P("data")))
    optimizer, params = muon(batches=batches), jax.device_put(PARAMS, places)
    plan = mo.plan(params, places, over=over, optimizer=optimizer)
    kept = {"device": 0, "pinned_host": 0}
    for leaf in jax.tree.leaves(mo.init_sharded(optimizer, params, plan)):
        kept[leaf.sharding.memory_kind] += leaf.addressable_shards[0].data.nbytes
    assert plan.state_bytes == kept
    assert bool(kept["pinned_host"]) == bool(batches)
    table = mo.summarize(params, optimizer=optimizer, shardings=plan)
    assert table.device_bytes == kept
    text = f"Of a device: {sum(kept.values()):,} bytes" + f", {kept['pinned_host']:,} of them in host memory" * bool(
        batches
    )
    assert str(table).endswith(text + ".")


def test_a_plan_prints_the_state_by_memory():
    place = jax.NamedSharding(jax.sharding.AbstractMesh((4,), ("data",)), P("data"))
    params = {f"layer_{number}": jax.ShapeDtypeStruct((512, 1024), jnp.float32, sharding=place) for number in range(8)}
    host = mo.muon(0.1, momentum=mo.offload_to_host(mo.scheduled_trace(0.9)))
    assert str(mo.plan(params, optimizer=mo.muon(0.1))).endswith("\nstate: 4.194 MB on a device")
    assert str(mo.plan(params, optimizer=host)).endswith("\nstate: 0 MB on a device, 4.194 MB in host memory")
    assert "state" not in str(mo.plan(params))
    with pytest.raises(TypeError, match=r"optimizer=0\.9 is not"):
        mo.plan(params, optimizer=0.9)
    with pytest.raises(ValueError, match="shardings= says where the state of optimizer= lies: give both, or neither"):
        mo.summarize(params, shardings=place)


@pytest.mark.parametrize(
    "sizes, batches, want",
    [
        ([1, 1, 1, 1], 2, [(0, 2), (2, 4)]),
        ([8, 1, 1, 1, 1, 4], 2, [(0, 1), (1, 6)]),
        ([1, 6, 3], 2, [(0, 2), (2, 3)]),  # the middle counts, not a third
        ([5, 5], 16, [(0, 1), (1, 2)]),
        ([0, 0], 4, [(0, 2)]),
        ([], 4, [(0, 0)]),
    ],
)
def test_batches_are_neighbors_of_about_equal_bytes(sizes, batches, want):
    assert [(own.start, own.stop) for own in _batches(sizes, batches)] == want


def test_a_batch_waits_for_the_one_before():
    """What bounds the memory: each batch but the first is behind a barrier that takes what the last one put back."""
    transform = mo.offload_to_host(mo.scheduled_trace(0.9), batches=5)
    state = transform.init(PARAMS)
    jaxpr = jax.make_jaxpr(transform.update)(GRADIENTS[0], state)
    barriers = [equation for equation in jaxpr.eqns if equation.primitive.name == "optimization_barrier"]
    sizes = [leaf.size for leaf in jax.tree.leaves(state.trace)]
    assert len(barriers) == len(_batches(sizes, 5)) - 1 > 1
    fetched = put = 0
    for equation in barriers:
        spaces = [variable.aval.memory_space.name for variable in equation.invars if variable.aval.ndim]
        fetched, put = fetched + spaces.count("Host"), put + spaces.count("Device")
    assert fetched > 0
    assert put > 0


def test_sixteen_batches_by_default():
    transform, params = mo.offload_to_host(mo.scheduled_trace(0.9)), [jnp.ones(2)] * 64
    jaxpr = jax.make_jaxpr(transform.update)(params, transform.init(params))
    assert str(jaxpr).count("= optimization_barrier") == 16 - 1


@jax.jit
def normalized(updates, params):
    return jax.tree.map(lambda leaf: leaf / optax.tree.norm(updates), updates)


class NoHost:
    platform = "metal"

    def addressable_memories(self):
        return [type("Memory", (), {"kind": "device"})()]


REFUSALS = {
    "no batches": (lambda: mo.offload_to_host(optax.trace(0.9), batches=0), "batches=0 is not allowed"),
    "nothing kept": (
        lambda: mo.offload_to_host(optax.scale(0.1)).init(PARAMS),
        "wraps a transform that keeps nothing of a parameter",
    ),
    "a clip by all gradients": (
        lambda: mo.offload_to_host(optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9))).init(PARAMS),
        "computes that of 'bias' from other parameters, 'down' among them: batch by batch it would give something else",
    ),
    "the same inside jit": (
        lambda: mo.offload_to_host(optax.chain(optax.stateless(normalized), optax.trace(0.9))).init(PARAMS),
        "computes that of 'bias' from other parameters, 'down' among them",
    ),
    "a value of its own": (
        lambda: mo.offload_to_host(optax.apply_if_finite(optax.trace(0.9), 3)).init(PARAMS),
        "from other parameters, '(bias|down)' among them",
    ),
}


@pytest.mark.parametrize("do, message", REFUSALS.values(), ids=REFUSALS)
def test_what_would_give_something_else_is_refused(do, message):
    with pytest.raises(ValueError, match=message):
        do()


def test_a_backend_without_host_memory_is_refused_at_init(monkeypatch):
    optimizer = muon()
    monkeypatch.setattr(jax, "local_devices", lambda: [NoHost()])
    with pytest.raises(ValueError, match="needs a backend with pinned_host memory, and 'metal' has device only"):
        optimizer.init(PARAMS)
