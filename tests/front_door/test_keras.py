"""The Keras optimizer, in ``fit``, saved and loaded. Keras is in the extra third-party."""

import importlib
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import muon_optax as mo

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras", reason="keras is not installed: see the extra third-party")
Muon = importlib.import_module("muon_optax.keras").Muon

INPUTS = np.random.default_rng(0).standard_normal((128, 16)).astype("float32")
CLASSES = INPUTS[:, :10].argmax(1)
RATE = 3e-3


def compiled(optimizer: Any) -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(32), keras.layers.Dense(10, name="head")]
    model = keras.Sequential([keras.Input((16,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    return model


def losses(model: Any, epochs: int = 2, **arguments: Any) -> list[float]:
    fitted = model.fit(INPUTS, CLASSES, epochs=epochs, batch_size=32, shuffle=False, verbose=0, **arguments)
    return fitted.history["loss"]


def test_fit_takes_the_steps_of_muon() -> None:
    model = compiled(Muon(RATE, weight_decay=0.1))
    params = {one.path: jnp.array(one.value) for one in model.trainable_variables}
    optimizer = mo.muon(RATE, weight_decay=0.1)
    matrices = [path.split("/")[-2] for path, layout in mo.assign_layouts(params).items() if layout]
    assert [name.rstrip("_0123456789") for name in matrices] == ["dense", "dense"]
    state, names = optimizer.init(params), [*params]

    def loss(params: dict[str, Any], x: Any, y: Any) -> Any:
        arrays = [params[name] for name in names]
        hidden = jnp.maximum(x @ arrays[0] + arrays[1], 0)
        logits = (hidden @ arrays[2] + arrays[3]) @ arrays[4] + arrays[5]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    for first in range(0, 128, 32):
        gradients = jax.grad(loss)(params, INPUTS[first : first + 32], CLASSES[first : first + 32])
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    losses(model, epochs=1)
    for variable in model.trainable_variables:
        np.testing.assert_allclose(variable.value, params[variable.path], atol=2e-5)


def test_a_saved_model_goes_on_as_the_one_that_was_not_saved(tmp_path: Path) -> None:
    model = compiled(Muon(RATE, layouts={"*head/kernel": None}))
    losses(model)
    model.save(tmp_path / "model.keras")
    assert losses(keras.models.load_model(tmp_path / "model.keras")) == losses(model)


def test_schedules_callbacks_and_arguments_of_keras() -> None:
    schedule = keras.optimizers.schedules.ExponentialDecay(RATE, 10, 0.5)
    assert losses(compiled(Muon(schedule)))[-1] != losses(compiled(Muon(RATE)))[-1]
    still = compiled(Muon(RATE, weight_decay=0.0))
    before = [np.array(one.value) for one in still.trainable_variables]
    losses(still, callbacks=[keras.callbacks.LearningRateScheduler(lambda _: 0.0)])
    for one, value in zip(still.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(one.value, value)
    # Two halves of a batch, accumulated, are the batch.
    whole, halves = compiled(Muon(RATE)), compiled(Muon(RATE, gradient_accumulation_steps=2))
    whole.fit(INPUTS, CLASSES, batch_size=64, shuffle=False, verbose=0)
    halves.fit(INPUTS, CLASSES, batch_size=32, shuffle=False, verbose=0)
    for one, other in zip(whole.trainable_variables, halves.trainable_variables, strict=True):
        np.testing.assert_allclose(one.value, other.value, atol=2e-4)


def test_what_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="weight_decay"):
        Muon(RATE, weight_decay=-1.0)
    with pytest.raises(TypeError, match=r"layouts=.* can't be saved with the model"):
        Muon(RATE, layouts=mo.per_head).get_config()
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(RuntimeError, match="set KERAS_BACKEND=jax"):
        Muon(RATE)
