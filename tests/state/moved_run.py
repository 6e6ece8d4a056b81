"""A run that is saved on one mesh and goes on on another. As a program: one of two processes that do it together."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from meshes import AUTO, EXPLICIT, ONE_STEP, random_tree, shardings

import muon_optax as mo

SHAPES = {"embedding": (8, 16), "up": (16, 32), "bias": (32,), "down": (32, 16), "odd": (3,)}
LAYOUTS = {"embedding": None, "up": "io", "bias": None, "down": "io", "odd": None}
FSDP = {"embedding": P("data"), "up": P("data"), "bias": P("data"), "down": P(None, "data"), "odd": P()}
TENSOR = {
    "embedding": P(None, "model"), "up": P("data", "model"), "bias": P("model"), "down": P("model", "data"), "odd": P(),
}  # fmt: skip
WHOLE = dict.fromkeys(SHAPES, P())
STEPS = 3  # before the move, and after it
SUM, AVERAGE = 0.95, mo.nesterov_ema(0.95)  # kept in two ways, the updates are the same


class Place(NamedTuple):
    """A mesh, and how parameters and state lie on it."""

    axes: Mapping[str, int]
    specs: Mapping[str, P]
    over: str | None = None
    kind: AxisType = AUTO
    last_first: bool = False  # on the last devices, in reversed order

    def mesh(self) -> Mesh:
        count = int(np.prod([*self.axes.values()]))
        devices = jax.devices()[::-1][:count] if self.last_first else jax.devices()[:count]
        kinds = (self.kind,) * len(self.axes)
        return jax.make_mesh((*self.axes.values(),), (*self.axes,), axis_types=kinds, devices=devices)


class Run:
    """Parameters and a fresh state where ``place`` says, and steps from there."""

    def __init__(self, place: Place, momentum: Any = SUM) -> None:
        self.places, params = shardings(place.mesh(), place.specs), random_tree(SHAPES, 0)
        plan = mo.plan(params, self.places, LAYOUTS, orthogonalizer=ONE_STEP, over=place.over)
        self.optimizer = mo.muon(
            0.02, layouts=LAYOUTS, orthogonalizer=ONE_STEP, momentum=momentum, adamw_learning_rate=0.02, shardings=plan
        )
        self.params = jax.device_put(params, self.places)
        self.state, self.plan = mo.init_sharded(self.optimizer, self.params, plan), plan

    def train(self, first: int) -> None:
        @jax.jit
        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = self.optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        for seed in range(first, first + STEPS):
            gradients = jax.device_put(random_tree(SHAPES, seed), self.places)
            self.params, self.state = step(self.params, self.state, gradients)

    def save(self, folder: Path) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, {"params": self.params, "state": self.state})
            checkpointer.wait_until_finished()

    def restored(self, folder: Path, earlier: optax.GradientTransformation) -> Any:
        """The state of ``earlier`` from a checkpoint, read to where this run lies; and the parameters, taken over."""
        places = mo.state_shardings(earlier, self.params, self.plan)
        shapes = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            {"params": self.params, "state": jax.eval_shape(earlier.init, self.params)},
            {"params": self.places, "state": places},
        )
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.restore(folder, shapes)
        self.params = found["params"]
        return found["state"]


def whole(params: Any) -> dict[str, np.ndarray]:
    """On the host, also what other processes hold parts of."""
    gathered = jax.jit(lambda params: params, out_shardings=jax.tree.map(_everywhere, params))(params)
    return {path: np.asarray(leaf) for path, leaf in gathered.items()}


def _everywhere(leaf: jax.Array) -> Any:
    return jax.sharding.NamedSharding(leaf.sharding.mesh, P())


def together(port: str, process: int, folder: Path) -> None:
    """Trains and saves on one mesh, then goes on on another twice: from the checkpoint, and with the arrays at hand."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, coordinator_bind_address=f"127.0.0.1:{port}")
    before = Run(Place({"data": 4}, FSDP))
    before.train(1)
    before.save(folder / "checkpoint")
    for name, place in TOGETHER.items():
        run = Run(place, AVERAGE)
        earlier = run.restored(folder / "checkpoint", before.optimizer) if name == "restored" else before.state
        if name != "restored":
            run.params = jax.device_put(before.params, run.places)
        run.state, report = mo.carry_over(earlier, run.state, strict=True)
        assert not report.afresh
        run.train(1 + STEPS)
        params = whole(run.params)
        if process == 0:
            np.savez(folder / f"{name}.npz", **params)
    jax.distributed.shutdown()


TOGETHER = {
    "restored": Place({"data": 2, "model": 2}, WHOLE, over="data"),
    "at hand": Place({"data": 2, "model": 2}, TENSOR, kind=EXPLICIT, last_first=True),
}

if __name__ == "__main__":
    together(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
