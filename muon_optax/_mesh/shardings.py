"""How arrays lie on a mesh: for each axis of an array, the mesh axes that divide it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from muon_optax._layouts.paths import named_leaves
from muon_optax._mesh.checks import refuse_other_meshes, refuse_unusable_spec, require_sharding

AnyMesh: TypeAlias = Mesh | jax.sharding.AbstractMesh
Dims: TypeAlias = tuple[tuple[str, ...], ...]
Sizes: TypeAlias = Mapping[str, int]  # devices along each mesh axis, in the order of the mesh


def mesh_sizes(mesh: AnyMesh) -> dict[str, int]:
    """Devices along each axis of the mesh, in its order."""
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))


def count(axes: Iterable[str], sizes: Sizes) -> int:
    """Devices along several mesh axes together."""
    return math.prod(sizes[axis] for axis in axes)


def dims_of(path: str, sharding: NamedSharding, ndim: int) -> Dims:
    """The mesh axes of each of ``ndim`` array axes, major first; mesh axes of one device divide nothing."""
    refuse_unusable_spec(path, sharding, ndim)
    sizes = mesh_sizes(sharding.mesh)
    parts = [() if part is None else (part,) if isinstance(part, str) else tuple(part) for part in sharding.spec]
    parts = parts[:ndim] + [()] * (ndim - len(parts))
    return tuple(tuple(axis for axis in part if sizes[axis] > 1) for part in parts)


def spec_of(dims: Dims) -> PartitionSpec:
    """The inverse of :func:`dims_of`."""
    return PartitionSpec(*(part or None for part in dims))


def local_shape(shape: tuple[int, ...], dims: Dims, sizes: Sizes) -> tuple[int, ...]:
    """The part of an array that one device holds."""
    return tuple(size // count(part, sizes) for size, part in zip(shape, dims, strict=True))


def padded_shape(shape: tuple[int, ...], dims: Dims, sizes: Sizes) -> tuple[int, ...]:
    """``shape`` with every axis rounded up to a multiple of the devices that divide it."""
    parts = [count(part, sizes) for part in dims]
    return tuple(-(-size // part) * part for size, part in zip(shape, parts, strict=True))


def shardings_of(tree: Any) -> dict[str, NamedSharding]:
    """The ``NamedSharding`` of every leaf by path: of shardings themselves, or of arrays that carry one.

    Returns:
        An empty mapping if no leaf lies on a mesh.

    Raises:
        ValueError: If only some leaves lie on a mesh, or they lie on several meshes; paths are named.
        TypeError: If a leaf carries no sharding.
    """
    shardings = {leaf.path: require_sharding(leaf.path, leaf.value) for leaf in named_leaves(tree)}
    on_mesh = {path: sharding for path, sharding in shardings.items() if isinstance(sharding, NamedSharding)}
    if on_mesh:
        refuse_other_meshes(shardings, on_mesh)
    return on_mesh


def typed_sharding(array: jax.Array) -> NamedSharding | None:
    """The sharding in the type of ``array``, where all mesh axes are Explicit."""
    # Elsewhere a type says nothing: under Auto axes it looks replicated whatever the truth, and inside `shard_map` each
    # device has arrays of its own.
    sharding = jax.typeof(array).sharding
    mesh = sharding.mesh
    if mesh.empty or any(kind != AxisType.Explicit for kind in mesh.axis_types):
        return None
    return NamedSharding(mesh, sharding.spec)


def inside_shard_map() -> bool:
    """Whether the code runs device by device, with every array local."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and any(kind == AxisType.Manual for kind in mesh.axis_types)


def gathered(array: jax.Array) -> jax.Array:
    """``array`` with all its axes whole on every device, if its type says that they are not."""
    # JAX refuses a product of sharded operands under Explicit axes. Types under Auto axes always look replicated.
    sharding = jax.typeof(array).sharding
    if all(part is None for part in sharding.spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec()))


def laid_out_like(array: jax.Array, reference: jax.Array) -> jax.Array:
    """``array`` with the sharding of ``reference``'s type."""
    sharding = jax.typeof(reference).sharding
    return array if jax.typeof(array).sharding == sharding else jax.sharding.reshard(array, sharding)


def spread(dims: Dims, shape: tuple[int, ...], axis: str, sharding: NamedSharding, letters: str = "") -> Dims:
    """``dims`` with one array axis divided over the mesh axis ``axis`` too: the longest that it divides evenly.

    Array axes with the letter ``b`` in ``letters`` come last. Unchanged if ``axis`` is in use or divides none.
    """
    sizes = mesh_sizes(sharding.mesh)
    if any(axis in part for part in dims) or sizes.get(axis, 1) == 1:
        return dims
    # Under Explicit axes JAX adds no gradient to a momentum with an axis that is divided further.
    typed = AxisType.Explicit in sharding.mesh.axis_types
    closed = {number for number, part in enumerate(sharding.spec) if part and typed}
    local = local_shape(shape, dims, sizes)
    fitting = [number for number, size in enumerate(local) if size % sizes[axis] == 0 and number not in closed]
    if not fitting:
        return dims
    chosen = max(fitting, key=lambda number: (letters[number : number + 1] != "b", local[number], -number))
    return tuple((*part, axis) if number == chosen else part for number, part in enumerate(dims))
