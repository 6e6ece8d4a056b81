"""Turns: which device orthogonalizes which unit. Nobody has more than a share and one unit."""

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np

from muon_optax._mesh.routes.model import Kind, Unit

# Idle devices may keep the others waiting for this share of their time, if that makes the program simpler.
_WAIT = 0.02


def assign(units: Sequence[Unit], sizes: Mapping[str, int], costs: Mapping[Kind, float]) -> Iterator[np.ndarray]:
    """One turn after the other: for every device a unit, or -1. The costliest first, to the least loaded."""
    load = np.zeros(tuple(sizes.values()))
    stacks: dict[tuple[str, ...], list[int]] = {}
    for number, unit in enumerate(units):
        stacks.setdefault(unit.kind.batch_axes, []).append(number)
    order = {kind: position for position, kind in enumerate(costs)}
    # Units of divided stacks have fewer devices to choose from, so they choose first.
    for batch_axes in sorted(stacks, key=lambda axes: -math.prod(sizes[axis] for axis in axes)):
        positions = tuple(position for position, axis in enumerate(sizes) if axis in batch_axes)
        pool = load.max(axis=positions, keepdims=True)
        pool_load = pool.reshape(-1)
        members = sorted(stacks[batch_axes], key=lambda unit: (-costs[units[unit].kind], order[units[unit].kind]))
        by_kind = [list(same) for _, same in groupby(members, lambda unit: units[unit].kind)]
        for turn in _turns(by_kind, [costs[units[same[0]].kind] for same in by_kind], pool_load):
            yield np.broadcast_to(turn.reshape(pool.shape), load.shape).reshape(-1)
        load = np.broadcast_to(pool_load.reshape(pool.shape), load.shape).copy()


def _turns(by_kind: Sequence[Sequence[int]], costs: Sequence[float], load: np.ndarray) -> list[np.ndarray]:
    """The turns of one pool, and its ``load`` brought up to date.

    A kind begins in a turn of its own where that leaves fewer turns with two kinds, and nobody has to wait longer: a
    turn of one kind is a simpler program.
    """
    apart: set[int] = set()
    turns, loads, programs = _deal(by_kind, costs, load, apart)
    shortest = loads.max()
    for kind in range(1, len(by_kind)):
        other = _deal(by_kind, costs, load, apart | {kind})
        if other[2] < programs and other[1].max() <= shortest * (1 + 1e-6):
            apart.add(kind)
            turns, loads, programs = other
    load[:] = loads
    return turns


def _deal(
    by_kind: Sequence[Sequence[int]], costs: Sequence[float], load: np.ndarray, apart: Container[int]
) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Turns and loads if kinds of these numbers begin in a turn of their own, and how many kinds all turns have."""
    load, turns, programs, idlest = load.copy(), [], 0, np.empty(0, int)
    for kind, units in enumerate(by_kind):
        if kind in apart:
            idlest = idlest[:0]
        programs += bool(idlest.size)
        for unit in units:
            if not idlest.size:
                # Small differences are rounding; equal loads keep the order of the mesh, so that all boxes look alike.
                idlest = np.argsort(load.round(6), kind="stable")
                turns.append(np.full(load.size, -1))
                programs += 1
            turns[-1][idlest[0]] = unit
            load[idlest[0]] += costs[kind]
            idlest = idlest[1:]
    return turns, load, programs


def filled_turns(turns: Sequence[np.ndarray], units: Sequence[Unit], costs: Mapping[Kind, float]) -> Iterator[int]:
    """The turns of one kind in which idle devices do as the others, on zeros, so that there is nothing to branch on.

    Nobody waits for that, or not for long.
    """
    price = [np.array([0.0 if unit < 0 else costs[units[unit].kind] for unit in turn]) for turn in turns]
    load = np.sum(price, axis=0) if price else np.zeros(1)
    spare = (1 + _WAIT) * load.max() - load
    for number, turn in enumerate(turns):
        idle, kinds = turn < 0, {units[unit].kind for unit in set(turn.tolist()) if unit >= 0}
        cost = price[number].max()
        if len(kinds) == 1 and (spare[idle] >= cost).all():
            spare = spare - cost * idle
            yield number
