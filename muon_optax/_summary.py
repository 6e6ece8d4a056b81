"""The table that a person reads before training: who trains each parameter, as which matrices, and why."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.globs import matching
from muon_optax._layouts.assigning.messages import refuse_uncertain, warn_unknown
from muon_optax._layouts.assigning.resolve import Layouts, decisions_on
from muon_optax._layouts.columns import in_columns, in_html
from muon_optax._layouts.decision import Strength, layouts_in
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.path_patterns import natural_order, pattern, without_numbers
from muon_optax._layouts.paths import NamedLeaf, named_leaves, parameter_of
from muon_optax._state.shardings import state_bytes_of_a_device
from muon_optax._transforms.by_path.chosen import Chosen, SettingsByPath
from muon_optax._transforms.by_path.refusals import refuse_idle
from muon_optax._transforms.by_path.settings import Settings
from muon_optax._transforms.checks.arguments import check_flag, check_transform
from muon_optax._transforms.momenta.offload_to_host import noting_host
from muon_optax._transforms.scales import Scale, check_scale, scale_factors

_HEADINGS = ("path", "shape", "layout", "matrices", "label", "why", "scale", "state bytes")
_BY_PATH = "by path"  # the heading of one column more, where there are settings by path
_RIGHT_ALIGNED = range(6, 8)  # columns that hold numbers
_LEGEND = (
    "layout: i input, o output, b each index is a matrix of its own, - not a matrix, ~ weak evidence, ? no rule knows"
)
# Below this share of all elements under Muon a person should look; embeddings rarely hold as much as the rest does.
_SMALL_SHARE = 1 / 3
_LARGEST_LISTED = 3


@dataclass(frozen=True)
class Row:
    """One parameter of a :class:`Summary`.

    Args:
        path: The tree path, joined by ``/``.
        shape: The parameter's shape.
        layout: How its axes are read; ``None`` for AdamW.
        label: ``"muon"`` or ``"adamw"``.
        why: The evidence in a few words, that for a stack of layers first; ``"given"`` by the user.
        strength: ``"strong"``, ``"weak"`` or ``"none"``.
        scale: The factor of each block's update; empty for AdamW.
        state_bytes: Bytes of the optimizer's state for this parameter.
        host_bytes: How many of these lie in the host's memory.
        by_path: The globs of ``by_path`` that match. The settings of the first act.
    """

    path: str
    shape: tuple[int, ...]
    layout: Layout | None
    label: str
    why: str
    strength: Strength
    scale: tuple[float, ...]
    state_bytes: int
    host_bytes: int = 0
    by_path: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether strong evidence decides, neither weak nor unknown."""
        return self.strength == "strong"

    @property
    def weak(self) -> bool:
        """Whether weak evidence decides."""
        return self.strength == "weak"

    @property
    def unknown(self) -> bool:
        """Whether no evidence decides. AdamW then gets the parameter."""
        return self.strength == "none"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Summary:
    """The table that :func:`muon_optax.summarize` makes. ``print`` it, or read its rows.

    Args:
        rows: One for each parameter, in natural order of their paths.
        by_path: The settings by path glob, in their order.
        device_bytes: Bytes of the state that one device of a mesh keeps, by memory (``"device"`` and ``"pinned_host"``,
            its host's). Empty unless ``summarize`` was told how the parameters lie.
    """

    rows: tuple[Row, ...]
    by_path: Mapping[str, Settings] = field(default_factory=dict)
    device_bytes: Mapping[str, int] = field(default_factory=dict)

    @property
    def muon_share(self) -> float:
        """Share of all elements that Muon trains, 0 to 1."""
        return _elements(row for row in self.rows if row.label == "muon") / max(1, _elements(self.rows))

    def table(self, every_row: bool = False) -> str:
        """The rows in columns, a legend and the totals.

        Args:
            every_row: Whether equal parameters of repeated layers have a row each. By default they share one.
        """
        return "\n".join([*in_columns(self._lines(every_row), _RIGHT_ALIGNED), *self._notes()])

    def __str__(self) -> str:
        """The table with repeated layers collapsed."""
        return self.table()

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        return in_html(self._lines(every_row=False), self._notes())

    def _lines(self, every_row: bool) -> list[tuple[str, ...]]:
        """The cells of the headings and of every row."""
        lines = [_HEADINGS, *map(_cells, self._groups(every_row))]
        if not self.by_path:
            return lines
        globs = [_BY_PATH, *(" before ".join(group[0].by_path) for group in self._groups(every_row))]
        return [(*cells, own) for cells, own in zip(lines, globs, strict=True)]

    def _notes(self) -> list[str]:
        """The lines below the rows."""
        return [_LEGEND, *self._settings(), self._totals(), *self._alarms()]

    def _settings(self) -> list[str]:
        """A line for each glob, in order: what it sets, and of how many parameters."""
        lines = []
        for glob, settings in self.by_path.items():
            own = [row for row in self.rows if row.by_path[:1] == (glob,)]
            lines.append(f"{glob}: {settings} (parameters: {len(own)}, matrices: {sum(map(_by_muon, own))})")
        return ["by path, an exact path acts or else the first glob that matches:", *lines] if lines else []

    def _groups(self, every_row: bool) -> list[list[Row]]:
        """Rows that are shown as one: those that differ in the numbers of their paths alone."""
        groups: dict[tuple, list[Row]] = {}
        for row in self.rows:
            same = (row.shape, row.layout, row.label, row.why, row.scale, row.state_bytes, row.host_bytes, row.by_path)
            groups.setdefault((row.path if every_row else without_numbers(row.path), same), []).append(row)
        return list(groups.values())

    def _totals(self) -> str:
        by_muon, unknown = ([row for row in self.rows if own(row)] for own in (_by_muon, _is_unknown))
        total = _elements(self.rows)
        weak = sum(row.weak for row in self.rows)
        on_host = sum(row.host_bytes for row in self.rows)
        left = f", {_elements(unknown):,} of them in {len(unknown)} arrays that no rule knows" if unknown else ""
        return (
            f"{len(self.rows)} parameters, {total:,} elements: {_elements(by_muon):,} by Muon ({self.muon_share:.1%}), "
            f"{total - _elements(by_muon):,} by AdamW{left}. "
            + (f"On weak evidence (~): {weak}. " if weak else "")
            + f"Optimizer state: {sum(row.state_bytes for row in self.rows):,} bytes"
            + _in_host_memory(on_host)
            + self._on_a_device()
        )

    def _on_a_device(self) -> str:
        """What one device of a mesh keeps, where it is known."""
        if not self.device_bytes:
            return ""
        on_host = self.device_bytes["pinned_host"]
        kept = self.device_bytes["device"] + on_host
        return f" Of a device: {kept:,} bytes" + _in_host_memory(on_host)

    def _alarms(self) -> list[str]:
        """The lines that a person should not overlook."""
        alarms = []
        unknown = [row for row in self.rows if _is_unknown(row)]
        candidates = [row for row in self.rows if _by_muon(row) or _is_unknown(row)]
        if 2 * _elements(unknown) > _elements(candidates):
            alarms.append(
                "ATTENTION: no rule knows most of the arrays that may be matrices. Pass their layouts, or AdamW trains "
                "them."
            )
        if self.rows and self.muon_share < _SMALL_SHARE:
            others = sorted((row for row in self.rows if not _by_muon(row)), key=lambda row: -row.size)
            largest = ", ".join(f"{row.path} ({row.why})" for row in others[:_LARGEST_LISTED])
            alarms.append(
                f"ATTENTION: Muon trains {self.muon_share:.1%} of the elements. The largest that AdamW trains: "
                f"{largest}."
            )
        return alarms


