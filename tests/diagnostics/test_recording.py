"""Runs made bad on purpose: the table and the picture show the cause in the first place; a good run shows nothing."""

import dataclasses
import itertools
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

import muon_optax as mo
from muon_optax import diagnostics
from muon_optax.plots import heat_map

LAYERS, WIDTH, RATE, STEPS = 6, 16, 0.01, 40
Recording = diagnostics.Recording


def start() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def kernel(rows: int, cols: int) -> dict[str, jax.Array]:
        return {"kernel": jnp.asarray(rng.standard_normal((rows, cols)) / rows**0.5, jnp.float32)}

    blocks = {
        str(index): {"up": kernel(WIDTH, 4 * WIDTH) | {"bias": jnp.zeros(4 * WIDTH)}, "down": kernel(4 * WIDTH, WIDTH)}
        for index in range(LAYERS)
    }
    return {"embedding": jnp.asarray(rng.standard_normal((64, WIDTH)), jnp.float32), "blocks": blocks}


def loss(params: Any, tokens: jax.Array) -> jax.Array:
    """Residual perceptrons that learn to add one to a token."""
    x = params["embedding"][tokens]
    for block in params["blocks"].values():
        x = x + jax.nn.relu(x @ block["up"]["kernel"] + block["up"]["bias"]) @ block["down"]["kernel"] / LAYERS
    logits = x @ params["embedding"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, (tokens + 1) % 64).mean()


def recorder(rate: Any = RATE, meant: Any = RATE, faster: Any = 1.0) -> Any:
    """The rate that the optimizer has, the rate that the recorder is told, and the factor of one layer's updates."""
    labels = jax.tree.map(lambda _: "usual", start())
    labels["blocks"]["4"]["down"]["kernel"] = "faster"
    scaled = optax.partition({"faster": optax.scale(faster), "usual": optax.identity()}, labels)
    return diagnostics.record(optax.chain(mo.muon(rate), scaled), 5, learning_rate=meant)


@jax.jit  # one program for all runs
def train(params: Any, rate: Any, meant: Any, faster: Any, reached: Any) -> Any:
    optimizer = recorder(rate, meant, faster)

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        gradients = jax.grad(loss)(params, jax.random.randint(key, (256,), 0, 64))
        gradients["blocks"]["2"]["up"] = jax.tree.map(lambda g: g * reached, gradients["blocks"]["2"]["up"])
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), STEPS)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][1]


def run(
    params: Any = None, *, rate: float = RATE, meant: float = RATE, faster: float = 1.0, reached: float = 1.0
) -> Recording:
    return diagnostics.recorded(train(start() if params is None else params, rate, meant, faster, reached))


def good() -> Recording:
    return run()


def dead_layer() -> Recording:
    """One bias is so low that no unit of its layer is ever on."""
    params = start()
    params["blocks"]["3"]["up"]["bias"] -= 100.0
    return run(params)


def leaf_without_gradient() -> Recording:
    return run(reached=0.0)


def rate_ten_times_too_high() -> Recording:
    """The recorder knows the rate that was meant."""
    return run(rate=10 * RATE)


def ten_times_too_high_and_meant() -> Recording:
    return run(rate=10 * RATE, meant=10 * RATE)


def a_hundred_times_too_high_and_meant() -> Recording:
    return run(rate=100 * RATE, meant=100 * RATE)


def one_layer_ten_times_too_fast() -> Recording:
    return run(faster=10.0)


def nan_in_a_weight() -> Recording:
    """What a good run would show in the step in which a weight is NaN, and its update by decay."""
    values = recording(good).values.copy()
    leaf = recording(good).paths.index("blocks/5/down/kernel")
    for name in ("weight_rms", "growth", "spectral_norm", "stable_rank", "update_rms", "relative_update"):
        values[-1, leaf, Recording.names.index(name)] = np.nan
    return dataclasses.replace(recording(good), values=values)


@cache
def recording(case: Callable[[], Recording]) -> Recording:
    return case()


def first_row(table: str) -> str:
    return table.splitlines()[2]


def test_a_good_run_shows_nothing() -> None:
    assert recording(good).standing_out() == []
    *_, last = str(recording(good)).splitlines()
    assert last == f"Step {STEPS - 5}. No leaf stands out."


