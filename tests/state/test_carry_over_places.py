"""A state carried over to another mesh, other devices, another memory: it lies there as the fresh one, and goes on."""

import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import SingleDeviceSharding
from meshes import AUTO, EXPLICIT, mesh_of, shardings
from moved_run import AVERAGE, FSDP, LAYOUTS, SHAPES, STEPS, SUM, TENSOR, TOGETHER, WHOLE, Place, Run, whole
from places import ROOT

import muon_optax as mo

WITHIN = 1e-4  # as in meshes.py: another order of summation


def assert_close(got: Any, want: Any) -> None:
    for path, leaf in want.items():
        assert np.linalg.norm(got[path] - leaf) <= WITHIN * np.linalg.norm(leaf), path


@cache
def uninterrupted() -> dict[str, np.ndarray]:
    """What one device makes of all steps in one go."""
    run = Run(Place({"data": 1}, WHOLE))
    run.train(1)
    run.train(1 + STEPS)
    return whole(run.params)


PLACES = {
    "one device": Place({"data": 1}, WHOLE),
    "FSDP on 8": Place({"data": 8}, FSDP),
    "2 x 4, the last first": Place({"data": 2, "model": 4}, TENSOR, last_first=True),
    "FSDP on the last 4": Place({"data": 4}, FSDP, last_first=True),
    "ZeRO-1": Place({"data": 8}, WHOLE, over="data"),
    "Explicit, 4 x 2": Place({"data": 4, "model": 2}, TENSOR, kind=EXPLICIT),
    "Explicit, ZeRO-1": Place({"data": 8}, WHOLE, over="data", kind=EXPLICIT),
}
MOVES = [
    ("FSDP on 8", "2 x 4, the last first"), ("ZeRO-1", "FSDP on the last 4"), ("FSDP on 8", "Explicit, 4 x 2"),
    ("Explicit, 4 x 2", "ZeRO-1"),
]  # fmt: skip
MORE_MOVES = [
    ("FSDP on 8", "FSDP on the last 4"), ("one device", "FSDP on 8"), ("2 x 4, the last first", "ZeRO-1"),
    ("Explicit, ZeRO-1", "one device"), ("ZeRO-1", "Explicit, ZeRO-1"),
]  # fmt: skip
ALL_MOVES = [
    pytest.param(*move, id=" to ".join(move), marks=marks)
    for moves, marks in ((MOVES, ()), (MORE_MOVES, pytest.mark.slow))
    for move in moves
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that trained somewhere, and its checkpoint."""

    @cache
    def saved(name: str) -> tuple[Run, Path]:
        run, folder = Run(PLACES[name]), tmp_path_factory.mktemp("checkpoint") / "run"
        run.train(1)
        run.save(folder)
        return run, folder

    return saved


@pytest.mark.parametrize("mesh_is_set", [False, True], ids=["no mesh set", "a mesh set"])
@pytest.mark.parametrize("before, now", ALL_MOVES)
def test_a_run_goes_on_elsewhere(saved: Any, before: str, now: str, mesh_is_set: bool) -> None:
    """From the checkpoint where no mesh is set, from the arrays at hand where one is; the momentum's way changes."""
    (earlier, folder), run = saved(before), Run(PLACES[now], AVERAGE)
    with jax.set_mesh(run.plan.mesh) if mesh_is_set else nullcontext():
        fresh = run.state
        if mesh_is_set:
            state, run.params = earlier.state, jax.device_put(earlier.params, run.places)
        else:
            state = run.restored(folder, earlier.optimizer)
        run.state, report = mo.carry_over(state, fresh, strict=True)
        assert not report.afresh
        for one, other in zip(*map(jax.tree.leaves, (run.state, fresh)), strict=True):
            assert (one.sharding, one.committed) == (other.sharding, other.committed)
        run.train(1 + STEPS)
        assert_close(whole(run.params), uninterrupted())


@pytest.mark.parametrize("place", ["2 x 4, the last first", "Explicit, 4 x 2"])
def test_codes_go_to_another_mesh(saved: Any, place: str) -> None:
    """A mesh is set. Codes are made of sums, changed and read again."""
    kinds = [mo.quantized_trace(0.95, nesterov=True, bits=bits, block_size=4) for bits in (8, 4)]
    runs = [Run(PLACES["FSDP on 8"], kinds[0]), Run(PLACES[place], kinds[1]), Run(PLACES["ZeRO-1"], SUM)]
    state = saved("FSDP on 8")[0].state
    for run in runs:
        with jax.set_mesh(run.plan.mesh):
            state, report = mo.carry_over(state, run.state, block_size=4, strict=True)
            assert not report.afresh
            for one, other in zip(*map(jax.tree.leaves, (state, run.state)), strict=True):
                assert (one.sharding, one.committed) == (other.sharding, other.committed)
    want, got = (each.inner_states["muon"].inner_state[0].trace for each in (saved("FSDP on 8")[0].state, state))
    for path in ("up", "down"):
        share = np.linalg.norm(np.asarray(got[path]) - want[path]) / np.linalg.norm(want[path])
        assert 0.0 < share < 0.12  # four bits: half of a 7th of the largest of four


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["Auto", "Explicit"])
def test_counters_that_init_made_outside_jit_follow_the_parameters(kind: Any) -> None:
    """Such arrays are on one device and committed to none; committed, they would not go with a mesh."""
    mesh = mesh_of(kind, data=8)
    places = shardings(mesh, FSDP)
    run, optimizer = Run(Place({"data": 8}, FSDP, kind=kind)), mo.muon(0.02, layouts=LAYOUTS, shardings=places)
    with jax.set_mesh(mesh) if kind is EXPLICIT else nullcontext():
        run.train(1)
        fresh = optimizer.init(run.params)
        state, _ = mo.carry_over(run.state, fresh, strict=True)
        assert [leaf.committed for leaf in jax.tree.leaves(state)] == [
            leaf.committed for leaf in jax.tree.leaves(fresh)
        ]
        gradients = jax.device_put(run.params, places)
        jitted, _ = jax.jit(optimizer.update)(gradients, state, run.params)
        updates, _ = optimizer.update(gradients, state, run.params)
    assert_close(*({path: np.asarray(leaf) for path, leaf in each.items()} for each in (jitted, updates)))