def _by_muon(row: Row) -> bool:
    return row.label == "muon"


def _is_unknown(row: Row) -> bool:
    return row.unknown


def _in_host_memory(count: int) -> str:
    return f", {count:,} of them in host memory." if count else "."


def _elements(rows: Iterable[Row]) -> int:
    return sum(row.size for row in rows)


def _cells(group: Sequence[Row]) -> tuple[str, ...]:
    """A group of equal rows as text; state bytes are those of all of them."""
    first = group[0]
    path = pattern([row.path for row in group]) + (f" x{len(group)}" if len(group) > 1 else "")
    matrices = " + ".join(map(_show_matrices, first.layout.matrix_shapes(first.shape))) if first.layout else ""
    layout = "?" if first.unknown else "~" * first.weak + (str(first.layout) if first.layout else "-")
    scale = ", ".join(f"{factor:.4g}" for factor in dict.fromkeys(first.scale))
    kept = f"{sum(row.state_bytes for row in group):,}"
    return (path, str(list(first.shape)), layout, matrices, first.label, first.why, scale, kept)


def _show_matrices(shape: tuple[int, ...]) -> str:
    *batch, rows, cols = shape
    return f"{math.prod(batch)} of {rows} x {cols}" if batch else f"{rows} x {cols}"


def summarize(
    params: Any,
    layouts: Layouts = None,
    *,
    scale: Scale = "moonlight",
    optimizer: optax.GradientTransformation | None = None,
    strict: bool = False,
    by_path: SettingsByPath = None,
    shardings: Any = None,
) -> Summary:
    """A table of all parameters: who trains each, as which matrices, with which scale, and why.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``; nothing is computed on them.
        layouts: As given to :func:`muon_optax.muon`.
        scale: As given to :func:`muon_optax.muon`.
        optimizer: Whose state to count. ``None`` counts what :func:`muon_optax.muon` keeps by default: one momentum for
            a matrix and two moments for any other parameter, in the parameter's dtype.
        strict: Whether to refuse what weak evidence decides, or none, as in :func:`muon_optax.assign_layouts`.
        by_path: As given to :func:`muon_optax.muon`. One column more shows which glob acts on each parameter and before
            which others, and a line for each glob what it sets.
        shardings: How the parameters lie on a mesh, as in :func:`muon_optax.state_shardings`, or their plan. The last
            line then also says how many bytes of the state one device keeps. Needs ``optimizer``.

    Returns:
        A summary. ``print`` it for columns path, shape, layout, matrices, label, why (which evidence decided), scale
        and optimizer state in bytes, with totals below. Equal parameters of repeated layers share a row, as in
        ``layers/{0..25}/attn/w x26``; ``.table(every_row=True)`` lists all, ``.rows`` has the values, ``.muon_share``
        the share of elements under Muon. Matrices are written ``fan_in x fan_out``. In a notebook it shows as HTML.

    Raises:
        ValueError: As :func:`muon_optax.assign_layouts`, for an unknown scale, for settings by path that
            :func:`muon_optax.muon` refuses, and for shardings without an optimizer or of another tree.
        TypeError: If ``optimizer`` is not a transform.

    Warns:
        MuonWarning: As :func:`muon_optax.assign_layouts`.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> print(mo.summarize({"dense": {"kernel": jnp.ones((8, 32)), "bias": jnp.ones(32)}}))
        path          shape    layout  matrices  label  why       scale  state bytes
        ------------  -------  ------  --------  -----  --------  -----  -----------
        dense/bias    [32]     -                 adamw  bias                     256
        dense/kernel  [8, 32]  io      8 x 32    muon   its bias  1.131        1,024
        layout: i input, o output, b each index is a matrix of its own, - not a matrix, ~ weak evidence, ? no rule knows
        2 parameters, 288 elements: 256 by Muon (88.9%), 32 by AdamW. Optimizer state: 1,280 bytes.
    """
    check_scale(scale)
    check_flag("strict", strict)
    if optimizer is not None:
        check_transform("optimizer", optimizer)
    elif shardings is not None:
        raise ValueError("shardings= says where the state of optimizer= lies: give both, or neither.")
    leaves = named_leaves(params)
    decisions = decisions_on(params, leaves, layouts)
    if strict:
        refuse_uncertain(decisions, leaves)
    warn_unknown([leaf for leaf in leaves if decisions[leaf.path].unknown], leaves)
    chosen = Chosen(by_path)
    refuse_idle(chosen, params, leaves, layouts_in(decisions))
    globs = matching(chosen.by_path, [leaf.path for leaf in leaves])
    measured = None if optimizer is None else _state_bytes(optimizer, params, leaves)
    rows = []
    for leaf in sorted(leaves, key=lambda leaf: natural_order(leaf.path)):
        layout, why, strength = decisions[leaf.path]
        kept, away = ((1 if layout else 2) * _bytes(leaf), 0) if measured is None else measured[leaf.path]
        factors = scale_factors(chosen.at(leaf.path).scale or scale, layout, leaf.shape) if layout else ()
        label, own = "muon" if layout else "adamw", tuple(globs.get(leaf.path, ()))
        rows.append(Row(leaf.path, leaf.shape, layout, label, why, strength, factors, kept, away, own))
    of_a_device: dict[str, int] = {}
    if optimizer is not None and shardings is not None:
        of_a_device = state_bytes_of_a_device(optimizer, params, shardings)
    return Summary(tuple(rows), chosen.by_path, of_a_device)


def _bytes(leaf: NamedLeaf) -> int:
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def _state_bytes(
    optimizer: optax.GradientTransformation, params: Any, leaves: list[NamedLeaf]
) -> dict[str, tuple[int, int]]:
    """Bytes of state that belong to each parameter, and how many of them lie in the host's memory.

    They are those of the state's leaves whose paths end with its path.
    """
    shapes = {leaf.path: leaf.shape for leaf in leaves}
    kept: dict[str, tuple[int, int]] = dict.fromkeys(shapes, (0, 0))
    hosted: list[bool] = []
    state = named_leaves(jax.eval_shape(noting_host(optimizer.init, hosted), params))
    for leaf, away in zip(state, hosted, strict=True):
        # A statistic of a parameter, such as a number for each neuron, has another shape; a counter has none.
        owner = parameter_of(leaf.path, leaf.shape, shapes)
        if owner is None and leaf.shape:
            owner = parameter_of(leaf.path, (), dict.fromkeys(shapes, ()))
        if owner is not None:
            size, before = _bytes(leaf), kept[owner]
            kept[owner] = (before[0] + size, before[1] + size * away)
    return kept
