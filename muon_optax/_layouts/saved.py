"""Layouts as JSON: kept beside a checkpoint, they outlast a change of the rules."""

import json
from collections.abc import Mapping
from typing import Any

from muon_optax._layouts.layout import Layout, as_layout
from muon_optax._layouts.paths import brief, show


def layouts_to_json(layouts: Mapping[str, Layout | str | None]) -> str:
    """Writes ``layouts`` as JSON text, one line for each path. :func:`muon_optax.layouts_from_json` reads it.

    The default rules improve from version to version, and a leaf that changes sides loses its momentum. Write down what
    a run began with, and give it to every later one.

    Args:
        layouts: From path to layout, as :func:`muon_optax.assign_layouts` returns them.

    Returns:
        An object of strings such as ``"io"``, of ``null`` for AdamW, and of ``{"axes": "io", "split": [64, 16, 16]}``
        for fused projections.

    Raises:
        ValueError: For a layout that :class:`muon_optax.Layout` refuses.
        TypeError: If it is not a mapping.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"dense": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}}
        >>> text = mo.layouts_to_json(mo.assign_layouts(params))
        >>> print(text)
        {
        "dense/bias": null,
        "dense/kernel": "io"
        }
        >>> optimizer = mo.muon(3e-4, layouts=mo.layouts_from_json(text))
    """
    if not isinstance(layouts, Mapping):
        raise TypeError(
            f"layouts={brief(layouts)} is not a mapping from path to layout: give what "
            "muon_optax.assign_layouts(params) returns."
        )
    lines = [f"{json.dumps(path)}: {json.dumps(_written(as_layout(layout)))}" for path, layout in layouts.items()]
    return "{\n" + ",\n".join(lines) + "\n}"


def layouts_from_json(text: str) -> dict[str, Layout | None]:
    """Reads the layouts that :func:`muon_optax.layouts_to_json` wrote, for ``layouts=``.

    Args:
        text: JSON, an object from path to layout.

    Returns:
        A mapping from path to layout. Paths that a model has gained since fall through to the default rules.

    Raises:
        ValueError: If the text is not such JSON, with the path where one entry is wrong.
        TypeError: If it is not text.

    Example:
        >>> import muon_optax as mo
        >>> mo.layouts_from_json('{"up/kernel": "io", "up/bias": null}')
        {'up/kernel': Layout(axes='io', split=None), 'up/bias': None}
    """
    if not isinstance(text, str | bytes | bytearray):
        raise TypeError(f"text={brief(text)} is not JSON: give what muon_optax.layouts_to_json wrote, as text.")
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"text={brief(text)} is not JSON ({error}): give what muon_optax.layouts_to_json wrote, not its path."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"Layouts are a JSON object from path to layout; got {type(found).__name__}.")
    return {path: _read(path, entry) for path, entry in found.items()}


def _written(layout: Layout | None) -> Any:
    if layout is None or layout.split is None:
        return layout and layout.axes
    return {"axes": layout.axes, "split": layout.split}


def _read(path: str, entry: Any) -> Layout | None:
    try:
        if isinstance(entry, dict):
            return Layout(entry["axes"], tuple(entry["split"]))
        return as_layout(entry)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{show(path)} has the layout {entry!r}, which can't be read: give a string such as 'io', null, or an "
            f"object with axes and split. {error}"
        ) from None
