"""An array of an earlier state in the way, dtype and place of a fresh one's."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from muon_optax._layouts.paths import show
from muon_optax._state.kept_arrays import Kept
from muon_optax._state.places import in_device_memory, placed
from muon_optax._transforms.momenta.quantized_trace import Bits, quantized, restored


def converted(earlier: Kept, fresh: Kept, momentum: float, block_size: int) -> tuple[Any, ...] | None:
    """The values of ``earlier`` as those of ``fresh``; ``None`` if they are of another shape.

    Args:
        earlier: An entry of the earlier state.
        fresh: The entry that replaces it.
        momentum: An average of the gradients is ``1 - momentum`` times their sum.
        block_size: The block size of momentum in codes.
    """
    if [*map(_type, earlier.values)] == [*map(_type, fresh.values)] and earlier.way == fresh.way:
        return tuple(map(placed, earlier.values, fresh.values))
    shape = common_shape(earlier, fresh)
    if shape is None:
        return None
    array = earlier.values[0]
    if jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
        return tuple(map(placed, earlier.values, fresh.values))
    if earlier.way == "codes":
        _check_blocks(earlier, shape, block_size)
        codes, scales = map(in_device_memory, earlier.values)
        array = restored(codes, scales, shape, _bits(earlier), block_size)
    # Scaled in float32: a bfloat16 average times 20 is rounded once.
    array = in_device_memory(array)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        array = array.astype(jnp.promote_types(array.dtype, jnp.float32)) * _scale(earlier, fresh, momentum)
    if fresh.way == "codes":
        _check_blocks(fresh, shape, block_size)
        return tuple(map(placed, quantized(array, _bits(fresh), block_size), fresh.values))
    return (placed(array, fresh.values[0]),)


def _scale(earlier: Kept, fresh: Kept, momentum: float) -> float:
    averages = earlier.way == "average", fresh.way == "average"
    return {(True, False): 1 / (1 - momentum), (False, True): 1 - momentum}.get(averages, 1.0)


def whole_shape(kept: Kept) -> tuple[int, ...]:
    """The shape of the parameter, as far as a momentum's codes show it. With 4 bits an odd size appears as one less."""
    *rest, last = kept.shape or (1,)
    return (*rest, 2 * last) if kept.way == "codes" and _bits(kept) == 4 else kept.shape


def common_shape(earlier: Kept, fresh: Kept) -> tuple[int, ...] | None:
    """The shape that both have once codes are read; ``None`` if they differ."""
    known = [kept for kept in (fresh, earlier) if not (kept.way == "codes" and _bits(kept) == 4)]
    shape = (known[0] if known else earlier).shape if known else whole_shape(earlier)
    return shape if all(_as_kept(shape, kept) == kept.shape for kept in (earlier, fresh)) else None


def _as_kept(shape: tuple[int, ...], kept: Kept) -> tuple[int, ...]:
    return (*shape[:-1], math.ceil(shape[-1] / 2)) if kept.way == "codes" and _bits(kept) == 4 and shape else shape


def _bits(kept: Kept) -> Bits:
    return 8 if jnp.result_type(kept.values[0]) == jnp.int8 else 4


def _check_blocks(kept: Kept, shape: tuple[int, ...], block_size: int) -> None:
    """Raises ValueError where scales are those of blocks of another size."""
    last = shape[-1] if shape else 1
    blocks, scales = math.ceil(last / min(block_size, max(1, last))), jnp.shape(kept.values[1])[-1]
    if blocks != scales:
        raise ValueError(
            f"block_size={block_size} does not fit the codes of {show(kept.path)}, of shape {shape} with {scales} "
            "scales a row: pass the block_size of quantized_trace(...), which both states must share."
        )


def _type(value: Any) -> tuple[Any, ...]:
    return tuple(jnp.shape(value)), jnp.result_type(value)
