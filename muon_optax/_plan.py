"""The plan of a mesh, as a user asks for it."""

from dataclasses import replace
from typing import Any

import optax

from muon_optax._layouts.assigning.assign import assign_layouts
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.paths import named_leaves
from muon_optax._mesh import checks
from muon_optax._mesh.make_plan import make_plan
from muon_optax._mesh.placement import given_placement, spread_momentum
from muon_optax._mesh.plan import Plan
from muon_optax._orthogonalizers.newton_schulz import newton_schulz
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction
from muon_optax._state.shardings import state_bytes_of_a_device
from muon_optax._transforms.by_path.chosen import Chosen, SettingsByPath
from muon_optax._transforms.by_path.refusals import refuse_idle
from muon_optax._transforms.checks.arguments import check_transform


def plan(
    params: Any,
    shardings: Any = None,
    layouts: Layouts = None,
    *,
    orthogonalizer: MatrixFunction | None = None,
    over: str | None = None,
    by_path: SettingsByPath = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Plan:
    """Plans an update on a mesh: the owner of each matrix, the way there and back, and the cost.

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
        by_path: As given to :func:`muon_optax.muon`. Matrices with an orthogonalizer of their own travel in stacks of
            their own, and cost what it says.
        optimizer: Whose state to count: one line more shows what a device keeps of it in its own memory and in its
            host's (:func:`muon_optax.offload_to_host`). The rest of the plan does not depend on it.

    Returns:
        A :class:`Plan`. ``print`` it, or give it to ``muon(shardings=...)`` in place of the shardings.

    Raises:
        ValueError: If the shardings are on several meshes or of another tree, no leaf is on a mesh, ``over`` is not a
            mesh axis, for layouts that :func:`muon_optax.assign_layouts` refuses, or for settings by path that
            :func:`muon_optax.muon` refuses. Paths are named.
        TypeError: If a leaf of ``shardings`` carries no sharding, or ``optimizer`` is not a transform.

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
    # Every refusal comes before anything is planned.
    if optimizer is not None:
        check_transform("optimizer", optimizer)
    placement = given_placement(params if shardings is None else shardings) or checks.refuse_no_mesh("plan")
    resolved, leaves = assign_layouts(params, layouts), named_leaves(params)
    checks.refuse_other_paths(placement.back, leaves, whole=True)
    chosen = Chosen(by_path)
    refuse_idle(chosen, params, leaves, resolved)
    checks.refuse_unknown_axis(over, placement.mesh)
    if over is not None:
        placement = spread_momentum(placement, over, leaves, resolved)
    matrices = [(leaf, layout) for leaf in leaves if (layout := resolved[leaf.path]) is not None]
    everywhere = newton_schulz() if orthogonalizer is None else orthogonalizer
    made = make_plan(matrices, placement, chosen.orthogonalizers(everywhere))
    return made if optimizer is None else replace(made, state_bytes=state_bytes_of_a_device(optimizer, params, made))
