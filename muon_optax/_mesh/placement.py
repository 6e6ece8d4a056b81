"""How the arrays of an update lie on a mesh: the record that plan, exchange and state read, and where it comes from."""

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
    """How arrays come to an update and leave it, by path.

    Args:
        mesh: The mesh that all of them lie on.
        there: How updates come, and momentum lies.
        back: How updates leave, which is how parameters lie.
        over: The mesh axis over which momentum is spread, though parameters are not (ZeRO-1).
    """

    mesh: AnyMesh
    there: Mapping[str, NamedSharding]
    back: Mapping[str, NamedSharding]
    over: str | None = None

    @cached_property
    def sizes(self) -> Sizes:
        """Devices along each mesh axis that has several. The others divide nothing."""
        return {axis: size for axis, size in self.mesh.shape.items() if size > 1}


def given_placement(shardings: Any) -> Placement | None:
    """What a tree of ``NamedSharding``, or of arrays that carry one, says; ``None`` if no leaf lies on a mesh.

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
    """What the types of arrays say, where all mesh axes are Explicit; ``None`` elsewhere."""
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
    """``placement`` with the momentum of every leaf spread over one more mesh axis (ZeRO-1)."""
    there = {}
    for leaf in leaves:
        layout = layouts[leaf.path]
        # Experts and layers stay among the devices that hold their part, so a batch axis is never spread.
        letters = layout.axes if layout else ""
        there[leaf.path] = spread(placement.back[leaf.path], leaf.path, leaf.shape, over, letters)
    return replace(placement, there=there, over=over)


def spread(sharding: NamedSharding, path: str, shape: tuple[int, ...], over: str, letters: str = "") -> NamedSharding:
    """``sharding`` with one array axis divided over the mesh axis ``over`` too: the longest that it divides evenly.

    Unchanged if ``over`` is in use, or divides no array axis but those with the letter ``b`` in ``letters``.
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
    # As `jit` writes it: a step must find its state as it left it, or it is compiled again.
    return NamedSharding(sharding.mesh, trimmed(spec))


def trimmed(spec: Sequence[Any]) -> PartitionSpec:
    """A ``PartitionSpec`` without trailing ``None``."""
    last = max((axis for axis, part in enumerate(spec) if part is not None), default=-1)
    return PartitionSpec(*spec[: last + 1])
