"""Weight decay and learning rate with one state for numbers and schedules: the step is always counted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax


def add_counted_decay(
    weight_decay: optax.ScalarOrSchedule, mask: Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    """``optax.add_decayed_weights``, in whose state a number keeps the step as a schedule does, masked or not."""
    return masked_decay(counted_decay(weight_decay), mask)


def counted_decay(weight_decay: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Without a mask."""
    decay = optax.add_decayed_weights(weight_decay)
    return decay if callable(weight_decay) else _counted(decay, optax.add_decayed_weights(_any_schedule))


def masked_decay(
    decay: optax.GradientTransformation, mask: Callable[[Any], Any] | None
) -> optax.GradientTransformation:
    """``decay`` where the mask says so. Without one it has the same state."""
    return optax.masked(decay, mask or _everywhere)


def scale_by_counted_rate(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """``optax.scale_by_learning_rate``, in whose state a number keeps the step as a schedule does."""
    scale = optax.scale_by_learning_rate(learning_rate)
    return scale if callable(learning_rate) else _counted(scale, optax.scale_by_learning_rate(_any_schedule))


def _counted(
    constant: optax.GradientTransformation, scheduled: optax.GradientTransformation
) -> optax.GradientTransformation:
    """``constant``, which has no state, with the state of ``scheduled``.

    A schedule of one number would not do: Optax rounds what a schedule returns to the dtype of each update, and a
    float32 scalar of ``optax.inject_hyperparams`` must stay float32.
    """

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        updates, _ = constant.update(updates, optax.EmptyState(), params)
        return updates, state._replace(count=jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformation(scheduled.init, update)


def _any_schedule(step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    return step


def _everywhere(params: Any) -> Any:
    return jax.tree.map(lambda _: True, params)
