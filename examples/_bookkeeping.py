"""What surrounds the training of both GPT examples: text, checkpoints, metrics, the report, errors of one line."""

import csv
import hashlib
import io
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from matplotlib.figure import Figure

import muon_optax as mo
from muon_optax.plots import heat_map

TITLES = {"adamw": "AdamW", "muon": "Muon"}


class RunError(Exception):
    """What the person who started the run can put right; shown as one line."""


def read_text(path: str | None, context: int) -> tuple[np.ndarray, np.ndarray, str]:
    """The bytes for training, those held out for validation, and the sha256 of all."""
    root = Path(path or sysconfig.get_paths()["stdlib"]).resolve()
    files = [root] if root.is_file() else sorted(root.rglob("*") if path else root.glob("*.py"))
    seen = [f for f in files if f.is_file() and "/." not in f.relative_to(root.parent).as_posix()]  # visible
    texts = [text for file in seen if (text := file.read_bytes()) and b"\0" not in text]  # not binary
    if not texts:
        problem = "holds no text" if root.exists() else "does not exist"
        raise RunError(f"--text {root} {problem}: give a file or a folder with text in it")
    # Held out is each tenth file, whole, since pieces of one file repeat each other; of a single file its last tenth.
    cut = len(texts[0]) * 9 // 10
    parts = texts if len(texts) > 1 else [texts[0][cut:], texts[0][:cut]]
    held_out = np.frombuffer(b"".join(parts[::10]), np.uint8)
    training = np.frombuffer(b"".join(part for i, part in enumerate(parts) if i % 10), np.uint8)
    sizes = f"{len(training):,} bytes for training, {len(held_out):,} for validation"
    if min(len(training), len(held_out)) <= context:
        raise RunError(f"--text {root} is too short: {sizes}; both must exceed the context of {context}")
    sha256 = hashlib.sha256(b"".join(texts)).hexdigest()
    print(f"text: {root}: {len(texts)} files, {sum(map(len, texts)):,} bytes, sha256 {sha256}; {sizes}")
    return training, held_out, sha256


