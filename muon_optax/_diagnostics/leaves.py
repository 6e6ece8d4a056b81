"""Which leaves are measured, and how: by path, with NumPy or JAX, compiled whole."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._layouts.assigning.resolve import Layouts, resolve
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import named_leaves, show


def floating_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves = [(leaf.path, leaf.value) for leaf in named_leaves(tree)]
    for path, value in leaves:
        refuse_shape(path, value)
    return [leaf for leaf in leaves if jnp.issubdtype(getattr(leaf[1], "dtype", type(leaf[1])), jnp.inexact)]


def refuse_shape(path: str, value: Any) -> None:
    """Raises TypeError for a ``ShapeDtypeStruct``, which has a type and no numbers."""
    if isinstance(value, jax.ShapeDtypeStruct):
        raise TypeError(
            f"{show(path)} is a jax.ShapeDtypeStruct, a shape without numbers: give arrays, or call the function "
            "inside jax.eval_shape."
        )


def matrix_leaves(tree: Any, layouts: Layouts) -> Iterator[tuple[str, Any, Layout]]:
    leaves = named_leaves(tree)
    # Without assign_layouts's warning, which the optimizer's `init` has given already.
    resolved, _ = resolve(tree, leaves, layouts)
    for leaf in leaves:
        if (layout := resolved[leaf.path]) is not None:
            yield leaf.path, leaf.value, layout


def by_path(measured: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    by_path: dict[str, Any] = {}
    for path, value in measured:
        if path in by_path:
            raise ValueError(f"Two leaves have the path {show(path)}: rename one, and both can be reported.")
        by_path[path] = value
    return by_path


def namespace(value: Any) -> Any:
    # NumPy for what JAX does not hold yet: JAX would round a float64 array to float32 first, where 1e300 is infinite.
    return jnp if isinstance(value, jax.Array) else np


def planned(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """``function(*arrays)``, small arrays, where the types of ``arrays`` may say that they are sharded."""
    shardings = [jax.typeof(array).sharding for array in arrays]
    divided = [sharding for sharding in shardings if any(part is not None for part in sharding.spec)]
    if not divided:
        return function(*arrays)
    # Under Explicit axes products and indices of sharded arrays are refused; under Auto ones XLA plans them.
    whole = NamedSharding(divided[0].mesh, PartitionSpec())
    return jax.sharding.auto_axes(function, out_sharding=whole)(*arrays)
