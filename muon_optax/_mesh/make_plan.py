"""The making of plans, before a step runs, from shapes and shardings alone."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import jax.numpy as jnp

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf
from muon_optax._mesh import checks
from muon_optax._mesh.dims import Dims, Sizes, dims_of, padded_shape
from muon_optax._mesh.kinds import Leaf, matrices_by_kind
from muon_optax._mesh.owners import flops_by_device, give_away
from muon_optax._mesh.placement import Placement
from muon_optax._mesh.plan import Plan
from muon_optax._mesh.stacks import make_batches, make_stacks
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction, Orthogonalizers

# Up to these bytes of matrices travel at once. More are cut into batches, to bound memory.
BATCH_BYTES = 2**28


def make_plan(
    matrices: Sequence[tuple[NamedLeaf, Layout]], placement: Placement, orthogonalizers: Orthogonalizers
) -> Plan:
    """Makes the plan for the leaves that have a layout."""
    sizes = placement.sizes
    # A mesh of one device has nothing to warn of.
    if sizes:
        for orthogonalizer in orthogonalizers.functions.values():
            checks.warn_of_silence(orthogonalizer)
    uses = uses_of(matrices, orthogonalizers)
    leaves = tuple(part for leaf, layout in matrices for part in _leaves_of(leaf, layout, placement, uses[leaf.path]))
    found = matrices_by_kind(leaves, sizes)
    costs = {name: getattr(function, "flops", _assumed_flops) for name, function in orthogonalizers.functions.items()}
    flops = {
        kind: sum(costs[kind.orthogonalizer](*shape) for shape in kind.layout.matrix_shapes(kind.shape))
        for kind in found
    }
    owned = give_away(found, flops, sizes)
    loads = flops_by_device(owned, flops, sizes)
    stacks = list(make_stacks(owned, flops, loads, sizes))
    return Plan(placement, uses, leaves, owned, loads, tuple(make_batches(stacks, BATCH_BYTES)))


def uses_of(matrices: Sequence[tuple[NamedLeaf, Layout]], orthogonalizers: Orthogonalizers) -> dict[str, checks.Use]:
    """The properties in which an update must agree with its plan, by path."""
    found = {}
    for leaf, layout in matrices:
        name = orthogonalizers.name_of(leaf.path)
        dtype = _wire_dtype(leaf.dtype, orthogonalizers.functions[name])
        found[leaf.path] = checks.Use(leaf.shape, layout, dtype, name)
    return found


def _leaves_of(leaf: NamedLeaf, layout: Layout, placement: Placement, use: checks.Use) -> Iterator[Leaf]:
    """The blocks of one parameter, each with the properties that a plan needs."""
    sizes = placement.sizes
    came, left = (dims_of(leaf.path, lies[leaf.path], len(leaf.shape)) for lies in (placement.there, placement.back))
    for start, shape, block in _blocks(layout, leaf.shape, came, left):
        there, back = _travelable(block, shape, came, left, sizes)
        padded = padded_shape(padded_shape(shape, there, sizes), back, sizes)
        found = Leaf(leaf.path, start, shape, padded, block, there, back, use.dtype, use.orthogonalizer)
        # If a device has whole matrices to itself, nothing travels, so nothing is rounded.
        yield found if found.pool(sizes) else found._replace(dtype=jnp.dtype(leaf.dtype).name)


def _blocks(
    layout: Layout, shape: tuple[int, ...], there: Dims, back: Dims
) -> list[tuple[int, tuple[int, ...], Layout]]:
    """The blocks of a fused projection, each with owners of its own, as (start, shape, layout)."""
    output = layout.axes.index("o")
    # Smaller matrices even out better, and padding one block would shift the next.
    # If the output axis is divided, a piece holds parts of several blocks, and one owner takes all.
    if layout.split is None or there[output] or back[output]:
        return [(0, shape, layout)]
    edges = pairwise(accumulate(layout.split, initial=0))
    plain = Layout(layout.axes)
    return [(start, (*shape[:output], end - start, *shape[output + 1 :]), plain) for start, end in edges]


def _travelable(layout: Layout, shape: tuple[int, ...], there: Dims, back: Dims, sizes: Sizes) -> tuple[Dims, Dims]:
    """The divisions in which a block can come and leave. XLA moves it there if it lies elsewhere."""
    batch = [axis for axis, letter in enumerate(layout.axes) if letter == "b"]
    # Experts and layers stay among the devices that hold their part.
    if any(there[axis] != back[axis] for axis in batch):
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
    # float16 has a smaller range than bfloat16, and a gradient must not overflow on the way.
    narrow, wide = jnp.finfo(products), jnp.finfo(dtype)
    fits = narrow.bits < wide.bits and narrow.maxexp >= wide.maxexp and narrow.minexp <= wide.minexp
    return jnp.dtype(products if fits else dtype).name


def _assumed_flops(rows: int, columns: int) -> float:
    # Five steps of the direct method. Only the ratios between matrices of one tree matter.
    short, long = sorted((rows, columns))
    return 10.0 * short * short * (2 * long + short)
