"""Layouts of attention head by head."""

from typing import Any

from muon_optax._layouts.assigning.assign import assign_layouts
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.paths import has_hidden
from muon_optax._layouts.tree.names import clean
from muon_optax._layouts.tree.roles import HEADS, role_of


def per_head(params: Any) -> dict[str, Layout | None]:
    """The default layouts with queries, keys and values head by head, for ``layouts=muon_optax.per_head``.

    A kernel ``(embed, heads, head_dim)`` is ``heads`` matrices ``embed x head_dim`` in place of one: ``"ibo"`` in place
    of ``"ioo"``, ``"bio"`` of Gemma's ``"oio"``, ``"bboi"`` of Levanter's ``"oooi"``. The up-projections of multi-head
    latent attention split alike. The output projection stays whole. To change more,
    ``layouts=lambda params: muon_optax.per_head(params) | {"router/kernel": None}``.

    Kernels of two axes do not show their heads. Give each as a split,
    ``{"*/q_proj/kernel": Layout("io", split=(head_dim,) * heads)}``.

    When to choose it: heads learn different things, and a whole matrix mixes their singular vectors. The evidence is
    good: Kimi K3 (2.8T parameters) trains so, and Megatron measured 0.17% of loss between whole and split.

    Args:
        params: Any tree of arrays or ``ShapeDtypeStruct``.

    Returns:
        A mapping from every leaf's path to its layout.

    Raises:
        ValueError: If nothing in the tree has heads to split.

    Warns:
        MuonWarning: As :func:`muon_optax.assign_layouts`.

    References:
        Moonshot AI, "Kimi K3", https://arxiv.org/abs/2607.24653, section 2.5, 2026.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))}}
        >>> {path: str(layout) for path, layout in mo.per_head(params).items()}
        {'query/bias': 'None', 'query/kernel': 'ibo'}
    """
    whole = assign_layouts(params)
    split = {path: _by_head(path, layout) for path, layout in whole.items()}
    if split == whole and not has_hidden(params):
        raise ValueError(
            "per_head found no query, key or value with an axis for its heads. Kernels of two axes need a split, as in "
            'layouts={"*/q_proj/kernel": muon_optax.Layout("io", split=(head_dim,) * heads)}.'
        )
    return split


def _by_head(path: str, layout: Layout | None) -> Layout | None:
    """The letters with ``b`` for every output axis but the last, which holds a head's features."""
    # The projection is the module or, in a plain tree, the array itself.
    projects = any(role_of(clean(name)) in HEADS for name in path.split("/")[-2:])
    if layout is None or layout.axes.count("o") < 2 or not projects:
        return layout
    last = layout.axes.rindex("o")
    return Layout(layout.axes[:last].replace("o", "b") + layout.axes[last:])
