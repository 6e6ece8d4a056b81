"""The record of how the arrays of an update lie on a mesh, which plan, exchange and state read, and how it is made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, named_leaves
from muon_optax._mesh.checks import refuse_off_mesh, refuse_other_meshes, require_sharding
from muon_optax._mesh.dims import Sizes, dims_of, local_shape, named_axes, short_spec_of
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
    """The placement in a tree of ``NamedSharding``, or of arrays that carry one; ``None`` if no leaf is on a mesh."""
    found = {leaf.path: require_sharding(leaf.path, leaf.value) for leaf in named_leaves(shardings)}
    on_mesh = {path: sharding for path, sharding in found.items() if isinstance(sharding, NamedSharding)}
    if not on_mesh:
        return None
    refuse_other_meshes(found, on_mesh)
    return Placement(next(iter(on_mesh.values())).mesh, on_mesh, on_mesh)


def typed_placement(updates: Sequence[NamedLeaf], params: Any) -> Placement | None:
    """The placement that the types of arrays give if all mesh axes are Explicit, else ``None``."""
    there = _typed(updates)
    if not there:
        return None
    refuse_off_mesh(there, updates)
    # Parameters may lie otherwise than their momentum (ZeRO-1), and updates must leave as parameters lie.
    back = there | _typed(named_leaves(params))
    return Placement(next(iter(back.values())).mesh, there, back)


def _typed(leaves: Sequence[NamedLeaf]) -> dict[str, NamedSharding]:
    found = {leaf.path: typed_sharding(jnp.asarray(leaf.value)) for leaf in leaves if hasattr(leaf.value, "shape")}
    return {path: sharding for path, sharding in found.items() if sharding is not None}


def spread_momentum(
    placement: Placement, over: str, leaves: Sequence[NamedLeaf], layouts: Mapping[str, Layout | None]
) -> Placement:
    """Spreads the momentum of every leaf over one more mesh axis (ZeRO-1)."""
    letters = {path: layout.axes if layout else "" for path, layout in layouts.items()}
    there = {
        leaf.path: spread(placement.back[leaf.path], leaf.path, leaf.shape, over, letters[leaf.path]) for leaf in leaves
    }
    return replace(placement, there=there, over=over)


def spread(sharding: NamedSharding, path: str, shape: tuple[int, ...], over: str, letters: str = "") -> NamedSharding:
    """Adds the mesh axis ``over`` to the longest array axis that it divides evenly.

    The sharding is unchanged if ``over`` is in use, or divides only axes with the letter ``b`` in ``letters``, since
    experts and layers stay among the devices that hold their part.
    """
    sizes, dims = sharding.mesh.shape, dims_of(path, sharding, len(shape))
    if any(over in part for part in dims) or sizes[over] == 1 or 0 in shape:
        return sharding
    # Under Explicit axes JAX adds no gradient to a momentum with an axis that is divided further.
    typed = bool(explicit_axes(sharding.mesh))
    named = [*named_axes(sharding.spec, len(shape))]
    local = local_shape(shape, dims, sizes)
    fitting = [
        axis
        for axis, size in enumerate(local)
        if size % sizes[over] == 0 and letters[axis : axis + 1] != "b" and not (typed and named[axis])
    ]
    if not fitting:
        return sharding
    longest = max(fitting, key=lambda axis: (local[axis], -axis))
    named[longest] += (over,)
    return NamedSharding(sharding.mesh, short_spec_of(tuple(named)))
