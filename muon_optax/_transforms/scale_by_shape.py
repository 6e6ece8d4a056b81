"""The scaling transform, which gives orthogonalized updates the size that suits their shapes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from muon_optax._layouts.assigning.handed_on import check_matrices, matrices_of
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._orthogonalizers.precision import accumulation_dtype
from muon_optax._transforms.scales import Scale, check_scale, scale_factors


def scale_by_shape(variant: Scale = "moonlight", *, layouts: Layouts = None) -> optax.GradientTransformation:
    """Multiplies every matrix of the updates by a factor of its fan-in and fan-out.

    ============= ======================================= ===================================================
    variant       factor                                  choose it
    ============= ======================================= ===================================================
    ``naive``     1                                       to scale by yourself
    ``keller``    ``max(1, fan_out / fan_in) ** 0.5``     to reproduce Keller Jordan's runs, learning rate 0.02
    ``mup``       ``(fan_out / fan_in) ** 0.5``           to carry learning rates over to other widths
    ``moonlight`` ``0.2 * max(fan_in, fan_out) ** 0.5``   to reuse AdamW's learning rate and weight decay
    ============= ======================================= ===================================================

    Args:
        variant: One of the four names, or a function ``(fan_in, fan_out) -> factor``. Default moonlight: its updates
            are as large as AdamW's usual ones.
        layouts: As in :func:`muon_optax.orthogonalize`. With a split, each block has a fan-out of its own.

    Returns:
        A transform without state. Updates keep their shape and dtype.

    Raises:
        ValueError: For an unknown variant; at ``init``, if a leaf has no layout or one that does not fit (its path is
            named).

    References:
        Jingyuan Liu et al., "Muon is Scalable for LLM Training", https://arxiv.org/abs/2502.16982, 2025 (moonlight).
        Keller Jordan, "Muon: An optimizer for hidden layers in neural networks",
        https://kellerjordan.github.io/posts/muon/, 2024 (keller).
        Greg Yang, James B. Simon, Jeremy Bernstein, "A Spectral Condition for Feature Learning",
        https://arxiv.org/abs/2310.17813, 2023 (mup).

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> transform = mo.scale_by_shape("mup")
        >>> updates = {"w": jnp.ones((2, 8))}
        >>> float(transform.update(updates, transform.init(updates))[0]["w"][0, 0])
        2.0
    """
    check_scale(variant)
    return scale_by_shape_of(lambda _: variant, layouts)


def scale_by_shape_of(variant_at: Callable[[str], Scale], layouts: Layouts = None) -> optax.GradientTransformation:
    """:func:`scale_by_shape` with the variant of each path, checked before."""

    def init(params: optax.Params) -> optax.EmptyState:
        check_matrices(params, layouts)
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        matrices = matrices_of(updates, layouts)
        scaled = [_apply(variant_at(leaf.path), jnp.asarray(leaf.value), layout) for leaf, layout in matrices]
        return jax.tree.unflatten(jax.tree.structure(updates), scaled), state

    return optax.GradientTransformation(init, update)


def _apply(variant: Scale, array: jax.Array, layout: Layout) -> jax.Array:
    # In float32: JAX would round the factor to the dtype of a bfloat16 update first.
    factors = scale_factors(variant, layout, array.shape)
    widened = array.astype(accumulation_dtype(array.dtype))
    if len(factors) == 1:
        return (factors[0] * widened).astype(array.dtype)
    # One factor for each output: nothing is split where devices hold parts of several blocks.
    outputs = [-1 if letter == "o" else 1 for letter in layout.axes]
    factor = np.repeat(factors, layout.blocks(array.shape)).reshape(outputs)
    return (jnp.asarray(factor, widened.dtype) * widened).astype(array.dtype)
