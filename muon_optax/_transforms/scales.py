"""The scale variants, which give the size of an orthogonalized update from its matrix's fan-in and fan-out."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias

from muon_optax._layouts.functions import check_function
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import brief

Scale: TypeAlias = Literal["naive", "keller", "mup", "moonlight"] | Callable[[int, int], float]
"""The factor of an update, by name or as a function of ``fan_in`` and ``fan_out``: see :func:`scale_by_shape`."""


def _naive(fan_in: int, fan_out: int) -> float:
    del fan_in, fan_out
    return 1.0


def _keller(fan_in: int, fan_out: int) -> float:
    return math.sqrt(max(1.0, fan_out / fan_in))


def _mup(fan_in: int, fan_out: int) -> float:
    return math.sqrt(fan_out / fan_in)


def _moonlight(fan_in: int, fan_out: int) -> float:
    # A full-rank orthogonal matrix has RMS 1 / sqrt(max(fan_in, fan_out)): the product is 0.2, what AdamW's updates
    # have.
    return 0.2 * math.sqrt(max(fan_in, fan_out))


_VARIANTS = {"naive": _naive, "keller": _keller, "mup": _mup, "moonlight": _moonlight}


def scale_function(scale: Scale) -> Callable[[int, int], float]:
    """The function ``(fan_in, fan_out) -> factor`` that ``scale`` names; a function is taken as it is."""
    if callable(scale):
        return scale
    if not isinstance(scale, str) or scale not in _VARIANTS:
        raise ValueError(
            f"The scale {brief(scale)} is not known: use one of {', '.join(map(repr, _VARIANTS))}, or a function "
            "(fan_in, fan_out) -> factor."
        )
    return _VARIANTS[scale]


def check_scale(scale: Scale) -> None:
    """Raises ValueError for a name that is not known, TypeError for a function of other arguments."""
    scale_function(scale)
    if callable(scale):
        check_function("scale", scale, "fan_in, fan_out", "Give a function of both that returns a factor, or a name.")


def scale_factors(scale: Scale, layout: Layout, shape: tuple[int, ...]) -> tuple[float, ...]:
    """The factor of each block of a parameter of ``shape``."""
    factor, fan_in = scale_function(scale), layout.fan_in(shape)
    # An empty matrix has no entries to scale; its fans may be zero.
    return tuple(factor(fan_in, fan_out) if fan_in and fan_out else 1.0 for fan_out in layout.blocks(shape))
