"""Shardings in the types of arrays, and moves of arrays to the sharding that their type must have.

Types show Explicit mesh axes only. Under Auto axes a type looks replicated whatever the truth, and XLA moves arrays by
itself. Inside ``shard_map`` the axes are Manual, and each device has arrays of its own.
"""

from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from muon_optax._mesh.dims import named_axes, spec_of


def explicit_axes(mesh: Any) -> set[str]:
    """The Explicit axes of a mesh, which types show."""
    return {axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}


def typed_sharding(array: jax.Array) -> NamedSharding | None:
    """The sharding in the type of ``array`` if all mesh axes are Explicit, else ``None``."""
    sharding = jax.typeof(array).sharding
    mesh = sharding.mesh
    return None if mesh.empty or explicit_axes(mesh) != set(mesh.axis_names) else NamedSharding(mesh, sharding.spec)


def inside_shard_map() -> bool:
    """Whether the code runs device by device, with every array local."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and AxisType.Manual in mesh.axis_types


def relocate(array: jax.Array, place: NamedSharding) -> jax.Array:
    """Moves ``array`` to ``place`` along Explicit axes. Nothing is done along others."""
    sharding = jax.typeof(array).sharding
    # The type's own mesh, if it has one, is abstract. A plan's may have other devices on the same axes.
    mesh = place.mesh if sharding.mesh.empty else sharding.mesh
    explicit = explicit_axes(mesh)
    named = named_axes(place.spec, array.ndim)
    spec = spec_of(tuple(tuple(axis for axis in part if axis in explicit) for part in named))
    if not explicit or (spec == sharding.spec and mesh == sharding.mesh):
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


def relocate_like(array: jax.Array, reference: jax.Array) -> jax.Array:
    """Moves ``array`` to the place of ``reference``."""
    return relocate(array, jax.typeof(reference).sharding)


def gather(array: jax.Array) -> jax.Array:
    """Makes ``array`` whole on every device. JAX refuses a product of sharded operands under Explicit axes."""
    return relocate(array, NamedSharding(jax.typeof(array).sharding.mesh, PartitionSpec()))
