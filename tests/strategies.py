"""Random problems for Hypothesis: trees of random layouts and dtypes, optimizers for them, meshes to lay them on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tolerances import RTOL

import muon_optax as mo

# What a parameter may be. Compiling takes nearly all of an example's time: hence few shapes, all of them small.
KINDS: dict[str, tuple[mo.Layout | None, tuple[int, ...] | None]] = {
    "dense": (mo.Layout("io"), (8, 4)),
    "torch": (mo.Layout("oi"), (4, 8)),
    "square": (mo.Layout("io"), (8, 8)),
    "query": (mo.Layout("ioo"), (4, 2, 4)),
    "per_head": (mo.Layout("ibo"), (8, 2, 4)),
    "projection": (mo.Layout("iio"), (2, 4, 4)),
    "conv": (mo.Layout("iiio"), (2, 2, 2, 4)),
    "torch_conv": (mo.Layout("oiii"), (4, 2, 2, 2)),
    "layers": (mo.Layout("bio"), (2, 4, 8)),
    "experts": (mo.Layout("bbio"), (2, 2, 8, 4)),
    "fused": (mo.Layout("io", split=(8, 4, 4)), (4, 16)),
    "fused_layers": (mo.Layout("bio", split=(4, 4)), (2, 8, 8)),
    "bias": (None, (4,)),
    "embedding": (None, (10, 4)),
    "scalar": (None, ()),
    "none": (None, None),
}
MATRICES = [kind for kind, (layout, _) in KINDS.items() if layout is not None]


@dataclass(frozen=True)
class Leaf:
    """A parameter, or a ``None`` in the tree."""

    path: str
    kind: str
    dtype: str

    @property
    def layout(self) -> mo.Layout | None:
        return KINDS[self.kind][0]

    @property
    def shape(self) -> tuple[int, ...] | None:
        return KINDS[self.kind][1]


@dataclass(frozen=True)
class Recipe:
    """The arguments of :func:`muon_optax.muon`, or the parts of a chain, and the wrapper around either."""

    parts: tuple[str, ...] | None  # after the momentum; None for the factory
    wrapper: str
    coefficients: str
    products: str
    method: str
    scale: str
    momentum: float
    nesterov: bool
    momentum_dtype: str | None
    weight_decay: float
    schedule: bool

    def orthogonalizer(self) -> Callable[[jax.Array], jax.Array]:
        if self.method == "polar":
            return mo.polar_factor()
        return mo.newton_schulz(getattr(mo, self.coefficients), dtype=jnp.dtype(self.products), method=self.method)

    def learning_rate(self) -> optax.ScalarOrSchedule:
        return optax.linear_schedule(0.1, 0.05, 4) if self.schedule else 0.1

    def muon(self, layouts: Any, factory: Callable[..., Any] = mo.muon, **options: Any) -> Any:
        given = {name: getattr(self, name) for name in ("weight_decay", "momentum", "nesterov", "scale")}
        given["momentum_dtype"] = self.momentum_dtype and jnp.dtype(self.momentum_dtype)
        given |= {"orthogonalizer": self.orthogonalizer(), "layouts": layouts}
        return factory(self.learning_rate(), **given, **options)

    def chain(self, layouts: Any, **options: Any) -> Any:
        parts = {
            "orthogonalize": lambda: mo.orthogonalize(self.orthogonalizer(), **options),
            "scale": lambda: mo.scale_by_shape(self.scale),
            "decay": lambda: optax.add_decayed_weights(self.weight_decay),
        }
        matrices = optax.chain(
            optax.trace(self.momentum, self.nesterov, self.momentum_dtype and jnp.dtype(self.momentum_dtype)),
            *(parts[name]() for name in self.parts),
            optax.scale_by_learning_rate(self.learning_rate()),
        )
        return mo.partition_by_layout(matrices, optax.sgd(0.1, momentum=0.5), layouts)

    def build(self, layouts: Any, **options: Any) -> Any:
        """``options`` go to :func:`muon_optax.muon` or :func:`muon_optax.orthogonalize`."""
        if self.wrapper == "inject_hyperparams":
            static = ("nesterov", "momentum_dtype", "scale", "orthogonalizer", "layouts", *options)
            # Without a dtype it takes the highest of the tree's, and refuses trees of bfloat16 and float16.
            factory = optax.inject_hyperparams(mo.muon, static_args=static, hyperparam_dtype=jnp.float32)
            return self.muon(layouts, factory, **options)
        optimizer = (self.muon if self.parts is None else self.chain)(layouts, **options)
        return WRAPPERS[self.wrapper](optimizer)


def has_axes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) != 1, tree)


WRAPPERS = {
    "none": lambda optimizer: optimizer,
    "masked": lambda optimizer: optax.masked(optimizer, has_axes),
    "MultiSteps": lambda optimizer: optax.MultiSteps(optimizer, every_k_schedule=2).gradient_transformation(),
    "clip_by_global_norm": lambda optimizer: optax.chain(optax.clip_by_global_norm(1.0), optimizer),
    "apply_if_finite": lambda optimizer: optax.apply_if_finite(optimizer, max_consecutive_errors=2),
    "inject_hyperparams": None,  # wraps the factory, not the optimizer
}
GLOBAL = {"clip_by_global_norm"}  # what makes one leaf's update depend on the others'


@dataclass(frozen=True)
class Problem:
    """A tree of parameters, gradients for it, an optimizer."""

    leaves: tuple[Leaf, ...]
    recipe: Recipe
    seed: int

    @property
    def layouts(self) -> dict[str, mo.Layout | None]:
        # No entry for a leaf that a wrapper may mask away: a layout of a path that nobody sees is refused.
        return {leaf.path: leaf.layout for leaf in self.leaves if leaf.kind not in ("none", "bias")}

    def optimizer(self, **options: Any) -> Any:
        return self.recipe.build(self.layouts, **options)

    def params(self) -> dict[str, Any]:
        return unflatten_dict({leaf.path: self._array(leaf, 0) for leaf in self.leaves}, sep="/")

    def gradients(self, step: int, powers: dict[str, float] | None = None) -> dict[str, Any]:
        """Those of a step counted from 1, each times its power in ``powers``."""
        flat = {leaf.path: self._array(leaf, step) for leaf in self.leaves}
        for path, power in (powers or {}).items():
            flat[path] = (flat[path].astype(jnp.float32) * power).astype(flat[path].dtype)
        return unflatten_dict(flat, sep="/")

    def _array(self, leaf: Leaf, step: int) -> jax.Array | None:
        if leaf.shape is None:
            return None
        seed = self.seed + 100 * list(KINDS).index(leaf.kind)
        array = oracle.gaussian(*leaf.shape, seed=seed + step)
        if leaf.layout is not None and step > 0:
            array = well_conditioned(leaf, seed) + 0.02 * array
        # Far above float16's subnormal numbers, where a product with a power of two would not be exact.
        return jnp.asarray(64 * array if leaf.dtype == "float16" and step > 0 else array, leaf.dtype)

    def rounding(self, leaf: Leaf) -> float:
        """How far apart, as a share of the norm, two programs may bring a leaf's updates by rounding alone.

        Either may be as far from exact as the table allows the coarsest of the dtypes on the way. In over 150
        examples on the CPU most were the same to the last bit, and none came to half of this.
        """
        dtypes = {leaf.dtype}
        if leaf.layout is not None:
            dtypes |= {self.recipe.products, self.recipe.momentum_dtype or leaf.dtype}
        return 2 * max(RTOL[dtype] for dtype in dtypes)


@cache
def well_conditioned(leaf: Leaf, seed: int) -> np.ndarray:
    """All matrices of a leaf with singular values in [0.5, 1]: what rounding is amplified by depends on them."""
    matrices = []
    for *batch, rows, cols in leaf.layout.matrix_shapes(leaf.shape):
        count = int(np.prod(batch))
        spectrum = np.linspace(1.0, 0.5, min(rows, cols))
        stack = [oracle.with_spectrum(spectrum, rows, cols, seed=seed + index) for index in range(count)]
        matrices.append(np.reshape(stack, (*batch, rows, cols)))
    return np.asarray(leaf.layout.from_matrices(tuple(matrices), leaf.shape))


def flat(tree: Any) -> dict[str, np.ndarray]:
    """The leaves in float64 by their paths."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


