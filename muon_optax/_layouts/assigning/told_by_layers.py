"""From what layers say of their arrays to the layouts of a whole model, stacks of layers included."""

import itertools
from collections.abc import Mapping, Set
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from muon_optax._layouts.assigning.assign import assign_layouts
from muon_optax._layouts.assigning.rules import decide
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import named_leaves

Shape: TypeAlias = tuple[int, ...]


class Known(NamedTuple):
    """The layout that a layer's type gives to one of its arrays, and its shape without stacked layers, if known."""

    layout: Layout | None
    shape: Shape = ()


def combine(
    params: Any,
    known: Mapping[str, Known],
    globs: Mapping[str, Layout | str | None] | None,
    last: Set[str] | None = None,
) -> dict[str, Layout | None]:
    """The layouts of ``params``: what the user's globs say, then the layers, then the default rules.

    ``last`` are the layers that make the model's output. ``None`` where nobody followed it: then the rules judge.
    """
    leaves = named_leaves(params)
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    judged = ("head",) if last is not None else ("head", "edge")
    heads = {path for path, decision in decide(leaves).items() if decision.why.startswith(judged)} | (last or set())
    real = {leaf.path for leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.complexfloating)}
    exact = _stacked({path: known[path] for path in shapes if path in known and path in real}, shapes, heads)
    # Exact paths go before globs, so what the user's globs match is left to them.
    globs = dict(globs or {})
    exact = {path: layout for path, layout in exact.items() if not any(fnmatchcase(path, glob) for glob in globs)}
    return assign_layouts(params, exact | globs)


def _stacked(known: Mapping[str, Known], shapes: Mapping[str, Shape], heads: Set[str]) -> dict[str, Layout | None]:
    """The layouts of whole arrays: ``b`` for each axis that counts layers, and ``None`` for heads and vectors."""
    stacks = {path: _stack_axes(shapes[path], leaf.shape) for path, leaf in known.items() if leaf.shape}
    layouts: dict[str, Layout | None] = {path: None for path, leaf in known.items() if leaf.layout is None}
    for path, found in stacks.items():
        layout = known[path].layout
        if not found or layout is None:
            continue  # no longer the layer's own array: the rules decide
        axes, letters = _agreed(path, stacks), iter(layout.axes)
        whole = "".join("b" if axis in axes else next(letters) for axis in range(len(shapes[path])))
        vector = 1 in (layout.fan_in(known[path].shape), layout.fan_out(known[path].shape))
        layouts[path] = None if vector or path in heads else Layout(whole, layout.split)
    return layouts


def _stack_axes(whole: Shape, own: Shape) -> set[Shape]:
    """The axes of ``whole`` that may count layers of shape ``own``: those without which it has that shape."""
    extra = itertools.combinations(range(len(whole)), len(whole) - len(own)) if len(whole) >= len(own) else ()
    return {axes for axes in extra if tuple(size for axis, size in enumerate(whole) if axis not in axes) == own}


def _agreed(path: str, stacks: Mapping[str, set[Shape]]) -> Shape:
    """The axes that count layers; where several fit, those that also fit the arrays around, the nearest first."""
    fits, scope = stacks[path], path
    while len(fits) > 1 and scope:
        scope = scope.rpartition("/")[0]
        for other, found in stacks.items():
            if other.startswith(f"{scope}/" if scope else ""):
                fits = fits & found or fits
    return min(fits)


def einsum_layout(equation: str) -> Layout | None:
    """The layout of the second operand: what the result lacks is summed over, what the first operand has is a batch."""
    operands, _, result = equation.replace(" ", "").partition("->")
    inputs, kernel = operands.split(",")
    # In "bsd,ckdh->cbskh", c stands before the batch: it counts outputs that are taken apart, keys and values.
    apart = tuple(itertools.takewhile(lambda letter: letter not in inputs, result))
    batch = inputs if len(apart) == len(result) else (*inputs, *apart)
    letters = "".join("i" if letter not in result else "b" if letter in batch else "o" for letter in kernel)
    return Layout(letters) if {"i", "o"} <= set(letters) else None


def convolution_layout(
    window: int, groups: int, features: int, channels: int, transposed: bool = False
) -> Layout | None:
    """Reads each group of a kernel (window, channels of a group, features) as a matrix, unless it has one channel."""
    if groups > 1 and channels == 1:
        return None
    split = (features // groups,) * groups if groups > 1 else None
    return Layout("i" * window + ("oi" if transposed else "io"), split)
