"""The states of other Muons, as states of this library's: a run goes on where it was."""

import warnings
from collections.abc import Mapping
from typing import Any

from muon_optax._layouts.assigning.messages import MuonWarning
from muon_optax._layouts.paths import brief, show
from muon_optax._state.carry_over import carry_over
from muon_optax._state.entries import Entry, are_entries
from muon_optax._state.kept_arrays import kept_arrays
from muon_optax._state.report import CarryReport
from muon_optax._transforms.checks.arguments import check_number

_NAMES = {"momentum": "momentum_buffer", "first moment": "exp_avg", "second moment": "exp_avg_sq"}


def from_torch_muon(state: Mapping[str, Entry], fresh: Any, *, momentum: float = 0.95, step: int = 0) -> Any:
    """The state with which :func:`muon_optax.muon` continues a run of PyTorch's Muon or of Keller Jordan's.

    It is :func:`muon_optax.carry_over`, but it refuses what that only reports, since its paths are written by hand.

    Both keep an average of the gradients, ``1 - momentum`` times what ``optax.trace`` keeps; the next update is the
    same to rounding. Arrays are taken as they are: transpose those of kernels that your model stores the other way.

    Args:
        state: A mapping from each parameter's path, as :func:`muon_optax.assign_layouts` names it, to its entry in
            PyTorch's ``optimizer.state_dict()["state"]``: ``{"momentum_buffer": array}`` under Muon, and ``{"exp_avg":
            array, "exp_avg_sq": array}`` under AdamW.
        fresh: ``optimizer.init(params)``, or :func:`muon_optax.init_sharded` on a mesh. Momentum may be kept by a
            number, a schedule, :func:`muon_optax.quantized_trace`, :func:`muon_optax.nesterov_ema` or ``optax.ema``.
        momentum: The run's, in [0, 1).
        step: The number of steps that the run has taken. Schedules and AdamW's bias correction go on from there.

    Returns:
        A state with the structure, dtypes and shardings of ``fresh``. What no other optimizer keeps, such as NorMuon's
        second moments, stays as it is there.

    Raises:
        TypeError: If ``state`` is no such mapping.
        ValueError: If an array is missing, left over, or of another shape than the parameter; its path is named.

    References:
        Keller Jordan, "Muon", https://github.com/KellerJordan/Muon, 2024.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> fresh = mo.muon(3e-4).init({"up": jnp.ones((2, 2))})
        >>> state = mo.from_torch_muon({"up": {"momentum_buffer": 0.5 * jnp.eye(2)}}, fresh, momentum=0.5)
        >>> state.inner_states["muon"].inner_state[0].trace["up"].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    check_number("momentum", momentum, "use the run's, a number in [0, 1) such as 0.95", 0.0, 1.0)
    _refuse_other_entries(state)
    filled, report = carry_over(state, fresh, momentum=momentum, step=step)
    _refuse_other_shapes(report)
    _refuse_missing(state, report)
    _refuse_left_over(report)
    return filled


def from_optax_contrib_muon(state: Any, fresh: Any, *, momentum: float = 0.95) -> Any:
    """The state with which :func:`muon_optax.muon` continues a run of ``optax.contrib.muon``.

    Optax keeps an average with a bias correction. With ``nesterov=False`` on both sides the next update of a matrix is
    the same to rounding. With ``nesterov=True`` it is with ``momentum=muon_optax.nesterov_ema(0.95, debias=True)``;
    plain momentum differs by the bias correction, a few percent after 10 steps and 0.01% after 100. Scale, weight
    decay, products and AdamW's coefficients are arguments, not state.

    Args:
        state: The state of ``optax.contrib.muon`` or ``optax.contrib.scale_by_muon``, also inside a chain.
        fresh: As in :func:`from_torch_muon`.
        momentum: The run's ``beta``.

    Returns:
        As :func:`from_torch_muon`.

    Raises:
        ValueError: If ``state`` holds no Muon.

    Warns:
        MuonWarning: If the two libraries train parameters differently, with their paths. Optax takes every array of two
            axes for a matrix, also the embedding and the head, which AdamW trains here: its moments begin at zero.
            :func:`muon_optax.carry_over` does the same and returns a report.

    Example:
        >>> import jax, jax.numpy as jnp, muon_optax as mo, optax
        >>> params = {"up": jnp.ones((4, 8)), "bias": jnp.ones(8)}
        >>> before = optax.contrib.muon(3e-4)
        >>> updates, state = before.update(params, before.init(params), params)
        >>> optimizer = mo.muon(3e-4, momentum=mo.nesterov_ema(0.95, debias=True), scale="keller")
        >>> state = mo.from_optax_contrib_muon(state, optimizer.init(params))
        >>> updates, state = optimizer.update(params, state, params)
    """
    if not any(kept.node.kind == "MuonState" for kept in kept_arrays(state)):
        raise ValueError(
            f"There is no optax.contrib.MuonState in this {type(state).__name__}: give the state of "
            "optax.contrib.muon, restored into the structure of its `init`."
        )
    filled, report = carry_over(state, fresh, momentum=momentum)
    _warn_other_routes(report)
    return filled


def _refuse_other_entries(state: Any) -> None:
    what = "give a mapping from each parameter's path to its entry, such as {'up/weight': {'momentum_buffer': array}}"
    if isinstance(state, Mapping) and "state" in state and "param_groups" in state:
        raise TypeError(f"This is PyTorch's state_dict(): {what}. Its entries are in state_dict()['state'], by number.")
    if not isinstance(state, Mapping):
        raise TypeError(f"state={brief(type(state))} is not allowed: {what}.")
    for path, entry in state.items():
        if not isinstance(path, str):
            raise TypeError(
                f"The state has the key {brief(path)}, and PyTorch's numbers say nothing of names: {what}. The numbers "
                "follow the order in which the optimizer got its parameters."
            )
        if not are_entries({path: entry}):
            raise TypeError(f"The state has {brief(entry)} for {show(path)}: {what}, or 'exp_avg' and 'exp_avg_sq'.")


def _refuse_other_shapes(report: CarryReport) -> None:
    shapes = {(row.path, row.what): row.shape for row in report.afresh}
    for row in report.dropped:
        shape = shapes.get((row.path, row.what))
        if shape is not None:
            raise ValueError(
                f"{_NAMES[row.what]!r} of {show(row.path)} has shape {row.shape} and the parameter {shape}: PyTorch "
                "stores weights (out, in), Flax kernels are (in, out). Transpose it as you transpose the weight."
            )


def _refuse_missing(state: Mapping[str, Entry], report: CarryReport) -> None:
    for row in report.afresh:
        if row.what in _NAMES:
            held = ", ".join(map(repr, sorted(state.get(row.path, {})))) or "nothing"
            raise ValueError(
                f"{show(row.path)} needs {_NAMES[row.what]!r}, and the state has {held} for it. Train it as the run "
                f"did: layouts={{{row.path!r}: None}} sends it to AdamW, a layout such as 'io' to Muon."
            )


def _refuse_left_over(report: CarryReport) -> None:
    unused = [f"{_NAMES[row.what]!r} of {show(row.path)}" for row in report.dropped if row.what in _NAMES]
    if unused:
        raise ValueError(
            f"There is no place for {', '.join(unused[:5])}{' and more' if len(unused) > 5 else ''} in the fresh "
            "state: it must be `optimizer.init(params)` of the same parameters, each trained as the run did."
        )


def _warn_other_routes(report: CarryReport) -> None:
    dropped = [row.path for row in report.dropped if row.what in _NAMES]
    moved = sorted(set(dropped) & {row.path for row in report.afresh})
    if moved:
        more = f" and {len(moved) - 5} more" if len(moved) > 5 else ""
        warnings.warn(
            f"optax.contrib.muon trained {', '.join(map(show, moved[:5]))}{more} otherwise than this optimizer does, "
            "whose momentum or moments of it begin at zero: muon_optax.carry_over returns the whole report. A layout "
            f"keeps the route of before, as in layouts={{{moved[0]!r}: 'io'}}.",
            MuonWarning,
            stacklevel=3,
        )
