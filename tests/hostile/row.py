"""A row of the table: an input, what is promised of it, and what the answer of a contender counts as."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hostile.contenders import OURS, PARTS, Contender, Layouts
from hostile.oracles import adam_update
from muon_optax._layouts.layout import as_layout
from muon_optax._layouts.paths import named_leaves


class WrongResultError(Exception):
    """No error was raised, and the result is not what the row promises."""


class Inputs(NamedTuple):
    """What an optimizer is given, and what each leaf truly is."""

    params: Any
    gradients: Sequence[Any]  # one tree a step
    layouts: Layouts  # of every path; None for a leaf of AdamW's
    clean: Sequence[Any] = ()  # gradients without the poison: what is not poisoned has to come out the same to the bit


@dataclass(frozen=True)
class Row:
    """An input and what is promised of it: the right numbers, or with ``words`` an error that holds all of them."""

    topic: str
    name: str
    promise: str
    inputs: Callable[[], Inputs] | None = None
    told: bool = True  # whether the optimizer is given the layouts
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext  # entered before anything is built
    compiled: bool = False
    refused: bool = False
    words: tuple[str, ...] = ()
    attempt: Callable[[Contender], None] | None = None  # in place of training on the inputs
    subnormal: bool = False  # whether XLA takes the matrices for zero once they are added or multiplied
    parts: bool = True  # whether the parts have to do the same
    slow: bool = False

    def run(self, contender: Contender) -> None:
        """Raises whatever ``contender`` raises, or WrongResultError."""
        with self.mode():
            (self.attempt or partial(train_and_check, row=self))(contender)

    def contenders(self) -> tuple[Contender, ...]:
        """All of this package that the row is about."""
        return (OURS, *PARTS) if self.parts and self.attempt is None else (OURS,)


def outcome(row: Row, contender: Contender) -> str:
    """``works``, ``clear error``, or ``wrong: ...`` and ``unclear error: ...`` with what happened.

    An error is clear if it holds the row's words: the path of the leaf, the argument or the value that is to blame.
    """
    try:
        row.run(contender)
    except WrongResultError as wrong:
        return f"wrong: {wrong}"
    except Exception as error:
        if row.words and all(word in str(error) for word in row.words):
            return "clear error"
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return f"unclear error: {line if len(line) <= 100 else line[:97] + '...'}"
    return "works"


# Training on the inputs of a row.


def _matrices_only(tree: Any, layouts: Layouts) -> Any:
    """``tree`` with None for every leaf that is no matrix."""
    leaves = [leaf.value if layouts[leaf.path] is not None else None for leaf in named_leaves(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def last_updates(optimizer: Any, params: Any, gradients: Sequence[Any], compiled: bool = False) -> tuple[Any, Any, Any]:
    """The updates of the last step, the state of init and the last state; the parameters stay."""
    start = state = optimizer.init(params)
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    updates = None
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    return updates, start, state


def train_and_check(contender: Contender, row: Row) -> None:
    """Trains on the inputs of ``row`` and compares all that came back with what is owed."""
    given = row.inputs()
    layouts = dict(given.layouts)
    if not contender.whole:
        given = Inputs(
            _matrices_only(given.params, layouts),
            [_matrices_only(gradient, layouts) for gradient in given.gradients],
            {path: axes for path, axes in layouts.items() if axes is not None},
            [_matrices_only(gradient, layouts) for gradient in given.clean],
        )
    optimizer = contender.build(given.layouts if row.told or not contender.whole else None, given.params)
    before = [np.array(leaf) for leaf in jax.tree.leaves((given.params, list(given.gradients))) if _is_host(leaf)]
    updates, start, state = last_updates(optimizer, given.params, given.gradients, row.compiled)
    after = [leaf for leaf in jax.tree.leaves((given.params, list(given.gradients))) if _is_host(leaf)]
    require(all(map(np.array_equal, before, after)), "an array that was passed in has changed")
    check_types(contender, given, updates, start, state)
    owed = wanted(contender, given, row.subnormal and contender.flushes)
    for leaf, param, want in zip(named_leaves(updates), named_leaves(given.params), owed, strict=True):
        check_numbers(leaf.path, leaf.value, want, contender.tolerance(leaf.dtype, param.dtype))
    check_applied(given.params, updates)
    if given.clean:
        clean, *_ = last_updates(optimizer, given.params, given.clean, row.compiled)
        check_unharmed(updates, clean, owed)


def _is_host(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.floating) and not np.isnan(leaf).any()


def require(condition: Any, otherwise: str) -> None:
    if not condition:
        raise WrongResultError(otherwise)


def as_float64(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.complex128 if jnp.issubdtype(array.dtype, jnp.complexfloating) else np.float64)


def wanted(contender: Contender, given: Inputs, flushed: bool) -> list[np.ndarray]:
    """The updates that are owed, leaf by leaf."""
    steps = [named_leaves(gradient) for gradient in given.gradients]
    owed = []
    for index, leaf in enumerate(steps[0]):
        gradients = [as_float64(step[index].value) for step in steps]
        layout = as_layout(given.layouts[leaf.path])
        # Where two leaves share a path, its layout is that of the one which it fits.
        if layout is None or len(layout.axes) != len(leaf.shape):
            owed.append(adam_update(gradients))
        else:
            owed.append(contender.matrix([(not flushed) * gradient for gradient in gradients], layout.axes))
    return owed


def check_types(contender: Contender, given: Inputs, updates: Any, start: Any, state: Any) -> None:
    """The structure of the gradients; a state that keeps its structure, shapes and dtypes; ours: updates too."""
    require(jax.tree.structure(updates) == jax.tree.structure(given.gradients[-1]), "the updates are another tree")
    kept = [jax.tree.map(lambda leaf: (jnp.shape(leaf), jax.dtypes.result_type(leaf)), tree) for tree in (start, state)]
    require(kept[0] == kept[1], "the state changed its dtypes or shapes in a step")
    if contender.ours:
        for gradient, update in zip(named_leaves(given.gradients[-1]), named_leaves(updates), strict=True):
            message = f"{update.path!r} has a gradient of dtype {gradient.dtype} and an update of dtype {update.dtype}"
            require(gradient.dtype == update.dtype, message)


def check_numbers(path: str, got: Any, want: np.ndarray, within: float) -> None:
    """NaN where NaN is owed, and elsewhere the numbers."""
    got = as_float64(got)
    require(got.shape == want.shape, f"{path!r} has an update of shape {got.shape}")
    owed = np.isfinite(want)
    extra = int((~np.isfinite(got) & owed).sum())
    require(extra == 0, f"{extra} of {want.size} entries of {path!r} are NaN or infinite")
    require(not np.isfinite(got[~owed]).any(), f"{path!r} hides a NaN of its gradient")
    error, norm = np.linalg.norm(got[owed] - want[owed]), np.linalg.norm(want[owed])
    require(norm == 0 or error == 0 or got[owed].any(), f"{path!r} gets a zero update")
    size = f"by {error / norm:.0%}" if norm else "from zero"
    require(error <= within * norm, f"the update of {path!r} is off {size}")


def check_applied(params: Any, updates: Any) -> None:
    """Parameters keep their dtypes and move by the updates, up to what their dtype can hold."""
    moved = optax.apply_updates(params, updates)
    for param, update, result in zip(*map(named_leaves, (params, updates, moved)), strict=True):
        require(result.dtype == param.dtype, f"{param.path!r} became {result.dtype}")
        old, step, new = map(as_float64, (param.value, update.value, result.value))
        known = np.isfinite(step) & np.isfinite(old)
        lost, size = np.linalg.norm(new[known] - old[known] - step[known]), np.linalg.norm(step[known])
        require(
            lost <= 0.1 * size + 5e-3 * np.linalg.norm(old[known]), f"{param.path!r} loses its update to {param.dtype}"
        )


def check_unharmed(updates: Any, clean: Any, owed: list[np.ndarray]) -> None:
    """Where no NaN is owed, the same bits as without the poison."""
    for got, want, other in zip(jax.tree.leaves(updates), owed, named_leaves(clean), strict=True):
        same = np.asarray(got)[np.isfinite(want)] == np.asarray(other.value)[np.isfinite(want)]
        require(same.all(), f"{other.path!r} is changed by the NaN of another")
