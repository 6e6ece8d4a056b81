"""The plan of one update on a mesh, for a person to read and for a transform to follow."""

from typing import Any

from muon_optax._layouts.assign import Layouts, assign_layouts
from muon_optax._layouts.paths import named_leaves
from muon_optax._mesh.placement import Orthogonalizer, Plan, make_plan, refuse_other_paths
from muon_optax._mesh.shardings import shardings_of
from muon_optax._orthogonalizers.newton_schulz import newton_schulz


def plan(
    params: Any,
    shardings: Any = None,
    layouts: Layouts = None,
    *,
    orthogonalizer: Orthogonalizer | None = None,
    over: str | None = None,
) -> Plan:
    """Who orthogonalizes what on a mesh, how matrices get there and back, and what it costs.

    Every matrix is orthogonalized once, by one device. The costliest matrices are given away first, each to the device
    with the least to do, so that no device has more than its share plus one matrix. The devices that hold parts of a
    matrix send them there in one all-to-all, and get their parts of the result back in another; parameters that every
    device holds whole need only an all-gather of the results. Matrices of a stack that is divided over mesh axes
    (experts, scanned layers) stay among the devices that hold their part of it.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``; nothing is computed on them.
        shardings: A tree like ``params`` of ``NamedSharding``, or of arrays or ``ShapeDtypeStruct`` that carry one.
            ``None`` for those of ``params`` itself.
        layouts: As given to :func:`muon_optax.muon`.
        orthogonalizer: As given to :func:`muon_optax.muon`, whose default is meant by ``None``. Its method
            ``flops(rows, cols)``, if it has one, decides who gets what, and matrices travel in its ``dtype``, if it has
            one and theirs is wider.
        over: A mesh axis along which momentum is to be spread though parameters are whole on every device (ZeRO-1):
            each momentum is divided over it along its longest axis that can be. For :func:`state_shardings`.

    Returns:
        A :class:`Plan`: ``print`` it, or give it to ``muon(shardings=...)`` in place of the shardings.

    Raises:
        ValueError: If the shardings are on several meshes or of another tree, no leaf is on a mesh, ``over`` is no mesh
            axis, or for layouts that :func:`muon_optax.assign_layouts` refuses. Paths are named.
        TypeError: If a leaf of ``shardings`` says nothing about a mesh.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo
        >>> from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec
        >>> place = NamedSharding(AbstractMesh((8,), ("data",)), PartitionSpec("data"))
        >>> params = {f"layer_{i}": jax.ShapeDtypeStruct((256, 256), jnp.float32, sharding=place) for i in range(16)}
        >>> print(mo.plan(params))
        mesh data=8: 8 devices
        16 of 256 x 256: 2 a device, from P('data', None) to P('data', None) in bfloat16
        products: 1.007 GFLOP on the busiest device, 1.00 times an even share
        travel: 0.4588 MB sent by a device, 2 all-to-all, 1 trips
        boxes: 1.049 MB on a device at once
    """
    given = shardings_of(params if shardings is None else shardings)
    if not given:
        raise ValueError("plan: no parameter lies on a mesh. Give a tree of NamedShardings like the parameters.")
    resolved = assign_layouts(params, layouts)
    leaves = named_leaves(params)
    refuse_other_paths(given, [leaf.path for leaf in leaves], whole=True)
    matrices = [(leaf, layout) for leaf in leaves if (layout := resolved[leaf.path]) is not None]
    return make_plan(matrices, given, given, newton_schulz() if orthogonalizer is None else orthogonalizer, over)
