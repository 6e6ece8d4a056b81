"""How hostile inputs are made: gradients of two steps, in trees of many kinds."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
from flax.traverse_util import unflatten_dict

from hostile.row import Inputs

Change = Callable[[Any], Any]
Build = Callable[[], Inputs]
Attempt = Callable[..., None]
SHAPE = (8, 12)
PLAIN = {"other": "io", "w": "io", "b": None}  # two matrices of one shape, which run together, and a vector


def same(value: Any) -> Any:
    return value


@cache
def steps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two gradients of a matrix. They share their singular vectors, so the momentum is well conditioned too."""
    values = np.linspace(1.0, 0.3, min(SHAPE))
    return oracle.with_spectrum(values, *SHAPE, seed), oracle.with_spectrum(values[::-1], *SHAPE, seed)


@cache
def vectors() -> tuple[np.ndarray, np.ndarray]:
    return oracle.gaussian(12, seed=1), oracle.gaussian(12, seed=2)


def weights(*shape: int) -> np.ndarray:
    return oracle.gaussian(*shape, seed=7)


def as_arrays(tree: Any, dtype: Any = "float32") -> Any:
    return jax.tree.map(partial(jnp.asarray, dtype=dtype), tree)


def plain(change: Change = same, dtype: Any = "float32", param_dtype: Any = None, only: str | None = None) -> Build:
    """``change`` of the gradients of both matrices; or of the leaf ``only``, where no other may notice."""

    def build() -> Inputs:
        params = {"other": weights(*SHAPE), "w": weights(*SHAPE), "b": np.ones(12)}
        clean = [{"other": steps(1)[step], "w": steps()[step], "b": vectors()[step]} for step in (0, 1)]
        names = (only,) if only else ("other", "w")
        changed = [gradient | {name: change(gradient[name]) for name in names} for gradient in clean]
        gradients, unpoisoned = ([as_arrays(gradient, dtype) for gradient in given] for given in (changed, clean))
        return Inputs(as_arrays(params, param_dtype or dtype), gradients, PLAIN, unpoisoned if only else ())

    return build


def stack(change: Change = same, poison: bool = False) -> Build:
    """``change`` of the gradients of three matrices in one leaf ``w``, and a vector; the rest may not notice poison."""

    def build() -> Inputs:
        clean = [{"w": np.stack([steps(seed)[step] for seed in range(3)]), "b": vectors()[step]} for step in (0, 1)]
        changed = [gradient | {"w": change(gradient["w"])} for gradient in clean]
        params = {"w": weights(3, *SHAPE), "b": np.ones(12)}
        layouts = {"w": "bio", "b": None}
        return Inputs(as_arrays(params), as_arrays(changed), layouts, as_arrays(clean) if poison else ())

    return build


def beside(layout: str | None, param: Any, *gradients: Any) -> Build:
    """The plain tree and a leaf ``extra``."""

    def build() -> Inputs:
        given = plain()()
        both = [tree | {"extra": extra} for tree, extra in zip(given.gradients, gradients, strict=True)]
        return Inputs(given.params | {"extra": param}, both, PLAIN | {"extra": layout})

    return build


def of_dtype(dtype: Any, matrix: bool = False, factor: float = 1.0, layout: str | None = None) -> Build:
    """The plain tree and a leaf ``extra`` with parameters and gradients of ``dtype``."""
    drawn = (weights(*SHAPE), *steps(3)) if matrix else (weights(12), *vectors())
    # Only numbers that the type has: what becomes of others is NumPy's to say, and ml_dtypes may warn of it.
    limits = jnp.iinfo(dtype) if jnp.issubdtype(dtype, jnp.integer) else None
    inside = (factor * array if limits is None else np.clip(factor * array, limits.min, limits.max) for array in drawn)
    return beside(layout, *(jnp.asarray(array, dtype) for array in inside))


def on_host(change: Change) -> Build:
    """The plain tree with NumPy arrays, as ``change`` makes them from arrays in float32."""

    def build() -> Inputs:
        given = plain()()
        params, gradients = jax.tree.map(lambda leaf: change(np.array(leaf)), (given.params, given.gradients))
        return Inputs(params, gradients, PLAIN)

    return build


def tree(make: Callable[[Any, Any], Any], layouts: dict[str, str | None]) -> Build:
    """From a matrix and a vector to a tree."""

    def build() -> Inputs:
        drawn = zip((weights(*SHAPE), *steps()), (np.ones(12), *vectors()), strict=True)
        params, *gradients = (make(*as_arrays(pair)) for pair in drawn)
        return Inputs(params, gradients, layouts)

    return build


def arrays(leaves: dict[str, tuple[tuple[int, ...], str | None]]) -> Build:
    """From paths to shapes and layouts to a nested dict of normal numbers; AdamW's parameters are zero."""

    def drawn(seed: int) -> Any:
        flat = {
            path: oracle.gaussian(*shape, seed=seed + 10 * index) * (seed > 0 or layout is not None)
            for index, (path, (shape, layout)) in enumerate(leaves.items())
        }
        return as_arrays(unflatten_dict(flat, sep="/"))

    return lambda: Inputs(drawn(0), [drawn(1), drawn(2)], {path: layout for path, (_, layout) in leaves.items()})


def mixed(*dtypes: dict[str, str]) -> Build:
    """The plain tree: for the parameters and each gradient the dtypes of the leaves."""

    def build() -> Inputs:
        given = plain()()
        trees = zip((given.params, *given.gradients), dtypes, strict=True)
        params, *gradients = ({name: leaf.astype(types[name]) for name, leaf in tree.items()} for tree, types in trees)
        return Inputs(params, gradients, PLAIN)

    return build


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


def powers(array: np.ndarray) -> np.ndarray:
    """Of rank 1, and of powers of two: it stays of rank 1 when a multiple of it is rounded."""
    rows, cols = array.shape
    return np.outer(2.0 ** (np.arange(rows) % 3), (-2.0) ** -(np.arange(cols) % 4))