def test_a_fresh_state_that_is_free_stays_free(saved: Any) -> None:
    """From a mesh to parameters that are committed to no device: they may go to any mesh later."""
    run = saved("FSDP on 8")[0]
    optimizer = mo.muon(0.02, layouts=LAYOUTS)
    params = {path: jnp.asarray(leaf) for path, leaf in whole(run.params).items()}
    state, _ = mo.carry_over(run.state, optimizer.init(params), strict=True)
    assert not any(leaf.committed for leaf in jax.tree.leaves(state))
    for one, other in zip(*map(jax.tree.leaves, (state, run.state)), strict=True):
        np.testing.assert_array_equal(one, other)
    elsewhere = jax.device_put(params, jax.devices()[3])
    jax.jit(optimizer.update)(elsewhere, state, elsewhere)


WAYS = {
    "sum": {}, "bfloat16": {"momentum_dtype": jnp.bfloat16}, "average": {"momentum": AVERAGE},
    "8 bits": {"momentum": mo.quantized_trace(0.95)}, "4 bits": {"momentum": mo.quantized_trace(0.95, bits=4)},
}  # fmt: skip


@pytest.mark.parametrize("now", WAYS)
@pytest.mark.parametrize("before", WAYS)
def test_from_and_to_host_memory(before: str, now: str) -> None:
    """In host memory, where no array meets those of a device, come the same bits."""
    params = {"up": jnp.asarray(np.random.default_rng(0).standard_normal((8, 16)), jnp.float32)}
    one, other = (mo.muon(0.02, layouts={"up": "io"}, **WAYS[name]) for name in (before, now))
    _, earlier = one.update(params, one.init(params), params)
    want, _ = mo.carry_over(earlier, other.init(params), strict=True)
    host = SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    for places in ((True, False), (False, True), (True, True)):
        states = [
            jax.device_put(state, host) if there else state
            for state, there in zip((earlier, other.init(params)), places, strict=True)
        ]
        got, _ = mo.carry_over(*states, strict=True)
        for leaf, wanted, fresh in zip(*map(jax.tree.leaves, (got, want, states[1])), strict=True):
            assert leaf.sharding == fresh.sharding
            np.testing.assert_array_equal(leaf, wanted)


def test_random_keys_go_along_and_are_not_dropped_unseen() -> None:
    params = {"w": jnp.ones((2, 2))}
    noisy = optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(7)), optax.sgd(0.1))
    _, earlier = noisy.update(params, noisy.init(params), params)
    state, _ = mo.carry_over(earlier, noisy.init(params), strict=True)
    assert (jax.random.key_data(state[0].rng_key) == jax.random.key_data(earlier[0].rng_key)).all()
    assert not state[0].rng_key.committed
    with pytest.raises(ValueError, match=r"AddNoiseState\.rng_key"):
        mo.carry_over(earlier, optax.adam(0.1).init(params), strict=True)


@pytest.mark.two_processes
def test_two_processes_go_on_on_another_mesh(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "tests", "tests/state"))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    program = [sys.executable, ROOT / "tests" / "state" / "moved_run.py", port]
    processes = [
        subprocess.Popen(
            [*program, str(number), tmp_path],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for number in range(2)
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    for name in TOGETHER:
        with np.load(tmp_path / f"{name}.npz") as params:
            assert {*params} == {*SHAPES}
            assert_close(params, uninterrupted())
