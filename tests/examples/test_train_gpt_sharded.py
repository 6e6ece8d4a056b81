"""The training example on a mesh: the losses of one device, checkpoints that any mesh goes on from, and refusals."""

import csv
import logging
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import flax.nnx as nnx
import jax
import numpy as np
import pytest
import train_gpt
import train_gpt_sharded
from jax.sharding import PartitionSpec as P

import muon_optax as mo

pytestmark = pytest.mark.long

STEPS = 20  # of the tiny preset; a checkpoint every second step
# Another order of summation tips some operands of the orthogonalization to the next bfloat16. Seen in 20 steps: 4e-4.
RTOL = 1e-3


@pytest.fixture(scope="module", autouse=True)
def log_and_signals() -> Iterator[None]:
    """As they were: a program sets them for good."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    logging.disable(logging.NOTSET)
    signal.signal(signal.SIGTERM, handler)


def read_losses(output: Path) -> np.ndarray:
    """The training loss of each step, then the final validation loss."""
    with open(output / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(STEPS + 1))
    return np.array([float(row["training_loss"]) for row in rows[:-1]] + [float(rows[-1]["validation_loss"])])


def train(output: Path, *arguments: str) -> tuple[np.ndarray, tuple]:
    """The losses of a run, and the last state that it saved."""
    states, save = [], train_gpt_sharded.ocp.args.StandardSave
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gpt_sharded.ocp.args, "StandardSave", lambda state: states.append(state) or save(state))
        assert train_gpt_sharded.main(["--preset", "tiny", "--output", str(output), *arguments]) == 0
    return read_losses(output), states[-1]


def at_step(last: int, do: Callable[[], None]) -> Callable:
    """`sample_batch` that does something when the training batch of a step is drawn."""
    sample_batch = train_gpt.sample_batch

    def sample(text, preset, seed, step):
        if step == last and len(text) > 1e6:  # of the text for training
            do()
        return sample_batch(text, preset, seed, step)

    return sample


def shares(tree: nnx.State) -> set[float]:
    """The parts of the matrices that one device holds."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]
    return {math.prod(leaf.sharding.shard_shape(leaf.shape)) / leaf.size for leaf in leaves}


def momenta(state: tuple) -> nnx.State:
    return state[1][1].inner_states["muon"].inner_state[0].trace


def interrupt(*_) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unsharded(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The losses of the main example's Muon, broken off once all is saved."""
    output = tmp_path_factory.mktemp("runs") / "unsharded"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_gpt, "time_in_turn", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_gpt.main(["--preset", "tiny", "--optimizer", "muon", "--output", str(output)])
    return read_losses(output)


def test_the_losses_are_those_of_one_device(unsharded, tmp_path, capfd):
    losses, state = train(tmp_path / "run", "--mesh", "data=4,model=2")
    np.testing.assert_allclose(losses, unsharded, rtol=RTOL)
    assert shares(state[0]) == shares(momenta(state)) == {1 / 8}
    printed, errors = capfd.readouterr()
    assert "process 0 of 1 has 8 of 8 devices\n" in printed
    parameters = nnx.split(train_gpt.GPT(train_gpt.PRESETS["tiny"], nnx.Rngs(0)))[1]
    assert str(mo.summarize(parameters)) in printed
    assert "mesh data=4, model=2: 8 devices\n1 of 128 x 32: 0 to 1 a device, from P('model', 'data') to" in printed
    assert f"step {STEPS} of {STEPS}: loss {losses[-2]:.4f}\n" in printed
    assert printed.endswith(f"process 0: validation loss {losses[-1]:.6f}\n")
    assert "rematerialization" not in errors


def test_zero_spreads_the_momentum_of_whole_parameters(unsharded, tmp_path):
    losses, state = train(tmp_path / "run", "--mesh", "data=4", "--zero")
    np.testing.assert_allclose(losses, unsharded, rtol=RTOL)
    assert shares(state[0]) == {1}
    assert shares(momenta(state)) == {1 / 4}


def test_a_checkpoint_goes_on_on_any_mesh(unsharded, tmp_path, monkeypatch, capsys):
    def begin(*arguments: str, until: int, do: Callable[[], None]) -> None:
        monkeypatch.setattr(train_gpt_sharded, "sample_batch", at_step(until, do))
        train_gpt_sharded.main(["--preset", "tiny", "--output", str(tmp_path), *arguments])

    with pytest.raises(KeyboardInterrupt):
        begin("--mesh", "data=4,model=2", until=5, do=interrupt)
    with pytest.raises(SystemExit, match="143"):
        begin("--mesh", "data=1", "--resume", until=8, do=lambda: signal.raise_signal(signal.SIGTERM))
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == "process 0: stopped by SIGTERM after 9 steps, all saved: --resume goes on"
    assert max(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()) == 9
    monkeypatch.undo()
    losses, state = train(tmp_path, "--mesh", "model=2,data=4", "--resume", "--zero")
    np.testing.assert_allclose(losses, unsharded, rtol=RTOL)
    assert shares(state[0]) == {1 / 2}
    assert shares(momenta(state)) == {1 / 8}
    assert train_gpt_sharded.main(["--preset", "tiny", "--output", str(tmp_path), "--mesh", "data=2", "--resume"]) == 0
    assert capsys.readouterr().out.endswith(f"process 0: validation loss {losses[-1]:.6f}\n")


def test_rule_divides_products_by_outputs_and_then_by_inputs():
    shapes = nnx.split(nnx.eval_shape(lambda: train_gpt.GPT(train_gpt.PRESETS["tiny"], nnx.Rngs(0))))[1]
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "model"))
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        found[path[-3].key] = [train_gpt_sharded.place(mesh, data, path, leaf).spec for data in ("data", None)]
    by_outputs, by_inputs = [P("data", "model"), P(None, "model")], [P("model", "data"), P("model", None)]
    everywhere, norms = [P(), P()], ("attention_norm", "query_norm", "key_norm", "mlp_norm", "norm")
    assert found == {
        **dict.fromkeys(("query", "key", "value", "up", "head"), by_outputs),
        **dict.fromkeys(("embedding", "down"), by_inputs),
        "out": [P("model", None, "data"), P("model", None, None)],
        **dict.fromkeys(norms, everywhere),
    }


REFUSED = {
    "--mesh data:4": "--mesh data:4: give the devices of one axis or of both, as in data=4,model=2",
    "--mesh data=16": "--mesh data=16 needs 16 devices, and there are 8",
    "--mesh data=8": "--mesh data=8 does not divide the batch of 4 by 8",
    "--mesh model=4": "--mesh {'data': 1, 'model': 4} does not divide blocks/0/key/kernel of (32, 2, 16) by P(None, 'm",
    "--processes 2": "--processes 2: give a --coordinator to two or more with equal parts of the mesh",
    "--learning-rate -1": "--steps None --seed 0 --learning-rate -1.0: one is out of range",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refuses_in_one_line(arguments, tmp_path, capsys):
    output = ["--preset", "tiny", "--zero", "--output", str(tmp_path / "out")]
    assert train_gpt_sharded.main([*output, *arguments.split()]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"train_gpt_sharded.py: error: {REFUSED[arguments]}")
    assert errors.count("\n") == 1
