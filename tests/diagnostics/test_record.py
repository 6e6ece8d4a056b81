"""The recorder: its measurements against float64 NumPy, what it leaves alone, and every place that it may run in."""

from functools import partial
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AUTO_FIRST, KINDS, LAYOUTS, SHAPES, mesh_of, random_tree, types

import muon_optax as mo
from benchmarks.shared.optimizers import train_gpt, training_step
from muon_optax import diagnostics

POLAR = mo.polar_factor()
SPECS = {"kernel": P("data", "model"), "query": P("data", "model"), "experts": P("data")}
SPECS |= {name: P(None, "model") for name in ("torch", "out", "fused")} | {"conv": P(None, None, None, "model")}


def params_like(seed: int, dtype: Any = jnp.float32) -> dict[str, jax.Array]:
    tree = random_tree(SHAPES | {"bias": (32,), "table": (6, 4)}, seed)
    return {path: jnp.asarray(value, dtype) for path, value in tree.items()}


EVERYTHING = LAYOUTS | {"bias": None, "table": None}


def muon(rate: Any = 0.1, **arguments: Any) -> optax.GradientTransformation:
    return mo.muon(rate, layouts=EVERYTHING, orthogonalizer=POLAR, weight_decay=0.0, **arguments)


def slow_or_fast(rate: float) -> optax.GradientTransformation:
    return mo.muon(rate, layouts=LAYOUTS, orthogonalizer=POLAR, weight_decay=0.0)


def matrices_of(array: Any, path: str) -> list[np.ndarray]:
    layout = LAYOUTS[path] if isinstance(LAYOUTS[path], mo.Layout) else mo.Layout(LAYOUTS[path])
    blocks = [np.asarray(block, np.float64) for block in layout.to_matrices(jnp.asarray(array))]
    return [matrix for block in blocks for matrix in block.reshape(-1, *block.shape[-2:])]


def rms(array: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))


def run(optimizer: Any, params: Any, gradients: list[Any]) -> tuple[Any, list[Any], list[Any]]:
    """The last state, and the parameters and updates of each step."""
    state, seen, updates = optimizer.init(params), [params], []
    step = jax.jit(optimizer.update)
    for gradient in gradients:
        update, state = step(gradient, state, seen[-1])
        updates.append(update)
        seen.append(optax.apply_updates(seen[-1], update))
    return state, seen, updates


# What is measured


@pytest.fixture(scope="module")
def measured() -> tuple[mo.diagnostics.Recording, list[Any], list[Any], list[Any]]:
    gradients = [params_like(seed) for seed in (2, 3, 4)]
    gradients[2]["kernel"] = gradients[2]["kernel"].at[:, :8].set(0)  # of 32 outputs
    gradients[2]["table"] = gradients[2]["table"].at[1:4].set(0)  # of 6 rows
    gradients[2]["experts"] = gradients[2]["experts"].at[0].set(0)  # of 8 experts
    optimizer = diagnostics.record(muon(), 1, learning_rate=0.1, layouts=EVERYTHING)
    state, params, updates = run(optimizer, params_like(1), gradients)
    return diagnostics.recorded(state), params, updates, gradients


