"""States of PyTorch's Muon and of Optax's: a run goes on with the update that it would have made there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import orbax.checkpoint as ocp
import pytest
import trees
from jax.sharding import PartitionSpec as P
from meshes import FLOAT32, mesh_of, shardings, types
from places import TESTS
from trees import assert_trees_equal

import muon_optax as mo

RATE = 0.1
GOLDEN = sorted((TESTS / "golden").glob("torch_*.npz"))
SCALES = {"original": "keller", "match_rms_adamw": "moonlight"}


def save_and_restore(tree: Any, folder: Path) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))


# PyTorch.


@pytest.mark.parametrize("kept_by", ["trace", "schedule", "average"])
@pytest.mark.parametrize("file", GOLDEN, ids=[file.stem.removeprefix("torch_") for file in GOLDEN])
def test_a_run_of_torch_goes_on(file: Path, kept_by: str, tmp_path: Path) -> None:
    """From torch's momentum after its last step, the next update is that of float64 NumPy."""
    torch = {name: array if array.ndim else array.item() for name, array in np.load(file).items()}
    beta, nesterov, scale = torch["momentum"], torch["nesterov"], SCALES[torch["adjust_lr_fn"]]
    average = mo.nesterov_ema(beta) if nesterov else optax.ema(beta, debias=False)
    momentum = {"trace": beta, "schedule": lambda step: beta, "average": average}[kept_by]
    optimizer = mo.muon(
        torch["lr"], weight_decay=0.0, momentum=momentum, nesterov=nesterov or kept_by == "average", scale=scale,
        orthogonalizer=FLOAT32, layouts={"w": "oi"},
    )  # fmt: skip
    params, gradient = {"w": jnp.asarray(torch["params"][-1])}, torch["grads"][0]
    buffers = {"w": {"momentum_buffer": torch["momentum_buffer"], "step": 5}}
    state = mo.from_torch_muon(buffers, optimizer.init(params), momentum=beta, step=5)
    state = save_and_restore(state, tmp_path / "state")
    updates, _ = optimizer.update({"w": jnp.asarray(gradient)}, state, params)

    m = beta * torch["momentum_buffer"].astype(np.float64) + (1 - beta) * gradient
    u = (beta * m + (1 - beta) * gradient if nesterov else m).T
    want = -torch["lr"] * (oracle.SCALES[scale](*u.shape) * oracle.newton_schulz(u)).T
    assert oracle.relative_error(updates["w"], want) < 1e-5


# Optax.


def optaxs(nesterov: bool) -> Any:
    return optax.contrib.muon(RATE, weight_decay=0.1, nesterov=nesterov, adam_weight_decay=0.1)


def ours(momentum: Any, nesterov: bool) -> Any:
    return mo.muon(
        RATE, weight_decay=0.1, momentum=momentum, nesterov=nesterov, scale="keller", orthogonalizer=FLOAT32,
        layouts={"embedding": "io"},  # every array of two axes is a matrix there
        adamw=optax.adamw(RATE, weight_decay=0.1, nesterov=nesterov),
    )  # fmt: skip


def steps_of(optimizer: Any, state: Any, seeds: Any) -> tuple[list[Any], Any]:
    """The updates for gradients of these seeds; parameters stay where they are."""
    params, update, found = trees.with_vectors(), jax.jit(optimizer.update), []
    for seed in seeds:
        updates, state = update(trees.with_vectors(seed), state, params)
        found.append(updates)
    return found, state


def optaxs_state(nesterov: bool, steps: int) -> Any:
    optimizer = optaxs(nesterov)
    return steps_of(optimizer, optimizer.init(trees.with_vectors()), range(1, steps + 1))[1]


@pytest.mark.parametrize(
    "momentum, nesterov, within",
    [
        pytest.param(0.95, False, 1e-4, id="plain"),
        pytest.param(lambda step: 0.95, False, 1e-4, id="plain, by a schedule"),
        pytest.param(mo.nesterov_ema(0.95, debias=True), True, 1e-4, id="nesterov, debiased average"),
        pytest.param(0.95, True, 8e-2, id="nesterov, up to the bias correction"),
    ],
)
def test_a_run_of_optax_goes_on(momentum: Any, nesterov: bool, within: float, tmp_path: Path) -> None:
    theirs, optimizer = optaxs(nesterov), ours(momentum, nesterov)
    before = save_and_restore(optaxs_state(nesterov, 10), tmp_path / "theirs")
    state = mo.from_optax_contrib_muon(before, optimizer.init(trees.with_vectors()))
    got, after = steps_of(optimizer, save_and_restore(state, tmp_path / "ours"), (11, 12))
    want, _ = steps_of(theirs, before, (11, 12))
    for one, other in zip(got, want, strict=True):
        assert_trees_equal(one, other, within)
        assert_trees_equal(one["bias"], other["bias"], 1e-5)
    if within > 1e-2:  # the difference is there, as documented
        assert float(jnp.linalg.norm(got[0]["up"] - want[0]["up"])) > 1e-3 * float(jnp.linalg.norm(want[0]["up"]))
    # The same types as the fresh state: no step is traced anew.
    assert types(after) == types(optimizer.init(trees.with_vectors()))


