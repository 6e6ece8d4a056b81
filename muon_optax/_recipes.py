"""Recipes: a name for what people run as a whole, each put together from parts in a few lines."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax

from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import named_leaves
from muon_optax._muon import muon
from muon_optax._orthogonalizers.coefficients import YOU_JIACHENG, polar_express
from muon_optax._transforms.decay_mask import decay_mask
from muon_optax._transforms.family.cautious_decay import add_cautious_decayed_weights
from muon_optax._transforms.family.clip_qk import clip_qk
from muon_optax._transforms.family.hyperball import scale_by_hyperball
from muon_optax._transforms.family.normuon import Axis, scale_by_normuon
from muon_optax._transforms.momentum import Momentum, keep_momentum
from muon_optax._transforms.orthogonalize import orthogonalize_via_newton_schulz
from muon_optax._transforms.partition import partition_by_layout
from muon_optax._transforms.scale_by_shape import scale_by_shape


def normuon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.1,
    momentum: Momentum = 0.95,
    b2: jax.typing.ArrayLike = 0.95,
    axis: Axis = "output",
    layouts: Layouts = None,
    shardings: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """:func:`muon_optax.muon` with :func:`muon_optax.scale_by_normuon`, the paper's NorMuon; AdamW for the rest.

    Args:
        learning_rate: As in :func:`muon_optax.muon`: AdamW's.
        weight_decay: As in :func:`muon_optax.muon`.
        momentum: As in :func:`muon_optax.muon`.
        b2: As in :func:`muon_optax.scale_by_normuon`.
        axis: As in :func:`muon_optax.scale_by_normuon`.
        layouts: As in :func:`muon_optax.assign_layouts`.
        shardings: As in :func:`muon_optax.orthogonalize`.

    Returns:
        A transform as :func:`muon_optax.partition_by_layout` makes it. ``update`` needs ``params``.

    References:
        Zichong Li et al., "NorMuon: Making Muon more efficient and scalable", https://arxiv.org/abs/2510.05491, 2025.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
        >>> optimizer = mo.normuon(3e-4)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    matrices = optax.chain(
        keep_momentum(momentum),
        orthogonalize_via_newton_schulz(shardings=shardings),
        scale_by_normuon(b2, axis=axis),
        scale_by_shape("moonlight"),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    adamw = optax.adamw(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay, mask=decay_mask)
    return partition_by_layout(matrices, adamw, layouts)


def muon_clip(
    learning_rate: optax.ScalarOrSchedule,
    *,
    threshold: float = 100.0,
    weight_decay: optax.ScalarOrSchedule = 0.1,
    layouts: Layouts = None,
    shardings: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonClip, as Kimi K2 was trained: :func:`muon_optax.muon`, then :func:`muon_optax.clip_qk`.

    Args:
        learning_rate: As in :func:`muon_optax.muon`: AdamW's.
        threshold: As in :func:`muon_optax.clip_qk`.
        weight_decay: As in :func:`muon_optax.muon`.
        layouts: As in :func:`muon_optax.assign_layouts`.
        shardings: As in :func:`muon_optax.orthogonalize`.

    Returns:
        A transform whose ``update`` needs ``params`` and ``max_logits``, as :func:`muon_optax.clip_qk` says.

    References:
        Kimi Team, "Kimi K2: Open Agentic Intelligence", https://arxiv.org/abs/2507.20534, 2025.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"q_proj": jnp.ones((4, 6)), "k_proj": jnp.ones((4, 6))}
        >>> optimizer = mo.muon_clip(3e-4)
        >>> maxima = jnp.array([50.0, 400.0])
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, max_logits=maxima)
    """
    whole = muon(learning_rate, weight_decay=weight_decay, layouts=layouts, shardings=shardings)
    return optax.chain(whole, clip_qk(threshold, layouts=layouts))


def muon_h(
    learning_rate: optax.ScalarOrSchedule,
    adam_learning_rate: optax.ScalarOrSchedule,
    *,
    heads: Sequence[str] = ("*head/kernel", "*head/weight", "*head/w"),
    momentum: Momentum = 0.95,
    layouts: Layouts = None,
    shardings: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonH, as Marin trains: :func:`muon_optax.scale_by_hyperball` for matrices and the head, Adam for the rest.

    Matrices take orthogonalized Nesterov momentum to their spheres, the head Adam's steps to its own. Nothing decays.

    Args:
        learning_rate: Of the matrices, relative to their norms, as in :func:`muon_optax.scale_by_hyperball`.
        adam_learning_rate: Of Adam, and of the head relative to its norm.
        heads: Path globs of the heads among the parameters that Muon does not train.
        momentum: As in :func:`muon_optax.muon`.
        layouts: As in :func:`muon_optax.assign_layouts`.
        shardings: As in :func:`muon_optax.orthogonalize`.

    Returns:
        A transform as :func:`muon_optax.partition_by_layout` makes it. ``update`` needs ``params``.

    Raises:
        ValueError: At ``init``, for a matrix or head of zeros, with its path.

    References:
        Kaiyue Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization",
        https://arxiv.org/abs/2606.16899, 2026.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"up": jnp.ones((4, 8)), "head": {"kernel": jnp.ones((8, 9))}, "bias": jnp.ones(8)}
        >>> optimizer = mo.muon_h(0.01, 3e-3)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    matrices = optax.chain(
        keep_momentum(momentum),
        orthogonalize_via_newton_schulz(YOU_JIACHENG, shardings=shardings),
        scale_by_hyperball(learning_rate),
    )
    head = optax.chain(optax.scale_by_adam(b1=0.9, b2=0.95), scale_by_hyperball(adam_learning_rate, layouts=_whole))
    others = optax.partition(
        {"head": head, "adam": optax.adam(adam_learning_rate, b1=0.9, b2=0.95)},
        lambda params: _labels(params, heads),
    )
    return partition_by_layout(matrices, others, layouts)


def muon_speedrun(
    learning_rate: optax.ScalarOrSchedule,
    adamw_learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 1.2,
    momentum: Momentum | None = None,
    layouts: Layouts = None,
    shardings: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """The stack of the NanoGPT speed runs of 2026: four parts that each took a record.

    Polar Express coefficients, :func:`muon_optax.scale_by_normuon` along the longer axis,
    :func:`muon_optax.add_cautious_decayed_weights` that falls with the square of the learning rate, and a momentum that
    warms up. Proven at 0.1B parameters and a few minutes of training.

    Args:
        learning_rate: Of the matrices, with Keller Jordan's scale: near 0.02.
        adamw_learning_rate: Of AdamW for everything else.
        weight_decay: Times the learning rate, it is the decay of the matrices: ``weight_decay * learning_rate^2 * W``
            a step. Default 1.2, the speed runs'.
        momentum: As in :func:`muon_optax.muon`. Default: a schedule, linear from 0.85 to 0.95 over 300 steps.
        layouts: As in :func:`muon_optax.assign_layouts`.
        shardings: As in :func:`muon_optax.orthogonalize`.

    Returns:
        A transform as :func:`muon_optax.partition_by_layout` makes it. ``update`` needs ``params``.

    References:
        Keller Jordan et al., "modded-nanogpt", https://github.com/KellerJordan/modded-nanogpt, 2026.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
        >>> optimizer = mo.muon_speedrun(0.02, 3e-3)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """

    def decay(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        return weight_decay * (learning_rate(step) if callable(learning_rate) else learning_rate)

    matrices = optax.chain(
        keep_momentum(optax.linear_schedule(0.85, 0.95, 300) if momentum is None else momentum),
        orthogonalize_via_newton_schulz(polar_express(5), shardings=shardings),
        scale_by_normuon(0.9, axis="longer"),
        scale_by_shape("keller"),
        add_cautious_decayed_weights(decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    adamw = optax.adamw(adamw_learning_rate, b1=0.9, b2=0.95, mask=decay_mask)
    return partition_by_layout(matrices, adamw, layouts)


def _labels(params: Any, heads: Sequence[str]) -> Any:
    labels = [
        "head" if len(leaf.shape) > 1 and any(fnmatchcase(leaf.path, glob) for glob in heads) else "adam"
        for leaf in named_leaves(params)
    ]
    return jax.tree.unflatten(jax.tree.structure(params), labels)


def _whole(params: Any) -> dict[str, Layout]:
    """Each leaf as one matrix: only its norm is asked for, which does not tell inputs from outputs."""
    return {leaf.path: Layout("i" + "o" * (len(leaf.shape) - 1)) for leaf in named_leaves(params)}
