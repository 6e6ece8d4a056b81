"""Refusing numbers that are wrong, where they can be known: at construction, if they are concrete."""

from typing import Any

import jax
import jax.numpy as jnp


def check_number(name: str, value: Any, allowed: str, low: float, below: float = float("inf")) -> None:
    """Raises ValueError unless ``low <= value < below``; a traced value passes, its bits are not known yet."""
    try:
        number = float(value)
    except jax.errors.ConcretizationTypeError:
        return
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} is not a number; {allowed}.") from None
    # Written so that NaN is refused too: it compares False with everything.
    if not low <= number < below:
        raise ValueError(f"{name}={value!r} is not allowed: {allowed}.")


def check_momentum_dtype(dtype: jax.typing.DTypeLike | None) -> None:
    """Raises ValueError unless ``dtype`` is ``None`` or a floating type."""
    if dtype is not None and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"momentum_dtype={dtype!r} is not allowed: use a floating type such as jnp.bfloat16, or None.")
