"""The decision on one leaf, and the strength of its evidence."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from muon_optax._layouts.layout import Layout

Strength: TypeAlias = Literal["strong", "weak", "none"]


class Decision(NamedTuple):
    """The layout of one leaf, the evidence in a few words, and its strength.

    Evidence is weak if it is shapes alone, a name that no shape bears out, or one of two readings that both fit.
    Without any evidence the layout is ``None`` and AdamW trains the leaf, with a warning.
    """

    layout: Layout | None
    why: str
    strength: Strength = "strong"

    @property
    def weak(self) -> bool:
        """Whether the evidence is weak."""
        return self.strength == "weak"

    @property
    def unknown(self) -> bool:
        """Whether there is no evidence."""
        return self.strength == "none"


UNKNOWN = Decision(None, "unknown", "none")


def layouts_in(decisions: Mapping[str, Decision]) -> dict[str, Layout | None]:
    """The layouts alone."""
    return {path: decision.layout for path, decision in decisions.items()}
