"""The parts of ``muon`` and of every recipe: checked numbers, decay and rate, the default AdamW, a spread state."""

from functools import partial
from typing import Any, TypeAlias

import optax

from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._state.shardings import stay_spread
from muon_optax._transforms.by_path.chosen import Chosen
from muon_optax._transforms.by_path.parts import decay_by_path, rate_by_path, scale_others_by_path
from muon_optax._transforms.by_path.refusals import refuse_idle, refuse_idle_decay
from muon_optax._transforms.checks.arguments import check_decay, check_rate, refuse_injected_array
from muon_optax._transforms.decay_mask import MaskFunction, decay_mask
from muon_optax._transforms.partition import partition_with

Parts: TypeAlias = tuple[optax.GradientTransformation, ...]
NOWHERE = Chosen(None)


def decay_and_rate(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: MaskFunction | None = None,
    chosen: Chosen = NOWHERE,
) -> Parts:
    """The end of a chain for matrices: decoupled weight decay, then the learning rate with its sign.

    Raises:
        ValueError: For a number that is negative or not finite.
        TypeError: For what is neither a number nor a schedule.
    """
    check_decay(weight_decay)
    return decay_by_path(weight_decay, mask, chosen), rate(learning_rate, chosen=chosen)


def rate(
    value: optax.ScalarOrSchedule, name: str = "learning_rate", chosen: Chosen = NOWHERE
) -> optax.GradientTransformation:
    """``optax.scale_by_learning_rate`` of a checked number, or of a schedule."""
    check_rate(name, value)
    return rate_by_path(value, chosen)


def default_adamw(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: MaskFunction | None = None,
    chosen: Chosen = NOWHERE,
) -> optax.GradientTransformation:
    """``optax.adamw(learning_rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=weight_decay, mask=...)``, with counters.

    Raises:
        ValueError: As :func:`decay_and_rate`, naming ``adamw_learning_rate``.
        TypeError: As :func:`decay_and_rate`.
    """
    check_decay(weight_decay)
    return optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        decay_by_path(weight_decay, mask or decay_mask, chosen),
        rate(learning_rate, "adamw_learning_rate", chosen),
    )


def assemble(
    matrices: Parts,
    others: optax.GradientTransformation,
    layouts: Layouts,
    shardings: Any,
    chosen: Chosen = NOWHERE,
    mask: MaskFunction | None = None,
    own_adamw: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The partition of a chain for matrices and a transform for the rest, whose state stays where a plan spreads it.

    Args:
        matrices: The chain for matrices.
        others: The transform for all other leaves.
        layouts: As a user gives them.
        shardings: As a user gives them.
        chosen: The settings by path, which the parts already follow.
        mask: The mask of the decay.
        own_adamw: Whether ``others`` is the user's, and follows none.
    """
    refuse_injected_array("layouts", layouts)
    # No part of a foreign transform asks for settings, so its whole update is multiplied.
    finish = partial(scale_others_by_path, chosen) if own_adamw and chosen.gives("learning_rate") else None
    refusals = (partial(refuse_idle, chosen), refuse_idle_decay(chosen, mask, own_adamw)) if chosen.by_path else ()
    return stay_spread(partition_with(optax.chain(*matrices), others, layouts, refusals, finish), shardings)
