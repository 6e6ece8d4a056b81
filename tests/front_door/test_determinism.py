"""The same bits again: what docs/reliability.md says of processes, programs, devices and dtypes, line by line."""

import hashlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from places import ROOT, TESTS
from tolerances import RTOL

import muon_optax as mo

pytestmark = pytest.mark.long

STEPS = 3
# One matrix large enough for XLA to divide among threads.
SHAPES = {"large": (256, 384), "layers": (2, 48, 32), "bias": (48,)}
DTYPES = ("float32", "bfloat16")  # of parameters, gradients, momenta and products


def tree(seed: int, dtype: str) -> dict[str, jax.Array]:
    return {
        name: jnp.asarray(oracle.gaussian(*shape, seed=seed + index), dtype)
        for index, (name, shape) in enumerate(SHAPES.items())
    }


@cache
def run(dtype: str, mode: str) -> Any:
    """Parameters and state after a few steps."""
    optimizer = mo.muon(
        optax.linear_schedule(0.1, 0.05, 2), layouts={"layers": "bio"}, orthogonalizer=mo.newton_schulz(dtype=dtype)
    )

    def step(carry: Any, gradients: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = tree(0, dtype), optimizer.init(tree(0, dtype))
    gradients = [tree(10 * index, dtype) for index in range(1, STEPS + 1)]
    if mode == "scan":
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)
        return jax.jit(lambda carry: jax.lax.scan(step, carry, stacked)[0])(carry)
    if mode != "eager":
        step = jax.jit(step, donate_argnums=0 if mode == "donated" else ())
    for gradient in gradients:
        carry, _ = step(carry, gradient)
    return carry


def fingerprint(outcome: Any) -> str:
    """Of paths, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(outcome):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class Process(NamedTuple):
    """What this file reports where JAX has one device."""

    devices: int
    cache_hits: int
    fingerprints: dict[str, str]  # by dtype and mode
    params: dict[str, dict[str, list]]  # lists of numbers, likewise


def in_another_process(modes: tuple[str, ...], cache_folder: Path, cores: int | None = None) -> Process:
    """Runs this file on ``cores`` cores, or on all of them."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache_folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, TESTS))),
    }
    command = [sys.executable, __file__, str(cores or 0), *modes]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return Process(*json.loads(finished.stdout))


@pytest.mark.parametrize("modes", [("jit", "scan"), ("eager",)], ids=" and ".join)
def test_two_processes_give_the_same_bits_compiled_or_read_from_the_cache(
    modes: tuple[str, ...], tmp_path: Path
) -> None:
    """On the same cores: XLA divides a product among them, and its parts are summed in another order."""
    first, second = (in_another_process(modes, tmp_path) for _ in range(2))
    assert first.cache_hits < second.cache_hits
    assert second.fingerprints == first.fingerprints


def test_the_number_of_devices_and_cores_counts_no_more_than_rounding(tmp_path: Path) -> None:
    """Of arrays on one device; for sharded ones see test_stateful.py."""
    other = in_another_process(("jit",), tmp_path, cores=1)
    assert other.devices == 1 < jax.device_count()
    for dtype in DTYPES:
        assert distance(other.params[f"{dtype} jit"], run(dtype, "jit")[0]) <= 2 * RTOL[dtype], dtype


@pytest.mark.parametrize("mode", ["again", "donated"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_jitted_anew_or_into_donated_buffers_gives_the_same_bits(dtype: str, mode: str) -> None:
    assert fingerprint(run(dtype, mode)) == fingerprint(run(dtype, "jit"))


def distance(one: Any, other: Any) -> float:
    """Between the parameters of two runs, as a share of how far they came: the largest over the matrices."""
    errors = []
    for name in ("large", "layers"):
        came, went = (np.asarray(params[name], np.float64) for params in (one, other))
        errors.append(np.linalg.norm(came - went) / np.linalg.norm(went - np.asarray(tree(0, "float32")[name])))
    return max(errors)


@pytest.mark.parametrize("mode", ["scan", "eager"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_programs_of_the_same_steps_agree_up_to_rounding(dtype: str, mode: str) -> None:
    # Each as far from exact as the table allows.
    assert distance(run(dtype, mode)[0], run(dtype, "jit")[0]) <= 2 * RTOL[dtype]


def test_dtypes_agree_up_to_the_coarser_ones_rounding() -> None:
    # More than the table allows the products alone: parameters, gradients and momenta are rounded too.
    assert 1e-3 < distance(run("bfloat16", "jit")[0], run("float32", "jit")[0]) <= 5 * RTOL["bfloat16"]


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) >= 10
    for file, name in named:
        assert f"\ndef {name}(" in (TESTS / file).read_text(), f"{file}::{name}"


def main(cores: str, *modes: str) -> None:
    if int(cores) and hasattr(os, "sched_setaffinity"):  # before JAX counts them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
    outcomes = {f"{dtype} {mode}": run(dtype, mode) for dtype in DTYPES for mode in modes}
    fingerprints = {name: fingerprint(outcome) for name, outcome in outcomes.items()}
    params = {
        name: jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).tolist(), outcome[0])
        for name, outcome in outcomes.items()
    }
    print(json.dumps(Process(jax.device_count(), len(hits), fingerprints, params)))


if __name__ == "__main__":
    main(*sys.argv[1:])
