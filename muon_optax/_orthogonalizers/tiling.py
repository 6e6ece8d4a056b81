"""Symmetric products: what a kernel holds of a matrix, the blocks that it multiplies, and what an iteration costs."""

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.restarts import restart_steps

_TILES = (1024, 896, 768, 640, 512, 384, 256, 128)
# Two tiles of 512 x 512 in bfloat16 take a v5e's memory about as long as its matrix units take to multiply them, two of
# 256 twice as long. One tile that is the whole side is fetched once.
_FETCHED_IN_TIME = 512
# A block's sums stay in registers while it is multiplied. Smaller blocks read and write their sums more often.
_BLOCKS = {256: 1.0, 128: 1.15}  # size: cycles of a multiplication, relative

# What a kernel may take of vector memory. A v5p has 64 MiB, a v5e and a v6e 128.
MEMORY = 56 * 2**20
# Of that, for what the compiler needs besides.
_SPARE = 4 * 2**20
_PANELS = (256, 128)

Iteration = Literal["direct", "gram"]


class Tiling(NamedTuple):
    """One side of a matrix in tiles, padded with zeros to a whole number of them."""

    size: int  # A multiple of the tile.
    tile: int  # A multiple of the block.
    block: int

    @property
    def tiles(self) -> int:
        """The number of tiles."""
        return self.size // self.tile

    @property
    def wide_block(self) -> int:
        """Twice the block, if tiles have room: whatever is done to a left factor serves twice as many columns."""
        return 2 * self.block if self.tile % (2 * self.block) == 0 else self.block

    def of_lower(self) -> float:
        """The share of a symmetric matrix's blocks that are multiplied: those on and below the diagonal."""
        blocks = self.size // self.block
        return (blocks + 1) / (2 * blocks)


def tiling(size: int) -> Tiling:
    """The tiles for a side of ``size``: those that cost least, padding included, and of these the largest."""
    ways = [_ways(size, tile) for tile in _TILES]
    return min(ways, key=_relative_cost)


def _relative_cost(way: Tiling) -> float:
    waiting = max(1.0, _FETCHED_IN_TIME / way.tile) if way.tiles > 1 else 1.0
    return way.size * _BLOCKS[way.block] * waiting


def _ways(size: int, tile: int) -> Tiling:
    block = max(block for block in _BLOCKS if tile % block == 0)
    return Tiling(math.ceil(size / tile) * tile, tile, block)


class Resident(NamedTuple):
    """A matrix that one kernel holds through all steps. There it lies wide, padded with zeros to whole blocks."""

    rows: int
    cols: int
    short: int  # The smaller side as padded, a multiple of `block`.
    long: int  # The larger one, a multiple of `panel`.
    block: int
    panel: int

    @property
    def panels(self) -> int:
        """The number of panels, in which the matrix comes and goes."""
        return self.long // self.panel

    @property
    def short_tiling(self) -> Tiling:
        """The smaller side, as one tile."""
        return Tiling(self.short, self.short, self.block)

    @property
    def wide(self) -> bool:
        """Whether the matrix lies wide in main memory, too."""
        return self.rows <= self.cols


def resident(rows: int, cols: int, dtype: jax.typing.DTypeLike, method: Iteration) -> Resident | None:
    """How one kernel holds a matrix of these sides; ``None`` if it does not fit."""
    short, long = sorted((rows, cols))
    block = min(_BLOCKS, key=lambda size: _padded(short, size) * _BLOCKS[size])
    panel = min(_PANELS, key=lambda size: _padded(long, size))
    held = Resident(rows, cols, _padded(short, block), _padded(long, panel), block, panel)
    return held if _bytes(held, jnp.finfo(dtype).bits // 8, method) <= MEMORY - _SPARE else None


def _padded(size: int, unit: int) -> int:
    return math.ceil(size / unit) * unit


def _bytes(held: Resident, item: int, method: Iteration) -> int:
    # X twice, since a product is not written over what it reads. The Gram matrix and its polynomial; the Gram method
    # has two more and one in float32. Panels that come and go, each twice.
    squares = 2 * item if method == "direct" else 4 * item + 4
    # A product in float32 cuts both of its factors into parts, which lie in memory meanwhile: in bfloat16 they don't.
    parts = 24 * held.block * held.long if item == 4 else 0
    return held.short * (2 * held.long * item + held.short * squares + 2 * held.panel * (item + 4)) + parts


def direct_cost(coefficients: Coefficients, short: int, long: int, dtype: jax.typing.DTypeLike) -> float:
    """Multiplications of the direct method for one matrix."""
    n, m, lower, _ = _sides(short, long, dtype, "direct")
    squares = sum(c != 0 for _, _, c in coefficients)
    # Each step: the lower blocks of X X^T, all of B X, and the lower blocks of A^2.
    return len(coefficients) * (lower + 1) * n**2 * m + squares * lower * n**3


def gram_cost(coefficients: Coefficients, short: int, long: int, dtype: jax.typing.DTypeLike) -> float:
    """Multiplications of the Gram method for one matrix."""
    n, m, lower, is_resident = _sides(short, long, dtype, "gram")
    bounds = (0, *restart_steps(coefficients, dtype), len(coefficients))
    later = sum(end - first - 1 for first, end in pairwise(bounds))
    squares = sum(c != 0 for _, _, c in coefficients)
    # Each later step of a segment: two symmetric products for R, and one for Q, which is made whole in 16 bits.
    factor = 1.0 if is_resident or jnp.finfo(dtype).bits < 32 else lower
    return (len(bounds) - 1) * (lower + 1) * n**2 * m + (lower * (squares + 2 * later) + factor * later) * n**3


def cheaper_method(coefficients: Coefficients, short: int, long: int, dtype: jax.typing.DTypeLike) -> Iteration:
    """Gram where it saves at least 14% of the multiplications and the matrix is not small, as with XLA's products."""
    saves = gram_cost(coefficients, short, long, dtype) < 0.86 * direct_cost(coefficients, short, long, dtype)
    return "gram" if saves and short >= 256 else "direct"


def _sides(short: int, long: int, dtype: jax.typing.DTypeLike, method: Iteration) -> tuple[int, int, float, bool]:
    """Both sides as padded, the share of a symmetric product that is multiplied, and whether one kernel does it all."""
    held = resident(short, long, dtype, method)
    own = held.short_tiling if held else tiling(short)
    return own.size, held.long if held else tiling(long).size, own.of_lower(), held is not None
