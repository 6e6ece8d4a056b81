"""Recipes: a name for what people run as a whole, each put together from parts in a few lines."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import optax

from muon_optax._factory import assemble, decay_and_rate, default_adamw, rate
from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import named_leaves
from muon_optax._muon import muon
from muon_optax._orthogonalizers.coefficients import YOU_JIACHENG, Coefficients, polar_express
from muon_optax._orthogonalizers.newton_schulz import newton_schulz
from muon_optax._transforms.by_path.chosen import Chosen, SettingsByPath
from muon_optax._transforms.by_path.parts import (
    grouped,
    momentum_by_path,
    orthogonalize_by_path,
    scale_by_path,
    times,
)
from muon_optax._transforms.by_path.refusals import refuse_without_meaning
from muon_optax._transforms.by_path.settings import Settings
from muon_optax._transforms.checks.arguments import check_decay, check_rate
from muon_optax._transforms.checks.keywords import explain_arguments
from muon_optax._transforms.family.cautious_decay import add_cautious_decayed_weights
from muon_optax._transforms.family.clip_qk import clip_qk
from muon_optax._transforms.family.hyperball import scale_by_hyperball_of
from muon_optax._transforms.family.normuon import Axis, scale_by_normuon
from muon_optax._transforms.heads import head_labels
from muon_optax._transforms.momenta.momentum import Momentum
from muon_optax._transforms.state.refusals import refuse_other_chain

__all__ = ["muon_clip", "muon_h", "muon_speedrun", "normuon"]


def __dir__() -> list[str]:
    """The public names alone, for those who look around by completion."""
    return __all__


@explain_arguments
def normuon(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: optax.ScalarOrSchedule = 0.1,
    momentum: Momentum = 0.95,
    b2: jax.typing.ArrayLike = 0.95,
    axis: Axis = "output",
    layouts: Layouts = None,
    adamw_learning_rate: optax.ScalarOrSchedule | None = None,
    shardings: Any = None,
    by_path: SettingsByPath = None,
) -> optax.GradientTransformationExtraArgs:
    """NorMuon, as in its paper: :func:`muon_optax.muon` with :func:`muon_optax.scale_by_normuon`.

    Args:
        learning_rate: As in :func:`muon_optax.muon`.
        weight_decay: As in :func:`muon_optax.muon`.
        momentum: As in :func:`muon_optax.muon`.
        b2: As in :func:`muon_optax.scale_by_normuon`.
        axis: As in :func:`muon_optax.scale_by_normuon`.
        layouts: As in :func:`muon_optax.assign_layouts`.
        adamw_learning_rate: As in :func:`muon_optax.muon`.
        shardings: As in :func:`muon_optax.muon`.
        by_path: As in :func:`muon_optax.muon`.

    Returns:
        A transform as :func:`muon_optax.partition_by_layout` makes it. ``update`` needs ``params``.

    Raises:
        ValueError: As :func:`muon_optax.muon`, and as :func:`muon_optax.scale_by_normuon`.
        TypeError: As :func:`muon_optax.muon`.

    References:
        Zichong Li et al., "NorMuon: Making Muon more efficient and scalable", https://arxiv.org/abs/2510.05491, 2025.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
        >>> optimizer = mo.recipes.normuon(3e-4)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    chosen = Chosen(by_path)
    matrices = (
        momentum_by_path(momentum, True, None, chosen),
        orthogonalize_by_path(newton_schulz(), shardings, chosen),
        scale_by_normuon(b2, axis=axis),
        scale_by_path("moonlight", chosen),
        *decay_and_rate(learning_rate, weight_decay, chosen=chosen),
    )
    rate_of_adamw = learning_rate if adamw_learning_rate is None else adamw_learning_rate
    adamw = default_adamw(rate_of_adamw, weight_decay, chosen=chosen)
    return assemble(matrices, adamw, layouts, shardings, chosen)