PARTS = [
    ("orthogonalize",),
    ("orthogonalize", "scale"),
    ("orthogonalize", "scale", "decay"),
    ("orthogonalize", "decay", "scale"),
    ("scale", "orthogonalize", "decay"),
]


@st.composite
def recipes(draw: st.DrawFn, without: frozenset[str] = frozenset()) -> Recipe:
    wrapper = draw(st.sampled_from([name for name in WRAPPERS if name not in without]))
    parts = None if wrapper == "inject_hyperparams" else draw(st.sampled_from([None, *PARTS]))
    method = draw(st.sampled_from(["direct", "gram", "auto", "polar"]))
    return Recipe(
        parts,
        wrapper,
        draw(st.sampled_from(["KELLER", "YOU_JIACHENG", "CUBIC"])),
        "float32" if method == "polar" else draw(st.sampled_from(["float32", "bfloat16"])),
        method,
        draw(st.sampled_from(["naive", "keller", "mup", "moonlight"])),
        draw(st.sampled_from([0.95, 0.5, 0.0])),
        draw(st.booleans()),
        draw(st.sampled_from([None, "float32", "bfloat16"])),
        draw(st.sampled_from([0.1, 0.0])),
        draw(st.booleans()),
    )


@st.composite
def trees(draw: st.DrawFn, largest: int = 5) -> tuple[Leaf, ...]:
    """At least one matrix, and two to ``largest`` leaves in all."""
    others = st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=largest - 1)
    kinds = [draw(st.sampled_from(MATRICES)), *draw(others)]
    scopes = st.sampled_from(["", "first/", "second/inner/"])
    dtypes = st.sampled_from(["float32", "bfloat16", "float16"])
    return tuple(
        Leaf(f"{draw(scopes)}{'abcdefgh'[index]}_{kind}", kind, draw(dtypes)) for index, kind in enumerate(kinds)
    )


