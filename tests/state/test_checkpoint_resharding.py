"""A checkpoint written on one mesh goes on from another, and from a single device."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import FLOAT32, lie_alike, mesh_of, random_tree, shardings

import muon_optax as mo

SHAPES = {"up": (16, 32), "bias": (32,), "down": (32, 16)}
INPUTS, TARGETS = random_tree({"x": (32, 16), "y": (32, 16)}, 40).values()
STEPS = 4


class Run:
    """Training on a mesh: parameters, optimizer state, and a step that keeps both where they are."""

    def __init__(self, axes, specs, over=None):
        initial = {name: 0.1 * leaf for name, leaf in random_tree(SHAPES, 41).items()}
        mesh = mesh_of(**axes)
        places = shardings(mesh, specs)
        plan = mo.plan(initial, places, orthogonalizer=FLOAT32, over=over)
        self.optimizer = mo.muon(0.02, orthogonalizer=FLOAT32, shardings=plan)
        self.params = jax.device_put(initial, places)
        self.state = mo.init_sharded(self.optimizer, self.params, plan)
        self.places = (places, mo.state_shardings(self.optimizer, initial, plan))
        self.batch = jax.device_put((INPUTS, TARGETS), NamedSharding(mesh, P()))
        self.step = jax.jit(self.advance, donate_argnums=(0, 1), out_shardings=(*self.places, None))

    def advance(self, params, state, batch):
        def loss_of(params):
            inputs, targets = batch
            return jnp.mean((jax.nn.relu(inputs @ params["up"] + params["bias"]) @ params["down"] - targets) ** 2)

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = self.optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    def train(self):
        losses = []
        for _ in range(STEPS):
            self.params, self.state, loss = self.step(self.params, self.state, self.batch)
            losses.append(float(loss))
        return losses

    def save(self, folder):
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, {"params": self.params, "state": self.state})
            checkpointer.wait_until_finished()

    def restore(self, folder):
        target = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            (self.params, self.state),
            self.places,
        )
        with ocp.StandardCheckpointer() as checkpointer:
            restored = checkpointer.restore(folder, dict(zip(("params", "state"), target, strict=True)))
        self.params, self.state = restored["params"], restored["state"]


FSDP = ({"data": 8}, dict.fromkeys(SHAPES, P("data")))
OTHERS = {
    "8 devices": FSDP,
    "1 device": ({"data": 1}, dict.fromkeys(SHAPES, P())),
    "4 x 2": ({"data": 4, "model": 2}, {"up": P("data", "model"), "bias": P("model"), "down": P("model", "data")}),
    "ZeRO-1": ({"data": 8}, dict.fromkeys(SHAPES, P()), "data"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint written on 8 devices after some steps, and the losses of the steps that follow."""
    folder = tmp_path_factory.mktemp("checkpoint") / "state"
    run = Run(*FSDP)
    run.train()
    run.save(folder)
    return folder, run.train()


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_training_goes_on_elsewhere(saved, other):
    folder, losses = saved
    run = Run(*other)
    run.restore(folder)
    assert lie_alike((run.params, run.state), run.places)
    np.testing.assert_allclose(run.train(), losses, rtol=1e-4)
    assert losses[-1] < losses[0]