@pytest.mark.parametrize("path", [*SHAPES, "bias", "table"])
def test_sizes_and_growth_equal_numpys(measured: Any, path: str) -> None:
    recording, params, updates, gradients = measured
    assert recording.steps == (0, 1, 2)
    expected = {
        "gradient_rms": rms(gradients[2][path]),
        "weight_rms": rms(params[2][path]),
        "growth": rms(params[2][path]) / rms(params[0][path]),
        "update_rms": rms(updates[2][path]),
        "relative_update": rms(updates[2][path]) / rms(params[2][path]),
    }
    assert {name: recording.last(name)[path] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_idle_outputs_rows_and_experts(measured: Any) -> None:
    idle = measured[0].last("idle")
    assert {path: idle[path] for path in ("kernel", "table", "experts", "bias")} == {
        "kernel": 8 / 32,
        "table": 3 / 6,
        "experts": 1 / 8,
        "bias": 0,
    }


@pytest.mark.parametrize("path", [*SHAPES, "bias"])
def test_the_cosine_is_that_with_the_momentum_before_the_step(measured: Any, path: str) -> None:
    recording, _, _, gradients = measured
    first, second, third = (np.asarray(one[path], np.float64).ravel() for one in gradients)
    momentum = (
        0.95 * first + second if path in SHAPES else 0.9 * first + second
    )  # Adam's average points where this does
    expected = third @ momentum / np.linalg.norm(third) / np.linalg.norm(momentum)
    assert recording.last("momentum_cosine")[path] == pytest.approx(expected, abs=1e-5)
    assert np.isnan(recording.history("momentum_cosine")[2][:, 0]).all()


@pytest.mark.parametrize("path", SHAPES)
def test_the_spectrum_of_every_layout(measured: Any, path: str) -> None:
    recording, params, updates, _ = measured
    matrices = matrices_of(params[2][path], path)
    norms = [np.linalg.norm(matrix, 2) for matrix in matrices]
    ranks = [np.sum(matrix**2) / norm**2 / min(matrix.shape) for matrix, norm in zip(matrices, norms, strict=True)]
    # Random matrices have no gap behind the first singular value: the hardest case of a power iteration.
    assert recording.last("spectral_norm")[path] == pytest.approx(max(norms), rel=0.03)
    assert recording.last("spectral_norm")[path] <= max(norms) * (1 + 1e-5)
    assert recording.last("stable_rank")[path] == pytest.approx(np.mean(ranks), rel=0.05)
    error = diagnostics.orthogonality_error(updates[2], EVERYTHING)[path]
    assert recording.last("orthogonality_error")[path] == pytest.approx(float(error), abs=1e-6)
    # All singular values are 1 but those of an expert that only momentum moves, which are too.
    assert recording.last("update_size")[path] == pytest.approx(1, abs=1e-3)


def test_leaves_without_a_layout_have_no_spectrum(measured: Any) -> None:
    for name in ("spectral_norm", "stable_rank", "update_size", "orthogonality_error"):
        assert set(measured[0].last(name)) == set(SHAPES)


@pytest.mark.parametrize("power", [-25, 15])
def test_no_scale_of_weights_or_gradients_overflows(power: int) -> None:
    params = {"kernel": jnp.asarray(random_tree(SHAPES, 1)["kernel"] * 2.0**power)}
    one, other = (
        diagnostics.recorded(run(diagnostics.record(mo.muon(0.0), 1), tree, [tree] * 2)[0])
        for tree in (params, {"kernel": params["kernel"] * 2.0 ** (3 * power)})
    )
    for name in ("momentum_cosine", "growth", "stable_rank", "orthogonality_error"):
        np.testing.assert_allclose(one.last(name)["kernel"], other.last(name)["kernel"], rtol=1e-4)
    ratio = other.last("spectral_norm")["kernel"] / one.last("spectral_norm")["kernel"]
    assert ratio == pytest.approx(2.0 ** (3 * power), rel=1e-4)


def test_a_vector_outlives_weights_without_a_direction() -> None:
    """NaN and zero weights have no first direction; afterwards the power iteration finds it again."""
    optimizer = diagnostics.record(optax.sgd(0.0), 1)
    params = {"kernel": jnp.asarray(random_tree(SHAPES, 1)["kernel"])}
    state = optimizer.init(params)
    for factor in (1.0, jnp.nan, 0.0, *[1.0] * 8):
        _, state = jax.jit(optimizer.update)(params, state, {"kernel": params["kernel"] * factor})
    steps = diagnostics.recorded(state).history("spectral_norm")[2][0]
    assert np.isnan(steps[1])
    assert steps[2] == 0
    assert steps[-1] == pytest.approx(np.linalg.norm(np.asarray(params["kernel"], np.float64), 2), rel=0.01)


def test_without_a_rate_sizes_are_relative_to_the_median() -> None:
    rates = optax.partition(
        {"fast": muon(1.0), "slow": muon(0.1)},
        lambda tree: {path: "fast" if path == "out" else "slow" for path in tree},
    )
    params = {path: jnp.asarray(value) for path, value in random_tree(SHAPES, 1).items()}
    state, _, _ = run(diagnostics.record(rates, 1, layouts=LAYOUTS), params, [params])
    sizes = diagnostics.recorded(state).last("update_size")
    assert sizes == pytest.approx({path: 10.0 if path == "out" else 1.0 for path in SHAPES}, rel=1e-3)


def test_idle_matrices_do_not_move_the_median() -> None:
    params = {name: jnp.eye(4) for name in ("one", "two", "idle 1", "idle 2", "idle 3")}
    gradients = {name: jnp.zeros((4, 4)) if "idle" in name else jnp.eye(4) for name in params}
    optimizer = diagnostics.record(mo.muon(0.02))
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    sizes = diagnostics.recorded(state).last("update_size")
    assert (sizes["one"], sizes["two"]) == pytest.approx((1.0, 1.0))


# When


@pytest.mark.parametrize("every, steps", [(1, (3, 4, 5, 6)), (2, (0, 2, 4, 6)), (5, (0, 5)), (100, (0,))])
def test_steps_measured_and_kept(every: int, steps: tuple[int, ...]) -> None:
    params = {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)}
    schedule = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = diagnostics.record(mo.muon(schedule), every, learning_rate=schedule, keep=4)
    state, _, updates = run(optimizer, params, [params] * 7)
    recording = diagnostics.recorded(state)
    assert recording.steps == steps
    for step, size in zip(steps, recording.history("update_rms")[2].T, strict=True):
        assert size == pytest.approx([rms(updates[step][path]) for path in recording.paths], rel=1e-5)
        assert recording.history("weight_rms")[2].shape == (2, len(steps))
    # Against the schedule's value of each step the size stays where Newton-Schulz puts rank one.
    sizes = recording.history("update_size")[2][recording.paths.index("kernel")]
    expected = [rms(updates[step]["kernel"]) / (0.2 * (0.1 - 0.01 * step)) for step in steps]
    assert sizes == pytest.approx(expected, rel=1e-5)


