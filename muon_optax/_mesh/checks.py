"""Refusals on a mesh, which run before the work. Messages name the parameter's path."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from muon_optax._layouts.assigning.messages import warn_user
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, show


class Use(NamedTuple):
    """The properties of one parameter for which a plan was made. An update must have the same."""

    shape: tuple[int, ...]
    layout: Layout
    dtype: str  # in which its matrices travel
    orthogonalizer: str = ""  # the path glob that gives it one of its own


def refuse_unusable_spec(path: str, sharding: NamedSharding, ndim: int) -> None:
    """Refuses a spec with more entries than the array has axes, and one that leaves an axis to XLA."""
    spec = tuple(sharding.spec)
    if PartitionSpec.UNCONSTRAINED in spec:
        raise ValueError(
            f"shardings: {show(path)} has the sharding {sharding.spec}, which leaves an axis to XLA. Give None or mesh "
            "axes for each axis: a plan needs to know."
        )
    if any(spec[ndim:]):
        raise ValueError(
            f"shardings: {show(path)} has {ndim} axes, but its sharding {sharding.spec} on the mesh "
            f"{dict(sharding.mesh.shape)} names {len(spec)}. Give at most one entry for each axis."
        )


def require_sharding(path: str, leaf: Any) -> Sharding:
    """The sharding that ``leaf`` is or carries."""
    sharding = leaf if isinstance(leaf, Sharding) else getattr(leaf, "sharding", None)
    if not isinstance(sharding, Sharding):
        raise TypeError(
            f"shardings: {show(path)} is {type(leaf).__name__} and carries no sharding. Give a tree like the "
            "parameters of NamedShardings, or of arrays or ShapeDtypeStructs that carry one. Inside jit arrays carry "
            "none: take the shardings outside."
        )
    return sharding


def refuse_other_meshes(shardings: Mapping[str, Sharding], on_mesh: Mapping[str, NamedSharding]) -> None:
    """Refuses shardings that are not all on one mesh."""
    first, sharding = next(iter(on_mesh.items()))
    places = {path: on_mesh[path].mesh if path in on_mesh else shardings[path] for path in shardings}
    for path, place in places.items():
        if place != sharding.mesh:
            raise ValueError(
                f"shardings: {show(path)} is on {place} and {show(first)} on {sharding.mesh}. One update runs on one "
                "mesh. Give every leaf a NamedSharding on that mesh, NamedSharding(mesh, PartitionSpec()) for one that "
                "every device holds whole."
            )


def refuse_no_mesh(function: str) -> NoReturn:
    """Refuses parameters of which none lies on a mesh."""
    raise ValueError(f"{function}: no parameter lies on a mesh. Give a tree of NamedShardings like the parameters.")


def refuse_unknown_axis(over: str | None, mesh: Any) -> None:
    """Refuses ``over`` unless it is an axis of the mesh."""
    if over is not None and over not in mesh.axis_names:
        allowed = ", ".join(map(repr, mesh.axis_names))
        raise ValueError(f"over={over!r} is not an axis of the mesh: use one of {allowed}.")


def refuse_other_paths(shardings: Mapping[str, Any], leaves: Sequence[NamedLeaf], whole: bool) -> None:
    """Refuses leaves without a sharding and, if the leaves are a ``whole`` tree, shardings without a leaf."""
    paths = {leaf.path: None for leaf in leaves}
    missing = [f"{show(path)} has no sharding" for path in paths if path not in shardings]
    unknown = [f"{show(path)} is not a parameter" for path in shardings if whole and path not in paths]
    if missing or unknown:
        raise ValueError(
            f"The shardings are not those of the parameters: {[*missing, *unknown][0]} ({len(missing)} missing, "
            f"{len(unknown)} too many). Give a tree like the parameters, such as jax.tree.map(lambda leaf: "
            "leaf.sharding, params)."
        )


def refuse_off_mesh(typed: Mapping[str, NamedSharding], leaves: Sequence[NamedLeaf]) -> None:
    """Refuses leaves whose types name no mesh, beside others whose types name one."""
    # A leaf on one device among others on a mesh would make JAX fail later, without a path.
    off = [leaf.path for leaf in leaves if leaf.path not in typed]
    if off:
        path, sharding = next(iter(typed.items()))
        raise ValueError(
            f"{show(off[0])} lies on no mesh, and {show(path)} on {_brief(sharding.mesh)} ({len(off)} such paths). Put "
            "all parameters on it by jax.device_put, with PartitionSpec() for those that every device holds whole."
        )


def refuse_other_mesh(mesh: Any, leaves: Sequence[NamedLeaf]) -> None:
    """Refuses leaves whose types name another mesh."""
    # Meshes are not compared by identity, since a plan made on an abstract mesh of the same axes serves as well.
    for leaf in leaves:
        here = jax.typeof(leaf.value).sharding.mesh
        if not here.empty and _brief(here) != _brief(mesh):
            raise ValueError(
                f"{show(leaf.path)} is on the mesh {_brief(here)}, and the shardings or the plan are for the mesh "
                f"{_brief(mesh)}. One update runs on one mesh: take the shardings from the parameters that are trained."
            )


def _brief(mesh: Any) -> str:
    """Sizes and kinds of the axes."""
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return ", ".join(f"{axis}={size} ({kind.name})" for axis, size, kind in axes)


def refuse_other_shapes(mesh: Any, planned: Mapping[str, Use], leaves: Sequence[NamedLeaf]) -> None:
    """Refuses leaves that do not have the paths and shapes of the plan."""
    here, none = {leaf.path: leaf.shape for leaf in leaves}, "none"
    there = {path: use.shape for path, use in planned.items()}
    differing = [path for path in [*there, *here] if there.get(path) != here.get(path)]
    if differing:
        path = differing[0]
        raise ValueError(
            f"The plan is not for these parameters: {show(path)} has shape {there.get(path, none)} in the plan for "
            f"the mesh {dict(mesh.shape)} and {here.get(path, none)} here ({len(differing)} such paths). Make a plan "
            "of the parameters that are trained: muon_optax.plan(params, shardings)."
        )


def refuse_other_uses(mesh: Any, planned: Mapping[str, Use], wanted: Mapping[str, Use]) -> None:
    """Refuses a plan that has another layout for a leaf, or rounds it more than is ``wanted``."""
    for path, use in wanted.items():
        layout, dtype = planned[path].layout, planned[path].dtype
        if layout != use.layout:
            raise ValueError(
                f"The plan is not for these layouts: {show(path)} is '{layout}' in the plan for the mesh "
                f"{dict(mesh.shape)} and '{use.layout}' here. Give muon_optax.plan the same layouts."
            )
        if planned[path].orthogonalizer != use.orthogonalizer:
            there, here = (
                f"the orthogonalizer of {name!r}" if name else "the one of all others"
                for name in (planned[path].orthogonalizer, use.orthogonalizer)
            )
            raise ValueError(
                f"The plan is not for these settings by path: {show(path)} has {there} in the plan for the mesh "
                f"{dict(mesh.shape)} and {here} here. Give muon_optax.plan the same by_path."
            )
        # A wider dtype than needed is let through: it sends more and rounds nothing.
        wide, narrow = jnp.finfo(dtype), jnp.finfo(use.dtype)
        if wide.nmant < narrow.nmant or wide.maxexp < narrow.maxexp or wide.minexp > narrow.minexp:
            raise ValueError(
                f"The plan is not for this orthogonalizer or dtype: it sends {show(path)} in {dtype}, and here it "
                f"needs {use.dtype}. Give muon_optax.plan the same orthogonalizer, and parameters in the dtype of the "
                "updates."
            )


def warn_of_silence(orthogonalizer: Any) -> None:
    """Warns if an orthogonalizer lacks the attributes that a plan asks for."""
    missing = [name for name in ("dtype", "flops") if not hasattr(orthogonalizer, name)]
    if missing:
        warn_user(
            f"The orthogonalizer has no {' and no '.join(missing)}. Without dtype matrices travel in their own dtype, "
            "perhaps twice the bytes; without flops their cost is guessed. Pass muon_optax.newton_schulz() itself, or "
            "an object with __call__, dtype (of its products, or None) and flops(rows, cols)."
        )
