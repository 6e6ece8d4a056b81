"""The mixture of experts learns, alike on one device and on eight, and holds its idle experts."""

import flax.nnx as nnx
import numpy as np
import pytest
import train_moe
from meshes import mesh_of

import muon_optax as mo

pytestmark = pytest.mark.long

STEPS = 20


@pytest.fixture(scope="module")
def runs() -> dict[str, train_moe.Run]:
    return train_moe.main(steps=STEPS)


def test_the_loss_falls(runs: dict[str, train_moe.Run]):
    for run in runs.values():
        assert run.losses[-3:].mean() + 1 < run.losses[0]


def test_idle_experts_are_held(runs: dict[str, train_moe.Run]):
    plain, held = runs.values()
    for run in runs.values():
        assert (run.tokens == 0).any()
        assert (run.sizes[run.tokens > 0] > 0).all()
    assert (held.sizes[held.tokens == 0] == 0).all()
    assert (plain.sizes[plain.tokens == 0] > 0).any()


def test_one_device_does_the_same(runs: dict[str, train_moe.Run]):
    name = "hold_idle_matrices(muon)"
    alone = train_moe.train(train_moe.optimizers(STEPS)[name], 5, mesh_of(expert=1))
    # Operands in bfloat16, tipped by another order of summation, and a token that such a tip sends elsewhere.
    np.testing.assert_allclose(alone.losses, runs[name].losses[:5], rtol=1e-3)


def test_experts_are_stacks_and_the_router_a_matrix():
    layouts = mo.assign_layouts(nnx.state(nnx.eval_shape(lambda: train_moe.Model(nnx.Rngs(0)))))
    found = {path: str(layout) for path, layout in layouts.items() if path.startswith("experts/")}
    assert found == {"experts/down": "bio", "experts/router/kernel": "io", "experts/up": "bio"}