@st.composite
def problems(draw: st.DrawFn, without: frozenset[str] = frozenset(), largest: int = 5) -> Problem:
    """``without`` names wrappers."""
    return Problem(draw(trees(largest)), draw(recipes(without)), draw(st.integers(0, 9)))


# Meshes of up to eight devices, the axis of size 1 among them.
MESHES = [(1,), (2,), (4,), (8,), (2, 2), (4, 2), (2, 4), (1, 8), (2, 2, 2)]


@st.composite
def placements(draw: st.DrawFn, leaves: tuple[Leaf, ...], sizes: tuple[int, ...]) -> dict[str, tuple[Any, ...]]:
    """For each array the entries of a ``PartitionSpec`` over axes called x, y, z: any that divide its axes."""
    chosen = {}
    for leaf in leaves:
        if leaf.shape is None:
            continue
        free, entries = dict(zip("xyz", sizes, strict=False)), []
        for size in leaf.shape:
            fitting = [name for name in free if size % free[name] == 0]
            name = draw(st.sampled_from([None, *fitting]))
            free.pop(name, None)
            entries.append(name)
        chosen[leaf.path] = tuple(entries)
    return chosen


# Each attempt at a smaller example compiles for a second or more, and there are hundreds.
WITHOUT_SHRINKING = (Phase.explicit, Phase.generate)


def property_of(few: int, many: int, **strategies: Any) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Makes a test of a check: of ``few`` examples in the default run, and of ``many`` marked slow."""

    def decorate(check: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples: int) -> None:
            settings(max_examples=examples, phases=WITHOUT_SHRINKING)(given(**strategies)(check))()

        test.__doc__ = check.__doc__
        return test

    return decorate
