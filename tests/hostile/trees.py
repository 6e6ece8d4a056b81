"""How hostile inputs are made: gradients of two steps, in trees of many kinds."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle

from hostile.row import Inputs

Change = Callable[[np.ndarray], Any]
Build = Callable[[], Inputs]
SHAPE = (8, 12)


@cache
def steps(rows: int = 8, cols: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two gradients of a matrix. They share their singular vectors, so that the momentum is well conditioned too."""
    values = np.linspace(1.0, 0.3, min(rows, cols))
    return oracle.with_spectrum(values, rows, cols, seed), oracle.with_spectrum(values[::-1], rows, cols, seed)


@cache
def vectors(size: int = 12) -> tuple[np.ndarray, np.ndarray]:
    return oracle.gaussian(size, seed=1), oracle.gaussian(size, seed=2)


# Trees of two matrices of one shape, which run together, and a vector.

PLAIN = {"other": "io", "w": "io", "b": None}


def plain(
    change: Change = lambda array: array, dtype: Any = "float32", *, param_dtype: Any = None, only: str | None = None
) -> Build:
    """``change`` of the gradients of both matrices; or of the leaf ``only``, where no other may notice."""

    def build() -> Inputs:
        params = {name: weights(*SHAPE) for name in ("other", "w")} | {"b": np.zeros(12)}
        clean = [
            dict(zip(PLAIN, (steps(seed=1)[step], steps()[step], vectors()[step]), strict=True)) for step in (0, 1)
        ]
        changed = [
            gradient | {name: change(gradient[name]) for name in ((only,) if only else ("other", "w"))}
            for gradient in clean
        ]
        return Inputs(
            as_arrays(params, param_dtype or dtype),
            [as_arrays(gradient, dtype) for gradient in changed],
            PLAIN,
            [as_arrays(gradient, dtype) for gradient in clean] if only else (),
        )

    return build


def weights(*shape: int) -> np.ndarray:
    return oracle.gaussian(*shape, seed=7)


def as_arrays(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(partial(jnp.asarray, dtype=dtype), tree)


def beside(layout: str | None, param: Callable[[], Any], gradients: Callable[[], Sequence[Any]]) -> Build:
    """The plain tree and a leaf ``extra``."""

    def build() -> Inputs:
        given = plain()()
        both = [tree | {"extra": leaf} for tree, leaf in zip(given.gradients, gradients(), strict=True)]
        return Inputs(given.params | {"extra": param()}, both, PLAIN | {"extra": layout})

    return build


def of_dtype(dtype: Any, matrix: bool = False, factor: float = 1.0) -> Build:
    """The plain tree and a leaf ``extra`` of AdamW's with parameters and gradients of ``dtype``."""
    shape, drawn = (SHAPE, steps(seed=3)) if matrix else ((12,), vectors())
    return beside(
        None,
        lambda: jnp.asarray(factor * weights(*shape), dtype),
        lambda: [jnp.asarray(factor * gradient, dtype) for gradient in drawn],
    )


def on_host(change: Change) -> Build:
    """The plain tree with NumPy arrays, as ``change`` makes them from arrays in float32."""

    def build() -> Inputs:
        given = plain()()
        changed = [jax.tree.map(lambda leaf: change(np.array(leaf)), tree) for tree in (given.params, *given.gradients)]
        return Inputs(changed[0], changed[1:], PLAIN)

    return build


def tree(make: Callable[[Any, Any], Any], layouts: dict[str, str | None]) -> Build:
    """From a matrix and a vector to a tree."""

    def build() -> Inputs:
        drawn = zip((weights(*SHAPE), *steps()), (np.zeros(12), *vectors()), strict=True)
        params, *gradients = (make(*as_arrays(pair, "float32")) for pair in drawn)
        return Inputs(params, gradients, layouts)

    return build


def arrays(leaves: dict[str, tuple[tuple[int, ...], str | None]]) -> Build:
    """From paths to shapes and layouts to a nested dict of normal numbers; AdamW's parameters are zero."""

    def drawn(seed: int) -> Any:
        result: dict[str, Any] = {}
        for index, (path, (shape, layout)) in enumerate(leaves.items()):
            *scopes, name = path.split("/")
            inner = result
            for scope in scopes:
                inner = inner.setdefault(scope, {})
            inner[name] = oracle.gaussian(*shape, seed=seed + 10 * index) * (seed > 0 or layout is not None)
        return as_arrays(result, "float32")

    return lambda: Inputs(drawn(0), [drawn(1), drawn(2)], {path: layout for path, (_, layout) in leaves.items()})


def nest(leaf: Any, levels: int) -> Any:
    for _ in range(levels):
        leaf = {"d": leaf}
    return leaf


# Changes of a gradient.


def times(factor: float) -> Change:
    """The largest entry becomes ``factor``."""
    return lambda array: factor * array / np.abs(array).max()


def filled(value: float) -> Change:
    return lambda array: np.full_like(array, value)


def with_entry(value: float) -> Change:
    """One entry, of the first matrix of a stack."""

    def change(array: np.ndarray) -> np.ndarray:
        changed = array.copy()
        changed[(0,) * (array.ndim - 2) + (3,) * min(2, array.ndim)] = value
        return changed

    return change


def rank_one(array: np.ndarray) -> np.ndarray:
    return np.outer(1.0 + np.arange(array.shape[0]), 1.0 + np.arange(array.shape[1]))


def rank_one_of_powers(array: np.ndarray) -> np.ndarray:
    """Powers of two, which stay of rank 1 when a multiple of them is rounded."""
    rows, cols = array.shape
    return np.outer(2.0 ** (np.arange(rows) % 3), (-2.0) ** -(np.arange(cols) % 4))


def stack(change: Change = lambda array: array, poison: bool = False) -> Build:
    """``change`` of the gradients of three matrices in one leaf ``w``, and a vector; the rest may not notice poison."""

    def build() -> Inputs:
        clean = [
            {"w": np.stack([steps(seed=layer)[step] for layer in range(3)]), "b": vectors()[step]} for step in (0, 1)
        ]
        changed = [{"w": change(gradient["w"]), "b": gradient["b"]} for gradient in clean]
        params = {"w": weights(3, *SHAPE), "b": np.zeros(12)}
        first, *others = (as_arrays(given, "float32") for given in (params, *changed, *clean))
        return Inputs(first, others[:2], {"w": "bio", "b": None}, others[2:] if poison else ())

    return build