@explain_arguments
def muon_clip(
    learning_rate: optax.ScalarOrSchedule,
    *,
    threshold: float = 100.0,
    weight_decay: optax.ScalarOrSchedule = 0.1,
    layouts: Layouts = None,
    adamw_learning_rate: optax.ScalarOrSchedule | None = None,
    shardings: Any = None,
    by_path: SettingsByPath = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonClip, as Kimi K2 was trained: :func:`muon_optax.muon`, then :func:`muon_optax.clip_qk`.

    Args:
        learning_rate: As in :func:`muon_optax.muon`.
        threshold: As in :func:`muon_optax.clip_qk`.
        weight_decay: As in :func:`muon_optax.muon`.
        layouts: As in :func:`muon_optax.assign_layouts`.
        adamw_learning_rate: As in :func:`muon_optax.muon`.
        shardings: As in :func:`muon_optax.muon`.
        by_path: As in :func:`muon_optax.muon`. Clipping is the same for all parameters.

    Returns:
        A transform whose ``update`` needs ``params`` and ``max_logits``, as :func:`muon_optax.clip_qk` says.

    Raises:
        ValueError: As :func:`muon_optax.muon`, and as :func:`muon_optax.clip_qk`.
        TypeError: As :func:`muon_optax.muon`.

    References:
        Kimi Team, "Kimi K2: Open Agentic Intelligence", https://arxiv.org/abs/2507.20534, 2025.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"q_proj": jnp.ones((4, 6)), "k_proj": jnp.ones((4, 6))}
        >>> optimizer = mo.recipes.muon_clip(3e-4)
        >>> maxima = jnp.array([50.0, 400.0])
        >>> updates, state = optimizer.update(params, optimizer.init(params), params, max_logits=maxima)
    """
    whole = muon(
        learning_rate,
        weight_decay=weight_decay,
        layouts=layouts,
        adamw_learning_rate=adamw_learning_rate,
        shardings=shardings,
        by_path=by_path,
    )
    clipped = optax.chain(whole, clip_qk(threshold, layouts=layouts))

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        refuse_other_chain("muon_clip", state, 2)
        return clipped.update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(clipped.init, update)


_WITHOUT_MEANING_ON_A_SPHERE = {
    "weight_decay": "nothing decays there, since matrices and heads keep their norms",
    "scale": "each step has the size that the learning rate gives it, relative to the matrix",
}


@explain_arguments
def muon_h(
    learning_rate: optax.ScalarOrSchedule,
    *,
    adamw_learning_rate: optax.ScalarOrSchedule,
    heads: Sequence[str] | None = None,
    momentum: Momentum = 0.95,
    layouts: Layouts = None,
    shardings: Any = None,
    by_path: SettingsByPath = None,
) -> optax.GradientTransformationExtraArgs:
    """MuonH, as Marin trains: :func:`muon_optax.scale_by_hyperball` for matrices and the head, Adam for the rest.

    Matrices take orthogonalized Nesterov momentum to their spheres, the head Adam's steps to its own. Nothing decays.

    Args:
        learning_rate: The rate of the matrices, relative to their norms, as in :func:`muon_optax.scale_by_hyperball`.
        adamw_learning_rate: The rate of Adam, and that of the head relative to its norm.
        heads: Path globs of the heads among the parameters that Muon does not train. ``None`` for ``*head/kernel``,
            ``*head/weight`` and ``*head/w``, where there are any.
        momentum: As in :func:`muon_optax.muon`.
        layouts: As in :func:`muon_optax.assign_layouts`.
        shardings: As in :func:`muon_optax.muon`.
        by_path: As in :func:`muon_optax.muon`, with ``learning_rate``, ``momentum`` and ``orthogonalizer``.

    Returns:
        A transform as :func:`muon_optax.partition_by_layout` makes it. ``update`` needs ``params``.

    Raises:
        ValueError: As :func:`muon_optax.muon`, and for decay or scale by path; at ``init``, also for a matrix or head
            of zeros, with its path, and for a glob of ``heads`` that matches no parameter, or one that Muon trains.
        TypeError: As :func:`muon_optax.muon`, and if ``heads`` is not a sequence of globs.

    References:
        Kaiyue Wen et al., "Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization",
        https://arxiv.org/abs/2606.16899, 2026.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"up": jnp.ones((4, 8)), "head": {"kernel": jnp.ones((8, 9))}, "bias": jnp.ones(8)}
        >>> optimizer = mo.recipes.muon_h(0.01, adamw_learning_rate=3e-3)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    check_rate("learning_rate", learning_rate)
    check_rate("adamw_learning_rate", adamw_learning_rate)
    chosen = Chosen(by_path)
    refuse_without_meaning(chosen, "muon_h", _WITHOUT_MEANING_ON_A_SPHERE)

    def on_spheres(value: optax.ScalarOrSchedule, layouts: Layouts = None) -> optax.GradientTransformation:
        return scale_by_hyperball_of(lambda path: times(value, chosen.at(path).learning_rate), layouts=layouts)

    matrices = (
        momentum_by_path(momentum, True, None, chosen),
        orthogonalize_by_path(newton_schulz(YOU_JIACHENG), shardings, chosen),
        on_spheres(learning_rate),
    )

    def adam() -> optax.GradientTransformation:
        return optax.scale_by_adam(b1=0.9, b2=0.95)

    others = optax.partition(
        {
            "head": optax.chain(adam(), on_spheres(adamw_learning_rate, _whole)),
            "adam": optax.chain(adam(), rate(adamw_learning_rate, "adamw_learning_rate", chosen)),
        },
        head_labels(heads),
    )
    return assemble(matrices, others, layouts, shardings, chosen)


def _coefficients_of_the_record() -> Coefficients:
    """The record's, with its division by 1.02 times the norm written into those of the first step."""
    (a, b, c), *rest = polar_express(5, safety=1.02, cushion=0.02)
    return ((a / 1.02, b / 1.02**3, c / 1.02**5), *rest)


@explain_arguments
def muon_speedrun(
    learning_rate: optax.ScalarOrSchedule,
    *,
    adamw_learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule = 1.2,
    momentum: Momentum | None = None,
    layouts: Layouts = None,
    shardings: Any = None,
    by_path: SettingsByPath = None,
) -> optax.GradientTransformationExtraArgs:
    """Muon as in the NanoGPT speed runs of 2026, of four parts that each took a record.

    The parts are Polar Express, :func:`muon_optax.scale_by_normuon` along the longer axis,
    :func:`muon_optax.add_cautious_decayed_weights` that falls with the square of the learning rate, and a momentum that
    warms up. They are proven at 0.1B parameters and a few minutes of training.

    The update is the record's of August 2026, except for these differences. Figures are shares of the distance that a
    6 x 10 matrix moves in 20 steps of random gradients.

    1. Momentum is a sum of gradients, as everywhere here; the record keeps an average. During the warm-up the two
       differ by 1.4%. ``momentum=muon_optax.nesterov_ema(optax.linear_schedule(0.85, 0.95, 300))`` is the record's.
    2. The record takes the momentum back to 0.85 over its last 50 steps, which is 5% after 400 steps. For that, give a
       schedule that knows your last step.
    3. The record adds 1e-6 to a gradient's norm before it divides. This changes 2e-6 if gradients are near 1, and the
       whole update if they are far below 1e-6. Here the scale of a gradient does not matter.
    4. The record doubles the rate of the MLP's second matrices. Here one rate holds for all, unless ``by_path`` says
       otherwise, as in ``{"*/down/*": muon_optax.Settings(learning_rate=2)}``.
    5. All other parameters get AdamW with one rate; the record has tables of rates, betas and decays for them.

    Args:
        learning_rate: The rate of the matrices, with Keller Jordan's scale. Begin near 0.02.
        adamw_learning_rate: The rate of AdamW for everything else.
        weight_decay: Times the learning rate, it is the decay of the matrices before their scale ``s``:
            ``s * weight_decay * learning_rate^2 * W`` a step. A number >= 0, a scalar array or a schedule. Default 1.2,
            the speed runs'.
        momentum: As in :func:`muon_optax.muon`. Default: a schedule, linear from 0.85 to 0.95 over 300 steps.
        layouts: As in :func:`muon_optax.assign_layouts`.
        shardings: As in :func:`muon_optax.muon`.
        by_path: As in :func:`muon_optax.muon`. A factor on the rate of a matrix acts as it would on ``learning_rate``,
            so its decay changes by the square of the factor.

    Returns:
        A transform as :func:`muon_optax.partition_by_layout` makes it. ``update`` needs ``params``.

    Raises:
        ValueError: As :func:`muon_optax.muon`.
        TypeError: As :func:`muon_optax.muon`.

    References:
        Keller Jordan et al., "modded-nanogpt", https://github.com/KellerJordan/modded-nanogpt, 2026
        (train_gpt.py at f411b3d).

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}
        >>> optimizer = mo.recipes.muon_speedrun(0.02, adamw_learning_rate=3e-3)
        >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    """
    check_rate("learning_rate", learning_rate)
    check_decay(weight_decay)

    chosen = Chosen(by_path)

    def decay(settings: Settings) -> optax.GradientTransformation:
        own = times(weight_decay, settings.weight_decay), times(learning_rate, settings.learning_rate)
        # A schedule, so that its state has a step whatever the two are.
        return add_cautious_decayed_weights(lambda step: math.prod(_at(value, step) for value in own))

    matrices = (
        momentum_by_path(optax.linear_schedule(0.85, 0.95, 300) if momentum is None else momentum, True, None, chosen),
        orthogonalize_by_path(newton_schulz(_coefficients_of_the_record()), shardings, chosen),
        scale_by_normuon(0.9, axis="longer"),
        # Before the scale, which multiplies it too.
        grouped(decay, chosen),
        scale_by_path("keller", chosen),
        rate(learning_rate, chosen=chosen),
    )
    return assemble(matrices, default_adamw(adamw_learning_rate, 1e-4, chosen=chosen), layouts, shardings, chosen)


def _at(value: optax.ScalarOrSchedule, step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    return value(step) if callable(value) else value


def _whole(params: Any) -> dict[str, Layout]:
    """Reads each leaf as one matrix. Only its norm is used, which is the same for any choice of inputs and outputs."""
    return {leaf.path: Layout("i" + "o" * (len(leaf.shape) - 1)) for leaf in named_leaves(params)}
