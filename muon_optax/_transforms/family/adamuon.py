"""AdaMuon: the sign of the momentum orthogonalized, then each entry divided by its own running size."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.handed_on import matrices_of
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._orthogonalizers.newton_schulz import newton_schulz
from muon_optax._orthogonalizers.precision import accumulation_dtype
from muon_optax._transforms.checks.arguments import check_number
from muon_optax._transforms.orthogonalize import orthogonalize
from muon_optax._transforms.tools.blocks import axes_of, frobenius_norm, join_blocks, nonzero, split_blocks

_RMS = 0.2  # of the update, which is AdamW's usual


class ScaleByAdaMuonState(NamedTuple):
    """The second moments of AdaMuon, an array like each parameter, float32 (float64 for float64)."""

    moments: Any


def scale_by_adamuon(
    orthogonalizer: Callable[[jax.Array], jax.Array] | None = None,
    *,
    b2: jax.typing.ArrayLike = 0.95,
    eps: float = 1e-8,
    layouts: Layouts = None,
    shardings: Any = None,
) -> optax.GradientTransformation:
    """AdaMuon: orthogonalizes the sign of the updates, divides by running sizes, and sets the RMS to 0.2.

    For a matrix ``u`` of the updates: ``O = orthogonalizer(sign(u))``; ``v <- b2 v + (1 - b2) O^2``, elementwise;
    ``O' = O / (sqrt(v) + eps)``; the update is ``0.2 sqrt(rows cols) O' / ||O'||``. It stands after ``optax.trace`` and
    takes the place of both :func:`muon_optax.orthogonalize` and :func:`muon_optax.scale_by_shape`: sign and RMS step
    are part of the algorithm, so they are part of the transform.

    When to choose it: to reproduce the paper. The evidence is thin, and users report losses above AdamW's;
    :func:`muon_optax.scale_by_normuon` needs far less memory.

    Args:
        orthogonalizer: As in :func:`muon_optax.orthogonalize`. ``None`` for :func:`muon_optax.newton_schulz`.
        b2: Decay of the second moments, in [0, 1); the paper's is the momentum's.
        eps: Added to the root, >= 0.
        layouts: As in :func:`muon_optax.orthogonalize`.
        shardings: As in :func:`muon_optax.orthogonalize`.

    Returns:
        A transform with a ``ScaleByAdaMuonState``, as large as a second momentum in float32. Updates keep their shape
        and dtype; learning rate and weight decay are AdamW's.

    Raises:
        ValueError: At construction, for numbers out of range; as :func:`muon_optax.orthogonalize` otherwise.

    References:
        Chongjie Si et al., "AdaMuon: Adaptive Muon Optimizer", https://arxiv.org/abs/2507.11005, 2025.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> transform = mo.scale_by_adamuon(mo.polar_factor())
        >>> gradient = {"w": jnp.array([[0.5, 3.0], [-2.0, 7.0]])}
        >>> updates, state = transform.update(gradient, transform.init(gradient))
        >>> updates["w"].round(4).tolist()
        [[0.2, 0.2], [-0.2, 0.2]]
    """
    check_number("b2", b2, "use a number in [0, 1), such as 0.95", 0.0, 1.0)
    check_number("eps", eps, "use a finite number >= 0, such as 1e-8", 0.0)
    polar = orthogonalize(
        newton_schulz() if orthogonalizer is None else orthogonalizer, layouts=layouts, shardings=shardings
    )

    def init(params: optax.Params) -> ScaleByAdaMuonState:
        polar.init(params)
        return ScaleByAdaMuonState(
            jax.tree.map(lambda leaf: jnp.zeros_like(leaf, accumulation_dtype(jnp.asarray(leaf).dtype)), params)
        )

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByAdaMuonState]:
        orthogonal, _ = polar.update(jax.tree.map(jnp.sign, updates), optax.EmptyState(), params)
        moments = jax.tree.map(lambda leaf, v: _second_moment(leaf, v, b2), orthogonal, state.moments)
        scaled = [
            _scaled(leaf.value, layout, v, eps)
            for (leaf, layout), v in zip(matrices_of(orthogonal, layouts), jax.tree.leaves(moments), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(updates), scaled), ScaleByAdaMuonState(moments)

    return optax.GradientTransformation(init, update)


def _second_moment(orthogonal: jax.Array, v: jax.Array, b2: jax.typing.ArrayLike) -> jax.Array:
    return jnp.asarray(b2 * v + (1 - b2) * orthogonal.astype(v.dtype) ** 2, v.dtype)


def _scaled(orthogonal: jax.Array, layout: Layout, v: jax.Array, eps: float) -> jax.Array:
    widened = orthogonal.astype(accumulation_dtype(orthogonal.dtype))
    blocks = split_blocks(widened / (jnp.sqrt(v.astype(widened.dtype)) + eps), layout)
    scaled = []
    for block in blocks:
        entries = math.prod(block.shape[axis] for axis in axes_of(layout, "io"))
        factor = _RMS * math.sqrt(entries) / nonzero(frobenius_norm(block, layout))
        scaled.append((factor * block).astype(orthogonal.dtype))
    return join_blocks(scaled, layout, orthogonal)
