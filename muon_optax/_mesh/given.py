"""The argument ``shardings`` of a transform, and the plan that its updates follow."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, has_hidden, named_leaves
from muon_optax._mesh import checks
from muon_optax._mesh.make_plan import make_plan, uses_of
from muon_optax._mesh.placement import Placement, given_placement, typed_placement
from muon_optax._mesh.plan import Plan
from muon_optax._mesh.typed import inside_shard_map
from muon_optax._orthogonalizers.orthogonalizer import Orthogonalizers

Given: TypeAlias = Plan | Placement | None


def as_given(shardings: Any) -> Given:
    """The plan that was given, or the placement in the given shardings; ``None`` without any, as on Explicit axes."""
    return shardings if isinstance(shardings, Plan) else given_placement(shardings)


def check_given(given: Given, params: Any) -> None:
    """Refuses at ``init`` what :func:`plan_in_sight` would refuse, as far as the leaves are in sight."""
    if given is not None:
        # Behind a mask only a part of the tree is in sight. A missing sharding can be seen, a superfluous one can't.
        _refuse_others(given, named_leaves(params), whole=not has_hidden(params))


def _refuse_others(given: Given, leaves: Sequence[NamedLeaf], whole: bool) -> None:
    if isinstance(given, Plan):
        checks.refuse_other_shapes(given.mesh, given.uses, leaves)
    elif given:
        checks.refuse_other_paths(given.back, leaves, whole)


def placement_in_sight(given: Given, leaves: Sequence[NamedLeaf], params: Any) -> Placement | None:
    """The given placement of an update's arrays, or else the one in their types. ``None`` off a mesh."""
    if inside_shard_map():
        return None
    return given.placement if isinstance(given, Plan) else given or typed_placement(leaves, params)


def plan_in_sight(
    given: Given, matrices: Sequence[tuple[NamedLeaf, Layout]], params: Any, orthogonalizers: Orthogonalizers
) -> Plan | None:
    """The plan that an update follows, which is the given one or one for the placement in sight.

    ``None`` if there is nothing to share out: inside ``shard_map``, off a mesh, or on one that no type shows.
    """
    leaves = [leaf for leaf, _ in matrices]
    placement = placement_in_sight(given, leaves, params)
    if placement is None:
        return None
    _refuse_others(given, leaves, whole=False)
    checks.refuse_other_mesh(placement.mesh, leaves)
    if isinstance(given, Plan):
        checks.refuse_other_uses(given.mesh, given.uses, uses_of(matrices, orthogonalizers))
    plan = given if isinstance(given, Plan) else make_plan(matrices, placement, orthogonalizers)
    return plan if plan.devices > 1 else None
