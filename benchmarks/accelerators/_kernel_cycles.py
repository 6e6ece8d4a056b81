"""The cycles of a call of one of the kernels of ``products="symmetric"``: its grid, step by step, on its schedule.

A step of the grid takes what takes longest. Its instructions: the bundles of each loop times its iterations, but no
fewer cycles than the matrix units need for the block that an iteration multiplies. Or the transfers that run meanwhile:
the tiles that the next step needs and this one has not, and the results of the step before. The first tiles and the
last results come on top. What XLA keeps in vector memory is copied by instructions, which the bundles count.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from benchmarks.accelerators._schedule import Array, Call, Schedule
from muon_optax._orthogonalizers.tiling import Resident, Tiling, resident, tiling

BYTES = {"bf16": 2, "f32": 4}
# The loop for tiles (i, k) and (k, j): whether each is stored, or the one that mirrors it.
_WAYS = {(True, True): 0, (True, False): 1, (False, False): 2, (False, True): 3}
SKIPPED = 16  # bundles of an iteration for a block that is left out, about


class Chip(NamedTuple):
    """One core of a TPU."""

    multiplications: int  # a cycle, in bfloat16
    bytes: float  # from or to main memory, a cycle


V5E = Chip(4 * 128 * 128, 819e9 / 1.5e9)


class Step(NamedTuple):
    """A step of the grid."""

    loops: tuple[tuple[int, int, int], ...]  # number of a loop, its iterations, multiplications of each
    skipped: int  # iterations that do nothing
    read: dict[int, tuple[int, ...]]  # which tile of each operand
    written: tuple[int, ...]  # which tile of the results


def cycles(call: Call, schedule: Schedule, chip: Chip = V5E) -> float:
    """Of one call."""
    grid = list(_steps(call))
    sizes = _tile_bytes(call)
    written = sum(size for place, size in sizes.items() if place < 0)
    fetches = [sum(sizes[place] for place in grid[0].read)]
    fetches += [
        sum(sizes[place] for place, tile in step.read.items() if before.read[place] != tile)
        for before, step in pairwise(grid)
    ]
    # The result of a step goes out once the next step makes another one.
    returns = [0] + [written * (before.written != step.written) for before, step in pairwise(grid)]
    total = schedule.once + (fetches[0] + written) / chip.bytes
    for number, step in enumerate(grid):
        coming = fetches[number + 1] if number + 1 < len(grid) else 0
        total += max(_instructions(step, schedule, chip), (coming + returns[number]) / chip.bytes)
    return total


def bound(call: Call, chip: Chip = V5E) -> float:
    """The cycles that the matrix units need for the blocks of one call, whatever else happens."""
    done = sum(times * multiplications for step in _steps(call) for _, times, multiplications in step.loops)
    return done / chip.multiplications


def _instructions(step: Step, schedule: Schedule, chip: Chip) -> float:
    loops = sum(
        times * max(schedule.loops[number], multiplications / chip.multiplications)
        for number, times, multiplications in step.loops
    )
    return schedule.step + loops + SKIPPED * step.skipped


def _steps(call: Call) -> Iterator[Step]:
    name, _, kind = call.name.partition("_")
    if name == "gram":
        return _gram_steps(call, kind == "wide")
    if name == "symmetric":
        return _product_steps(call, kind.endswith("whole"))
    if name == "resident":
        return _resident_steps(call, kind)
    if name == "apply":
        return _apply_steps(call, "wide" in kind, kind.endswith("whole"))
    raise ValueError(f"this kernel is not known: {call.name}")


def _pair_steps(short: Tiling, whole: bool) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(short.tiles) for j in range(short.tiles if whole else i + 1))


def _multiplied(short: Tiling, lower: bool) -> tuple[int, int]:
    """The blocks of a tile that are multiplied, and those that are left out."""
    blocks = short.tile // short.block
    lower_blocks = blocks * (blocks + 1) // 2
    return (lower_blocks, blocks**2 - lower_blocks) if lower else (blocks**2, 0)


def _gram_steps(call: Call, wide: bool) -> Iterator[Step]:
    batch, rows, cols = call.operands[-1].sizes
    short, long = (tiling(size) for size in ((rows, cols) if wide else (cols, rows)))
    for b in range(batch):
        for i, j in _pair_steps(short, False):
            done, skipped = _multiplied(short, i == j)
            # The loops that multiply, and those that write: off the diagonal, if there is such a tile, and on it. Those
            # that multiply are one for a wide matrix. For a tall one blocks off the diagonal are twice as wide.
            several, diagonal = short.tiles > 1, i == j
            own = not wide and several
            times = short.wide_block // short.block if own and not diagonal else 1
            finish = ((1 + own + (diagonal and several), done, 0),)
            for k in range(long.tiles):
                last = k == long.tiles - 1
                multiplied = (int(own and diagonal), done // times, times * short.block**2 * long.tile)
                loops = (multiplied,) + finish * last
                yield Step(loops, skipped * (1 + last), {0: (b, i, k), 1: (b, j, k)}, (b, i, j))


def _product_steps(call: Call, whole: bool) -> Iterator[Step]:
    batch, size, _ = call.operands[-1].sizes
    short = tiling(size)
    terms = range(2, len(call.operands))
    for b in range(batch):
        for i, j in _pair_steps(short, whole):
            done, skipped = _multiplied(short, i == j and not whole)
            products = 1 if short.tiles == 1 else 3 + whole
            finish = ((products + (i == j and not whole and short.tiles > 1), done, 0),)
            for k in range(short.tiles):
                last = k == short.tiles - 1
                way = 0 if short.tiles == 1 else _WAYS[k <= i, k <= j]
                loops = ((way, done, short.block**2 * short.tile),) + finish * last
                read = {0: (b, max(i, k), min(i, k)), 1: (b, max(j, k), min(j, k))}
                read |= {term: (b, max(i, j), min(i, j)) for term in terms}
                yield Step(loops, skipped * (1 + last), read, (b, i, j))


def _apply_steps(call: Call, wide: bool, whole: bool) -> Iterator[Step]:
    batch, rows, cols = call.operands[-1].sizes
    short, long = (tiling(size) for size in ((rows, cols) if wide else (cols, rows)))
    along = long.wide_block if wide else long.block
    blocks = (short.tile // short.block) * (long.tile // along)
    products = 1 if whole or short.tiles == 1 else 2
    finish = ((products, blocks, 0),)
    for b in range(batch):
        for i in range(short.tiles):
            for j in range(long.tiles):
                for k in range(short.tiles):
                    way = 0 if whole or k <= i else 1
                    loops = ((way, blocks, short.block * along * short.tile),) + finish * (k == short.tiles - 1)
                    factor = (b, i, k) if whole else (b, max(i, k), min(i, k))
                    yield Step(loops, 0, {0: factor, 1: (b, k, j), 2: (b, i, j)}, (b, i, j))


def _held(call: Call) -> Resident:
    (given,) = call.operands
    dtype, method = (
        {"bf16": "bfloat16", "f32": "float32"}[given.dtype],
        "gram" if "k" in call.name.split("_")[1] else "direct",
    )
    held = resident(*given.sizes[1:], dtype, method)
    if held is None:
        raise ValueError(f"one kernel can't hold this matrix: {call}")
    return held


def _resident_steps(call: Call, name: str) -> Iterator[Step]:
    """A step for each instruction, and for each panel that comes or goes. The name has the kinds of all loops."""
    held, (kinds, instructions) = _held(call), name.split("_")
    blocks = held.short // held.block
    if blocks == 1:
        raise ValueError(f"one block is multiplied without a loop, and no instruction can be told from another: {call}")
    lower, square, panel = blocks * (blocks + 1) // 2, held.block**2 * held.short, held.block * held.panel * held.short
    work = {
        "l": (blocks, 0),
        "g": (lower, held.block**2 * held.long),
        "c": (lower, 0),
        "p": (lower, square),
        "k": (lower, square),
        "w": (blocks**2, square),
        "a": (blocks * held.panels, panel),
        "r": (blocks, panel),
    }
    everything = "a" * held.panels + instructions[:-1] + instructions[-1] * held.panels
    for b in range(call.operands[0].sizes[0]):
        for number, letter in enumerate(everything):
            body = ord(letter) - ord("a")
            kind = kinds[body]
            # The norm is one number, and no loop.
            own = () if kind == "n" else ((len(kinds[:body].replace("n", "")), *work[kind]),)
            coming, going = min(number, held.panels - 1), max(0, number - len(everything) + held.panels)
            yield Step(own, 0, {0: (b, coming)}, (b, going))


def _tile_bytes(call: Call) -> dict[int, int]:
    """Bytes of a tile of each operand that comes in tiles, and of each result, numbered from -1 down."""
    arrays = dict(enumerate(call.operands)) | {-1 - number: array for number, array in enumerate(call.results)}

    def size(array: Array) -> int:
        if call.name.startswith("resident"):
            return min(array.sizes[1:]) * _held(call).panel
        return math.prod(tiling(side).tile for side in array.sizes[1:])

    return {place: BYTES[array.dtype] * size(array) * (not array.is_near) for place, array in arrays.items()}
