"""Muon for ``model.compile`` and ``model.fit`` of Keras, with its JAX backend."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras

from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.saved import layouts_from_json, layouts_to_json
from muon_optax._muon import muon
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction
from muon_optax._transforms.momenta.momentum import Momentum
from muon_optax._transforms.scales import Scale

_TO_SAVE = (bool, int, float, str, type(None))


@keras.saving.register_keras_serializable(package="muon_optax")
class Muon(keras.optimizers.Optimizer):
    """:func:`muon_optax.muon` as a Keras optimizer: Muon for the matrices of a model, AdamW for everything else.

    The learning rate is Keras's own, so its schedules and callbacks work, and so do gradient accumulation, clipping,
    averages of weights and loss scaling. The optimizer's state is saved and loaded with the model.

    Args:
        learning_rate: A float, a ``keras.optimizers.schedules.LearningRateSchedule`` or a function without arguments.
        weight_decay: Decoupled decay for both branches, multiplied by the learning rate: a number >= 0. Keras's
            ``exclude_from_weight_decay`` has no effect on it; biases and norms are exempt.
        momentum: As in :func:`muon_optax.muon`.
        nesterov: As in :func:`muon_optax.muon`.
        scale: As in :func:`muon_optax.muon`.
        orthogonalizer: As in :func:`muon_optax.muon`.
        layouts: As in :func:`muon_optax.muon`; paths are those of the model's variables, such as
            ``"sequential/dense/kernel"``.
        name: The optimizer's name.
        **keras_arguments: Those of ``keras.optimizers.Optimizer``, such as ``global_clipnorm``.

    Raises:
        RuntimeError: If the backend of Keras is not JAX.
        ValueError: As :func:`muon_optax.muon`, and for arguments that Keras does not know.
        TypeError: On saving, for an argument that can't be written to a file: a function, a transform.
    """

    def __init__(
        self,
        learning_rate: Any = 3e-4,
        *,
        weight_decay: float = 0.1,
        momentum: Momentum = 0.95,
        nesterov: bool = True,
        scale: Scale = "moonlight",
        orthogonalizer: MatrixFunction | None = None,
        layouts: Layouts = None,
        name: str = "muon",
        **keras_arguments: Any,
    ) -> None:
        if keras.backend.backend() != "jax":
            raise RuntimeError(
                f"muon_optax.keras.Muon needs the JAX backend, and this is {keras.backend.backend()!r}: set "
                "KERAS_BACKEND=jax before Keras is imported."
            )
        # Without a decay for Keras, which would be a second one.
        super().__init__(learning_rate=learning_rate, name=name, **keras_arguments)
        self._arguments = {
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "scale": scale,
            "orthogonalizer": orthogonalizer,
            "layouts": layouts,
        }
        # Updates are proportional to the rate, decay included. Keras's rate, which callbacks change, multiplies them.
        self._transform = muon(1.0, **self._arguments)

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the state of the optimizer; Keras calls it."""
        if self.built:
            return
        super().build(variables)
        leaves, self._structure = jax.tree.flatten(self._transform.init(_tree(variables)))
        self._state = []
        for index, leaf in enumerate(leaves):
            kept = self.add_variable(jnp.shape(leaf), dtype=str(leaf.dtype), name=f"state_{index}")
            kept.assign(leaf)
            self._state.append(kept)

    def _backend_update_step(
        self, grads: Sequence[jax.Array], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        """All variables at once, where Keras's own optimizers take one after the other."""
        params = _tree(trainable_variables)
        if len(params) != len(self._trainable_variables):
            missing = [one.path for one in self._trainable_variables if one.path not in params]
            raise ValueError(f"muon_optax.keras.Muon needs the gradients of all variables; {missing} have none.")
        gradients = OrderedDict(zip(params, grads, strict=True))
        state = jax.tree.unflatten(self._structure, [kept.value for kept in self._state])
        updates, state = self._transform.update(gradients, state, params)
        for kept, leaf in zip(self._state, jax.tree.leaves(state), strict=True):
            kept.assign(leaf)
        for variable in trainable_variables:
            rate = jnp.asarray(learning_rate, jnp.float32)
            variable.assign(variable.value + (rate * updates[variable.path]).astype(variable.value.dtype))

    def get_config(self) -> dict[str, Any]:
        """The arguments from which a file makes the same optimizer."""
        config = super().get_config() | self._arguments
        layouts = config["layouts"]
        if isinstance(layouts, Mapping):
            config["layouts"] = layouts_to_json(layouts)
        for name in self._arguments:
            if not isinstance(config[name], _TO_SAVE):
                raise TypeError(
                    f"{name}={config[name]!r} can't be saved with the model: save its weights and compile it again."
                )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Muon":
        """The optimizer of :meth:`get_config`."""
        if isinstance(config.get("layouts"), str):
            config = config | {"layouts": layouts_from_json(config["layouts"])}
        return super().from_config(config, custom_objects)


def _tree(variables: Sequence[Any]) -> OrderedDict[str, jax.Array]:
    # In Keras's order, not sorted: a model that is made again has other numbers in its names, and the same order.
    return OrderedDict((variable.path, variable.value) for variable in variables)
