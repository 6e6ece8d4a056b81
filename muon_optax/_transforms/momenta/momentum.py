"""The part of a chain that keeps momentum, from a number, a schedule or any transform."""

from typing import TypeAlias

import jax
import optax

from muon_optax._transforms.checks.arguments import check_momentum_dtype, check_number
from muon_optax._transforms.momenta.scheduled_trace import scheduled_trace

Momentum: TypeAlias = optax.ScalarOrSchedule | optax.GradientTransformation
"""A number in [0, 1), a schedule of such numbers, or a transform that keeps momentum in its own way."""


def keep_momentum(
    momentum: Momentum, nesterov: bool, dtype: jax.typing.DTypeLike | None
) -> optax.GradientTransformation:
    """``scheduled_trace`` for a number or a schedule, which count the step alike; a transform as it is.

    Raises:
        ValueError: For a number out of [0, 1), an integer ``dtype``, or a transform beside arguments of its own.
        TypeError: For what is none of these.
    """
    check_momentum_dtype(dtype)
    if isinstance(momentum, optax.GradientTransformation):
        if not nesterov or dtype is not None:
            raise ValueError(
                f"nesterov={nesterov!r} and momentum_dtype={dtype!r} say nothing beside a transform in momentum=, "
                "which brings its own: give them to that transform and leave them out here."
            )
        return momentum
    if not callable(momentum):
        check_number("momentum", momentum, "use a number in [0, 1), such as 0.95, a schedule or a transform", 0.0, 1.0)
    return scheduled_trace(momentum, nesterov, dtype)
