"""Refusing arguments that are wrong, where they can be known: at construction, if they are concrete."""

from typing import Any

import jax
import numpy as np

from muon_optax._layouts.functions import check_function
from muon_optax._layouts.paths import brief
from muon_optax._orthogonalizers.checks import is_floating


def check_number(name: str, value: Any, allowed: str, low: float, below: float = float("inf")) -> None:
    """Raises ValueError unless ``low <= value < below``; a traced value passes, its bits are not known yet."""
    try:
        if isinstance(value, str | bytes):  # float("0.1") is a number, and what multiplies by the text fails later
            raise TypeError
        number = float(value)
    except jax.errors.ConcretizationTypeError:
        return
    except (TypeError, ValueError):
        raise TypeError(f"{name}={brief(value)} is not a number; {allowed}.") from None
    # Written so that NaN is refused too: it compares False with everything.
    if not low <= number < below:
        raise ValueError(f"{name}={value!r} is not allowed: {allowed}.")


def check_flag(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is ``True`` or ``False``: the text "false" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={brief(value)} is not allowed: use True or False.")


def check_schedule(name: str, value: Any) -> None:
    """Raises TypeError for what can be called and is no schedule: a model, or a factory that was not called."""
    if callable(value) and any(np.ndim(leaf) > 1 for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array)):
        raise TypeError(
            f"{name}={brief(type(value))} holds matrices, so it is no schedule: give a number or a function of the "
            "step. Parameters go to optimizer.init(params)."
        )
    if callable(value):
        give = "Give a number or a function of the step, such as optax.cosine_decay_schedule(3e-4, 1000)."
        check_function(name, value, "step", give)


def check_rate(name: str, value: Any) -> None:
    """Raises ValueError for a learning rate that is negative or not finite; a schedule passes."""
    check_schedule(name, value)
    if not callable(value):
        check_number(name, value, "use a finite number >= 0, or a schedule", 0.0)


def check_decay(value: Any) -> None:
    """Raises ValueError for a weight decay that is negative or not finite; a schedule passes."""
    check_schedule("weight_decay", value)
    if not callable(value):
        check_number("weight_decay", value, "use a finite number >= 0, such as 0.1, or a schedule", 0.0)


def check_momentum_dtype(dtype: jax.typing.DTypeLike | None) -> None:
    """Raises ValueError unless ``dtype`` is ``None`` or a floating type."""
    refuse_injected_array("momentum_dtype", dtype)
    if dtype is not None and not is_floating(dtype):
        raise ValueError(f"momentum_dtype={dtype!r} is not allowed: use a floating type such as jnp.bfloat16, or None.")


def check_adamw(adamw: Any, learning_rate: Any) -> None:
    """Raises TypeError unless ``adamw`` is ``None`` or a transform, ValueError if it comes with a learning rate."""
    if adamw is None:
        return
    if not is_transform(adamw):
        shown = getattr(adamw, "__name__", None) or repr(adamw)
        raise TypeError(
            f"adamw={shown} is not a gradient transformation: call the factory, as in adamw=optax.adamw(3e-4), or give "
            "a number as adamw_learning_rate=3e-4 to keep the default decay and mask."
        )
    if learning_rate is not None:
        raise ValueError(
            f"adamw_learning_rate={learning_rate!r} and adamw= exclude each other: a transform in adamw brings its own "
            "learning rate."
        )


def is_transform(value: Any) -> bool:
    """Whether ``value`` has what every Optax transform has."""
    return callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))


def check_transform(name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is an Optax transform."""
    if not is_transform(value):
        raise TypeError(
            f"{name}={brief(value)} is not a gradient transformation: call the factory, as in muon_optax.muon(3e-4), "
            "and pass what it returns."
        )


def check_whole_number(name: str, value: Any, low: int) -> None:
    """Raises ValueError unless ``value`` is a Python integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name}={brief(value)} is not allowed: use a whole number >= {low}.")


def refuse_injected_array(name: str, value: Any) -> None:
    """Raises TypeError for an array where a function or a type belongs."""
    if isinstance(value, jax.Array | np.ndarray | np.generic) and not isinstance(value, np.bool_):
        raise TypeError(
            f"{name} is the array {value!r}. optax.inject_hyperparams takes every function and type for a schedule and "
            f"passes on what it returns: name the argument there, inject_hyperparams(muon, static_args=({name!r},))."
        )
