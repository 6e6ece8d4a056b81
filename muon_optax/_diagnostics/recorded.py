"""The recorder's state found in whatever holds it, and read."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from muon_optax._diagnostics.measure import MEASUREMENTS
from muon_optax._diagnostics.record import RecordState
from muon_optax._diagnostics.recording import Recording
from muon_optax._layouts.path_patterns import natural_order
from muon_optax._layouts.paths import named_leaves


def recorded(state: Any) -> Recording:
    """The measurements that the recorder in ``state`` has kept. For use outside ``jit``.

    Args:
        state: Whatever holds the state of :func:`record`: ``opt_state``, a ``TrainState``, a ``flax.nnx.Optimizer`` or
            its ``nnx.state``, the state of a wrapper, a checkpoint restored as nested dicts.

    Returns:
        A recording of at most ``keep`` measurements. ``print`` it; ``.scalars()`` for metric writers,
        ``.history(name)`` for plots, ``.standing_out()`` for checks.

    Raises:
        ValueError: If there is no recorder in ``state``, or more than one; for the states of several runs, as ``vmap``
            stacks them.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> optimizer = mo.diagnostics.record(mo.muon(0.02), learning_rate=0.02)
        >>> params = {"dead": jnp.eye(4), "kernel": jnp.eye(4)}
        >>> gradients = {"dead": jnp.zeros((4, 4)), "kernel": jnp.eye(4)}
        >>> _, state = optimizer.update(gradients, optimizer.init(params), params)
        >>> mo.diagnostics.recorded(state).standing_out()
        [('dead', 'idle', 'it gets no gradient')]
    """
    found = _states_in(state)
    if len(found) != 1:
        raise ValueError(
            f"The {type(state).__name__} holds {len(found)} recorders, and one is needed: wrap the optimizer in "
            "muon_optax.diagnostics.record(optimizer, every=100) before its init, or give the state of one of several."
        )
    initial = named_leaves(_field(found[0], "initial"))
    steps, values = (_array(_field(found[0], name)) for name in ("steps", "values"))
    if values.ndim != 3:
        raise ValueError(
            f"The recorder's values have shape {values.shape}, those of several runs: take the state of one, as in "
            "jax.tree.map(lambda leaf: leaf[0], state)."
        )
    paths = sorted(leaf.path for leaf in initial)
    order = sorted(range(len(paths)), key=lambda index: natural_order(paths[index]))
    rows = [row for row in np.argsort(steps, kind="stable") if steps[row] >= 0]
    spectral = values[..., MEASUREMENTS.index("spectral_norm")]
    matrices = np.logical_not(np.isnan(spectral).all(axis=0)).tolist()
    return Recording(
        tuple(int(steps[row]) for row in rows),
        tuple(paths[index] for index in order),
        tuple(matrices[index] for index in order),
        values[rows][:, order],
    )


def _states_in(tree: Any) -> list[Any]:
    return [node for node in jax.tree.leaves(tree, is_leaf=_is_record) if _is_record(node)]


def _is_record(node: Any) -> bool:
    # A module's state and a checkpoint hold a NamedTuple's fields in a mapping.
    keys = set(node) if isinstance(node, Mapping) else set(getattr(node, "_fields", ()))
    return set(RecordState._fields) == keys


def _field(state: Any, name: str) -> Any:
    return state[name] if isinstance(state, Mapping) else getattr(state, name)


def _array(tree: Any) -> np.ndarray:
    (array,) = jax.tree.leaves(tree)  # out of the box that Flax may keep it in
    return np.asarray(array)
