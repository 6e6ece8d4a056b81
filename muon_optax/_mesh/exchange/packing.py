"""Boxes: what a device sends to owners, and what it unpacks when their results come back."""

from collections.abc import Sequence
from itertools import groupby

import jax
import jax.numpy as jnp

from muon_optax._mesh.exchange.pieces import Pieces, from_rows, gathered, ranges, to_rows
from muon_optax._mesh.routes.model import Box, Kind, Region, Routes, piece_shape, row_count


def pack(box: Box, routes: Routes, arrays: Sequence[jax.Array], first: int, owners: int) -> jax.Array:
    """This device's pieces of the units of so many owners, as ``(owners, rows, width)``."""
    columns = []
    kinds = [_kinds(routes, region) for region in box.regions]
    for _, same in groupby(range(first, first + owners), lambda owner: [own[owner] for own in kinds]):
        alike = list(same)
        parts, end = [], 0
        for region, own in zip(box.regions, kinds, strict=True):
            kind = own[alike[0]]
            if kind is None:
                continue
            chosen = region.units[:, alike[0] : alike[-1] + 1]
            rows = to_rows(gathered(routes, kind, chosen.reshape(-1).tolist(), arrays), kind, box.width)
            by_owner = jnp.swapaxes(rows.reshape(*chosen.shape, *rows.shape[1:]), 0, 1)
            parts += [empty_rows(box, len(alike), region.first - end), by_owner.reshape(len(alike), -1, box.width)]
            end = region.first + parts[-1].shape[1]
        columns.append(jnp.concatenate([*parts, empty_rows(box, len(alike), box.rows - end)], axis=1))
    return jnp.concatenate(columns)


def unpack(box: Box, routes: Routes, returned: jax.Array) -> Pieces:
    """The inverse of :func:`pack` for the results ``(owners, rows, width)``."""
    pieces = {}
    for region in box.regions:
        kinds = _kinds(routes, region)
        for kind, same in groupby(range(len(kinds)), kinds.__getitem__):
            alike = list(same)
            if kind is None:
                continue
            chosen = region.units[:, alike[0] : alike[-1] + 1]
            height = row_count(kind, "back", box.width, routes.sizes)
            rows = returned[alike[0] : alike[-1] + 1, region.first : region.first + region.turns * height]
            by_turn = jnp.swapaxes(rows.reshape(-1, region.turns, height, box.width), 0, 1)
            piece = piece_shape(kind, "back", routes.sizes)
            whole = from_rows(by_turn.reshape(-1, height, box.width), kind, piece)
            for start, end, unit in ranges(routes, chosen.reshape(-1).tolist()):
                if unit is not None:
                    pieces[unit] = whole[start:end]
    return pieces


def _kinds(routes: Routes, region: Region) -> list[Kind | None]:
    """The kind of each owner's units."""
    return [routes.units[unit].kind if unit >= 0 else None for unit in region.units.max(axis=0).tolist()]


def empty_rows(box: Box, owners: int, rows: int) -> jax.Array:
    """Zeros, ``(owners, rows, width)``, to fill a box up."""
    return jnp.zeros((owners, rows, box.width), box.route.dtype)
