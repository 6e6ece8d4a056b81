"""Arrays are moved to where they have to lie, if their types can say it."""

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from muon_optax._mesh.dims import names


def relocate(array: jax.Array, place: NamedSharding) -> jax.Array:
    """``array`` lying as ``place`` along Explicit axes; along all others XLA decides, and nothing is done.

    A type under Auto axes looks replicated whatever the truth, and inside ``shard_map`` every array is local.
    """
    sharding = jax.typeof(array).sharding
    mesh = place.mesh if sharding.mesh.empty else sharding.mesh
    explicit = {axis for axis, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    parts = [
        tuple(axis for axis in names(part) if axis in explicit) or None for part in tuple(place.spec)[: array.ndim]
    ]
    spec = PartitionSpec(*parts, *[None] * (array.ndim - len(parts)))
    if not explicit or (spec == sharding.spec and not sharding.mesh.empty):
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


def relocate_like(array: jax.Array, reference: jax.Array) -> jax.Array:
    """``array`` lying as ``reference``."""
    return relocate(array, jax.typeof(reference).sharding)


def gather(array: jax.Array) -> jax.Array:
    """``array`` whole on every device. JAX refuses a product of sharded operands under Explicit axes."""
    return relocate(array, NamedSharding(jax.typeof(array).sharding.mesh, PartitionSpec()))