def test_counters_and_learning_rates_go_on() -> None:
    schedule = optax.linear_schedule(1.0, 0.0, 20)
    optimizer = mo.muon(schedule, layouts={"embedding": "io"})
    state = mo.from_optax_contrib_muon(optaxs_state(True, 10), optimizer.init(trees.with_vectors()))
    counts = [int(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim == 0]
    assert counts == [10] * 6  # AdamW's own, the momentum's, and rate and decay in each branch


def test_a_model_with_an_embedding_and_a_head_passes_with_the_defaults() -> None:
    """Optax trained both by Muon; AdamW trains them here, from moments of zero, and the rest goes on."""
    params = {"embedding": jnp.ones((10, 8)), "mlp": {"kernel": jnp.ones((8, 8)), "bias": jnp.ones(8)}}
    params |= {"lm_head": {"kernel": jnp.ones((8, 10))}}
    before, optimizer = optax.contrib.muon(RATE), mo.muon(RATE)
    state = before.update(params, before.init(params), params)[1]
    with pytest.warns(mo.MuonWarning, match="trained 'embedding', 'lm_head/kernel' otherwise .* 'io'"):
        got = mo.from_optax_contrib_muon(state, optimizer.init(params))
    adam, momentum = (got.inner_states[label].inner_state[0] for label in ("adamw", "muon"))
    assert not adam.mu["embedding"].any()
    assert not adam.nu["lm_head"]["kernel"].any()
    assert_trees_equal(adam.mu["mlp"]["bias"], state.inner_states["adam"].inner_state[0].mu["mlp"]["bias"])
    assert float(momentum.trace["mlp"]["kernel"][0, 0]) == pytest.approx(1.0)
    updates, _ = optimizer.update(params, got, params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
    _, report = mo.carry_over(state, optimizer.init(params))
    assert {row.path for row in report.dropped} == {"embedding", "lm_head/kernel"}


def test_arrays_come_to_their_mesh() -> None:
    params = {"w": jnp.ones((8, 16))}
    places = shardings(mesh_of(data=4), {"w": P("data")})
    fresh = mo.init_sharded(mo.muon(RATE), jax.device_put(params, places))
    buffers = {"w": {"momentum_buffer": np.full((8, 16), 0.05, np.float32)}}
    trace = mo.from_torch_muon(buffers, fresh).inner_states["muon"].inner_state[0].trace["w"]
    assert trace.sharding == places["w"]
    np.testing.assert_allclose(trace, 1.0, rtol=1e-6)


FRESH = mo.muon(RATE).init({"up": jnp.ones((2, 3)), "bias": jnp.ones(3)})
UP, BIAS = {"momentum_buffer": np.ones((2, 3))}, {"exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)}


@pytest.mark.parametrize(
    "convert, message",
    [
        (lambda: mo.from_torch_muon({"up": UP}, FRESH), "'bias' needs 'exp_avg', and the state has nothing for it"),
        (
            lambda: mo.from_torch_muon({"up": BIAS, "bias": BIAS}, FRESH),
            "'up' needs 'momentum_buffer', and the state has 'exp_avg', 'exp_avg_sq' .*layouts={'up': None} sends it",
        ),
        (
            lambda: mo.from_torch_muon({"up": {"momentum_buffer": np.ones((3, 2))}, "bias": BIAS}, FRESH),
            r"'momentum_buffer' of 'up' has shape \(3, 2\) and the parameter \(2, 3\): .* Transpose it",
        ),
        (
            lambda: mo.from_torch_muon({"up": UP, "bias": BIAS, "down": UP}, FRESH),
            "There is no place for 'momentum_buffer' of 'down' in the fresh state",
        ),
        (
            lambda: mo.from_torch_muon(
                {"up": UP}, mo.scale_by_normuon(layouts={"up": "io"}).init({"up": jnp.ones((2, 3))})
            ),
            "no place for 'momentum_buffer' of 'up'",
        ),
        (lambda: mo.from_torch_muon({}, FRESH, momentum=1.0), "momentum=1.0 is not allowed"),
        (lambda: mo.from_optax_contrib_muon(FRESH, FRESH), "no optax.contrib.MuonState in this PartitionState"),
    ],
    ids=["missing", "another branch", "transposed", "left over", "no momentum", "momentum", "no Muon"],
)
def test_what_does_not_fit_is_refused(convert: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert()
