"""The mesh axes that divide each axis of an array."""

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from jax.sharding import NamedSharding, PartitionSpec

from muon_optax._mesh.checks import refuse_unusable_spec

Dims: TypeAlias = tuple[tuple[str, ...], ...]
Sizes: TypeAlias = Mapping[str, int]  # devices along each mesh axis, in the order of the mesh


def count(axes: Iterable[str], sizes: Sizes) -> int:
    """The number of devices along several mesh axes together."""
    return math.prod(sizes[axis] for axis in axes)


def dims_of(path: str, sharding: NamedSharding, ndim: int) -> Dims:
    """The mesh axes of each of ``ndim`` array axes, major first, without mesh axes of one device."""
    refuse_unusable_spec(path, sharding, ndim)
    sizes = sharding.mesh.shape
    return tuple(tuple(axis for axis in part if sizes[axis] > 1) for part in named_axes(sharding.spec, ndim))


def named_axes(spec: PartitionSpec, ndim: int) -> Dims:
    """The mesh axes that ``spec`` names for each of ``ndim`` array axes."""
    parts = [() if part is None else (part,) if isinstance(part, str) else tuple(part) for part in spec]
    return (*parts, *[()] * ndim)[:ndim]


def spec_of(dims: Dims) -> PartitionSpec:
    """The inverse of :func:`named_axes`."""
    return PartitionSpec(*(part or None for part in dims))


def short_spec_of(dims: Dims) -> PartitionSpec:
    """:func:`spec_of` as ``jit`` writes it, without entries for the last axes if nothing divides them."""
    # A step that finds its state otherwise than it left it is compiled again.
    return spec_of(dims[: max((axis + 1 for axis, part in enumerate(dims) if part), default=0)])


def local_shape(shape: tuple[int, ...], dims: Dims, sizes: Sizes) -> tuple[int, ...]:
    """The shape of the part of an array that one device holds."""
    return tuple(size // count(part, sizes) for size, part in zip(shape, dims, strict=True))


def padded_shape(shape: tuple[int, ...], dims: Dims, sizes: Sizes) -> tuple[int, ...]:
    """Rounds every axis of ``shape`` up to a multiple of the devices that divide it."""
    parts = [count(part, sizes) for part in dims]
    return tuple(-(-size // part) * part for size, part in zip(shape, parts, strict=True))
