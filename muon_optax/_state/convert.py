"""An array of an earlier state in the way, dtype and place of a fresh one's."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from muon_optax._layouts.paths import show
from muon_optax._state.kept_arrays import Kept
from muon_optax._transforms.momenta.offload_to_host import to_device
from muon_optax._transforms.momenta.quantized_trace import Bits, quantized, restored


def converted(earlier: Kept, fresh: Kept, momentum: float, block_size: int) -> tuple[Any, ...] | None:
    """The values of ``earlier`` as those of ``fresh``; ``None`` if they are of another shape.

    Args:
        earlier: What the earlier state keeps.
        fresh: What takes its place.
        momentum: An average of the gradients is ``1 - momentum`` times their sum.
        block_size: Of momentum in codes.
    """
    if [*map(_type, earlier.values)] == [*map(_type, fresh.values)] and earlier.way == fresh.way:
        return tuple(map(_placed, earlier.values, fresh.values))
    shape = _whole_shape(earlier, fresh)
    if shape is None:
        return None
    earlier = earlier._replace(values=to_device(earlier.values))
    array = earlier.values[0]
    if jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
        return tuple(map(_placed, earlier.values, fresh.values))
    if earlier.way == "codes":
        _check_blocks(earlier, shape, block_size)
        array = restored(earlier.values[0], earlier.values[1], shape, _bits(earlier), block_size)
    factor = {("average", False): 1 / (1 - momentum), ("sum", True): 1 - momentum, ("codes", True): 1 - momentum}
    # Scaled in float32: a bfloat16 average times 20 is rounded once.
    array = jnp.asarray(array)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        scale = factor.get((earlier.way, fresh.way == "average")) if earlier.way != fresh.way else None
        array = array.astype(jnp.promote_types(array.dtype, jnp.float32)) * (1.0 if scale is None else scale)
    if fresh.way == "codes":
        _check_blocks(fresh, shape, block_size)
        return tuple(map(_placed, quantized(array, _bits(fresh), block_size), fresh.values))
    return (_placed(array, fresh.values[0]),)


def whole_shape(kept: Kept) -> tuple[int, ...]:
    """The shape of the parameter, as far as the codes of a momentum tell it: with 4 bits an odd size is one less."""
    *rest, last = kept.shape or (1,)
    return (*rest, 2 * last) if kept.way == "codes" and _bits(kept) == 4 else kept.shape


def _whole_shape(earlier: Kept, fresh: Kept) -> tuple[int, ...] | None:
    """The shape that both have; ``None`` if they differ."""
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


def _placed(value: Any, like: Any) -> Any:
    """``value`` in the dtype of ``like`` and where that lies."""
    if not jnp.issubdtype(jnp.result_type(like), jax.dtypes.prng_key):
        value = jnp.asarray(value).astype(jnp.result_type(like))
    return jax.device_put(value, getattr(like, "sharding", None))
