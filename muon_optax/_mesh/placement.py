"""What is known of an update on a mesh before it runs: who orthogonalizes what, and what that costs."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, is_hidden, named_leaves, show
from muon_optax._mesh.routes.find import find_routes
from muon_optax._mesh.routes.model import Box, Leaf, Routes
from muon_optax._mesh.shardings import (
    AnyMesh,
    Dims,
    dims_of,
    mesh_sizes,
    padded_shape,
    shardings_of,
    spread,
    typed_sharding,
)

Orthogonalizer = Callable[[jax.Array], jax.Array]
# Multiplications and additions of five steps, for an orthogonalizer that does not say what it costs. All that counts is
# how the matrices of one tree compare.
_ASSUMED_STEPS = 5


@dataclass(frozen=True)
class Plan:
    """What :func:`muon_optax.plan` returns: ``print`` it, or give it to ``muon(shardings=...)``.

    The figures are predictions, which tests compare with compiled programs.

    Args:
        mesh: The mesh.
        shardings: How the parameters lie, by path.
        routes: Which device orthogonalizes what, and the trips there and back.
        over: The mesh axis over which momentum is spread, or ``None``.
    """

    mesh: AnyMesh
    shardings: Mapping[str, NamedSharding]
    routes: Routes
    over: str | None = None

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.routes.sizes.values())

    @cached_property
    def flops(self) -> float:
        """Multiplications and additions of matrix products on the device that does most.

        Not counted is what idle devices do on zeros, which is not more than that, or by a fiftieth at most.
        """
        return float(self.routes.loads.max()) + self.routes.local_cost

    @cached_property
    def ideal_flops(self) -> float:
        """The same if all devices shared all products evenly."""
        return float(self.routes.loads.mean()) + self.routes.local_cost

    @property
    def flops_over_ideal(self) -> float:
        """1 if no device waits for another."""
        return self.flops / self.ideal_flops if self.ideal_flops else 1.0

    @cached_property
    def bytes(self) -> float:
        """Bytes that one device sends, there and back, by the ring formula."""
        return sum(size for _, size in self._collectives)

    @cached_property
    def collectives(self) -> dict[str, int]:
        """How many collectives of each kind one update makes, whatever the number of Newton-Schulz steps."""
        return dict(Counter(kind for kind, _ in self._collectives))

    @cached_property
    def _collectives(self) -> list[tuple[str, float]]:
        found = []
        for trip in self.routes.trips:
            for way in ("there", "back"):
                for box in getattr(trip, way):
                    along, planes = (self._count(axes) for axes in (box.route.axes, box.route.planes))
                    size = self._size(box)
                    if along > 1:
                        found.append(("all-to-all", size * (along - 1) / along))
                    if planes > 1 and way == "back":
                        found.append(("all-gather", size * (planes - 1)))
        return found

    @cached_property
    def peak_bytes(self) -> int:
        """Bytes of the boxes that a device holds at once: packed and received, there and back."""
        peak = 0
        for trip in self.routes.trips:
            # Results of all planes are gathered; on the way there each has only its own.
            held = sum(2 * self._size(box) for box in trip.there)
            held += sum((1 + self._count(box.route.planes)) * self._size(box) for box in trip.back)
            peak = max(peak, held)
        return peak

    def _size(self, box: Box) -> int:
        return self._count(box.route.axes) * box.rows * box.width * jnp.dtype(box.route.dtype).itemsize

    def _count(self, axes: Sequence[str]) -> int:
        return math.prod(self.routes.sizes[axis] for axis in axes)

    def __str__(self) -> str:
        """Groups of matrices with their owners, then the totals."""
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh_sizes(self.mesh).items())
        lines = [f"mesh {sizes or 'of one device'}: {self.devices} devices"]
        lines += self.routes.describe()
        collectives = ", ".join(f"{count} {kind}" for kind, count in self.collectives.items()) or "no collectives"
        return "\n".join(
            [
                *lines,
                f"products: {1e-9 * self.flops:,.4g} GFLOP on the busiest device, {self.flops_over_ideal:.2f} times an "
                "even share",
                f"travel: {1e-6 * self.bytes:,.4g} MB sent by a device, {collectives}, {len(self.routes.trips)} trips",
                f"boxes: {1e-6 * self.peak_bytes:,.4g} MB on a device at once",
            ]
        )


class Planner:
    """Finds the plan for the leaves of an update: from what was given, or else from their types."""

    def __init__(self, given: "Plan | Mapping[str, NamedSharding]", orthogonalizer: Orthogonalizer) -> None:
        self._given, self._orthogonalizer = given, orthogonalizer

    def check(self, params: Any) -> None:
        """Refuses at ``init`` what :meth:`plan` would refuse, as far as the leaves are in sight."""
        hidden = any(map(is_hidden, jax.tree.leaves(params, is_leaf=is_hidden)))
        leaves = named_leaves(params)
        if isinstance(self._given, Plan):
            refuse_other_shapes(self._given, {leaf.path: leaf.shape for leaf in leaves})
        elif self._given:
            # Behind a mask stands a part of the tree: what is missing shows, and what is too much does not.
            refuse_other_paths(self._given, [leaf.path for leaf in leaves], whole=not hidden)

    def plan(self, leaves: Sequence[tuple[NamedLeaf, Layout]], params: Any) -> "Plan | None":
        """The plan, or ``None`` where there is nothing to share out: off a mesh, or on one that no type tells of."""
        if isinstance(self._given, Plan):
            refuse_other_shapes(self._given, {leaf.path: leaf.shape for leaf, _ in leaves})
            _refuse_other_use(self._given, leaves, self._orthogonalizer)
            _refuse_other_mesh(self._given.mesh, [leaf for leaf, _ in leaves])
            return self._given if self._given.devices > 1 else None
        there = back = self._given
        if not there:
            there = _typed([leaf for leaf, _ in leaves])
            # Parameters may lie otherwise than their momentum (ZeRO-1), and updates are to lie as parameters do.
            back = there | ({} if params is None else _typed(named_leaves(params)))
            _refuse_off_mesh(there, leaves)
        if not there:
            return None
        refuse_other_paths(there, [leaf.path for leaf, _ in leaves], whole=False)
        _refuse_other_mesh(next(iter(back.values())).mesh, [leaf for leaf, _ in leaves])
        found = make_plan(leaves, there, back, self._orthogonalizer)
        return found if found.devices > 1 else None


def as_planner(shardings: Any, orthogonalizer: Orthogonalizer) -> Planner:
    """A planner for what a transform was given as ``shardings``."""
    given = shardings if isinstance(shardings, Plan) else {} if shardings is None else shardings_of(shardings)
    return Planner(given, orthogonalizer)


def _typed(leaves: Sequence[NamedLeaf]) -> dict[str, NamedSharding]:
    found = {leaf.path: typed_sharding(jnp.asarray(leaf.value)) for leaf in leaves if hasattr(leaf.value, "shape")}
    return {path: sharding for path, sharding in found.items() if sharding is not None}


def _refuse_off_mesh(typed: Mapping[str, NamedSharding], leaves: Sequence[tuple[NamedLeaf, Layout]]) -> None:
    """Raises ValueError if the types of some leaves name a mesh, and those of others do not."""
    off = [leaf.path for leaf, _ in leaves if leaf.path not in typed]
    if typed and off:
        path, sharding = next(iter(typed.items()))
        raise ValueError(
            f"{show(off[0])} lies on no mesh, and {show(path)} on {_brief(sharding.mesh)} ({len(off)} such paths): put "
            "all parameters on it by jax.device_put, with PartitionSpec() those that every device is to hold whole."
        )


def refuse_other_shapes(plan: Plan, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless ``shapes`` are those of the plan's matrices, by path."""
    planned = {leaf.path: leaf.given for leaf in plan.routes.leaves}
    differing = [path for path in [*planned, *shapes] if planned.get(path) != shapes.get(path)]
    if differing:
        path, none = differing[0], "none"
        raise ValueError(
            f"The plan is not for these parameters: {show(path)} has shape {planned.get(path, none)} in the plan for "
            f"the mesh {mesh_sizes(plan.mesh)} and {shapes.get(path, none)} here ({len(differing)} such paths). Make a "
            "plan of the parameters that are trained: muon_optax.plan(params, shardings)."
        )


