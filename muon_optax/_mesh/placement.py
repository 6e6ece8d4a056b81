"""The record of how the arrays of an update lie on a mesh, which plan, exchange and state read, and how it is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, named_leaves
from muon_optax._mesh.checks import refuse_off_mesh, refuse_other_meshes, require_sharding
from muon_optax._mesh.dims import Sizes, dims_of, local_shape, names
from muon_optax._mesh.typed import explicit_axes, typed_sharding

AnyMesh: TypeAlias = Mesh | jax.sharding.AbstractMesh


@dataclass(frozen=True)
class Placement:
    """A mesh, and how arrays come to an update and leave it, by path.

    Args:
        mesh: The mesh that all of them lie on.
        there: The shardings in which updates come, which are those of momentum.
        back: The shardings in which updates leave, which are those of the parameters.
        over: The mesh axis over which momentum is spread, though parameters are not (ZeRO-1).
    """

    mesh: AnyMesh
    there: Mapping[str, NamedSharding]
    back: Mapping[str, NamedSharding]
    over: str | None = None

    @cached_property
    def sizes(self) -> Sizes:
        """The devices along each mesh axis that has several. The others divide nothing."""
        return {axis: size for axis, size in self.mesh.shape.items() if size > 1}


def given_placement(shardings: Any) -> Placement | None:
    """The placement that a tree of ``NamedSharding``, or of arrays with one, gives; ``None`` if no leaf is on a mesh.

    Raises:
        ValueError: If only some leaves lie on a mesh, or they lie on several meshes; paths are named.
        TypeError: If a leaf carries no sharding.
    """
    found = {leaf.path: require_sharding(leaf.path, leaf.value) for leaf in named_leaves(shardings)}
    on_mesh = {path: sharding for path, sharding in found.items() if isinstance(sharding, NamedSharding)}
    if not on_mesh:
        return None
    refuse_other_meshes(found, on_mesh)
    return Placement(next(iter(on_mesh.values())).mesh, on_mesh, on_mesh)


def typed_placement(updates: Sequence[NamedLeaf], params: Any) -> Placement | None:
    """The placement that the types of arrays give if all mesh axes are Explicit, else ``None``."""
    there = _typed(updates)
    refuse_off_mesh(there, updates)
    if not there:
        return None
    # Parameters may lie otherwise than their momentum (ZeRO-1), and updates must leave as parameters lie.
    back = there | ({} if params is None else _typed(named_leaves(params)))
    return Placement(next(iter(back.values())).mesh, there, back)


def _typed(leaves: Sequence[NamedLeaf]) -> dict[str, NamedSharding]:
    found = {leaf.path: typed_sharding(jnp.asarray(leaf.value)) for leaf in leaves if hasattr(leaf.value, "shape")}
    return {path: sharding for path, sharding in found.items() if sharding is not None}


def spread_momentum(
    placement: Placement, over: str, leaves: Sequence[NamedLeaf], layouts: Mapping[str, Layout | None]
) -> Placement:
    """Spreads the momentum of every leaf over one more mesh axis (ZeRO-1)."""
    there = {}
    for leaf in leaves:
        layout = layouts[leaf.path]
        # Experts and layers stay among the devices that hold their part, so a batch axis is never spread.
        letters = layout.axes if layout else ""
        there[leaf.path] = spread(placement.back[leaf.path], leaf.path, leaf.shape, over, letters)
    return replace(placement, there=there, over=over)


def spread(sharding: NamedSharding, path: str, shape: tuple[int, ...], over: str, letters: str = "") -> NamedSharding:
    """Adds the mesh axis ``over`` to the longest array axis that it divides evenly.

    The sharding is unchanged if ``over`` is in use, or divides only axes with the letter ``b`` in ``letters``.
    """
    sizes, dims = sharding.mesh.shape, dims_of(path, sharding, len(shape))
    if any(over in part for part in dims) or sizes[over] == 1 or 0 in shape:
        return sharding
    # Under Explicit axes JAX adds no gradient to a momentum with an axis that is divided further.
    typed = bool(explicit_axes(sharding.mesh))
    spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
    local = local_shape(shape, dims, sizes)
    fitting = [
        axis
        for axis, size in enumerate(local)
        if size % sizes[over] == 0 and letters[axis : axis + 1] != "b" and not (typed and spec[axis])
    ]
    if not fitting:
        return sharding
    longest = max(fitting, key=lambda axis: (local[axis], -axis))
    spec[longest] = (*names(spec[longest]), over)
    # Written as `jit` writes it, since a step that finds its state otherwise than it left it is compiled again.
    return NamedSharding(sharding.mesh, trimmed(spec))


def trimmed(spec: Sequence[Any]) -> PartitionSpec:
    """A ``PartitionSpec`` without trailing ``None``."""
    last = max((axis for axis, part in enumerate(spec) if part is not None), default=-1)
    return PartitionSpec(*spec[: last + 1])
