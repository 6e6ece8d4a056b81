"""Layouts of attention head by head."""

import re
from typing import Any

from muon_optax._layouts.assigning.assign import assign_layouts
from muon_optax._layouts.layout import Layout

# Whole components of a path, in lower case and without a trailing number; the last are the up-projections of latents.
_PROJECTION = re.compile(r"(to_|c_)?(q|k|v|query|key|value)(_proj|_projection)?|w[qkv]|(q|kv)_(b|up)_proj|wq_b|wkv_b")


def per_head(params: Any) -> dict[str, Layout | None]:
    """The default layouts, with queries, keys and values taken head by head: for ``layouts=muon_optax.per_head``.

    A kernel ``(embed, heads, head_dim)`` is ``heads`` matrices ``embed x head_dim`` in place of one, ``"ibo"`` in place
    of ``"ioo"``; so are the up-projections of multi-head latent attention. The output projection stays whole. To change
    more, ``layouts=lambda params: muon_optax.per_head(params) | {"router/kernel": None}``.

    Kernels of two axes do not tell their heads: give each as a split,
    ``{"*/q_proj/kernel": Layout("io", split=(head_dim,) * heads)}``.

    When to choose it: heads learn different things, and a whole matrix mixes their singular vectors. The evidence is
    good: Kimi K3 (2.8T parameters) trains so, and Megatron measured 0.17% of loss between whole and split.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``.

    Returns:
        A mapping from every leaf's path to its layout.

    Warns:
        UserWarning: As :func:`muon_optax.assign_layouts`.

    References:
        Moonshot AI, "Kimi K3", https://arxiv.org/abs/2607.24653, section 2.5, 2026.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}}
        >>> {path: str(layout) for path, layout in mo.per_head(params).items()}
        {'query/bias': 'None', 'query/kernel': 'ibo'}
    """
    return {path: _by_head(path, layout) for path, layout in assign_layouts(params).items()}


def _by_head(path: str, layout: Layout | None) -> Layout | None:
    # The projection is the module or, in a plain tree, the array itself.
    names = [re.sub(r"_\d+$", "", name).lower() for name in path.split("/")[-2:]]
    if layout is None or not layout.axes.endswith("ioo") or not any(map(_PROJECTION.fullmatch, names)):
        return layout
    return Layout(layout.axes.removesuffix("ioo") + "ibo")
