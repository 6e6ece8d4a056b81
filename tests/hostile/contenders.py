"""Everyone who is asked to take a hostile input, and the numbers that each owes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle

import muon_optax as mo
from hostile.oracles import (
    B1,
    B2,
    EPSILON,
    LEARNING_RATE,
    MOMENTUM,
    map_matrices,
    momentum,
    muon_update,
    poisoned,
    scaled,
)
from muon_optax._layouts.paths import named_leaves

Layouts = Mapping[str, str | mo.Layout | None]


class Contender(NamedTuple):
    """A transform, and the numbers that it owes."""

    name: str
    build: Callable[[Layouts | None, Any], optax.GradientTransformation]  # from layouts (None: untold) and parameters
    matrix: Callable[[Sequence[np.ndarray], str], np.ndarray]  # the update of a leaf that is matrices
    whole: bool = True  # takes leaves that are no matrices, too
    flushes: bool = True  # whether it adds or multiplies a gradient before it is normalized: subnormal numbers get lost
    ours: bool = True
    exact: bool = True  # not so of two libraries that each round in their own way

    def tolerance(self, *dtypes: Any) -> float:
        """A share of the norm, by the coarsest of the dtypes of a gradient and its parameter.

        A tenth is much: who rounds products to bfloat16, or coefficients, is within half of it. What is off by more has
        another formula, or has lost its update.
        """
        if not self.exact:
            return 0.1
        # Of momenta and results that are rounded, where the smallest singular value is a third of the largest.
        return max(
            {"float32": 1e-4, "float64": 1e-4, "float16": 1e-2}.get(jnp.dtype(dtype).name, 5e-2) for dtype in dtypes
        )


def dimension_numbers(params: Any, layouts: Layouts) -> Any:
    """Layouts in the words of ``optax.contrib.muon``."""

    def positions(axes: str, letter: str) -> tuple[int, ...]:
        return tuple(axis for axis, name in enumerate(axes) if name == letter)

    told = [layouts[leaf.path] for leaf in named_leaves(params)]
    numbers = [axes and optax.contrib.MuonDimensionNumbers(positions(axes, "i"), positions(axes, "o")) for axes in told]
    return jax.tree.unflatten(jax.tree.structure(params), numbers)


def our_muon(layouts: Layouts | None = None, params: Any = None, **settings: Any) -> optax.GradientTransformation:
    del params
    given = {"momentum": MOMENTUM, "nesterov": False, "scale": "keller", "weight_decay": 0.0} | settings
    return mo.muon(LEARNING_RATE, layouts=layouts, **given)


def optax_muon(layouts: Layouts | None = None, params: Any = None, **settings: Any) -> optax.GradientTransformation:
    given = {"beta": MOMENTUM, "nesterov": False, "adam_b2": B2} | settings
    if layouts is not None:
        given["muon_weight_dimension_numbers"] = dimension_numbers(params, layouts)
    return optax.contrib.muon(LEARNING_RATE, **given)


def _partition(layouts: Layouts | None, params: Any) -> optax.GradientTransformation:
    del params
    parts = (optax.trace(MOMENTUM), mo.orthogonalize(mo.polar_factor()), mo.scale_by_shape("mup"))
    others = optax.adam(LEARNING_RATE, B1, B2, EPSILON)
    return mo.partition_by_layout(optax.chain(*parts, optax.scale(-LEARNING_RATE)), others, layouts)


OURS = Contender("muon", our_muon, muon_update, exact=False)
OPTAX = Contender("optax.contrib.muon", optax_muon, muon_update, exact=False, ours=False)
PARTS = (
    Contender(
        "partition_by_layout",
        _partition,
        lambda gradients, axes: map_matrices(
            lambda matrices: -LEARNING_RATE * scaled("mup")(poisoned(oracle.polar_factor)(matrices)),
            momentum(gradients),
            axes,
        ),
    ),
    Contender(
        "orthogonalize",
        lambda layouts, params: mo.orthogonalize(mo.polar_factor(), layouts=layouts),
        lambda gradients, axes: map_matrices(poisoned(oracle.polar_factor), gradients[-1], axes),
        whole=False,
        flushes=False,
    ),
    Contender(
        "orthogonalize_via_newton_schulz",
        lambda layouts, params: mo.orthogonalize_via_newton_schulz(dtype=jnp.float32, layouts=layouts),
        lambda gradients, axes: map_matrices(poisoned(oracle.newton_schulz), gradients[-1], axes),
        whole=False,
        flushes=False,
    ),
    Contender(
        "scale_by_shape",
        lambda layouts, params: mo.scale_by_shape("mup", layouts=layouts),
        lambda gradients, axes: map_matrices(scaled("mup"), gradients[-1], axes),
        whole=False,
    ),
)