BAD = {
    "dead layer": (dead_layer, {"blocks/3/up/kernel", "blocks/3/up/bias", "blocks/3/down/kernel"}, "no gradient"),
    "leaf without gradient": (leaf_without_gradient, {"blocks/2/up/kernel", "blocks/2/up/bias"}, "no gradient"),
    "one layer too fast": (one_layer_ten_times_too_fast, {"blocks/4/down/kernel"}, "as large as predicted"),
    "NaN": (nan_in_a_weight, {"blocks/5/down/kernel"}, "weight_rms is nan"),
}


@pytest.mark.parametrize("case", BAD)
def test_the_cause_stands_first(case: str) -> None:
    made, causes, why = BAD[case]
    found = recording(made).standing_out()
    assert {path for path, _, _ in found[: len(causes)]} == causes
    assert all(why in reason for _, _, reason in found[: len(causes)])
    row = first_row(str(recording(made)))
    assert row.split()[0] in causes
    assert why in row


TOO_FAST = {
    "update_size": (rate_ten_times_too_high, "times as large as predicted"),
    "momentum_cosine": (ten_times_too_high_and_meant, "the gradient turns against the momentum"),
    "relative_update": (a_hundred_times_too_high_and_meant, "a step moves it by"),
}


@pytest.mark.parametrize("measurement", TOO_FAST)
def test_a_rate_too_high_for_all_stands_first(measurement: str) -> None:
    made, why = TOO_FAST[measurement]
    found = recording(made).standing_out()
    assert found[0][1] == measurement
    assert why in found[0][2]
    matrices = {path for path in recording(made).paths if path.endswith("kernel")}
    named = {path for path, name, _ in found if name == measurement}
    assert named <= matrices
    # The cosine of a run that swings depends on rounding: versions of JAX differ in a few of the twelve.
    assert len(named) >= (len(matrices) / 2 if measurement == "momentum_cosine" else len(matrices))


def test_the_table_of_a_dead_layer() -> None:
    lines = str(recording(dead_layer)).splitlines()
    first, *parts = "\n".join(lines[:-1]).split("\n\n")
    assert [line.split("  ")[0] for line in first.splitlines()[2:] if line[0] != " "] == [
        path for path, _, _ in recording(dead_layer).standing_out()
    ]
    # Each part has all rows, those that stand out first.
    for part in parts:
        assert [line.split()[0] for line in part.splitlines()[6:]] == [
            "blocks/{0,1,2,..,5}/down/kernel",
            "blocks/{0,1,2,..,5}/up/bias",
            "blocks/{0,1,2,..,5}/up/kernel",
            "embedding",
        ]
    assert lines[-1] == f"Step {STEPS - 5}. 3 of 19 leaves stand out."
    every_row = recording(dead_layer).table(every_row=True).split("\n\n")
    assert every_row[0] == first
    assert [len(part.splitlines()) for part in every_row[1:]] == [19 + 3, 19 + 3 + 1]


def test_the_table_has_every_value_once_and_fits_a_page() -> None:
    one = recording(dead_layer)
    text = one.table(every_row=True)
    assert max(map(len, text.splitlines())) <= 100
    columns: dict[str, list[str]] = {}
    for part in text.rsplit("\n", 1)[0].split("\n\n")[1:]:
        above, below, rule, *rows = part.splitlines()
        ends = [match.end() for match in re.finditer("-+", rule)]
        for start, end in itertools.pairwise(ends):
            name = "_".join(filter(None, (line[start:end].strip() for line in (above, below))))
            columns[name] = [row[start:end].strip() for row in rows]
    assert tuple(columns) == Recording.names
    ranked = [path for path, _, _ in one.standing_out()]
    paths = [*ranked, *(path for path in one.paths if path not in ranked)]
    for name, cells in columns.items():
        values = one.last(name)
        assert cells == [f"{values[path]:.3g}" if path in values else "-" for path in paths]


def test_long_paths_make_more_parts_and_no_wider_lines() -> None:
    one = recording(good)
    longer = dataclasses.replace(one, paths=tuple(f"a/decoder/of/a/model/{path}" for path in one.paths))
    parts = str(longer).split("\n\n")
    assert len(parts) == 3
    assert max(map(len, "\n".join(parts).splitlines())) <= 100


