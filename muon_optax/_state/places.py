"""Where the arrays of a state lie, and how a value comes there."""

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def placed(value: Any, like: Any) -> Any:
    """``value`` in the dtype of ``like``, on the same devices, in the same memory, and committed to them if that is."""
    dtype = jnp.result_type(like)
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        data = placed(jax.random.key_data(value), jax.random.key_data(like))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    if jnp.result_type(value) != dtype:
        value = in_device_memory(value).astype(dtype)
    if getattr(like, "committed", False):
        return jax.device_put(value, like.sharding)
    # A counter that `init` made outside jit follows the parameters to any mesh. Committed to the first device it would
    # forbid that, and only an array that comes from the host is not.
    return jnp.array(np.asarray(value)) if getattr(value, "committed", False) else jnp.asarray(value)


def in_device_memory(value: Any) -> jax.Array:
    """``value`` where arithmetic takes it: JAX refuses to mix arrays in host memory with others."""
    return jax.device_put(jnp.asarray(value), jax.memory.Space.Device)


def outside_meshes() -> AbstractContextManager[Any]:
    """A context in which arrays of several meshes may be computed with, each where it lies, one after another.

    Under ``jax.set_mesh`` only those of one mesh may.
    """
    return jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ()))