def _refuse_other_use(plan: Plan, leaves: Sequence[tuple[NamedLeaf, Layout]], orthogonalizer: Orthogonalizer) -> None:
    """Raises ValueError where the plan divides a leaf otherwise, or rounds it more than the orthogonalizer does."""
    planned = {leaf.path: leaf for leaf in plan.routes.leaves}
    for leaf, layout in leaves:
        known = planned[leaf.path]
        if known.layout != layout:
            raise ValueError(
                f"The plan is not for these layouts: {show(leaf.path)} is '{known.layout}' in the plan for the mesh "
                f"{mesh_sizes(plan.mesh)} and '{layout}' here. Give muon_optax.plan the same layouts."
            )
        wanted = _wire_dtype(leaf.dtype, orthogonalizer)
        if not _holds(known.dtype, wanted):
            raise ValueError(
                f"The plan is not for this orthogonalizer or dtype: it sends {show(leaf.path)} in {known.dtype}, and "
                f"here it is to travel in {wanted}. Give muon_optax.plan the same orthogonalizer, and parameters in "
                "the dtype of the updates."
            )


def _holds(dtype: str, other: str) -> bool:
    """Whether ``dtype`` has all numbers of ``other``."""
    wide, narrow = jnp.finfo(dtype), jnp.finfo(other)
    return wide.nmant >= narrow.nmant and wide.maxexp >= narrow.maxexp and wide.minexp <= narrow.minexp


