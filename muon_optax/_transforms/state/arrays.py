"""The arrays that a state keeps for each parameter, compared with those that ``init`` makes: what differs, and why."""

from collections.abc import Iterator, Mapping, Set
from typing import NamedTuple

from muon_optax._layouts.assigning.resolve import LayoutMap
from muon_optax._layouts.paths import NamedLeaf, show
from muon_optax._transforms.checks.updates import refuse_other_tree
from muon_optax._transforms.state.kept import Part, is_counter, key_of

# Fields whose arrays have their parameter's shape, and other trees like the parameters.
LIKE_PARAMETERS = ("trace", "ema", "mu", "nu")
TREES = (*LIKE_PARAMETERS, "codes", "scales", "moments", "radii")
# What decides the shapes of other arrays.
SHAPED_BY = {
    "QuantizedTraceState": "bits= or block_size= of momentum=quantized_trace(...)",
    "ScaleByNorMuonState": "layouts= or axis=",
    "ScaleByHyperballState": "layouts=",
}


class Kept(NamedTuple):
    """An array that a branch keeps of a parameter."""

    part: Part
    field: str
    path: str  # of the parameter
    shape: tuple[int, ...]


def refuse_other_arrays(given: list[Part], made: list[Part], leaves: list[NamedLeaf], layouts: LayoutMap) -> None:
    """Refuses states of the same parts that keep other arrays.

    Args:
        given: The parts of the state.
        made: The parts of what ``init`` makes.
        leaves: The leaves of the updates.
        layouts: The layout of every leaf.

    Raises:
        ValueError: If routes, layouts, masks or the tree of the parameters have changed, naming a path.
    """
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    held, wanted = _kept(given, shapes), _kept(made, shapes)
    _refuse_other_routes(held, shapes.keys(), layouts)
    _refuse_other_parameters(held, wanted, shapes)
    _refuse_other_shapes(given, made)


def _kept(parts: list[Part], shapes: Mapping[str, tuple[int, ...]]) -> list[Kept]:
    """The arrays that parts keep in trees like the parameters, without a wrapper's own values."""
    found = []
    for part in parts:
        for leaf in part.leaves:
            field, _, path = leaf.path.partition("/")
            if not is_counter(leaf) and (field in TREES or path in shapes):
                found.append(Kept(part, field, path, leaf.shape))
    return found


def _refuse_other_parameters(held: list[Kept], wanted: list[Kept], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses parameters that the state lacks, has too many of, or knows with another shape."""
    before = {kept.path: kept.shape for kept in held if kept.path not in shapes or kept.field in LIKE_PARAMETERS}
    unseen = {kept.path for kept in wanted} - {kept.path for kept in held}
    now = {path: shape for path, shape in shapes.items() if path in before or path in unseen}
    if any(path not in now for path in before):
        refuse_other_tree(now, before, "init")
    differing = sorted(path for path, shape in now.items() if before.get(path) != shape)
    if differing:
        path, missing = differing[0], "none (missing)"
        cause = "It was added to the model, or a mask hid it from `init`" if path in unseen else "The model has changed"
        raise ValueError(
            f"The updates are not the tree of init: {show(path)} has shape {now[path]} in the updates and "
            f"{before.get(path, missing)} in init ({len(differing)} such paths). {cause}: carry it over with "
            "muon_optax.carry_over, or go on with the model and the masks that made the state."
        )


def _refuse_other_routes(held: list[Kept], paths: Set[str], layouts: LayoutMap) -> None:
    trained: dict[str, set[str]] = {}
    for kept in held:
        trained.setdefault(kept.path, set()).add(kept.part.label)
    moved = {
        label: sorted(
            path
            for path in trained.keys() & paths
            if trained[path] == {label} and (layouts[path] is None) != (label == "adamw")
        )
        for label in ("adamw", "muon")
    }
    if not any(moved.values()):
        return
    first = (moved["adamw"] or moved["muon"])[0]
    then, now = ("AdamW", "Muon") if moved["adamw"] else ("Muon", "AdamW")
    count = sum(map(len, moved.values()))
    raise ValueError(
        f"{show(first)} was trained by {then} in this state and goes to {now} now ({count} such "
        f"parameter{'s' * (count > 1)}): layouts= or the default rules changed. To go on, "
        f"{' and '.join(_ways_back(moved))}; or carry it over with muon_optax.carry_over."
    )


def _ways_back(moved: Mapping[str, list[str]]) -> Iterator[str]:
    to_adamw, to_muon = ([*map(repr, moved[label][:3])] for label in ("adamw", "muon"))
    if to_adamw:
        nones = [f"{path}: None" for path in to_adamw] + ["..."] * (len(moved["adamw"]) > 3)
        yield f"layouts={{{', '.join(nones)}}} sends {'them' if len(nones) > 1 else 'it'} back to AdamW"
    if to_muon:
        more = " and more" * (len(moved["muon"]) > 3)
        yield f"layouts= with the layout that it had takes {', '.join(to_muon)}{more} back to Muon"


def _refuse_other_shapes(given: list[Part], made: list[Part]) -> None:
    held, wanted = (
        {key_of(part, leaf): (part, leaf) for part in parts for leaf in part.leaves} for parts in (given, made)
    )
    for key in sorted(held.keys() | wanted.keys()):
        part, leaf = held.get(key) or wanted[key]
        before, now = (parts[key][1].shape if key in parts else None for parts in (held, wanted))
        if before == now or is_counter(leaf):
            continue
        field, _, path = leaf.path.partition("/")
        if before is None or now is None:
            raise ValueError(
                f"The state is not the one that `init` makes for these updates: {field} of {show(path)} is "
                f"{'missing in the state' if before is None else 'in the state and not made now'}. "
                f"{_hidden_by(part, field)} changed: pass what made the state, or carry it over with "
                "muon_optax.carry_over."
            )
        raise ValueError(
            f"The state is not the one that `init` makes for these updates: {field} of {show(path)} has shape {before} "
            f"in the state and {now} in what `init` makes. {SHAPED_BY.get(part.kind, 'An argument')} changed: pass "
            "what made the state, or carry it over with muon_optax.carry_over."
        )


def _hidden_by(part: Part, field: str) -> str:
    """What decides which parameters a part sees, or what a wrapper keeps."""
    if field not in TREES:
        return f"What {part.kind} wraps ({'adamw=' if part.label == 'adamw' else 'an argument'})"
    if part.place.startswith(("adamw/head", "adamw/adam")):
        return "heads= (the labels of a partition)"
    return f"A mask around {part.kind}"
