"""Trips: which turns travel together, and how their pieces are packed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import jax.numpy as jnp
import numpy as np

from muon_optax._mesh.routes.model import (
    Box,
    Kind,
    Region,
    Route,
    Run,
    Trip,
    Unit,
    piece_shape,
    route_of,
    row_count,
    row_view,
)

# Width of a row in a box where pieces have no common width: the lanes of a TPU's register.
_LANES = 128


def cut(turns: Sequence[np.ndarray], units: Sequence[Unit], enough: int) -> Iterator[list[int]]:
    """The numbers of turns, in parts that travel one after the other.

    None has more bytes than are ``enough``, or than memory is the better for: while a part is under way, the results of
    those before it are in memory, and itself about three times, as it came, orthogonalized and packed. So the longest
    goes first. Where each is a third of what is left and of a third of all, the peak is four thirds of all, and about
    four parts are enough.
    """
    sizes = [max(_bytes(units[unit].kind) for unit in set(turn.tolist()) if unit >= 0) for turn in turns]
    kinds = [{units[unit].kind for unit in set(turn.tolist()) if unit >= 0} for turn in turns]
    pools = [
        list(pool) for _, pool in groupby(range(len(turns)), lambda turn: units[turns[turn].max()].kind.batch_axes)
    ]
    if sum(sizes) <= enough:
        pools = [list(range(len(turns)))]
    # Of large matrices less is left behind than is needed on the way.
    for pool in sorted(pools, key=lambda pool: -max((sizes[turn] for turn in pool), default=0)):
        left = whole = sum(sizes[turn] for turn in pool)
        part, held = [], 0
        for turn in pool:
            limit = max(enough, (left + whole / 3) / 3)
            other = whole > enough and held > limit / 2 and not kinds[turn] & kinds[part[0]]
            if part and (held + sizes[turn] > limit or other):
                yield part
                left -= held
                part, held = [], 0
            part.append(turn)
            held += sizes[turn]
        if part:
            yield part


def _bytes(kind: Kind) -> int:
    return math.prod(kind.shape) * jnp.dtype(kind.dtype).itemsize


def make_trip(
    turns: Sequence[np.ndarray], filled: Sequence[bool], units: Sequence[Unit], sizes: Mapping[str, int]
) -> Trip:
    """The trip of these turns; in those that are ``filled`` idle devices do as the others."""
    rows = [_kinds_of(turn, units, fill) for turn, fill in zip(turns, filled, strict=True)]
    runs = tuple(Run(*row, len(list(same))) for row, same in groupby(rows))
    there, back = (tuple(_boxes(turns, runs, sizes, way)) for way in ("there", "back"))
    return Trip(tuple(turns), runs, there, back)


def _kinds_of(turn: np.ndarray, units: Sequence[Unit], filled: bool) -> tuple[tuple[Kind, ...], tuple[int, ...]]:
    """The kinds of a turn's units, and for every device the position of its own."""
    own = [None if unit < 0 else units[unit].kind for unit in turn.tolist()]
    kinds = tuple(kind for kind in dict.fromkeys(own) if kind is not None)
    position = {kind: number for number, kind in enumerate(kinds)}
    return kinds, tuple(position[kind] if kind is not None else 0 if filled else -1 for kind in own)


def _boxes(turns: Sequence[np.ndarray], runs: Sequence[Run], sizes: Mapping[str, int], way: str) -> Iterator[Box]:
    routes = {kind: route_of(kind, way, sizes) for run in runs for kind in run.kinds}
    for route in dict.fromkeys(routes.values()):
        columns = {row_view(kind, piece_shape(kind, way, sizes))[1] for kind, own in routes.items() if own == route}
        divisor = math.gcd(*columns)
        width = divisor if divisor >= _LANES or {divisor} == columns else _LANES
        height = {kind: row_count(kind, way, width, sizes) for kind, own in routes.items() if own == route}
        owners = _owners(route, sizes)
        grid = np.array([turn[owners] for turn in turns])
        regions, turn, end = [], 0, np.zeros(len(owners), int)
        for number, run in enumerate(runs):
            heights = np.array([*(height.get(kind, 0) for kind in run.kinds), 0])
            rows = run.turns * heights[np.array(run.kind_of)[owners]]
            if rows.any():
                first = int(end[rows > 0].max())
                end = np.where(rows > 0, first + rows, end)
                here = np.where(rows > 0, grid[turn : turn + run.turns], -1)
                regions.append(Region(number, run.turns, first, here))
            turn += run.turns
        yield Box(route, width, int(end.max()), tuple(regions))


def _owners(route: Route, sizes: Mapping[str, int]) -> list[int]:
    """The devices of one pool by number in the mesh, planes major: those with coordinate 0 along the other axes."""
    numbers = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    numbers = numbers[tuple(slice(None) if axis in route.pool else 0 for axis in sizes)]
    pool = [axis for axis in sizes if axis in route.pool]
    return numbers.transpose([pool.index(axis) for axis in route.planes + route.axes]).reshape(-1).tolist()
