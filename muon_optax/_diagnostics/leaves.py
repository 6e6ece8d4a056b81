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
    return [leaf for leaf in leaves if jnp.issubdtype(getattr(leaf[1], "dtype", type(leaf[1])), jnp.inexact)]


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


def planned(function: Callable[[jax.Array], jax.Array], array: jax.Array) -> Any:
    """``function(array)``, a small array, where the array's type may say that it is sharded."""
    sharding = jax.typeof(array).sharding
    if all(part is None for part in sharding.spec):
        return function(array)
    # Under Explicit axes products and indices of sharded arrays are refused; under Auto ones XLA plans them.
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(sharding.mesh, PartitionSpec()))(array)
