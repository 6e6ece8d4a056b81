"""Plans are made: who orthogonalizes what. It is known before a step runs, from shapes and shardings alone."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import jax.numpy as jnp

from muon_optax._layouts.assigning.assign import assign_layouts
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, named_leaves
from muon_optax._mesh import checks
from muon_optax._mesh.dims import Dims, Sizes, dims_of, padded_shape
from muon_optax._mesh.kinds import Leaf, matrices_by_kind
from muon_optax._mesh.owners import flops_by_device, give_away
from muon_optax._mesh.placement import Placement, given_placement, spread_momentum
from muon_optax._mesh.plan import Plan
from muon_optax._mesh.stacks import make_batches, make_stacks
from muon_optax._orthogonalizers.newton_schulz import newton_schulz
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction

# Bytes of matrices that travel at once in any case. More is cut into batches, to bound memory.
BATCH_BYTES = 2**28


def plan(
    params: Any,
    shardings: Any = None,
    layouts: Layouts = None,
    *,
    orthogonalizer: MatrixFunction | None = None,
    over: str | None = None,
) -> Plan:
    """Who orthogonalizes what on a mesh, how matrices get there and back, and what it costs.

    Every matrix is orthogonalized once, by one device, its owner. Devices that hold pieces of a matrix send them to the
    owner in one all-to-all and get pieces of the result in another. Parameters that every device holds whole need only
    an all-gather of the results. Matrices of a stack that mesh axes divide (experts, scanned layers) stay among the
    devices of their part. No device has more work than an even share and one matrix.

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
    placement = given_placement(params if shardings is None else shardings) or checks.refuse_no_mesh("plan")
    resolved, leaves = assign_layouts(params, layouts), named_leaves(params)
    checks.refuse_other_paths(placement.back, leaves, whole=True)
    checks.refuse_unknown_axis(over, placement.mesh)
    if over is not None:
        placement = spread_momentum(placement, over, leaves, resolved)
    matrices = [(leaf, layout) for leaf in leaves if (layout := resolved[leaf.path]) is not None]
    return make_plan(matrices, placement, newton_schulz() if orthogonalizer is None else orthogonalizer)


def make_plan(
    matrices: Sequence[tuple[NamedLeaf, Layout]], placement: Placement, orthogonalizer: MatrixFunction
) -> Plan:
    """The plan for the leaves that have a layout."""
    sizes = placement.sizes
    # A mesh of one device has nothing to warn of.
    if sizes:
        checks.warn_of_silence(orthogonalizer)
    uses = uses_of(matrices, orthogonalizer)
    leaves = tuple(part for leaf, layout in matrices for part in _leaves_of(leaf, layout, placement, uses[leaf.path]))
    found = matrices_by_kind(leaves, sizes)
    cost = getattr(orthogonalizer, "flops", _assumed_flops)
    flops = {kind: sum(cost(*shape) for shape in kind.layout.matrix_shapes(kind.shape)) for kind in found}
    owned = give_away(found, flops, sizes)
    loads = flops_by_device(owned, flops, sizes)
    stacks = list(make_stacks(owned, flops, loads, sizes))
    return Plan(placement, uses, leaves, owned, loads, tuple(make_batches(stacks, BATCH_BYTES)))


def uses_of(matrices: Sequence[tuple[NamedLeaf, Layout]], orthogonalizer: MatrixFunction) -> dict[str, checks.Use]:
    """What an update has in common with its plan, by path."""
    return {
        leaf.path: checks.Use(leaf.shape, layout, _wire_dtype(leaf.dtype, orthogonalizer)) for leaf, layout in matrices
    }


def _leaves_of(leaf: NamedLeaf, layout: Layout, placement: Placement, use: checks.Use) -> Iterator[Leaf]:
    """The blocks of one parameter, with all that a plan has to know of each."""
    sizes = placement.sizes
    came, left = (dims_of(leaf.path, lies[leaf.path], len(leaf.shape)) for lies in (placement.there, placement.back))
    for start, shape, block in _blocks(layout, leaf.shape, came, left):
        there, back = _travelable(block, shape, came, left, sizes)
        padded = padded_shape(padded_shape(shape, there, sizes), back, sizes)
        among = {axis for part, letter in zip(there, block.axes, strict=True) if letter == "b" for axis in part}
        # Where a device has whole matrices to itself nothing travels, so nothing is rounded for the way.
        dtype = jnp.dtype(leaf.dtype).name if among == set(sizes) else use.dtype
        yield Leaf(leaf.path, start, shape, padded, block, there, back, dtype)


def _blocks(
    layout: Layout, shape: tuple[int, ...], there: Dims, back: Dims
) -> list[tuple[int, tuple[int, ...], Layout]]:
    """The blocks of a fused projection, each with owners of its own: where it starts, its shape, its layout."""
    output = layout.axes.index("o")
    # Smaller matrices even out better, and padding one block would shift the next.
    # Where the output axis is divided, a piece holds parts of several blocks, and one owner takes all.
    if layout.split is None or there[output] or back[output]:
        return [(0, shape, layout)]
    edges = pairwise(accumulate(layout.split, initial=0))
    plain = Layout(layout.axes)
    return [(start, (*shape[:output], end - start, *shape[output + 1 :]), plain) for start, end in edges]


def _travelable(layout: Layout, shape: tuple[int, ...], there: Dims, back: Dims, sizes: Sizes) -> tuple[Dims, Dims]:
    """How a block can come and leave; XLA moves it there from where it is, if that is elsewhere."""
    batch = [axis for axis, letter in enumerate(layout.axes) if letter == "b"]
    # Experts and layers stay among the devices that hold their part, and an empty array goes nowhere.
    if any(there[axis] != back[axis] for axis in batch) or 0 in shape:
        there = back
    output = layout.axes.index("o")

    def even(dims: Dims) -> Dims:
        # The blocks of a fused projection can't be told apart once their axis is padded.
        uneven = layout.split is not None and padded_shape(shape, dims, sizes)[output] != shape[output]
        return (*dims[:output], (), *dims[output + 1 :]) if uneven else dims

    return even(there), even(back)


def _wire_dtype(dtype: Any, orthogonalizer: MatrixFunction) -> str:
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
