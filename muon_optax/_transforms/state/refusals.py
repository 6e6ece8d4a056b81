"""The state that ``update`` is given, compared before anything runs with the one that ``init`` would make."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from muon_optax._layouts.assigning.resolve import LayoutMap
from muon_optax._layouts.paths import NamedLeaf, is_hidden
from muon_optax._transforms.state.arrays import refuse_other_arrays
from muon_optax._transforms.state.fit import Fit, fit
from muon_optax._transforms.state.kept import Part, parts_of

LABELS = ("muon", "adamw")


def fit_state(
    state: Any, init: Callable[[Any], Any], params: Any, leaves: list[NamedLeaf], layouts: LayoutMap
) -> Fit | None:
    """The fit of ``state`` to the one that ``init(params)`` makes; ``None`` if it is packed alike, dtypes apart.

    Whatever ``init`` makes passes, also the states of transforms that are not known here. Nothing runs on a device.

    Raises:
        ValueError: If the state keeps something else, naming what changed.
    """
    _refuse_other_optimizer(state)
    wanted = jax.eval_shape(init, params)
    same = jax.tree.structure(state) == jax.tree.structure(wanted)
    if same and list(map(jax.numpy.shape, jax.tree.leaves(state))) == [leaf.shape for leaf in jax.tree.leaves(wanted)]:
        return None
    given, made = parts_of(state), parts_of(wanted)
    _refuse_other_parts(given, made)
    refuse_other_arrays(given, made, leaves, layouts)
    _refuse_lost_masks(state, wanted)
    return fit(given, made, jax.tree.structure(wanted))


def refuse_other_chain(name: str, state: Any, parts: int) -> None:
    """Raises ValueError for a state that is not that of a chain of ``parts`` around this optimizer."""
    if type(state) is not tuple or len(state) != parts:
        alone = isinstance(state, optax.PartitionState)
        raise ValueError(
            f"The state must be the tuple of {parts} that the `init` of {name} returns; got {type(state).__name__}. "
            + ("That of muon fits as (state, optax.EmptyState())." if alone else "Call `init` again.")
        )


def _refuse_other_optimizer(state: Any) -> None:
    if _is_partition(state):
        return
    branches = getattr(state, "inner_states", None)
    given = (
        f"one with the branches {sorted(map(str, branches))}" if isinstance(branches, Mapping) else type(state).__name__
    )
    raise ValueError(
        "The state must be the optax.PartitionState that this optimizer's `init` returns, with the branches "
        f"'adamw' and 'muon'; got {given}. {_inside(state)}Restore a checkpoint into "
        "the structure of `init`, as in checkpointer.restore(path, jax.eval_shape(optimizer.init, params))."
    )


def _is_partition(state: Any) -> bool:
    branches = getattr(state, "inner_states", None)
    return isinstance(branches, Mapping) and branches.keys() == set(LABELS)


def _inside(state: Any) -> str:
    """Where in the state of a wrapper the one lies that would fit."""
    values = list(state) if isinstance(state, tuple) else []
    names = getattr(state, "_fields", None)
    items = [f".{name}" for name in names] if names else [f"[{index}]" for index in range(len(values))]
    found = [item for item, value in zip(items, values, strict=True) if _is_partition(value)]
    if not found:
        return "The state of another optimizer does not fit. "
    return f"It is that of a wrapper or chain around such an optimizer: wrap this one alike, or give state{found[0]}. "


def _refuse_lost_masks(state: Any, wanted: Any) -> None:
    lost = _count_hidden(wanted) - _count_hidden(state)
    if lost:
        raise ValueError(
            f"The state was restored without its structure: {lost} optax.MaskedNode became None or are missing. Put "
            "the arrays back into the structure of `init`: state = jax.tree.unflatten(jax.tree.structure("
            "jax.eval_shape(optimizer.init, params)), jax.tree.leaves(state))."
        )


def _count_hidden(state: Any) -> int:
    return sum(map(is_hidden, jax.tree.leaves(state, is_leaf=is_hidden)))


# Who makes what is kept, in the words of a call.
MOMENTA = {
    "TraceState": "a number, a schedule or optax.trace",
    "ScheduledTraceState": "a number, a schedule or optax.trace",
    "EmaState": "nesterov_ema or optax.ema",
    "QuantizedTraceState": "quantized_trace",
}
MAKERS = {
    "ScaleByNorMuonState": "normuon, muon_speedrun",
    "ScaleByHyperballState": "muon_h",
    "ScaleByAdamState": "optax.adamw",
    "ScaleByLionState": "optax.lion",
}


def _refuse_other_parts(given: list[Part], made: list[Part]) -> None:
    """Refuses states whose parts differ, but for the counters of schedules."""
    held, wanted = ({part.place: part.kind for part in parts if not part.only_counts} for parts in (given, made))
    differing = [
        place
        for place in sorted(held.keys() | wanted.keys())
        if _alike(held.get(place, "nothing")) != _alike(wanted.get(place, "nothing"))
    ]
    if not differing:
        return
    kinds = [(held.get(place, "nothing"), wanted.get(place, "nothing")) for place in differing]
    momenta = [(one, other) for one, other in kinds if one in MOMENTA and other in MOMENTA]
    branches = {place.split("/")[0] for place in differing}
    if momenta and len(differing) == 1:
        (one, other) = momenta[0]
        raise ValueError(
            f"The momentum is kept in another way: the state holds {one} (momentum= {MOMENTA[one]}), and `init` makes "
            f"{other} (momentum= {MOMENTA[other]}). Pass the momentum= that made the state, or carry it over "
            "with muon_optax.carry_over."
        )
    label = "muon" if "muon" in branches else "adamw"
    cause = (
        "adamw= was replaced, or the state is another recipe's"
        if branches == {"adamw"}
        else "it was made by another recipe or chain, or by other arguments of it (momentum=)"
    )
    raise ValueError(
        f"The state was made by another optimizer: its branch {label!r} holds {_listed(held, label)}, where `init` "
        f"makes {_listed(wanted, label)}. Then {cause}: go on with the optimizer that made it, or carry it "
        "over with muon_optax.carry_over."
    )


def _alike(kind: str) -> str:
    return "TraceState" if kind == "ScheduledTraceState" else kind


def _listed(kinds: Mapping[str, str], label: str) -> str:
    found = [kind for place, kind in kinds.items() if place.split("/")[0] == label]
    return ", ".join(f"{kind} ({MAKERS[kind]})" if kind in MAKERS else kind for kind in found) or "nothing"
