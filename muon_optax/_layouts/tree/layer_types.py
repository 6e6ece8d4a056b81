"""The layer's own type: Equinox and Haliax trees hold their layers, which say what each axis is."""

from functools import cache
from typing import Any

from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import NamedLeaf

_GATES = {"GRUCell": 3, "LSTMCell": 4}


@cache
def _kinds(kind: type) -> frozenset[str]:
    """The names of a layer's class and of its bases, as far as a framework made them."""
    return frozenset(base.__name__ for base in kind.__mro__ if base.__module__.startswith(("equinox.nn", "haliax.nn")))


@cache
def _is_haliax(kind: type) -> bool:
    return any(base.__module__.startswith("haliax") for base in kind.__mro__)


def layer_type_of(leaf: NamedLeaf) -> str | None:
    """``"norm"``, ``"embedding"`` or a layer's name, for a field that the layer itself declares."""
    if leaf.owner is None:
        return None
    kinds = _kinds(type(leaf.owner))
    if any(kind.endswith("Norm") for kind in kinds):
        return "norm"
    if not leaf.field.startswith("weight"):  # a subclass may have arrays of its own
        return None
    if "Embedding" in kinds:
        return "embedding"
    known = ("Linear", "ConvTranspose", "Conv", *_GATES)
    return next((kind for kind in known if kind in kinds), None)


def layout_by_type(leaf: NamedLeaf) -> Layout | None:
    """The layout of the weight of a known layer; what is in front of the layer's own axes is a stack."""
    kind, owner, axes = layer_type_of(leaf), leaf.owner, len(leaf.shape)
    if kind in _GATES:
        # The output axis holds the gates side by side, each a matrix of its own.
        return Layout("b" * (axes - 2) + "oi", split=(owner.hidden_size,) * _GATES[kind])
    if kind == "Linear":
        return _haliax_linear(leaf) if _is_haliax(type(owner)) else Layout("b" * (axes - 2) + "oi")
    stacked = axes - 2 - owner.num_spatial_dims
    depthwise = owner.groups > 1 and leaf.shape[stacked + 1] == 1
    return None if depthwise else Layout("b" * stacked + "oi" + "i" * owner.num_spatial_dims)


def _haliax_linear(leaf: NamedLeaf) -> Layout | None:
    """Axes have names there: those of ``In`` are inputs, those of ``Out`` outputs, others a stack."""
    inputs, outputs = (_axis_names(getattr(leaf.owner, side, ())) for side in ("In", "Out"))
    letters = "".join("i" if name in inputs else "o" if name in outputs else "b" for name in _axis_names(leaf.axes))
    return Layout(letters) if {"i", "o"} <= set(letters) else None


def _axis_names(axes: Any) -> list[str]:
    return [getattr(axis, "name", axis) for axis in ((axes,) if hasattr(axes, "name") else axes)]
