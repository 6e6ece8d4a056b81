"""The parts of a chain that ask for settings by path; without any, they are the parts of all chains."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.resolve import LayoutMap
from muon_optax._layouts.paths import named_leaves
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction
from muon_optax._transforms.by_path.chosen import Chosen
from muon_optax._transforms.by_path.settings import Settings
from muon_optax._transforms.counted import add_counted_decay, counted_decay, masked_decay, scale_by_counted_rate
from muon_optax._transforms.momenta.momentum import Momentum, keep_momentum
from muon_optax._transforms.momenta.scheduled_trace import ScheduledTraceState, scheduled_trace
from muon_optax._transforms.orthogonalize import orthogonalize, orthogonalize_by
from muon_optax._transforms.scale_by_shape import scale_by_shape, scale_by_shape_of
from muon_optax._transforms.scales import Scale


def momentum_by_path(
    momentum: Momentum, nesterov: bool, dtype: jax.typing.DTypeLike | None, chosen: Chosen
) -> optax.GradientTransformation:
    """``keep_momentum``, with each group's own number or schedule, in one state for all.

    Raises:
        ValueError: As ``keep_momentum``, and for momentum by path beside a transform in ``momentum=``.
        TypeError: As ``keep_momentum``.
    """
    plain = keep_momentum(momentum, nesterov, dtype)
    if not chosen.gives("momentum"):
        return plain
    if isinstance(momentum, optax.GradientTransformation):
        globs = [glob for glob, settings in chosen.by_path.items() if settings.momentum is not None]
        raise ValueError(
            f"by_path[{globs[0]!r}] sets momentum, which says nothing beside a transform in momentum=, whose decay is "
            "its own: give momentum= a number or a schedule, or leave it out of by_path."
        )
    everywhere = momentum

    def trace(settings: Settings) -> optax.GradientTransformation:
        return scheduled_trace(everywhere if settings.momentum is None else settings.momentum, nesterov, dtype)

    def init(params: optax.Params) -> optax.OptState:
        for settings in chosen.by_path.values():
            # Refuses a schedule that begins out of range.
            trace(settings).init(())
        return plain.init(params)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params

        def advance(settings: Settings, gradients: list[Any], kept: list[Any]) -> tuple[Any, Any]:
            result: tuple[Any, Any] = trace(settings).update(gradients, ScheduledTraceState(state.step, kept))
            return result[0], result[1].trace

        moved, kept = chosen.map_groups(advance, updates, state.trace)
        return moved, ScheduledTraceState(jnp.asarray(optax.safe_increment(state.step)), kept)

    return optax.GradientTransformation(init, update)


def orthogonalize_by_path(
    orthogonalizer: MatrixFunction, shardings: Any, chosen: Chosen
) -> optax.GradientTransformation:
    """``orthogonalize``, with each group's own function."""
    if not chosen.gives("orthogonalizer"):
        return orthogonalize(orthogonalizer, shardings=shardings)
    return orthogonalize_by(chosen.orthogonalizers(orthogonalizer), shardings=shardings)


def scale_by_path(scale: Scale, chosen: Chosen) -> optax.GradientTransformation:
    """``scale_by_shape``, with each group's own variant."""
    plain = scale_by_shape(scale)
    if not chosen.gives("scale"):
        return plain
    return scale_by_shape_of(lambda path: chosen.at(path).scale or scale)


def decay_by_path(
    weight_decay: optax.ScalarOrSchedule, mask: Callable[[Any], Any] | None, chosen: Chosen
) -> optax.GradientTransformation:
    """``add_counted_decay``, times each group's factor."""
    if not chosen.gives("weight_decay"):
        return add_counted_decay(weight_decay, mask)
    factors = grouped(lambda settings: counted_decay(times(weight_decay, settings.weight_decay)), chosen)
    return masked_decay(factors, mask)


def rate_by_path(learning_rate: optax.ScalarOrSchedule, chosen: Chosen) -> optax.GradientTransformation:
    """``scale_by_counted_rate``, times each group's factor."""
    if not chosen.gives("learning_rate"):
        return scale_by_counted_rate(learning_rate)
    return grouped(lambda settings: scale_by_counted_rate(times(learning_rate, settings.learning_rate)), chosen)


def scale_others_by_path(chosen: Chosen, updates: Any, layouts: LayoutMap, step: jax.Array) -> Any:
    """Multiplies the updates of a user's transform, on leaves without a layout, by each group's factor on the rate."""
    scaled = []
    for leaf in named_leaves(updates):
        factor = chosen.at(leaf.path).learning_rate if layouts[leaf.path] is None else None
        scaled.append(leaf.value if factor is None else leaf.value * (factor(step) if callable(factor) else factor))
    return jax.tree.unflatten(jax.tree.structure(updates), scaled)


def grouped(
    part_of: Callable[[Settings], optax.GradientTransformation], chosen: Chosen
) -> optax.GradientTransformation:
    """A part that keeps nothing but the step, as ``part_of`` makes it for each group's settings."""
    plain = part_of(Settings())

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        def run(settings: Settings, *own: list[Any]) -> tuple[Any]:
            moved, _ = part_of(settings).update(own[0], state, own[1] if len(own) > 1 else None)
            return (moved,)

        _, after = plain.update([], state, [])
        (moved,) = chosen.map_groups(run, updates, *([] if params is None else [params]))
        return moved, after

    return optax.GradientTransformation(plain.init, update)


def times(value: optax.ScalarOrSchedule, factor: optax.ScalarOrSchedule | None) -> optax.ScalarOrSchedule:
    """A number or a schedule times a factor, which may be either too; ``None`` for 1."""
    if factor is None:
        return value
    if not callable(value) and not callable(factor):
        return value * factor

    def product(step: jax.typing.ArrayLike) -> Any:
        return math.prod(one(step) if callable(one) else one for one in (value, factor))

    return product
