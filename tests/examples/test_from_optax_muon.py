"""The main job's checkpoint, moved from optax.contrib.muon: the run goes on as Optax's would have at the next step."""

import csv
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import from_optax_muon
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import train_gpt
from flax import nnx

import muon_optax as mo

pytestmark = pytest.mark.slow
MADE, TINY = 10, train_gpt.PRESETS["tiny"]


@pytest.fixture(autouse=True)
def settings_of_the_process() -> Iterator[None]:
    """A program sets them for good; here other tests follow."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.disable(logging.NOTSET)


def parameters() -> Any:
    return nnx.split(train_gpt.GPT(TINY, nnx.Rngs(0)))[1]


def test_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "run")
    from_optax_muon.main(["--preset", "tiny", "--made", str(MADE), "--output", output])
    printed = capsys.readouterr().out
    assert "0 dropped, 0 afresh, 21 carried." in printed
    assert f"all at {MADE}" in printed

    # Momentum is a sum here, 20 times Optax's average, and Adam's moments are Optax's.
    before = from_optax_muon.optaxs_muon(TINY)
    like = parameters(), jax.eval_shape(before.init, parameters())
    with ocp.StandardCheckpointer() as checkpointer:
        trained, earlier = checkpointer.restore(tmp_path / "run" / "before", like)
    moved, state = from_optax_muon.move(tmp_path / "run" / "before", parameters(), TINY)
    jax.tree.map(np.testing.assert_array_equal, moved, trained)
    average, sums = optax.tree.get(earlier, "mu", filtering=of_a_matrix), optax.tree.get(state, "trace")
    for one, other in zip(jax.tree.leaves(average), jax.tree.leaves(sums), strict=True):
        np.testing.assert_allclose(other, one / 0.05, rtol=1e-6)

    assert train_gpt.main(["--preset", "tiny", "--resume", "--optimizer", "muon", "--output", output]) == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(TINY.steps + 1))
    losses = [float(row["training_loss"]) for row in rows[:-1]]
    validation = [float(row["validation_loss"]) for row in rows[MADE:]]
    assert validation[-1] < validation[0] - 0.05
    # Optax goes on from the same parameters: its loss at the next step is the same, and those that follow are near.
    graph = nnx.split(train_gpt.GPT(TINY, nnx.Rngs(0)))[0]
    text, _, _ = train_gpt.read_text(None, TINY.context)
    _, on = from_optax_muon.train(graph, (parameters(), before.init(parameters())), TINY, text, MADE + 4)
    np.testing.assert_allclose(losses[: MADE + 1], [row[1] for row in on[: MADE + 1]], rtol=1e-5)
    np.testing.assert_allclose(losses[MADE + 1 : MADE + 4], [row[1] for row in on[MADE + 1 :]], rtol=0.02)


def of_a_matrix(path: Any, value: Any) -> bool:
    """Whether ``mu`` is the momentum of Optax's Muon, and not a moment of its Adam."""
    return "MuonState" in str(path)


def test_the_dimension_numbers_are_what_the_rules_find() -> None:
    assert mo.assign_layouts(parameters()) == mo.assign_layouts(parameters(), from_optax_muon.dimension_numbers)


def test_what_can_be_put_right_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        from_optax_muon.main(["--preset", "tiny", "--made", "20", "--output", str(tmp_path)])
    assert "--made 20: give at least 1 and less than the run's 20 steps" in capsys.readouterr().err
