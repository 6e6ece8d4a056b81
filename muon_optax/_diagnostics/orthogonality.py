"""The distance of updates from orthogonal matrices."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from muon_optax._diagnostics.leaves import by_path, matrix_leaves, planned, refuse_shape
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._orthogonalizers.precision import accumulation_dtype, near_one
from muon_optax._orthogonalizers.step import gram


def orthogonality_error(updates: Any, layouts: Layouts = None) -> dict[str, jax.Array]:
    """Measures how far each leaf's matrices are from having equal singular values. For use inside ``jit``.

    With ``G`` the smaller of ``X X^T`` and ``X^T X``, of size ``n``, and ``mu = trace(G) / n``, the error is
    ``||G / mu - I|| / sqrt(n)`` (Frobenius): the standard deviation of the squared singular values, divided by their
    mean. It is 0 for a multiple of an orthogonal matrix, about twice the relative spread of the singular values near
    there, and ``sqrt(n / r - 1)`` for rank ``r``, at most ``sqrt(n - 1)``. It does not depend on the scale: final
    updates will do, weight decay included. Rounding to bfloat16 alone gives up to 0.0025.

    The matrices of a leaf, from its batch axes and its split, are taken together by a root mean square over all their
    singular values. It costs one product a matrix, in full float32 (of 16-bit updates in 16 bits, which is exact).

    Args:
        updates: What an orthogonalizer or ``optimizer.update`` returned.
        layouts: As given to :func:`muon_optax.muon`.

    Returns:
        A mapping from leaf path to a float32 scalar (float64 for float64) without unit. All-zero matrices have no
        directions and are left out of the mean; a leaf with no other, or an empty one, has 0. NaN for a leaf that holds
        NaN or infinities. Leaves without a layout are left out.

    Raises:
        ValueError: As :func:`muon_optax.assign_layouts`, and if two leaves have the same path.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> updates = {"rotation": jnp.array([[0.0, -5.0], [5.0, 0.0]]), "rank_one": jnp.ones((2, 2))}
        >>> {path: round(float(error), 4) for path, error in mo.diagnostics.orthogonality_error(updates).items()}
        {'rank_one': 1.0, 'rotation': 0.0}
    """
    for path, value, _ in matrix_leaves(updates, layouts):
        refuse_shape(path, value)
    return by_path(
        (path, planned(partial(error_of_matrices, layout), jnp.asarray(value)))
        for path, value, layout in matrix_leaves(updates, layouts)
    )


@partial(jax.jit, static_argnums=0)
def error_of_matrices(layout: Layout, array: jax.Array) -> jax.Array:
    dtype, accumulated = array.dtype, accumulation_dtype(array.dtype)
    # Products of 16-bit numbers are exact in float32, and many times cheaper than those of float32 numbers.
    multiplied = dtype if jnp.finfo(dtype).bits == 16 else accumulated
    squares = values = jnp.zeros((), accumulated)
    for matrices in layout.to_matrices(array) if array.size else ():
        G = gram(near_one(matrices, multiplied))
        size = G.shape[-1]
        mean = jnp.trace(G, axis1=-2, axis2=-1)[..., None, None] / size
        identity = jnp.broadcast_to(jnp.eye(size, dtype=accumulated), G.shape)
        deviations = jnp.where(mean == 0, 0, G / jnp.where(mean == 0, 1, mean) - identity)
        squares += jnp.sum(deviations * deviations)
        values += size * jnp.sum(mean != 0, dtype=accumulated)
    return jnp.sqrt(squares / jnp.maximum(values, 1))
