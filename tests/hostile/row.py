"""A row of the table: an input, what is promised of it, and what the answer of a contender counts as."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import muon_optax as mo
from hostile.oracles import LEARNING_RATE, MOMENTUM, adam_update, muon_update

Layouts = Mapping[str, str | None]


class WrongResultError(Exception):
    """No error was raised, and the result is not what the row promises."""


class Contender(NamedTuple):
    """An optimizer that is asked to take a hostile input."""

    name: str
    build: Callable[..., optax.GradientTransformation]  # from layouts (None: untold), parameters and settings
    exact: bool = False  # rounds neither products nor coefficients to bfloat16
    ours: bool = True

    def tolerance(self, *dtypes: Any) -> float:
        """A share of the norm, by the coarsest of the dtypes of a gradient and its parameter."""
        if not self.exact:
            return 0.1  # twice of what that rounding makes; beyond, the formula is another, or the update is lost
        # Of momenta and updates that are rounded, where the smallest singular value is a third of the largest.
        allowed = {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
        return max(allowed.get(jnp.dtype(dtype).name, 1e-4) for dtype in dtypes)


SETTINGS = {"learning_rate": LEARNING_RATE, "momentum": MOMENTUM, "nesterov": False, "scale": "keller"}
SETTINGS |= {"weight_decay": 0.0}


def our_muon(told: Any, params: Any, newton_schulz: Mapping[str, Any] | None = None, **settings: Any) -> Any:
    """``newton_schulz`` holds the arguments of the orthogonalizer, the other settings are those of ``muon``."""
    del params
    if newton_schulz is not None:
        settings["orthogonalizer"] = mo.newton_schulz(**newton_schulz)
    return mo.muon(**SETTINGS | {"layouts": told} | settings)


OURS = Contender("muon", our_muon)
EXACT = Contender("muon in float32", partial(our_muon, newton_schulz={"dtype": jnp.float32}), exact=True)


@dataclass(frozen=True)
class Row:
    """An input and what is promised of it: the right numbers, or with ``words`` an error that holds all of them."""

    name: str
    attempt: Callable[..., None]  # of a contender and the settings
    promise: str
    words: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # of muon
    slow: bool = False
    topic: str = ""

    def contenders(self) -> tuple[Contender, ...]:
        """Ours, that the row is about."""
        return (OURS, EXACT) if getattr(self.attempt, "exact", False) and not (self.words or self.settings) else (OURS,)


def outcome(row: Row, contender: Contender) -> str:
    """``works``, ``clear error``, or ``wrong: ...`` and ``unclear error: ...`` with what happened."""
    try:
        row.attempt(contender, **row.settings)
    except WrongResultError as wrong:
        return f"wrong: {wrong}"
    except Exception as error:
        if row.words and all(word in str(error) for word in row.words):
            return "clear error"
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return f"unclear error: {line if len(line) <= 100 else line[:97] + '...'}"
    return "works"


class Inputs(NamedTuple):
    """What an optimizer is given, and what each leaf truly is."""

    params: Any
    gradients: Sequence[Any]  # one tree a step
    layouts: Layouts  # of every path; None for a leaf of AdamW's
    clean: Sequence[Any] = ()  # gradients without the poison, which may change no bit of the others


def named(tree: Any) -> list[tuple[str, Any]]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [("/".join(map(written, path)), leaf) for path, leaf in paths]


def written(key: Any) -> str:
    """A key as it stands in a path; a tuple is a path of its own."""
    parts = getattr(key, "key", None)
    return "/".join(map(str, parts)) if isinstance(parts, tuple) else jax.tree_util.keystr((key,), simple=True)


@dataclass(frozen=True)
class Train:
    """Trains on the inputs, one step for each gradient, and compares all that comes back with what is owed."""

    inputs: Callable[[], Inputs]
    told: bool = True  # whether the optimizer is given the layouts
    mode: Callable[[], AbstractContextManager[Any]] = nullcontext  # entered before anything is built
    compiled: bool = False
    subnormal: bool = False  # whether XLA takes the matrices for zero once they are added or multiplied
    exact: bool = True  # whether float32 products have to be close to exact
    owed: Callable[..., np.ndarray] = muon_update  # for a matrix

    def __call__(self, contender: Contender, **settings: Any) -> None:
        with self.mode():
            self.train(contender, settings)

    def train(self, contender: Contender, settings: Mapping[str, Any]) -> None:
        given = self.inputs()
        layouts = given.layouts if self.told else None
        optimizer = contender.build(layouts, given.params, **settings)
        before = [np.array(leaf) for leaf in on_host(given)]
        updates, *states = last_updates(optimizer, given.params, given.gradients, self.compiled)
        require(all(map(np.array_equal, before, on_host(given))), "an array that was passed in has changed")
        check_types(contender, given, updates, states)
        wanted = self.wanted(given)
        for (path, update), (_, param), want in zip(named(updates), named(given.params), wanted, strict=True):
            within = contender.tolerance(*map(jax.dtypes.result_type, (update, param)))
            check_numbers(path, update, want, within)
        check_applied(given.params, updates)
        if contender == OURS:
            check_front(given, layouts)
            check_traced(optimizer, given)
        if given.clean:
            clean, *_ = last_updates(optimizer, given.params, given.clean, self.compiled)
            check_unharmed(updates, clean, wanted)

    def wanted(self, given: Inputs) -> list[np.ndarray]:
        """The updates that are owed, leaf by leaf."""
        steps = [named(gradient) for gradient in given.gradients]
        wanted = []
        for index, (path, leaf) in enumerate(steps[0]):
            gradients, axes = [as_float64(step[index][1]) for step in steps], given.layouts[path]
            # Where two leaves share a path, its layout is that of the one which it fits.
            if axes is None or len(axes) != np.ndim(leaf):
                wanted.append(adam_update(gradients))
            else:
                wanted.append(self.owed([(not self.subnormal) * array for array in gradients], axes))
        return wanted


def on_host(given: Inputs) -> list[np.ndarray]:
    """The NumPy arrays of floats among the inputs: what somebody could write to."""
    leaves = jax.tree.leaves((given.params, list(given.gradients)))
    arrays = [leaf for leaf in leaves if isinstance(leaf, np.ndarray) and np.issubdtype(leaf.dtype, np.floating)]
    return [array for array in arrays if not np.isnan(array).any()]


def last_updates(optimizer: Any, params: Any, gradients: Sequence[Any], compiled: bool = False) -> tuple[Any, Any, Any]:
    """The updates of the last step, the state of init and the last state; the parameters stay."""
    start = state = optimizer.init(params)
    update = jax.jit(optimizer.update) if compiled else optimizer.update
    updates = None
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    return updates, start, state


def require(condition: Any, otherwise: str) -> None:
    if not condition:
        raise WrongResultError(otherwise)


def as_float64(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.complex128 if jnp.issubdtype(array.dtype, jnp.complexfloating) else np.float64)


def types(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (jnp.shape(leaf), jax.dtypes.result_type(leaf)), tree)


def check_types(contender: Contender, given: Inputs, updates: Any, states: Sequence[Any]) -> None:
    """The structure of the gradients; a state that keeps its structure, shapes and dtypes; ours: updates too."""
    require(jax.tree.structure(updates) == jax.tree.structure(given.gradients[-1]), "the updates are another tree")
    require(types(states[0]) == types(states[1]), "the state changed its dtypes or shapes in a step")
    if contender.ours:
        for (path, gradient), update in zip(named(given.gradients[-1]), jax.tree.leaves(updates), strict=True):
            dtypes = [jax.dtypes.result_type(leaf) for leaf in (gradient, update)]
            require(
                dtypes[0] == dtypes[1],
                f"{path!r} has a gradient of dtype {dtypes[0]} and an update of dtype {dtypes[1]}",
            )


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
    moved = jax.tree.leaves(optax.apply_updates(params, updates))
    for (path, param), update, result in zip(named(params), jax.tree.leaves(updates), moved, strict=True):
        dtype = jax.dtypes.result_type(param)
        require(jax.dtypes.result_type(result) == dtype, f"{path!r} became {jax.dtypes.result_type(result)}")
        old, step, new = map(as_float64, (param, update, result))
        known = np.isfinite(step) & np.isfinite(old)
        lost, size = np.linalg.norm(new[known] - old[known] - step[known]), np.linalg.norm(step[known])
        allowed = 0.1 * size + 5e-3 * np.linalg.norm(old[known])
        require(lost <= allowed, f"{path!r} loses its update to {dtype}")


def check_unharmed(updates: Any, clean: Any, wanted: Sequence[np.ndarray]) -> None:
    """Where no NaN is owed, the same bits as without the poison."""
    for got, want, (path, other) in zip(jax.tree.leaves(updates), wanted, named(clean), strict=True):
        same = np.asarray(got)[np.isfinite(want)] == np.asarray(other)[np.isfinite(want)]
        require(same.all(), f"{path!r} is changed by the NaN of another")


def check_front(given: Inputs, layouts: Layouts | None) -> None:
    """Layouts, labels and the summary agree with what each leaf truly is."""
    seen = {path: getattr(layout, "axes", None) for path, layout in mo.assign_layouts(given.params, layouts).items()}
    require(seen == dict(given.layouts), f"the layouts are taken to be {seen}")
    labels = [(path, "adamw" if given.layouts[path] is None else "muon") for path, _ in named(given.params)]
    require(jax.tree.leaves(mo.label_params(given.params, layouts)) == [label for _, label in labels], "wrong labels")
    rows = sorted((row.path, row.label) for row in mo.summarize(given.params, layouts).rows)
    require(rows == sorted(labels), f"the summary shows {rows}")


def check_traced(optimizer: Any, given: Inputs) -> None:
    """A step that is only traced has the same types, and leaves no weakly typed state behind."""
    state = jax.eval_shape(optimizer.init, given.params)
    updates, after = jax.eval_shape(optimizer.update, given.gradients[-1], state, given.params)
    require(types(updates) == types(given.gradients[-1]), "traced updates have other types")
    require(jax.tree.leaves(state) == jax.tree.leaves(after), "a traced step changes the types of the state")
    require(not any(leaf.weak_type for leaf in jax.tree.leaves(after)), "the state is weakly typed")
