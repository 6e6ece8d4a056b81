"""How arrays lie on a mesh: for each axis of an array, the mesh axes that it is divided over."""

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from muon_optax._layouts.paths import named_leaves, show

AnyMesh: TypeAlias = Mesh | jax.sharding.AbstractMesh
Dims: TypeAlias = tuple[tuple[str, ...], ...]


def mesh_sizes(mesh: AnyMesh) -> dict[str, int]:
    """Devices along each axis of the mesh, in its order."""
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))


def dims_of(path: str, sharding: NamedSharding, ndim: int) -> Dims:
    """The mesh axes of each of ``ndim`` array axes, major first; mesh axes of one device divide nothing."""
    sizes, spec = mesh_sizes(sharding.mesh), sharding.spec
    if PartitionSpec.UNCONSTRAINED in tuple(spec):
        raise ValueError(
            f"shardings: {show(path)} has the sharding {spec}, which leaves an axis to XLA: a plan needs to know. Give "
            "None or mesh axes for each axis."
        )
    parts = [() if part is None else (part,) if isinstance(part, str) else tuple(part) for part in spec]
    if len(parts) > ndim and any(parts[ndim:]):
        raise ValueError(
            f"shardings: {show(path)} has {ndim} axes and the sharding {spec} on the mesh {sizes} more: give one entry "
            "for each axis at most."
        )
    parts = parts[:ndim] + [()] * (ndim - len(parts))
    return tuple(tuple(axis for axis in part if sizes[axis] > 1) for part in parts)


def spec_of(dims: Dims) -> PartitionSpec:
    """The inverse of :func:`dims_of`."""
    return PartitionSpec(*(part or None for part in dims))


def local_shape(shape: tuple[int, ...], dims: Dims, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The part of an array that one device holds."""
    return tuple(size // _parts(part, sizes) for size, part in zip(shape, dims, strict=True))


def padded_shape(shape: tuple[int, ...], dims: Dims, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """``shape`` with every axis made a multiple of the devices that it is divided over."""
    return tuple(-(-size // _parts(part, sizes)) * _parts(part, sizes) for size, part in zip(shape, dims, strict=True))


def _parts(axes: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[axis] for axis in axes)


def in_order(axes: set[str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """``axes`` in the order of the mesh."""
    return tuple(axis for axis in sizes if axis in axes)


def shardings_of(tree: Any) -> dict[str, NamedSharding]:
    """The ``NamedSharding`` of every leaf by path: of shardings themselves, or of arrays that carry one.

    Returns:
        An empty mapping if nothing in the tree lies on a mesh: every leaf is on one device.

    Raises:
        ValueError: If some leaves lie on a mesh and others do not, or they lie on several meshes; paths are named.
        TypeError: If a leaf is no sharding and carries none.
    """
    shardings = {leaf.path: _sharding_of(leaf.path, leaf.value) for leaf in named_leaves(tree)}
    on_mesh = {path: sharding for path, sharding in shardings.items() if isinstance(sharding, NamedSharding)}
    if not on_mesh:
        return {}
    for path, sharding in shardings.items():
        if path not in on_mesh:
            raise ValueError(
                f"shardings: {show(path)} is on {sharding}, and others are on a mesh: give every leaf a NamedSharding "
                "on that mesh, NamedSharding(mesh, PartitionSpec()) for one that every device holds whole."
            )
    first_path, first = next(iter(on_mesh.items()))
    for path, sharding in on_mesh.items():
        if sharding.mesh != first.mesh:
            raise ValueError(
                f"shardings: {show(path)} is on {sharding.mesh} and {show(first_path)} on {first.mesh}: one update "
                "runs on one mesh. Give all leaves shardings on the same mesh."
            )
    return on_mesh


def _sharding_of(path: str, leaf: Any) -> jax.sharding.Sharding:
    sharding = leaf if isinstance(leaf, jax.sharding.Sharding) else getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.Sharding):
        kind = type(leaf).__name__
        raise TypeError(
            f"shardings: {show(path)} is {kind} and says nothing about a mesh: give a tree like the parameters with a "
            "NamedSharding at each leaf, or with arrays or ShapeDtypeStructs that carry one. Inside jit, where arrays "
            "carry none, take the shardings outside."
        )
    return sharding


def typed_sharding(array: jax.Array) -> NamedSharding | None:
    """The sharding in the type of ``array``, where all mesh axes are Explicit.

    Elsewhere a type says nothing: under Auto axes it looks replicated whatever the truth, and inside ``shard_map`` each
    device has arrays of its own.
    """
    sharding = jax.typeof(array).sharding
    mesh = sharding.mesh
    if mesh.empty or any(kind != AxisType.Explicit for kind in mesh.axis_types):
        return None
    return NamedSharding(mesh, sharding.spec)


def inside_shard_map() -> bool:
    """Whether the code runs device by device: then every array is local, and stays so."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and any(kind == AxisType.Manual for kind in mesh.axis_types)


def spread(dims: Dims, shape: tuple[int, ...], axis: str, sharding: NamedSharding, kept: str = "") -> Dims:
    """``dims`` with one array axis divided over the mesh axis ``axis`` too: the longest that it divides evenly.

    Array axes with the letter ``b`` in ``kept`` are the last choice. Under Explicit axes only array axes that
    ``sharding`` leaves whole: JAX adds no gradient to a momentum that is divided further. Unchanged if the mesh axis is
    in use or divides none.
    """
    sizes, typed = mesh_sizes(sharding.mesh), AxisType.Explicit in sharding.mesh.axis_types
    if any(axis in part for part in dims) or sizes.get(axis, 1) == 1:
        return dims
    local = local_shape(shape, dims, sizes)
    closed = {number for number, part in enumerate(sharding.spec) if part and typed}
    fitting = [number for number, size in enumerate(local) if size % sizes[axis] == 0 and number not in closed]
    if not fitting:
        return dims
    chosen = max(fitting, key=lambda number: (kept[number : number + 1] != "b", local[number], -number))
    return tuple((*part, axis) if number == chosen else part for number, part in enumerate(dims))
