"""An earlier state carried over to a fresh one: what both keep goes on, by path, and a report says what does not."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from muon_optax._layouts.paths import brief, show
from muon_optax._state.convert import converted
from muon_optax._state.counters import counters_of
from muon_optax._state.entries import are_entries, entry_arrays
from muon_optax._state.kept_arrays import Kept, holds_state, kept_arrays
from muon_optax._state.pairs import Pairs, pairs_of, renamed_arrays, resized_paths
from muon_optax._state.places import in_device_memory, outside_meshes
from muon_optax._state.report import CarryReport, CarryRow
from muon_optax._state.rows import counter_rows, how, lost_rows, setting_rows
from muon_optax._transforms.checks.arguments import check_flag, check_number, is_transform


def carry_over(
    earlier: Any,
    fresh: Any,
    *,
    renamed: Mapping[str, str] | None = None,
    momentum: float = 0.95,
    momentum_from: Literal["first moment"] | None = None,
    step: int | None = None,
    block_size: int = 128,
    strict: bool = False,
) -> tuple[Any, CarryReport]:
    """Carries the state ``earlier`` over to the optimizer that made ``fresh``, and reports what was lost.

    Momentum, moments and whatever else both states keep of a parameter go on by its path, whatever chains, partitions,
    masks and wrappers are around. A momentum may change its way (a sum of gradients, an average, codes of 8 or 4 bits)
    and its dtype. Counters go on at the step of the run. State that only ``fresh`` has keeps its initial value: a new
    layer, a layer of another size, the moments of a parameter that goes to the other optimizer. State that only
    ``earlier`` has is dropped.

    Settings (rates, decay, coefficients, injected hyperparameters) are those of the fresh optimizer.

    Args:
        earlier: The state of any Optax optimizer, such as :func:`muon_optax.muon`, ``optax.adamw`` or
            ``optax.contrib.muon``, restored into its own structure; or what PyTorch keeps, by path, as in
            :func:`muon_optax.from_torch_muon`.
        fresh: ``optimizer.init(params)``, or :func:`muon_optax.init_sharded` on a mesh.
        renamed: A mapping from earlier paths to present ones, of single parameters or of whole subtrees:
            ``{"encoder": "model/encoder"}``. All are renamed at once, so two may swap.
        momentum: The run's, in [0, 1), where an average becomes a sum or a sum an average.
        momentum_from: ``"first moment"`` to give a matrix that Adam trained its first moment as momentum. ``None``
            begins at zero.
        step: The number of steps that the run has taken. ``None`` reads it from ``earlier``.
        block_size: The block size of ``quantized_trace``, if its codes are read or made.
        strict: Whether to refuse to drop anything but zeros.

    Returns:
        The state, with the structure, dtypes, shardings and memory of ``fresh``, and a
        :class:`muon_optax.CarryReport`. Arrays that need no change may be shared with ``earlier`` and ``fresh``: donate
        neither.

    Raises:
        TypeError: If one of the two is an optimizer.
        ValueError: If one of the two isn't an optimizer's state or holds shapes only, for a renamed path that is not in
            ``earlier``, a ``block_size`` that does not fit, and with ``strict`` for what would be dropped, by path.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"up": jnp.ones((4, 8)), "bias": jnp.ones(8)}
        >>> before = mo.muon(0.02)
        >>> updates, state = before.update(params, before.init(params), params)
        >>> optimizer = mo.recipes.normuon(0.01)
        >>> state, report = mo.carry_over(state, optimizer.init(params))
        >>> print(report)
        outcome  path  shape   what                         why
        -------  ----  ------  ---------------------------  --------------------------------
        afresh   up    [1, 8]  ScaleByNorMuonState.moments  the earlier state keeps momentum
        carried  -     []      steps                        all at 1
        carried  bias  [8]     first moment
        carried  bias  [8]     second moment
        carried  up    [4, 8]  momentum
        0 dropped, 1 afresh, 4 carried.
    """
    check_number("momentum", momentum, "use the run's, a number in [0, 1) such as 0.95", 0.0, 1.0)
    _check_renamed(renamed)
    check_flag("strict", strict)
    if step is not None:
        check_number("step", step, "use the number of steps that the run has taken", 0.0)
    if momentum_from not in (None, "first moment"):
        raise ValueError(f"momentum_from={momentum_from!r} is not allowed: use 'first moment' or None.")
    earlier_arrays = renamed_arrays(_arrays_of(earlier, "earlier"), renamed or {})
    fresh_arrays = _arrays_of(fresh, "fresh")
    resized = resized_paths(earlier_arrays, fresh_arrays)
    pairs = pairs_of(earlier_arrays, fresh_arrays, resized, momentum_from is not None)
    with outside_meshes():
        leaves, rows = _carried(pairs, fresh_arrays, jax.tree.leaves(fresh), momentum, block_size)
        counters = counters_of(earlier_arrays, fresh_arrays, {number for row in rows for number in row.fresh}, step)
        for one in counters:
            leaves[one.kept.numbers[0]] = one.value
        rows += [
            *counter_rows(earlier_arrays, counters),
            *setting_rows(earlier_arrays, fresh_arrays),
            *lost_rows(rows, earlier_arrays, fresh_arrays, resized),
        ]
        if strict:
            _refuse_dropped(rows, earlier_arrays)
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves), CarryReport(tuple(rows))


def _check_renamed(renamed: Any) -> None:
    if renamed is None or (
        isinstance(renamed, Mapping) and all(isinstance(path, str) for pair in renamed.items() for path in pair)
    ):
        return
    raise TypeError(
        f"renamed={brief(renamed)} is not allowed: give a mapping from earlier paths to those of now, such as "
        "{'layer_0': 'blocks/0'}."
    )


def _carried(
    pairs: Pairs, fresh_arrays: Sequence[Kept], leaves: Sequence[Any], momentum: float, block_size: int
) -> tuple[list[Any], list[CarryRow]]:
    """The fresh ``leaves`` with the arrays of ``pairs`` in their places, and a row for each."""
    filled, rows = [*leaves], []
    for kept in (kept for kept in fresh_arrays if kept.numbers[0] in pairs):
        found = pairs[kept.numbers[0]]
        values = converted(found, kept, momentum, block_size)
        if values is None:
            continue
        rows.append(
            CarryRow("carried", kept.path, kept.shape, kept.what, how(found, kept), found.numbers, kept.numbers)
        )
        for number, value in zip(kept.numbers, values, strict=True):
            filled[number] = value
    return filled, rows


def _arrays_of(state: Any, name: str) -> list[Kept]:
    if name == "earlier" and are_entries(state):
        return entry_arrays(state)
    if is_transform(state):
        raise TypeError(
            f"The {name} state is an optimizer: give what optimizer.init(params) returns. Both states are needed, the "
            "earlier first: carry_over(earlier, optimizer.init(params))."
        )
    if not holds_state(state):
        raise ValueError(
            f"The {name} state is a {type(state).__name__}, which holds no state of an optimizer: give what "
            "optimizer.init(params) returns, such as opt_state of flax.nnx.Optimizer or TrainState, restored into its "
            "own structure."
        )
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state)):
        raise ValueError(
            f"The {name} state holds shapes and no arrays, as jax.eval_shape returns them: restore the earlier state "
            "into its structure, and make the fresh one with optimizer.init(params)."
        )
    return kept_arrays(state)


def _refuse_dropped(rows: Sequence[CarryRow], earlier_arrays: Sequence[Kept]) -> None:
    values = {kept.numbers: kept.values for kept in earlier_arrays}
    lost = [
        row for row in rows if row.outcome == "dropped" and any(map(_holds_anything, values.get(row.earlier, (1,))))
    ]
    if lost:
        listed = "; ".join(f"{row.what} of {show(row.path)}: {row.why}" for row in lost[:5])
        raise ValueError(
            f"strict=True, and {len(lost)} array{'s' * (len(lost) > 1)} of the earlier state would be dropped: {listed}"
            f"{' and more' * (len(lost) > 5)}. Rename with renamed=, or leave out strict and read the report."
        )


def _holds_anything(value: Any) -> bool:
    if jnp.issubdtype(jnp.result_type(value), jax.dtypes.prng_key):
        return True
    return bool(jnp.any(in_device_memory(value) != 0))