def _refuse_other_mesh(mesh: AnyMesh, leaves: Sequence[NamedLeaf]) -> None:
    """Raises ValueError if the type of a leaf names another mesh; types of arrays that lie on one name it."""
    wanted = (mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    for leaf in leaves:
        here = jax.typeof(leaf.value).sharding.mesh
        if not here.empty and (here.axis_names, here.axis_sizes, here.axis_types) != wanted:
            raise ValueError(
                f"{show(leaf.path)} is on the mesh {_brief(here)}, and the shardings or the plan are for the mesh "
                f"{_brief(mesh)}: one update runs on one mesh. Take the shardings from the parameters that are trained."
            )


def _brief(mesh: AnyMesh) -> str:
    """Sizes and kinds of the axes."""
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return ", ".join(f"{axis}={size} ({kind.name})" for axis, size, kind in axes)


def make_plan(
    matrices: Sequence[tuple[NamedLeaf, Layout]],
    there: Mapping[str, NamedSharding],
    back: Mapping[str, NamedSharding],
    orthogonalizer: Orthogonalizer | None,
    over: str | None = None,
) -> Plan:
    """The plan for leaves with a layout, whose updates come as in ``there`` and leave as in ``back``."""
    mesh = next(iter(back.values())).mesh
    sizes = mesh_sizes(mesh)
    if over is not None and over not in sizes:
        raise ValueError(f"over={over!r} is no axis of the mesh: use one of {', '.join(map(repr, sizes))}.")
    leaves = []
    for leaf, layout in matrices:
        before, after = (dims_of(leaf.path, way[leaf.path], len(leaf.shape)) for way in (there, back))
        if over is not None:
            before = spread(before, leaf.shape, over, back[leaf.path], layout.axes)
        before, after = _travelable(layout, leaf.shape, before, after, sizes)
        padded = padded_shape(padded_shape(leaf.shape, before, sizes), after, sizes)
        dtype = _wire_dtype(leaf.dtype, orthogonalizer)
        leaves.append(Leaf(leaf.path, leaf.shape, padded, layout, before, after, dtype))
    return Plan(mesh, back, find_routes(leaves, sizes, _cost(orthogonalizer)), over)


def _travelable(
    layout: Layout, shape: tuple[int, ...], before: Dims, after: Dims, sizes: Mapping[str, int]
) -> tuple[Dims, Dims]:
    """How a leaf can come and leave; XLA moves it there from where it is, if that is elsewhere."""

    def stack(dims: Dims) -> list[tuple[str, ...]]:
        return [part for part, letter in zip(dims, layout.axes, strict=True) if letter == "b"]

    # Matrices of a stack stay among the devices that hold its part, and an empty array goes nowhere.
    if stack(before) != stack(after) or 0 in shape:
        before = after
    if layout.split is not None:
        # The blocks of a fused projection can't be told apart once their axis is padded.
        output = layout.axes.index("o")
        before, after = (
            dims
            if padded_shape(shape, dims, sizes)[output] == shape[output]
            else (*dims[:output], (), *dims[output + 1 :])
            for dims in (before, after)
        )
    return before, after


def _wire_dtype(dtype: Any, orthogonalizer: Orthogonalizer | None) -> str:
    """The dtype of the products, if it is narrower than the leaf's and holds its largest and smallest numbers."""
    products = getattr(orthogonalizer, "dtype", None)
    if products is None:
        return jnp.dtype(dtype).name
    narrow, wide = jnp.finfo(products), jnp.finfo(dtype)
    fits = narrow.bits < wide.bits and narrow.maxexp >= wide.maxexp and narrow.minexp <= wide.minexp
    return jnp.dtype(products if fits else dtype).name


def _cost(orthogonalizer: Orthogonalizer | None) -> Callable[[int, int], float]:
    def assumed(rows: int, columns: int) -> float:
        short, long = sorted((rows, columns))
        return 2.0 * _ASSUMED_STEPS * short * short * (2 * long + short)

    return getattr(orthogonalizer, "flops", assumed)


def refuse_other_paths(shardings: Mapping[str, Any], paths: Sequence[str], whole: bool) -> None:
    """Raises ValueError if a path has no sharding or, of a ``whole`` tree, a sharding no path."""
    missing = [path for path in paths if path not in shardings]
    unknown = [path for path in shardings if path not in set(paths)] if whole else []
    if missing or unknown:
        what = f"no sharding for {show(missing[0])}" if missing else f"a sharding for {show(unknown[0])}, which is none"
        raise ValueError(
            f"shardings are not those of the parameters: there is {what} ({len(missing)} missing, {len(unknown)} too "
            "many). Give a tree like the parameters, such as jax.tree.map(lambda leaf: leaf.sharding, params)."
        )
