"""An owner's work: it takes its units from the boxes that came, orthogonalizes them and fills the boxes to return."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import TypeAlias

import jax
import jax.numpy as jnp

from muon_optax._layouts.layout import Layout
from muon_optax._mesh.exchange.packing import empty_rows
from muon_optax._mesh.exchange.pieces import Sizes, count, divide, from_rows, join, to_rows
from muon_optax._mesh.routes.model import Box, Kind, Region, Route, Run, Trip, piece_shape, route_of, row_count

MapStacks: TypeAlias = Callable[[Sequence[jax.Array]], list[jax.Array]]
Program: TypeAlias = Mapping[int, Kind]  # what a device does in which runs of a trip


@dataclass(frozen=True)
class Owner:
    """A device during a trip."""

    sizes: Sizes
    trip: Trip
    map_stacks: MapStacks

    def work(self, received: Mapping[Route, jax.Array]) -> dict[Route, jax.Array]:
        """From the boxes that it received the boxes to return, each ``(devices, rows, width)``."""
        runs = self.trip.runs
        # What all devices do is orthogonalized together: it can share batches.
        common = {number: run.kinds[0] for number, run in enumerate(runs) if set(run.kind_of) == {0}}
        made = self._orthogonalized(common, received)
        parts = {
            box.route: [(region.first, made[region.run]) for region in box.regions if region.run in common]
            for box in self.trip.back
        }
        here = jax.lax.axis_index(tuple(self.sizes))
        for stage in _stages({number: run for number, run in enumerate(runs) if number not in common}):
            positions = list(zip(*(runs[number].kind_of for number in stage), strict=True))
            programs = list(dict.fromkeys(positions))
            branches = [
                partial(
                    self._stage,
                    stage,
                    {run: runs[run].kinds[kind] for run, kind in zip(stage, program, strict=True) if kind >= 0},
                    received,
                )
                for program in programs
            ]
            chosen = jnp.asarray([programs.index(position) for position in positions])[here]
            for route, part in jax.lax.switch(chosen, branches).items():
                parts[route].append((self._extent(route, stage)[0], part))
        return {box.route: self._joined(box, parts[box.route], 0, box.rows) for box in self.trip.back}

    def _stage(
        self, stage: Sequence[int], program: Program, received: Mapping[Route, jax.Array]
    ) -> dict[Route, jax.Array]:
        """The rows of these runs in all boxes, zeros where only others have something."""
        made = self._orthogonalized(program, received)
        parts = {}
        for box in self.trip.back:
            if any(region.run in stage for region in box.regions):
                own = [
                    (region.first, made[region.run])
                    for region in box.regions
                    if region.run in program and self._route(program[region.run], "back") == box.route
                ]
                parts[box.route] = self._joined(box, own, *self._extent(box.route, stage))
        return parts

    def _orthogonalized(self, program: Program, received: Mapping[Route, jax.Array]) -> dict[int, jax.Array]:
        """The rows to return, by run."""
        blocks = {run: self._take(run, kind, received) for run, kind in program.items()}
        results = iter(self.map_stacks(list(chain.from_iterable(blocks.values()))))
        return {run: self._give(run, kind, tuple(islice(results, len(blocks[run])))) for run, kind in program.items()}

    def _take(self, run: int, kind: Kind, received: Mapping[Route, jax.Array]) -> tuple[jax.Array, ...]:
        """The blocks of a run's units, ``(turns, rows, cols)`` each."""
        box, region = self._place(run, kind, "there")
        height = row_count(kind, "there", box.width, self.sizes)
        rows = received[box.route][:, region.first : region.first + region.turns * height]
        by_turn = rows.reshape(-1, region.turns, height, box.width)
        pieces = from_rows(by_turn, kind, piece_shape(kind, "there", self.sizes))
        units = jax.vmap(partial(join, dims=kind.there, sizes=self.sizes), in_axes=1)(pieces)
        return _stacked(kind).to_matrices(units)

    def _give(self, run: int, kind: Kind, blocks: tuple[jax.Array, ...]) -> jax.Array:
        """The inverse of :meth:`_take`."""
        box, region = self._place(run, kind, "back")
        units = _stacked(kind).from_matrices(blocks, (region.turns, *kind.shape)).astype(kind.dtype)
        pieces = jax.vmap(partial(divide, dims=kind.back, sizes=self.sizes), out_axes=1)(units)
        rows = to_rows(pieces, kind, box.width)
        return rows.reshape(rows.shape[0], -1, box.width)

    def _route(self, kind: Kind, way: str) -> Route:
        return route_of(kind, way, self.sizes)

    def _place(self, run: int, kind: Kind, way: str) -> tuple[Box, Region]:
        """Where units of a kind are in a run."""
        boxes = self.trip.there if way == "there" else self.trip.back
        (box,) = (box for box in boxes if box.route == self._route(kind, way))
        (region,) = (region for region in box.regions if region.run == run)
        return box, region

    def _extent(self, route: Route, stage: Sequence[int]) -> tuple[int, int]:
        """The first row of these runs in the box of a route, and the one after their last."""
        ends = []
        for run in stage:
            for kind in self.trip.runs[run].kinds:
                if self._route(kind, "back") == route:
                    box, region = self._place(run, kind, "back")
                    height = row_count(kind, "back", box.width, self.sizes)
                    ends.append((region.first, region.first + region.turns * height))
        return min(first for first, _ in ends), max(end for _, end in ends)

    def _joined(self, box: Box, parts: Sequence[tuple[int, jax.Array]], start: int, stop: int) -> jax.Array:
        """The rows of a box from ``start`` to ``stop``, of parts ``(first row, rows)`` and else of zeros."""
        devices, columns, end = count(box.route.axes, self.sizes), [], start
        for first, rows in sorted(parts, key=lambda part: part[0]):
            if first < end:
                # Where parts overlap all but one are zero.
                spans = [(first - start, stop - first - rows.shape[1]) for first, rows in parts]
                padded = [jnp.pad(rows, [(0, 0), span, (0, 0)]) for (_, rows), span in zip(parts, spans, strict=True)]
                return functools.reduce(jnp.add, padded)
            columns += [empty_rows(box, devices, first - end), rows]
            end = first + rows.shape[1]
        return jnp.concatenate([*columns, empty_rows(box, devices, stop - end)], axis=1)


def _stacked(kind: Kind) -> Layout:
    return Layout("b" + kind.layout.axes, kind.layout.split)


def _stages(runs: Mapping[int, Run]) -> list[list[int]]:
    """Runs that differ by device, joined to be chosen by one branch where that writes no more of them out."""

    def written_out(stage: Sequence[int]) -> int:
        programs = set(zip(*(runs[run].kind_of for run in stage), strict=True))
        return sum(kind >= 0 for program in programs for kind in program)

    stages: list[list[int]] = []
    for run in runs:
        if stages and written_out([*stages[-1], run]) <= written_out(stages[-1]) + written_out([run]):
            stages[-1].append(run)
        else:
            stages.append([run])
    return stages
