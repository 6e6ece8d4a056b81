"""The training example end to end with its tiny preset: what it writes, how it resumes, what it refuses."""

import csv
import hashlib
import logging
import re
import signal
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import train_gpt

import muon_optax as mo

STEPS = 20  # of the tiny preset; a checkpoint every second step


def read_metrics(output: Path) -> dict[str, list[dict[str, str]]]:
    with open(output / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row for row in rows if row["optimizer"] == name] for name in ("adamw", "muon")}


@pytest.fixture(scope="module", autouse=True)
def settings_of_the_process() -> Iterator[None]:
    """A program sets them for good; here other tests follow."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the printed lines of one undisturbed run of both optimizers on the default text."""
    output = tmp_path_factory.mktemp("runs") / "finished"
    capture = pytest.MonkeyPatch()
    lines = []
    capture.setattr("builtins.print", lambda *words, sep=" ", **_: lines.append(sep.join(map(str, words))))
    assert train_gpt.main(["--preset", "tiny", "--output", str(output)]) == 0
    capture.undo()
    return output, "\n".join(lines)


def test_prints_the_text_it_reads_and_the_summary_of_the_model(finished):
    contents = [file.read_bytes() for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
    contents = [content for content in contents if content]
    sha256 = hashlib.sha256(b"".join(contents)).hexdigest()
    assert f"Python {sys.version.split()[0]}, JAX {jax.__version__}" in finished[1]
    assert f"{len(contents)} files, {sum(map(len, contents)):,} bytes, sha256 {sha256}" in finished[1]
    parameters = nnx.split(train_gpt.GPT(train_gpt.PRESETS["tiny"], nnx.Rngs(0)))[1]
    assert str(mo.summarize(parameters)) in finished[1]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_metrics_hold_every_step(finished, name):
    rows = read_metrics(finished[0])[name]
    assert [int(row["step"]) for row in rows] == list(range(STEPS + 1))
    training = [float(row["training_loss"]) for row in rows[:-1]]
    validation = [float(row["validation_loss"]) for row in rows]
    assert training[0] == pytest.approx(np.log(256), abs=1.0)  # nothing learned: all bytes about alike
    assert np.mean(training[-3:]) < training[0] - 1
    assert validation[-1] < validation[0] - 1
    assert rows[-1]["training_loss"] == ""


def test_both_optimizers_start_from_the_same_loss_and_muon_is_ahead(finished):
    adamw, muon = read_metrics(finished[0]).values()
    for column in ("training_loss", "validation_loss"):
        assert adamw[0][column] == muon[0][column]
        assert adamw[1][column] != muon[1][column]
    assert float(muon[-1]["validation_loss"]) < float(adamw[-1]["validation_loss"]) - 0.2


def test_table_agrees_with_the_metrics(finished):
    losses = {name: [float(row["validation_loss"]) for row in rows] for name, rows in read_metrics(finished[0]).items()}
    target = losses["adamw"][-1]
    reached = [next(step for step, loss in enumerate(losses[name]) if loss <= target) for name in losses]
    table = finished[1]
    assert re.search(r"^ +AdamW +Muon$", table, re.MULTILINE)
    assert re.search(r"^learning rate +0.003 +0.02$", table, re.MULTILINE)
    assert re.search(rf"^final validation loss +{target:.4f} +{losses['muon'][-1]:.4f}$", table, re.MULTILINE)
    assert re.search(rf"^steps to AdamW's final loss +{reached[0]} +{reached[1]}$", table, re.MULTILINE)
    seconds = re.search(r"^seconds per step +(\S+) +(\S+)$", table, re.MULTILINE)
    assert all(float(figure) > 0 for figure in seconds.groups())
    shares = re.search(r"^optimizer's share of the step +(\S+)% +(\S+)%$", table, re.MULTILINE)
    assert all(-100 < float(figure) < 100 for figure in shares.groups())


def test_writes_a_picture_and_a_sample(finished):
    output, printed = finished
    picture = (output / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert int.from_bytes(picture[16:20], "big") == 960  # pixels: 8 inches at 120 dots
    sample = (output / "sample.txt").read_text(encoding="utf-8")
    assert len(sample.encode()) >= 400
    assert printed.endswith(sample)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, optimizer: str, step: int) -> None:
    """Makes the run break off when it asks for the batch of this step of this optimizer."""
    real, title = train_gpt.sample_batch, []
    make_bar = train_gpt.tqdm

    def bar(**arguments):
        title[:] = [arguments["desc"]]
        return make_bar(**arguments)

    def sample_batch(text, preset, seed, k):
        if title == [train_gpt.TITLES[optimizer]] and k == step:
            raise KeyboardInterrupt
        return real(text, preset, seed, k)

    monkeypatch.setattr(train_gpt, "tqdm", bar)
    monkeypatch.setattr(train_gpt, "sample_batch", sample_batch)


@pytest.mark.long
def test_resume_continues_bit_for_bit(finished, tmp_path):
    arguments = ["--preset", "tiny", "--output", str(tmp_path)]
    for optimizer, step, last in (("adamw", 7, 6), ("muon", 13, STEPS + 12)):
        with pytest.MonkeyPatch.context() as monkeypatch:
            interrupt_at(monkeypatch, optimizer, step)
            with pytest.raises(KeyboardInterrupt):
                train_gpt.main(arguments)
        complete = [int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()]
        assert max(complete) == last
        arguments = [*arguments, "--resume"]
    # What is left of a checkpoint that was being written when the machine stopped.
    (tmp_path / "checkpoints" / f"{STEPS + 13}.orbax-checkpoint-tmp-1" / "state").mkdir(parents=True)
    assert train_gpt.main(arguments) == 0
    for name in ("metrics.csv", "sample.txt"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()
    assert all(folder.name.isdigit() for folder in (tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_diagnostics_are_printed_written_and_drawn(tmp_path, capsys):
    arguments = ["--preset", "tiny", "--optimizer", "both", "--output", str(tmp_path)]
    assert train_gpt.main([*arguments, "--diagnostics"]) == 0
    printed = capsys.readouterr().out
    for title in ("AdamW", "Muon"):
        assert re.search(rf"^{title}, layer by layer:\n( +gradient .*\n)?path ", printed, re.MULTILINE)
    assert len(re.findall(rf"^Step {STEPS - 1}\. .* stands? out\.$", printed, re.MULTILINE)) == 2
    assert "as large as predicted" not in printed  # of AdamW's updates nothing is predicted
    with open(tmp_path / "diagnostics_muon.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    paths = set(mo.assign_layouts(nnx.split(train_gpt.GPT(train_gpt.PRESETS["tiny"], nnx.Rngs(0)))[1]))
    assert {row["path"] for row in rows} == paths
    assert len(rows) == STEPS * len(paths)
    up = [float(row["growth"]) for row in rows if row["path"] == "blocks/0/up/kernel"]
    assert up[0] == 1
    assert 0.9 < up[-1] < 1
    for name in ("adamw", "muon"):
        assert (tmp_path / f"diagnostics_{name}.png").read_bytes().startswith(b"\x89PNG")
    # A state without a recorder has another structure.
    message = refused(capsys, "--resume", *arguments[2:])
    assert "diagnostics is True there, False here" in message


def test_resume_of_a_finished_run_only_reports(finished, capsys):
    before = (finished[0] / "metrics.csv").read_bytes()
    assert train_gpt.main(["--preset", "tiny", "--output", str(finished[0]), "--resume"]) == 0
    assert "final validation loss" in capsys.readouterr().out
    assert (finished[0] / "metrics.csv").read_bytes() == before


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that explains why these arguments were refused."""
    capsys.readouterr()
    assert train_gpt.main(["--preset", "tiny", *map(str, arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


REFUSED = {
    "--text nowhere": "nowhere does not exist: give a file or a folder",
    "--steps 0": "--steps 0 --seed 0: give at least 1 and at least 0",
    "--learning-rate nan": "--learning-rate is nan: give a number above 0 and at most 1",
    "--resume": "--resume: no checkpoint in",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refuses_in_one_line(tmp_path, capsys, arguments):
    assert REFUSED[arguments] in refused(capsys, *arguments.split(), "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_to_overwrite_a_run(finished, capsys):
    before = (finished[0] / "metrics.csv").read_bytes()
    message = refused(capsys, "--output", finished[0])
    assert f"--output {finished[0]} holds a run: continue it by --resume, or give another folder" in message
    assert (finished[0] / "metrics.csv").read_bytes() == before


def test_refuses_a_checkpoint_of_another_configuration(finished, tmp_path, capsys):
    (tmp_path / "text").write_text("text " * 1000)
    changes = ["--steps", "9", "--seed", "5", "--optimizer", "muon", "--learning-rate", "0.1"]
    message = refused(capsys, "--resume", "--output", finished[0], "--text", tmp_path / "text", *changes)
    assert "another configuration: " in message
    for difference in (
        "optimizer is both there, muon here", "seed is 0 there, 5 here", "steps is 20 there, 9 here",
        "rates is {'adamw': 0.003, 'muon': 0.02} there, {'adamw': 0.1, 'muon': 0.1} here",
    ):  # fmt: skip
        assert difference in message
    assert re.search(r"text is [0-9a-f]{16} there, [0-9a-f]{16} here", message)
    assert "width" not in message
    assert "width is 32 there, 128 here" in refused(capsys, "--resume", "--output", finished[0], "--preset", "small")


def test_stops_where_the_loss_is_not_finite(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_gpt, "make_optimizer", lambda *_: optax.sgd(float("nan")))
    assert train_gpt.main(["--preset", "tiny", "--optimizer", "adamw", "--output", str(tmp_path)]) == 2
    assert "AdamW's loss at step 1 is nan: lower --learning-rate" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_run_after_the_step(number, finished, tmp_path, capsys, monkeypatch):
    arguments = ["--preset", "tiny", "--optimizer", "adamw", "--output", str(tmp_path)]
    real = train_gpt.sample_batch

    def sample_batch(text, preset, seed, k):
        if k == 8:
            signal.raise_signal(number)
        return real(text, preset, seed, k)

    monkeypatch.setattr(train_gpt, "sample_batch", sample_batch)
    with pytest.raises(SystemExit, match=str(128 + number)):
        train_gpt.main(arguments)
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == f"AdamW stopped by {number.name} after step 8, all saved: --resume goes on"
    assert max(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir()) == 9
    assert train_gpt.main([*arguments, "--resume"]) == 0
    assert read_metrics(tmp_path)["adamw"] == read_metrics(finished[0])["adamw"]


def test_holds_out_whole_files(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}").write_bytes(bytes([i + 1]) * 50)
    training, held_out, _ = train_gpt.read_text(str(tmp_path), 32)
    assert set(held_out) == {1, 11}
    assert set(training) == set(range(1, 21)) - {1, 11}
    assert len(training) + len(held_out) == 1000


def test_holds_out_the_end_of_a_single_file(tmp_path):
    content = bytes(range(1, 201)) * 5
    (tmp_path / "file").write_bytes(content)
    training, held_out, _ = train_gpt.read_text(str(tmp_path / "file"), 32)
    assert training.tobytes() + held_out.tobytes() == content
    assert len(held_out) == 100


def test_batch_depends_on_seed_and_step_alone():
    text, preset = np.arange(200, dtype=np.uint8), train_gpt.PRESETS["tiny"]
    batches = {(seed, step): train_gpt.sample_batch(text, preset, seed, step) for seed in (0, 1) for step in (0, 1)}
    for (seed, step), batch in batches.items():
        assert batch.shape == (preset.batch, preset.context + 1)
        np.testing.assert_array_equal(batch, batch[:, :1] + np.arange(preset.context + 1))
        np.testing.assert_array_equal(batch, train_gpt.sample_batch(text, preset, seed, step))
    assert len({batch.tobytes() for batch in batches.values()}) == 4


def test_model_sees_no_later_byte():
    preset = train_gpt.PRESETS["tiny"]
    model = nnx.jit(train_gpt.GPT(preset, nnx.Rngs(0)))
    tokens = jnp.arange(preset.context)[None]
    changed = model(tokens.at[0, 20].set(200)) - model(tokens)
    np.testing.assert_array_equal(changed[0, :20], 0)
    assert (jnp.abs(changed[0, 20:]).max(axis=-1) > 1e-3).all()


def test_rotation_depends_on_distance_alone():
    query, key = (jnp.asarray(row, jnp.float32) for row in np.random.default_rng(0).standard_normal((2, 8)))
    rotated = [train_gpt.rotate(jnp.tile(row, (1, 10, 1, 1)))[0, :, 0] for row in (query, key)]
    products = rotated[0] @ rotated[1].T
    for distance in range(-9, 10):
        diagonal = jnp.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-5)  # float32 angles up to 9 radians
    assert jnp.abs(products[0, 1:] - products[0, 0]).min() > 1e-3


def test_muon_takes_the_matrices_without_being_told():
    parameters = nnx.split(train_gpt.GPT(train_gpt.PRESETS["tiny"], nnx.Rngs(0)))[1]
    layouts = {"query": "ioo", "key": "ioo", "value": "ioo", "out": "iio", "up": "io", "down": "io"}
    for path, layout in mo.assign_layouts(parameters).items():
        expected = layouts.get(path.split("/")[2]) if path.startswith("blocks/") else None
        assert (path, getattr(layout, "axes", layout)) == (path, expected)
