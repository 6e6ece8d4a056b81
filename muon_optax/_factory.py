"""What ``muon`` and every recipe are built on: checked numbers, decay and rate, the default AdamW, a spread state."""

from typing import Any, TypeAlias

import optax

from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._state.shardings import stay_spread
from muon_optax._transforms.checks.arguments import check_decay, check_rate, refuse_injected_array
from muon_optax._transforms.counted import add_counted_decay, scale_by_counted_rate
from muon_optax._transforms.decay_mask import MaskFunction, decay_mask
from muon_optax._transforms.partition import partition_by_layout

Parts: TypeAlias = tuple[optax.GradientTransformation, ...]


def decay_and_rate(
    learning_rate: optax.ScalarOrSchedule, weight_decay: optax.ScalarOrSchedule, mask: MaskFunction | None = None
) -> Parts:
    """The end of a chain for matrices: decoupled weight decay, then the learning rate with its sign.

    Raises:
        ValueError: For a number that is negative or not finite.
        TypeError: For what is neither a number nor a schedule.
    """
    check_decay(weight_decay)
    return add_counted_decay(weight_decay, mask), rate(learning_rate)


def rate(value: optax.ScalarOrSchedule, name: str = "learning_rate") -> optax.GradientTransformation:
    """``optax.scale_by_learning_rate`` of a checked number, or of a schedule."""
    check_rate(name, value)
    return scale_by_counted_rate(value)


def default_adamw(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: MaskFunction | None = None,
) -> optax.GradientTransformation:
    """``optax.adamw(learning_rate, b1=0.9, b2=0.95, eps=1e-8, weight_decay=weight_decay, mask=...)``, with counters.

    Raises:
        ValueError: As :func:`decay_and_rate`, naming ``adamw_learning_rate``.
        TypeError: As :func:`decay_and_rate`.
    """
    check_decay(weight_decay)
    return optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.95, eps=1e-8),
        add_counted_decay(weight_decay, mask or decay_mask),
        rate(learning_rate, "adamw_learning_rate"),
    )


def assemble(
    matrices: Parts, others: optax.GradientTransformation, layouts: Layouts, shardings: Any
) -> optax.GradientTransformationExtraArgs:
    """The partition of a chain for matrices and a transform for all else, whose state stays where a plan spreads it."""
    refuse_injected_array("layouts", layouts)
    return stay_spread(partition_by_layout(optax.chain(*matrices), others, layouts), shardings)