def open_checkpoints(output: Path, wanted: dict, resume: bool) -> tuple[ocp.CheckpointManager, dict]:
    """The run's checkpoints, and the histories in the last one: Orbax renames what is complete, and sees no other."""
    folder = output.absolute() / "checkpoints"
    if resume and not folder.is_dir():
        raise RunError(f"--resume: no checkpoint in {output}; without --resume a run starts there")
    try:
        output.mkdir(parents=True, exist_ok=True)
        open(output / "metrics.csv", "a").close()
    except OSError as error:
        raise RunError(f"can't write to --output {output}: {error.strerror}; give another folder") from error
    options = {"max_to_keep": 2, "keep_period": wanted["steps"], "cleanup_tmp_directories": resume}  # of a killed run
    options["enable_async_checkpointing"] = False  # the next step would take over the memory that is being written
    manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(**options))
    if (last := manager.latest_step()) is None:
        return manager, {}
    if not resume:
        raise RunError(f"--output {output} holds a run: continue it by --resume, or give another folder")
    old, histories = manager.restore(last, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"].values()
    unlike = [
        f"{key} is {old.get(key, False)} there, {new} here" for key, new in wanted.items() if old.get(key, False) != new
    ]
    if unlike:
        raise RunError(f"--resume: {output} holds a run of another configuration: {'; '.join(unlike)}")
    return manager, histories


def restore(checkpoints: ocp.CheckpointManager, made: int, like: Any) -> Any:
    """The training state of a checkpoint, with the shapes and the places of ``like``."""
    return checkpoints.restore(made, args=ocp.args.Composite(state=ocp.args.StandardRestore(like)))["state"]


def save(checkpoints: ocp.CheckpointManager, made: int, state: Any, configuration: dict, histories: dict) -> None:
    """The training state after ``made`` steps, and what ``open_checkpoints`` compares and returns."""
    record = ocp.args.JsonSave({"configuration": configuration, "histories": histories})
    checkpoints.save(made, args=ocp.args.Composite(state=ocp.args.StandardSave(state), record=record))


def write_metrics(output: Path, heading: str, rows: Sequence[Sequence]) -> None:
    """Replaces metrics.csv at once: whoever reads it sees the old file or the new one."""
    with open(output / "metrics.partial", "w", newline="") as file:
        csv.writer(file).writerows([heading.split(), *rows])
    (output / "metrics.partial").replace(output / "metrics.csv")


@contextmanager
def explained(output: Path) -> Iterator[None]:
    """A write that fails becomes one line. Orbax's threads print pages, even after it raised: stderr stays silent."""
    shown, sys.stderr = sys.stderr, io.StringIO()
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: of the C++ code that writes the arrays
        reason = getattr(error, "strerror", None) or str(error).rpartition(": ")[2].partition(" [")[0]
        raise RunError(f"can't write to {output}: {reason}; with that put right, --resume goes on") from error
    sys.stderr = shown


def refuse_spoilt(title: str, value: Any, recent: Sequence[tuple[int, dict]]) -> None:
    """Names the first leaf that is not finite, from the counts of the last steps; without one, does nothing."""
    spoilt = [f"{path} at step {step}" for step, counts in recent for path, count in counts.items() if count]
    if spoilt:
        problem = f"{title}'s loss at step {recent[-1][0]} is {value}: lower --learning-rate"
        raise RunError(f"{problem}; the first not finite: {spoilt[0]}, then {len(spoilt) - 1} more")


def time_in_turn(steps: dict, states: dict, tokens: np.ndarray) -> dict[str, float]:
    """Median seconds of each step, made in turn so that other work on the machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name in [*steps] * 15:
        began = time.perf_counter()
        states[name], *_ = jax.block_until_ready(steps[name](states[name], tokens))
        seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def report(histories: dict, seconds: dict, rates: dict, output: Path) -> None:
    """Prints the table and draws the picture; the optimizer's share is what a step takes beyond SGD's."""
    axes = (figure := Figure(figsize=(8, 5), layout="constrained")).subplots()
    labels = "", "learning rate", "final validation loss", "steps to AdamW's final loss", "seconds per step"
    table = [f"{label:30}" for label in [*labels, "optimizer's share of the step"]]
    target = histories["adamw"][-1][2] if len(histories) == 2 else -np.inf
    for color, (name, rows) in zip(("tab:blue", "tab:red"), histories.items(), strict=False):
        step, training, validation = np.array(rows, float).T  # None, for what was not measured, becomes NaN
        reached = [*step[validation <= target].astype(int), "-"][0]
        rate, share = f"{rates[name]:g}", f"{max(0, 1 - seconds['sgd'] / seconds[name]):.1%}"
        column = TITLES[name], rate, f"{rows[-1][2]:.4f}", reached, f"{seconds[name]:.4f}", share
        table = [line + f"{cell:>12}" for line, cell in zip(table, column, strict=True)]
        axes.plot(step, training, color=color, alpha=0.3, linewidth=0.7, label=f"{TITLES[name]}, training")
        known, label = ~np.isnan(validation), f"{TITLES[name]}, validation: {rows[-1][2]:.3f} at the end"
        axes.plot(step[known], validation[known], ".-", color=color, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per byte)", ylim=[part * rows[-1][2] for part in (0.9, 2)])
    axes.legend()
    figure.savefig(output / "loss.png", dpi=120)
    print("", *table, sep="\n")


def write_recording(output: Path, name: str, recording: mo.diagnostics.Recording) -> None:
    """Prints which layers stand out, writes all values to diagnostics_NAME.csv, and draws four of them over time."""
    print("", f"{TITLES[name]}, layer by layer:", recording, sep="\n")
    steps, paths, _ = recording.history("growth")
    values = {measured: recording.history(measured)[2] for measured in recording.names}
    rows = [
        [step, path, *(f"{value[row, column]:.6g}" for value in values.values())]
        for column, step in enumerate(steps)
        for row, path in enumerate(paths)
    ]
    with open(output / f"diagnostics_{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows([["step", "path", *values], *rows])
    figure = Figure(figsize=(14, 2 + 0.3 * len(paths)), layout="constrained")
    # AdamW's updates have no predicted size.
    size, least = ("update_size", "orthogonality_error") if recording.last("update_size") else ("update_rms", "idle")
    for axes, measured in zip(figure.subplots(2, 2).flat, (size, "growth", "momentum_cosine", least), strict=True):
        heat_map(recording, measured, axes=axes)
    figure.savefig(output / f"diagnostics_{name}.png", dpi=120)


def write_sample(output: Path, title: str, logits: Callable[[np.ndarray], Any], start: np.ndarray, seed: int) -> None:
    """Goes on from the bytes of ``start``; ``logits`` are of the byte that follows a context."""
    random, sample = np.random.default_rng(seed), start
    for _ in range(400):  # the largest of logits plus Gumbel noise is a draw from their softmax
        scores = logits(sample[None, -len(start) :]) / 0.8 + random.gumbel(size=256)
        sample = np.append(sample, np.uint8(np.argmax(scores)))
    text = sample[len(start) :].tobytes().decode(errors="replace")
    (output / "sample.txt").write_text(text, encoding="utf-8")
    print(f"\n{title} goes on from the first {len(start)} held-out bytes:\n{text}")
