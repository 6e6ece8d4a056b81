"""The sizes of updates, measured and predicted."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from muon_optax._diagnostics.leaves import by_path, floating_leaves, matrix_leaves
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._orthogonalizers.precision import accumulation_dtype
from muon_optax._transforms.checks.arguments import check_number
from muon_optax._transforms.scales import Scale, check_scale, scale_factors


def update_rms(updates: Any) -> dict[str, jax.Array]:
    """The root mean square of each leaf, ``sqrt(mean(|x|^2))``. For use inside ``jit``.

    Squares neither overflow nor underflow, since the largest element is divided out first; subnormal numbers may count
    as 0. Divide by :func:`predicted_update_rms` to see whether updates have the size that they should have.

    Args:
        updates: What ``optimizer.update`` returned, or any other tree; leaves are left out as in
            :func:`nonfinite_counts`.

    Returns:
        A mapping from leaf path to a float32 scalar (float64 for float64 and complex128), in the unit of the updates. 0
        for an empty leaf, NaN for one that holds NaN, infinity for one that holds infinities and no NaN.

    Raises:
        ValueError: If two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> float(mo.diagnostics.update_rms({"kernel": jnp.array([[3e30, 4e30], [0.0, 0.0]])})["kernel"])
        2.5e+30
    """
    return by_path((path, root_mean_square(jnp.asarray(value))) for path, value in floating_leaves(updates))


def predicted_update_rms(
    params: Any,
    layouts: Layouts = None,
    *,
    scale: Scale = "moonlight",
    learning_rate: jax.typing.ArrayLike = 1.0,
) -> dict[str, jax.typing.ArrayLike]:
    """The root mean square that an exactly orthogonal update has, for each leaf with a layout.

    A ``fan_in x fan_out`` matrix with all singular values 1 has the Frobenius norm ``sqrt(min(fan_in, fan_out))``, so
    the leaf's RMS is ``learning_rate * factor / sqrt(max(fan_in, fan_out))``: with moonlight, 0.2 times the learning
    rate. The blocks of a split have factors of their own and count by their elements:
    ``sqrt(sum_k factor_k^2 min(fan_in, fan_out_k) / (fan_in sum_k fan_out_k))``.

    The measured value divided by this one is the root mean square of the singular values that the orthogonalizer left:
    1 for :func:`muon_optax.polar_factor` and in :func:`muon_optax.coefficient_range` for others, times ``sqrt(r / n)``
    for rank ``r`` of ``n``. Weight decay moves it by at most ``weight_decay / factor`` times the parameter's spectral
    norm.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``; nothing is computed on them.
        layouts: As given to :func:`muon_optax.muon`.
        scale: As given to :func:`muon_optax.muon`. Default moonlight, its default too.
        learning_rate: A number >= 0 or a scalar array, which may be traced; of a schedule, its value at the step.
            Default 1, for updates that no learning rate has multiplied yet.

    Returns:
        A mapping from leaf path to a Python number, known before anything runs (a scalar array, if ``learning_rate`` is
        one). 0 for an empty leaf. Leaves without a layout, which AdamW trains, are left out.

    Raises:
        ValueError: For an unknown scale, a learning rate out of range, and as :func:`muon_optax.assign_layouts`.
        TypeError: For a learning rate that is not a number, such as a schedule.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"kernel": jnp.zeros((16, 64)), "bias": jnp.zeros(64)}
        >>> mo.diagnostics.predicted_update_rms(params, learning_rate=0.01)
        {'kernel': 0.002}
    """
    check_scale(scale)
    check_number("learning_rate", learning_rate, "use a number >= 0, or the value of a schedule at the step", 0.0)
    return by_path(
        (path, learning_rate * orthogonal_rms(scale, layout, np.shape(value)))
        for path, value, layout in matrix_leaves(params, layouts)
    )


@jax.jit  # outside jit too, one program for each shape
def root_mean_square(array: jax.Array) -> jax.Array:
    magnitudes = jnp.abs(array)
    magnitudes = magnitudes.astype(accumulation_dtype(magnitudes.dtype))
    limits = jnp.finfo(magnitudes.dtype)
    # The largest, or near it at the ends of the range. One factor and not two: XLA would join two to their product. It
    # may also square the factor alone, of zeros that it knows: that must be finite.
    unit = jnp.clip(jnp.max(magnitudes, initial=0), float(limits.tiny) ** 0.5, limits.max / 8)
    normalized = magnitudes * (1 / unit)
    return unit * jnp.sqrt(jnp.sum(normalized * normalized) / max(1, array.size))


def orthogonal_rms(scale: Scale, layout: Layout, shape: tuple[int, ...]) -> float:
    if math.prod(shape) == 0:
        return 0.0
    fan_in, blocks = layout.fan_in(shape), layout.blocks(shape)
    factors = scale_factors(scale, layout, shape)
    squares = sum(factor**2 * min(fan_in, fan_out) for factor, fan_out in zip(factors, blocks, strict=True))
    return math.sqrt(squares / (fan_in * sum(blocks)))
