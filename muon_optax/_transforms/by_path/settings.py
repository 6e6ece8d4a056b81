"""The record of a group's own settings, checked where it is written."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import optax

from muon_optax._layouts.functions import check_function
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction
from muon_optax._transforms.checks.arguments import check_number, check_schedule
from muon_optax._transforms.scales import Scale, check_scale

# What only Muon has; AdamW's parameters have a rate and a decay.
OF_MATRICES = ("momentum", "scale", "orthogonalizer")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings for the parameters of one path glob, in ``muon(by_path={glob: Settings(...)})``.

    ``None`` leaves a setting as it is everywhere. ``Settings()`` takes parameters out of a wider glob after it.

    Args:
        learning_rate: A factor on the optimizer's learning rate: a number >= 0, a scalar array or a schedule of
            factors. It acts on whatever trains the parameter: on Muon's rate or AdamW's, and on the whole update of a
            transform in ``adamw=``. Decay is multiplied by the rate, so it goes along.
        weight_decay: A factor on the optimizer's weight decay, likewise; 0 for none. What the mask exempts does not
            decay, whatever the factor.
        momentum: In place of the optimizer's: a number in [0, 1) or a schedule. Matrices only.
        scale: In place of the optimizer's, as ``variant`` in :func:`muon_optax.scale_by_shape`. Matrices only.
        orthogonalizer: In place of the optimizer's, such as ``newton_schulz(polar_express(8))``. Matrices only.

    Raises:
        ValueError: For a number out of range or an unknown scale.
        TypeError: For what is of another type.

    Example:
        >>> import muon_optax as mo
        >>> by_path = {"*/router/*": mo.Settings(learning_rate=0.1), "*_b": mo.Settings(learning_rate=16)}
        >>> optimizer = mo.muon(3e-4, by_path=by_path)
    """

    learning_rate: optax.ScalarOrSchedule | None = None
    weight_decay: optax.ScalarOrSchedule | None = None
    momentum: optax.ScalarOrSchedule | None = None
    scale: Scale | None = None
    orthogonalizer: MatrixFunction | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay"):
            factor = getattr(self, name)
            if callable(factor):
                check_schedule(name, factor)
            elif factor is not None:
                check_number(name, factor, "give a factor >= 0 on the optimizer's own, or a schedule of factors", 0.0)
        if callable(self.momentum):
            check_schedule("momentum", self.momentum)
        elif self.momentum is not None:
            check_number("momentum", self.momentum, "use a number in [0, 1), such as 0.95, or a schedule", 0.0, 1.0)
        if self.scale is not None:
            check_scale(self.scale)
        if self.orthogonalizer is not None and not callable(self.orthogonalizer):
            raise TypeError(
                f"orthogonalizer={self.orthogonalizer!r} is not a function: pass one from matrices to matrices, such "
                "as muon_optax.newton_schulz(muon_optax.polar_express(8))."
            )
        if self.orthogonalizer is not None:
            give = "Give a function from matrices to matrices, such as muon_optax.newton_schulz()."
            check_function("orthogonalizer", self.orthogonalizer, "matrices", give)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that are not ``None``, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        """As a table shows them: ``learning_rate x 0.1, momentum 0.9``."""
        return ", ".join(self._shown()) or "as everywhere"

    def _shown(self) -> Iterator[str]:
        for name, value in self.given.items():
            times = "x " * (name not in OF_MATRICES)
            if isinstance(value, str):
                yield f"{name} {value}"
            elif name == "orthogonalizer":
                yield "its own orthogonalizer"
            elif callable(value):
                yield f"{name} {times}{'a function' if name == 'scale' else 'a schedule'}"
            else:
                yield f"{name} {times}{value:g}" if isinstance(value, int | float) else f"{name} {times}an array"
