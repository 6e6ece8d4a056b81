"""The table a person reads before training: which parameter goes where, seen as which matrices, scaled by what."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assign import Layouts, assign_layouts
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf, named_leaves, parameter_of
from muon_optax._transforms.scales import Scale, scale_factors

_HEADINGS = ("path", "shape", "layout", "matrices", "label", "scale", "state bytes")


@dataclass(frozen=True)
class Row:
    """One parameter of a :class:`Summary`."""

    path: str
    shape: tuple[int, ...]
    layout: Layout | None
    label: str
    scale: tuple[float, ...]
    state_bytes: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        matrices = " + ".join(map(_show_matrices, self.layout.matrix_shapes(self.shape))) if self.layout else ""
        scale = ", ".join(f"{factor:.4g}" for factor in dict.fromkeys(self.scale))
        layout = str(self.layout) if self.layout else "-"
        return (
            self.path,
            str(list(self.shape)),
            layout,
            matrices,
            self.label,
            scale,
            f"{self.state_bytes:,}",
        )


@dataclass(frozen=True)
class Summary:
    """The table of :func:`muon_optax.summarize`; ``print`` it, or read its rows."""

    rows: tuple[Row, ...]

    @property
    def muon_share(self) -> float:
        """Share of all elements that Muon trains, 0 to 1."""
        return self._elements("muon") / max(1, sum(row.size for row in self.rows))

    def _elements(self, label: str) -> int:
        return sum(row.size for row in self.rows if row.label == label)

    def __str__(self) -> str:
        """The rows in columns, then the totals."""
        table = [_HEADINGS, *(row.cells() for row in self.rows)]
        widths = [max(len(cells[column]) for cells in table) for column in range(len(_HEADINGS))]
        lines = [_line(cells, widths) for cells in table]
        lines.insert(1, "  ".join("-" * width for width in widths))
        totals = (
            f"{len(self.rows)} parameters, {sum(row.size for row in self.rows):,} elements: "
            f"{self._elements('muon'):,} by Muon ({self.muon_share:.1%}), {self._elements('adamw'):,} by AdamW. "
            f"Optimizer state: {sum(row.state_bytes for row in self.rows):,} bytes."
        )
        return "\n".join([*lines, totals])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    aligned = [
        cell.rjust(width) if column > 4 else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(aligned).rstrip()


def _show_matrices(shape: tuple[int, ...]) -> str:
    *batch, rows, cols = shape
    count = math.prod(batch)
    return f"{rows} x {cols}" if not batch else f"{count} of {rows} x {cols}"


def summarize(
    params: Any,
    layouts: Layouts = None,
    *,
    scale: Scale = "moonlight",
    optimizer: optax.GradientTransformation | None = None,
) -> Summary:
    """A table of which parameter goes where, seen as which matrices, scaled by what.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``; nothing is computed on them.
        layouts: As given to :func:`muon_optax.muon`.
        scale: As given to :func:`muon_optax.muon`.
        optimizer: Whose state to count. ``None`` counts what :func:`muon_optax.muon` keeps by default: one momentum for
            a matrix and two moments for any other parameter, in the parameter's dtype.

    Returns:
        A summary: ``print`` it for columns path, shape, layout, matrices, label, scale and optimizer state in bytes,
        with totals below; ``.rows`` for the values; ``.muon_share`` for the share of elements under Muon. Matrices are
        written ``fan_in x fan_out``.

    Raises:
        ValueError: As :func:`muon_optax.assign_layouts`, and for an unknown scale.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> print(mo.summarize({"dense": {"kernel": jnp.ones((8, 32)), "bias": jnp.ones(32)}}))
        path          shape    layout  matrices  label  scale  state bytes
        ------------  -------  ------  --------  -----  -----  -----------
        dense/bias    [32]     -                 adamw                 256
        dense/kernel  [8, 32]  io      8 x 32    muon   1.131        1,024
        2 parameters, 288 elements: 256 by Muon (88.9%), 32 by AdamW. Optimizer state: 1,280 bytes.
    """
    resolved = assign_layouts(params, layouts)
    leaves = named_leaves(params)
    measured = None if optimizer is None else _state_bytes(optimizer, params, leaves)
    rows = []
    for leaf in leaves:
        layout = resolved[leaf.path]
        kept = (1 if layout else 2) * _bytes(leaf) if measured is None else measured[leaf.path]
        factors = scale_factors(scale, layout, leaf.shape) if layout else ()
        rows.append(Row(leaf.path, leaf.shape, layout, "muon" if layout else "adamw", factors, kept))
    return Summary(tuple(rows))


def _bytes(leaf: NamedLeaf) -> int:
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def _state_bytes(optimizer: optax.GradientTransformation, params: Any, leaves: list[NamedLeaf]) -> dict[str, int]:
    """Bytes of state that belong to each parameter: the state's leaves of its shape whose paths end with its path."""
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    kept = dict.fromkeys(shapes, 0)
    for leaf in named_leaves(jax.eval_shape(optimizer.init, params)):
        owner = parameter_of(leaf.path, leaf.shape, shapes)
        if owner is not None:
            kept[owner] += _bytes(leaf)
    return kept
