"""The state that ``update`` is given, compared before anything runs with the one that ``init`` would make."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import optax

from muon_optax._layouts.paths import is_hidden, named_leaves
from muon_optax._transforms.check_updates import refuse_other_tree

LABELS = ("muon", "adamw")


def refuse_other_state(state: Any, init: Callable[[Any], Any], params: Any) -> None:
    """Raises ValueError for a state that ``init(params)`` does not make; dtypes may differ.

    Whatever ``init`` makes passes, also the states of transforms that are not known here. Nothing runs on a device.
    """
    _refuse_other_optimizer(state)
    wanted = jax.eval_shape(init, params)
    same = jax.tree.structure(state) == jax.tree.structure(wanted)
    # By path where structures differ: Flax boxes its variables at `init` and need not at `update`.
    if _shapes(state, same) == _shapes(wanted, same):
        if not same:
            _refuse_lost_masks(state, wanted)
        return
    for label in LABELS:
        _refuse_other_branch(label, state.inner_states[label], wanted.inner_states[label])
    raise ValueError(
        f"The state is not the one that `init` makes for these updates: {_first_difference(state, wanted)}. Call "
        "`init` again, or go on with the optimizer and the model that made it."
    )


def _shapes(state: Any, by_position: bool) -> Any:
    if by_position:
        return [jax.numpy.shape(leaf) for leaf in jax.tree.leaves(state)]
    return {leaf.path: leaf.shape for leaf in named_leaves(state)}


def _refuse_other_optimizer(state: Any) -> None:
    branches = getattr(state, "inner_states", None)
    if not isinstance(branches, Mapping) or branches.keys() != set(LABELS):
        given = type(state).__name__ if branches is None else f"one with the branches {sorted(branches)}"
        raise ValueError(
            "The state must be the optax.PartitionState that this optimizer's `init` returns, with the branches "
            f"'adamw' and 'muon'; got {given}. The state of another optimizer does not fit. Restore a checkpoint into "
            "the structure of `init`, as in checkpointer.restore(path, jax.eval_shape(optimizer.init, params))."
        )


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


def _refuse_other_branch(label: str, given: Any, wanted: Any) -> None:
    if _kinds(given) != _kinds(wanted):
        raise ValueError(
            f"The state was made by another optimizer: its branch {label!r} holds {_kinds(given)}, where `init` makes "
            f"{_kinds(wanted)}. Call `init` again, or go on with the optimizer that made it."
        )
    for remembered, expected in zip(_momenta(given), _momenta(wanted), strict=False):
        refuse_other_tree(_shapes(expected, False), _shapes(remembered, False), "init")


def _kinds(state: Any) -> str:
    """The types of a chain's states."""
    inner = getattr(state, "inner_state", state)
    parts = inner if type(inner) is tuple else (inner,)
    return ", ".join(type(part).__name__ for part in parts)


def _momenta(state: Any) -> Iterator[Any]:
    kinds = (optax.TraceState, optax.ScaleByAdamState)
    for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds)):
        if isinstance(node, kinds):
            yield node.trace if isinstance(node, optax.TraceState) else node.mu


def _first_difference(state: Any, wanted: Any) -> str:
    given, made = _shapes(state, False), _shapes(wanted, False)
    path = min(path for path in given.keys() | made.keys() if given.get(path) != made.get(path))
    return f"{path!r} has shape {given.get(path, 'none (missing)')} where `init` makes {made.get(path, 'none')}"