def test_the_table_in_a_notebook() -> None:
    one = recording(dead_layer)
    page = one._repr_html_()
    head, *rows = re.findall("<tr>(.*?)</tr>", page)
    assert re.findall("<th>(.*?)</th>", head) == [
        "path",
        *(name.replace("_", " ") for name in Recording.names),
        "stands out because",
    ]
    cells = [re.findall("<td>(.*?)</td>", row) for row in rows]
    ranked = one.standing_out()
    assert [row[0] for row in cells[: len(ranked)]] == [path for path, _, _ in ranked]
    assert all(row[-1].startswith(why) for row, (_, _, why) in zip(cells, ranked, strict=False))
    assert [row[0] for row in cells[len(ranked) :]] == [
        "blocks/{0,1,2,..,5}/down/kernel x5",
        "blocks/{0,1,2,..,5}/up/bias x5",
        "blocks/{0,1,2,..,5}/up/kernel x5",
        "embedding",
    ]
    assert {row[-1] for row in cells[len(ranked) :]} == {""}
    assert page.endswith(f"<p>Step {STEPS - 5}. 3 of 19 leaves stand out.</p>")
    hostile = dataclasses.replace(one, paths=tuple(f"<b>{path}" for path in one.paths))
    assert "<b>" not in hostile._repr_html_()
    assert diagnostics.recorded(recorder().init(start()))._repr_html_() == "<p>Nothing has been measured yet.</p>"


# Values for writers and plots


def test_scalars_are_the_last_values_and_groups_their_medians() -> None:
    one = recording(good)
    scalars = one.scalars()
    assert scalars["growth/embedding"] == one.last("growth")["embedding"]
    assert "spectral_norm/embedding" not in scalars
    grouped = one.scalars(grouped=True)
    own = [one.last("growth")[f"blocks/{index}/up/kernel"] for index in range(LAYERS)]
    assert grouped["growth/blocks/{0..5}/up/kernel"] == pytest.approx(np.median(own))
    assert len(grouped) < len(scalars) / 4


def test_the_history_of_a_dead_layer() -> None:
    steps, paths, values = recording(dead_layer).history("idle")
    assert steps == tuple(range(0, STEPS, 5))
    assert values.shape == (len(paths), len(steps))
    always = {path for path, row in zip(paths, values, strict=True) if (row == 1).all()}
    assert always == BAD["dead layer"][1]
    _, paths, values = recording(dead_layer).history("idle", grouped=True)
    # The median layer is alive.
    assert (values[paths.index("blocks/{0..5}/down/kernel")] < 1).all()


def test_no_measurement_yet() -> None:
    empty = diagnostics.recorded(recorder().init(start()))
    assert str(empty) == "Nothing has been measured yet."
    assert (empty.scalars(), empty.standing_out(), empty.history("growth")[2].shape) == ({}, [], (19, 0))
    with pytest.raises(ValueError, match="measurement='growth' has no value yet"):
        heat_map(empty, "growth")


@pytest.mark.parametrize("measurement", Recording.names)
def test_a_picture_of_each_measurement_shows_its_history(measurement: str) -> None:
    one = recording(dead_layer)
    axes = heat_map(one, measurement)
    (image,) = axes.images
    steps, paths, values = one.history(measurement)
    shown = [index for index, row in enumerate(values) if not np.isnan(row).all()]
    assert [label.get_text() for label in axes.get_yticklabels()] == [paths[index] for index in shown]
    drawn = image.get_array()
    assert drawn.shape == (len(shown), len(steps))
    np.testing.assert_allclose(drawn.compressed(), values[shown][~np.ma.getmaskarray(drawn)], rtol=1e-6)
    # A scale of factors has plain numbers, from the least to the most.
    if isinstance(image.norm, LogNorm):
        numbers = [float(label.get_text()) for label in image.colorbar.ax.get_yticklabels()]
        np.testing.assert_allclose(numbers, np.geomspace(drawn.min(), drawn.max(), 5), rtol=5e-3)
    masked = values[shown][np.ma.getmaskarray(drawn)]
    assert (~np.isfinite(masked) | (masked == 0)).all()
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(step) for step in steps]
    axes.figure.canvas.draw()


def test_a_picture_in_given_axes_by_repeated_layer() -> None:
    axes = Figure().subplots()
    assert heat_map(recording(good), "update_size", grouped=True, axes=axes) is axes
    assert axes.get_title() == "update size, by repeated layer"
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "blocks/{0..5}/down/kernel",
        "blocks/{0..5}/up/kernel",
    ]
    with pytest.raises(ValueError, match="'speed' is not recorded: use one of"):
        heat_map(recording(good), "speed")
