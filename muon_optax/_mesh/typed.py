"""Sharded arrays on meshes with Explicit axes, whose types say how they are laid out."""

import jax


def gathered(array: jax.Array) -> jax.Array:
    """``array`` with all its axes whole on every device, if its type says that they are not."""
    # Under Explicit axes a product of sharded operands is refused instead of planned. Types under Auto axes always look
    # replicated, and there XLA's partitioner plans.
    sharding = jax.typeof(array).sharding
    if all(part is None for part in sharding.spec):
        return array
    return jax.sharding.reshard(array, jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec()))


def laid_out_like(array: jax.Array, reference: jax.Array) -> jax.Array:
    """``array`` with the sharding of ``reference``'s type."""
    sharding = jax.typeof(reference).sharding
    return array if jax.typeof(array).sharding == sharding else jax.sharding.reshard(array, sharding)
