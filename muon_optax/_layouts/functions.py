"""Functions that a user gives: whether they can be called as they will be."""

import inspect
from collections.abc import Callable
from typing import Any

from muon_optax._layouts.paths import brief


def check_function(name: str, function: Callable[..., Any], takes: str, give: str) -> None:
    """Raises TypeError for a function of other arguments than ``takes``, such as a factory that was not called."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*takes.split(", "))
    except TypeError as error:
        raise TypeError(f"{name}={brief(function)} can't be called with ({takes}): {error}. {give}") from None
