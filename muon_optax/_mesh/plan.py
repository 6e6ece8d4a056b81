"""The plan of one update on a mesh: who orthogonalizes what, and what that costs. It is known before a step runs."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from muon_optax._layouts.assigning.assign import assign_layouts
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, is_hidden, named_leaves
from muon_optax._mesh import checks
from muon_optax._mesh.kinds import Kind, Leaf, matrices_by_kind
from muon_optax._mesh.owners import Direction, Owned, Stack, give_away, make_batches, make_stacks
from muon_optax._mesh.shardings import (
    AnyMesh,
    Dims,
    count,
    dims_of,
    mesh_sizes,
    padded_shape,
    shardings_of,
    spec_of,
    spread,
    typed_sharding,
)
from muon_optax._orthogonalizers.newton_schulz import newton_schulz

Orthogonalizer: TypeAlias = Callable[[jax.Array], jax.Array]
# Bytes of matrices that travel at once in any case. More is cut into batches, to bound memory.
BATCH_BYTES = 2**28


@dataclass(frozen=True)
class Plan:
    """What :func:`muon_optax.plan` returns: ``print`` it, or give it to ``muon(shardings=...)``.

    Its figures are predictions, and tests compare them with compiled programs.

    Args:
        mesh: The mesh.
        shardings: How the parameters lie, by path.
        over: The mesh axis over which momentum is spread, or ``None``.
        uses: Shape, layout and dtype of every parameter that is a matrix, by path.
        leaves: The same parameters, with fused projections cut into blocks.
        owned: Of every kind its owners' matrices.
        loads: Of every device what its matrices cost, in multiplications and additions.
        batches: The stacks that travel together.
    """

    mesh: AnyMesh
    shardings: Mapping[str, NamedSharding]
    over: str | None
    uses: Mapping[str, checks.Use]
    leaves: tuple[Leaf, ...]
    owned: Mapping[Kind, Owned]
    loads: np.ndarray
    batches: tuple[tuple[Stack, ...], ...]

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self.loads.size

    @cached_property
    def flops(self) -> float:
        """Multiplications and additions of matrix products on the device that does most."""
        return float(self.loads.max())

    @cached_property
    def ideal_flops(self) -> float:
        """The same if all devices shared all products evenly."""
        return float(self.loads.mean())

    @property
    def flops_over_ideal(self) -> float:
        """1 if no device waits for another."""
        return self.flops / self.ideal_flops if self.ideal_flops else 1.0

    @property
    def bytes(self) -> float:
        """Bytes that one device sends, there and back, by the ring formula."""
        return sum(size for _, size in self._collectives)

    @property
    def collectives(self) -> dict[str, int]:
        """How many collectives of each sort one update makes, whatever the number of Newton-Schulz steps."""
        return dict(Counter(name for name, _ in self._collectives))

    @cached_property
    def _collectives(self) -> list[tuple[str, float]]:
        found = []
        for stack in chain.from_iterable(self.batches):
            for direction in ("there", "back"):
                size, divided, copied = _sizes(stack, direction)
                # An owner keeps its own part; of an all-gather along a ring it passes on all parts but one.
                if divided > 1:
                    found.append(("all-to-all", size * (divided - 1) / divided))
                if copied > 1 and direction == "back":
                    found.append(("all-gather", size * (copied - 1)))
        return found

    @cached_property
    def peak_bytes(self) -> int:
        """Bytes of the stacks that a device holds at once: packed and received, there and back."""
        # What returns is gathered from all copies; what is sent each device packs for its own copy only.
        held = []
        for batch in self.batches:
            ways = [(_sizes(stack, "there"), _sizes(stack, "back")) for stack in batch if stack.kind.pool]
            held.append(sum(2 * there + (1 + copied) * back for (there, _, _), (back, _, copied) in ways))
        return max(held, default=0)

    def __str__(self) -> str:
        """A line for each kind, then the totals."""
        sizes = mesh_sizes(self.mesh)
        lines = [f"mesh {', '.join(f'{axis}={size}' for axis, size in sizes.items())}: {self.devices} devices"]
        for kind, owned in self.owned.items():
            held = [len(own) for own in owned]
            each = f"{min(held)} to {max(held)}" if min(held) < max(held) else f"{max(held)}"
            shapes = " + ".join(f"{rows} x {columns}" for rows, columns in kind.layout.matrix_shapes(kind.shape))
            ways = f"from {spec_of(kind.there.dims)} to {spec_of(kind.back.dims)} in {kind.dtype}"
            batch = [axis for axis, size in sizes.items() if axis not in kind.pool and size > 1]
            among = f", stacks over {', '.join(batch)}" if batch else ""
            total = sum(held) * self.devices // len(held)
            lines.append(f"{total} of {shapes}: {each} a device, {ways if kind.pool else 'where they are'}{among}")
        collectives = ", ".join(f"{number} {name}" for name, number in self.collectives.items()) or "no collectives"
        share = f"{self.flops_over_ideal:.2f} times an even share"
        batches = f"{len(self.batches)} batch{'es' if len(self.batches) != 1 else ''}"
        lines += [
            f"products: {1e-9 * self.flops:,.4g} GFLOP on the busiest device, {share}",
            f"travel: {1e-6 * self.bytes:,.4g} MB sent by a device, {collectives}, {batches}",
            f"memory: {1e-6 * self.peak_bytes:,.4g} MB of stacks on a device at once",
        ]
        return "\n".join(lines)


def _sizes(stack: Stack, direction: Direction) -> tuple[int, int, int]:
    """Bytes that a device packs, among how many it divides them, and how many hold copies."""
    divided, copied = (count(axes, stack.sizes) for axes in getattr(stack.kind, direction)[-2:])
    elements = divided * stack.rows(direction) * stack.width(direction)
    return elements * jnp.dtype(stack.kind.dtype).itemsize, divided, copied


def plan(
    params: Any,
    shardings: Any = None,
    layouts: Layouts = None,
    *,
    orthogonalizer: Orthogonalizer | None = None,
    over: str | None = None,
) -> Plan:
    """Who orthogonalizes what on a mesh, how matrices get there and back, and what it costs.

    Every matrix is orthogonalized once, by one device, its owner. The costliest are given away first, each to the
    device with the least to do. Devices that hold pieces of a matrix send them to the owner in one all-to-all and get
    pieces of the result in another; parameters that every device holds whole need only an all-gather of the results.
    Matrices of a stack that mesh axes divide (experts, scanned layers) stay among the devices of their part.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``; nothing is computed on them.
        shardings: A tree like ``params`` of ``NamedSharding``, or of arrays or ``ShapeDtypeStruct`` that carry one.
            ``None`` for those of ``params`` itself.
        layouts: As given to :func:`muon_optax.muon`.
        orthogonalizer: As given to :func:`muon_optax.muon`; ``None`` for its default. It should have the two
            attributes that :func:`muon_optax.orthogonalize` describes, ``dtype`` and ``flops``.
        over: A mesh axis over which momentum is spread though parameters are whole (ZeRO-1): each momentum is divided
            along its longest axis that can be. ``muon(shardings=plan)`` then keeps its state spread.

    Returns:
        A :class:`Plan`: ``print`` it, or give it to ``muon(shardings=...)`` in place of the shardings.

    Raises:
        ValueError: If the shardings are on several meshes or of another tree, no leaf is on a mesh, ``over`` is not a
            mesh axis, or for layouts that :func:`muon_optax.assign_layouts` refuses. Paths are named.
        TypeError: If a leaf of ``shardings`` carries no sharding.

    Warns:
        UserWarning: If ``orthogonalizer`` lacks ``dtype`` or ``flops``.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo
        >>> from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
        >>> place = NamedSharding(AbstractMesh((8,), ("data",)), PartitionSpec("data"))
        >>> params = {f"layer_{i}": jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=place) for i in range(16)}
        >>> print(mo.plan(params))
        mesh data=8: 8 devices
        16 of 256 x 256: 2 a device, from P('data', None) to P('data', None) in bfloat16
        products: 1.007 GFLOP on the busiest device, 1.00 times an even share
        travel: 0.4588 MB sent by a device, 2 all-to-all, 1 batch
        memory: 1.049 MB of stacks on a device at once
    """
    # All that can be refused is refused before anything is planned.
    given = shardings_of(params if shardings is None else shardings)
    checks.require_mesh("plan", given)
    resolved, leaves = assign_layouts(params, layouts), named_leaves(params)
    checks.refuse_other_paths(given, [leaf.path for leaf in leaves], whole=True)
    checks.refuse_unknown_axis(over, next(iter(given.values())).mesh)
    matrices = [(leaf, layout) for leaf in leaves if (layout := resolved[leaf.path]) is not None]
    return _made(matrices, given, given, newton_schulz() if orthogonalizer is None else orthogonalizer, over)


def as_given(shardings: Any) -> "Plan | dict[str, NamedSharding]":
    """What a transform was given as ``shardings``: a plan, or shardings by path, none of them under Explicit axes."""
    return shardings if isinstance(shardings, Plan) else {} if shardings is None else shardings_of(shardings)


def check_given(given: Plan | Mapping[str, NamedSharding], params: Any) -> None:
    """Refuses at ``init`` what :func:`plan_in_sight` would refuse, as far as the leaves are in sight."""
    leaves = named_leaves(params)
    if isinstance(given, Plan):
        checks.refuse_other_shapes(
            given.mesh,
            given.uses,
            {leaf.path: leaf.shape for leaf in leaves},
        )
    elif given:
        # Behind a mask only a part of the tree is in sight: what is missing shows, and what is too much does not.
        hidden = any(map(is_hidden, jax.tree.leaves(params, is_leaf=is_hidden)))
        checks.refuse_other_paths(given, [leaf.path for leaf in leaves], whole=not hidden)


def plan_in_sight(
    given: Plan | Mapping[str, NamedSharding],
    leaves: Sequence[tuple[NamedLeaf, Layout]],
    params: Any,
    orthogonalizer: Orthogonalizer,
) -> Plan | None:
    """The plan that an update follows: the one given, or one by the shardings given, or else by the types of arrays.

    ``None`` where there is nothing to share out: off a mesh, or on one that no type tells of.
    """
    named = [leaf for leaf, _ in leaves]
    if isinstance(given, Plan):
        checks.refuse_other_shapes(given.mesh, given.uses, {leaf.path: leaf.shape for leaf in named})
        checks.refuse_other_mesh(given.mesh, named)
        for leaf, layout in leaves:
            use = checks.Use(leaf.shape, layout, _wire_dtype(leaf.dtype, orthogonalizer))
            checks.refuse_other_use(given.mesh, leaf.path, given.uses[leaf.path], use)
        return given if given.devices > 1 else None
    there = back = given
    # Under Explicit axes nothing is given, and the types of arrays say it.
    if not given:
        there = _typed(named)
        # Parameters may lie otherwise than their momentum (ZeRO-1), and updates must lie as parameters do.
        back = there | ({} if params is None else _typed(named_leaves(params)))
        checks.refuse_off_mesh(there, named)
    if not there:
        return None
    checks.refuse_other_paths(there, [leaf.path for leaf in named], whole=False)
    checks.refuse_other_mesh(next(iter(back.values())).mesh, named)
    found = _made(leaves, there, back, orthogonalizer)
    return found if found.devices > 1 else None


def _typed(leaves: Sequence[NamedLeaf]) -> dict[str, NamedSharding]:
    found = {leaf.path: typed_sharding(jnp.asarray(leaf.value)) for leaf in leaves if hasattr(leaf.value, "shape")}
    return {path: sharding for path, sharding in found.items() if sharding is not None}


def _made(
    matrices: Sequence[tuple[NamedLeaf, Layout]],
    there: Mapping[str, NamedSharding],
    back: Mapping[str, NamedSharding],
    orthogonalizer: Orthogonalizer,
    over: str | None = None,
) -> Plan:
    """The plan for leaves with a layout, whose updates come as in ``there`` and leave as in ``back``."""
    mesh = next(iter(back.values())).mesh
    # Mesh axes of one device divide nothing, and a mesh of one device has nothing to warn of.
    sizes = {axis: size for axis, size in mesh_sizes(mesh).items() if size > 1}
    if sizes:
        checks.warn_of_silence(orthogonalizer)
    uses, leaves = {}, []
    for leaf, layout in matrices:
        before, after = (dims_of(leaf.path, way[leaf.path], len(leaf.shape)) for way in (there, back))
        if over is not None:
            before = spread(before, leaf.shape, over, back[leaf.path], layout.axes)
        uses[leaf.path] = checks.Use(leaf.shape, layout, _wire_dtype(leaf.dtype, orthogonalizer))
        for start, shape, block in _blocks(layout, leaf.shape, before, after):
            before, after = _travelable(block, shape, before, after, sizes)
            padded = padded_shape(padded_shape(shape, before, sizes), after, sizes)
            batch = {axis for part, letter in zip(before, block.axes, strict=True) if letter == "b" for axis in part}
            # Where a device has whole matrices to itself nothing travels, so nothing is rounded for the way.
            dtype = jnp.dtype(leaf.dtype).name if batch == set(sizes) else uses[leaf.path].dtype
            leaves.append(Leaf(leaf.path, start, shape, padded, block, before, after, dtype))
    found = matrices_by_kind(leaves, sizes)
    cost = getattr(orthogonalizer, "flops", _assumed_flops)
    costs = {kind: sum(cost(*shape) for shape in kind.layout.matrix_shapes(kind.shape)) for kind in found}
    owned, loads = give_away(found, costs, sizes)
    batches = tuple(make_batches(list(make_stacks(owned, sizes)), BATCH_BYTES))
    return Plan(mesh, back, over, uses, tuple(leaves), owned, loads, batches)


def _blocks(
    layout: Layout, shape: tuple[int, ...], before: Dims, after: Dims
) -> list[tuple[int, tuple[int, ...], Layout]]:
    """The blocks of a fused projection, each with owners of its own: where it starts, its shape, its layout."""
    output = layout.axes.index("o")
    # Smaller matrices even out better, and padding one block would shift the next.
    # Where the output axis is divided, a piece holds parts of several blocks, and one owner takes all.
    if layout.split is None or before[output] or after[output]:
        return [(0, shape, layout)]
    edges = pairwise(accumulate(layout.split, initial=0))
    plain = Layout(layout.axes)
    return [(start, (*shape[:output], end - start, *shape[output + 1 :]), plain) for start, end in edges]


def _travelable(
    layout: Layout, shape: tuple[int, ...], before: Dims, after: Dims, sizes: Mapping[str, int]
) -> list[Dims]:
    """How a leaf can come and leave; XLA moves it there from where it is, if that is elsewhere."""
    batch = [axis for axis, letter in enumerate(layout.axes) if letter == "b"]
    # Matrices of a stack stay among the devices that hold its part, and an empty array goes nowhere.
    if any(before[axis] != after[axis] for axis in batch) or 0 in shape:
        before = after
    output, ways = layout.axes.index("o"), []
    for dims in (before, after):
        # The blocks of a fused projection can't be told apart once their axis is padded.
        uneven = layout.split is not None and padded_shape(shape, dims, sizes)[output] != shape[output]
        ways.append((*dims[:output], (), *dims[output + 1 :]) if uneven else dims)
    return ways


def _wire_dtype(dtype: Any, orthogonalizer: Orthogonalizer) -> str:
    """The dtype of the products, if it is narrower than the leaf's and holds its largest and smallest numbers."""
    products = getattr(orthogonalizer, "dtype", None)
    if products is None:
        return jnp.dtype(dtype).name
    # float16 holds fewer magnitudes than bfloat16: a gradient must not overflow on the way.
    narrow, wide = jnp.finfo(products), jnp.finfo(dtype)
    fits = narrow.bits < wide.bits and narrow.maxexp >= wide.maxexp and narrow.minexp <= wide.minexp
    return jnp.dtype(products if fits else dtype).name


def _assumed_flops(rows: int, columns: int) -> float:
    # Five steps of the direct method. All that counts is how the matrices of one tree compare.
    short, long = sorted((rows, columns))
    return 10.0 * short * short * (2 * long + short)