def test_without_jit_only_the_steps_that_are_measured_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside jit a cond is compiled anew at each step: a run in a loop took ten times as long."""
    params = params_like(1)
    optimizer = diagnostics.record(mo.muon(0.02, layouts=EVERYTHING), 3, layouts=EVERYTHING, keep=2)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a cond is compiled at each step")

    state = optimizer.init(params)
    jitted = jax.jit(optimizer.update)(params, state, params)[1]
    monkeypatch.setattr(jax.lax, "cond", refuse)
    for step in range(5):
        _, state = optimizer.update(params, state, params)
        if step == 0:
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-4), state.values, jitted.values)
    assert diagnostics.recorded(state).steps == (0, 3)


def test_what_adam_trains_has_no_predicted_size() -> None:
    """Told of a matrix that ``muon`` leaves to AdamW, or around AdamW, a recorder called its updates too large."""
    params = {name: jnp.eye(4) for name in ("one", "two", "other")}
    gradients = {name: jnp.asarray(np.random.default_rng(0).standard_normal((4, 4))) for name in params}
    for optimizer, by_muon in [(mo.muon(0.02, layouts={"other": None}), {"one", "two"}), (optax.adamw(0.02), set())]:
        recorder = diagnostics.record(optimizer, 1, learning_rate=0.02)
        _, state = recorder.update(gradients, recorder.init(params), params)
        recording = diagnostics.recorded(state)
        assert set(recording.last("update_size")) == set(recording.last("orthogonality_error")) == by_muon
        assert set(recording.last("spectral_norm")) == set(params)
        assert not any(name == "update_size" for _, name, _ in recording.standing_out())


# What it leaves alone


@pytest.mark.parametrize("every", [1, 3])
def test_updates_and_inner_state_are_the_optimizers(every: int) -> None:
    gradients = [params_like(seed) for seed in (2, 3, 4, 5)]
    alone, _, without = run(muon(), params_like(1), gradients)
    state, _, updates = run(diagnostics.record(muon(), every, layouts=EVERYTHING), params_like(1), gradients)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), updates, without)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), state.inner_state, alone)


def lowered(optimizer: optax.GradientTransformation, params: Any) -> jax.stages.Lowered:
    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(training_step(optimizer), donate_argnums=(1, 2)).lower(params, state, params)


def test_switched_off_the_program_is_the_same() -> None:
    params = train_gpt(2, 32, 2)
    plain, off, on = (
        lowered(optimizer, params).as_text()
        for optimizer in (mo.muon(0.1), diagnostics.record(mo.muon(0.1), None), diagnostics.record(mo.muon(0.1), 9))
    )
    assert off == plain
    assert on != plain


@pytest.mark.slow
def test_the_cost_of_the_main_job_is_below_three_percent() -> None:
    """FLOPs of the optimizer alone; XLA counts the branch that measures, which one step of thirty takes."""
    params = train_gpt(4, 128, 2)
    plain, on = (
        lowered(optimizer, params).compile()
        for optimizer in (mo.muon(0.1), diagnostics.record(mo.muon(0.1), 30, learning_rate=0.1))
    )
    more = on.cost_analysis()["flops"] / plain.cost_analysis()["flops"] - 1
    assert 0 < more / 30 <= 0.01
    # Nothing that the step overwrites is copied for the measurements: donated memory stays donated.
    held = plain.memory_analysis().alias_size_in_bytes
    kept = on.memory_analysis().alias_size_in_bytes
    assert held <= kept <= 1.1 * held


def test_nothing_is_traced_again_and_the_state_keeps_its_types() -> None:
    optimizer, params = diagnostics.record(muon(), 2, layouts=EVERYTHING), params_like(1)
    step = jax.jit(optimizer.update)
    state = optimizer.init(params)
    before = types(state)
    for _ in range(3):
        _, state = step(params, state, params)
        assert types(state) == before
    assert step._cache_size() == 1


# Wherever it runs


def quadratic(params: Any) -> jax.Array:
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params))


SMALL = {"blocks": [{"kernel": jnp.eye(4, 6), "bias": jnp.ones(6)} for _ in range(2)]}


def recorder(every: int = 2) -> optax.GradientTransformation:
    return diagnostics.record(mo.muon(0.01), every, learning_rate=0.01)


def by_hand() -> mo.diagnostics.Recording:
    optimizer, params = recorder(), SMALL
    state = optimizer.init(params)
    for _ in range(4):
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        params = optax.apply_updates(params, updates)
    return diagnostics.recorded(state)


def in_scan() -> Any:
    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = recorder().update(jax.grad(quadratic)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda carry: jax.lax.scan(step, carry, length=4))((SMALL, recorder().init(SMALL)))[0]


def in_train_state() -> Any:
    state = TrainState.create(apply_fn=None, params=SMALL, tx=optax.chain(optax.identity(), recorder()))
    step = jax.jit(lambda state: state.apply_gradients(grads=jax.grad(quadratic)(state.params)), donate_argnums=0)
    state = state.replace(params=jax.tree.map(jnp.copy, SMALL))
    for _ in range(4):
        state = step(state)
    return state


class Block(nnx.Module):
    def __init__(self) -> None:
        self.kernel, self.bias = nnx.Param(jnp.eye(4, 6)), nnx.Param(jnp.ones(6))


class Model(nnx.Module):
    def __init__(self) -> None:
        self.blocks = nnx.List([Block(), Block()])


def in_nnx_optimizer() -> nnx.Optimizer:
    model = Model()
    optimizer = nnx.Optimizer(model, recorder(), wrt=nnx.Param)

    @nnx.jit
    def step(model: Model, optimizer: nnx.Optimizer) -> None:
        optimizer.update(model, nnx.grad(lambda model: quadratic(nnx.state(model, nnx.Param)))(model))

    for _ in range(4):
        step(model, optimizer)
    return optimizer


def in_multi_steps() -> Any:
    optimizer, params = optax.MultiSteps(recorder(), every_k_schedule=2), SMALL
    state = optimizer.init(params)
    for _ in range(8):
        updates, state = optimizer.update(jax.grad(quadratic)(params), state, params)
        params = optax.apply_updates(params, updates)
    return state


PLACES = {
    "scan": in_scan,
    "TrainState": in_train_state,
    "nnx.Optimizer": in_nnx_optimizer,
    "opt_state of nnx.Optimizer": lambda: in_nnx_optimizer().opt_state,
    "nnx.state of nnx.Optimizer": lambda: nnx.state(in_nnx_optimizer()),
    "pure dict": lambda: nnx.to_pure_dict(nnx.state(in_nnx_optimizer())),
    "MultiSteps": in_multi_steps,
}


USUAL = ("TrainState", "nnx.Optimizer", "MultiSteps")


@pytest.mark.parametrize(
    "place", [pytest.param(name, marks=[] if name in USUAL else [pytest.mark.slow]) for name in PLACES]
)
def test_read_from_whatever_holds_it(place: str) -> None:
    expected, got = by_hand(), diagnostics.recorded(PLACES[place]())
    assert (got.steps, got.paths, got.matrices) == (expected.steps, expected.paths, expected.matrices)
    np.testing.assert_allclose(got.values, expected.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", AUTO_FIRST)
def test_on_a_mesh_measurements_are_those_of_one_device(kind: AxisType) -> None:
    mesh = mesh_of(kind, data=4, model=2)
    places = {path: NamedSharding(mesh, SPECS[path]) for path in SHAPES}
    host, gradients = random_tree(SHAPES, 1), random_tree(SHAPES, 2)
    optimizer = diagnostics.record(
        mo.muon(0.1, layouts=LAYOUTS, orthogonalizer=mo.newton_schulz(dtype=jnp.float32)), 2, layouts=LAYOUTS
    )

    def steps(params: Any, gradient: Any, state: Any) -> tuple[Any, int]:
        step = jax.jit(training_step(optimizer), donate_argnums=(1, 2))
        lying = jax.tree.map(lambda leaf: leaf.sharding, state)
        for _ in range(4):
            params, state = step(gradient, state, params)
        kept = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state, lying)
        assert all(jax.tree.leaves(kept)), kept
        return diagnostics.recorded(state), step._cache_size()

    whole = jax.tree.map(jnp.asarray, host)
    expected, _ = steps(whole, jax.tree.map(jnp.asarray, gradients), optimizer.init(whole))
    params, gradient = jax.device_put(host, places), jax.device_put(gradients, places)
    got, compiled = steps(params, gradient, mo.init_sharded(optimizer, params))
    np.testing.assert_allclose(got.values, expected.values, rtol=1e-4, atol=1e-4)
    if kind is KINDS["Auto"]:
        assert compiled == 1


def test_a_sweep_records_each_run() -> None:
    def start(rate: jax.Array) -> Any:
        return diagnostics.record(mo.muon(rate), 1).init(SMALL)

    def step(rate: jax.Array, state: Any) -> Any:
        return diagnostics.record(mo.muon(rate), 1).update(SMALL, state, SMALL)[1]

    rates = jnp.array([0.1, 0.2])
    states = jax.vmap(step)(rates, jax.vmap(start)(rates))
    with pytest.raises(ValueError, match=r"values have shape \(2, 32, 4, 11\).*take the state of one"):
        diagnostics.recorded(states)
    one, two = (
        diagnostics.recorded(jax.tree.map(lambda leaf, run=run: leaf[run], states)).last("update_rms") for run in (0, 1)
    )
    assert two["blocks/0/kernel"] == pytest.approx(2 * one["blocks/0/kernel"], rel=1e-4)


def test_a_recorder_may_be_added_to_a_run_and_taken_away() -> None:
    plain, recording = mo.muon(0.01), recorder(1)
    _, state = plain.update(SMALL, plain.init(SMALL), SMALL)
    carried, _ = mo.carry_over(state, recording.init(SMALL))
    updates, carried = recording.update(SMALL, carried, SMALL)
    expected, _ = plain.update(SMALL, state, SMALL)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), updates, expected)
    assert diagnostics.recorded(carried).steps == (1,)
    back, _ = mo.carry_over(carried, plain.init(SMALL))
    jax.tree.map(np.testing.assert_array_equal, back, carried.inner_state)


def test_what_moves_without_a_gradient_is_found_inside_a_recorder() -> None:
    params = {"kernel": jnp.eye(4), "idle": jnp.eye(4)}
    optimizer = diagnostics.record(mo.muon(0.1), 1)
    gradients = {"kernel": jnp.eye(4), "idle": jnp.zeros((4, 4))}
    _, state = optimizer.update(gradients, optimizer.init(params), params)
    with pytest.warns(mo.MuonWarning, match="'idle'"):
        assert set(diagnostics.moved_without_gradient(optimizer, state, params)) == {"idle"}


def test_other_leaves_than_those_of_floats_pass() -> None:
    params = {"count": jnp.arange(3), "kernel": jnp.eye(4), "complex": jnp.ones(3, jnp.complex64)}
    optimizer = diagnostics.record(optax.sgd(0.1), 1)
    _, state = optimizer.update(params, optimizer.init(params), params)
    assert diagnostics.recorded(state).last("gradient_rms") == {"complex": 1.0, "kernel": 0.5}
    empty = diagnostics.record(optax.sgd(0.1), 1)
    _, state = empty.update({}, empty.init({}), {})
    assert diagnostics.recorded(state).paths == ()


# What is refused


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: diagnostics.record(mo.muon), TypeError, "optimizer=muon is not a gradient transformation: call"),
        (lambda: diagnostics.record(0.1), TypeError, r"optimizer=0\.1 is not a gradient transformation"),
        (lambda: diagnostics.record(mo.muon(0.1), 0), ValueError, "every=0 is not allowed: use a whole number >= 1"),
        (lambda: diagnostics.record(mo.muon(0.1), 2.5), ValueError, r"every=2\.5 is not allowed"),
        (lambda: diagnostics.record(mo.muon(0.1), True), ValueError, "every=True is not allowed"),
        (lambda: diagnostics.record(mo.muon(0.1), keep=0), ValueError, "keep=0 is not allowed: use a whole number"),
        (lambda: diagnostics.record(mo.muon(0.1), learning_rate=-1.0), ValueError, r"learning_rate=-1\.0"),
        (lambda: diagnostics.record(mo.muon(0.1), scale="adam"), ValueError, "'adam' is not known: use one of"),
        (lambda: recorder().update(SMALL, recorder().init(SMALL)), ValueError, r"update\(gradients, state, params\)"),
        (
            lambda: recorder().update({"kernel": jnp.eye(4)}, recorder().init(SMALL), SMALL),
            ValueError,
            "not the tree of init: 'blocks/0/bias'",
        ),
        (lambda: diagnostics.recorded(mo.muon(0.1).init(SMALL)), ValueError, "holds 0 recorders.*wrap the optimizer"),
        (lambda: diagnostics.recorded([recorder().init(SMALL)] * 2), ValueError, "list holds 2 recorders"),
        (
            lambda: diagnostics.recorded(recorder().init(SMALL)).last("growht"),
            ValueError,
            "measurement='growht' is not recorded: use one of 'gradient_rms', ",
        ),
    ],
)
def test_refused(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
