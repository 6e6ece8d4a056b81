"""Refusals of settings by path, once the whole tree is in sight: globs and settings that do nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from muon_optax._layouts.assigning.globs import matching, not_out_of_sight, refuse_unmatched
from muon_optax._layouts.assigning.resolve import LayoutMap
from muon_optax._layouts.paths import NamedLeaf, show
from muon_optax._transforms.by_path.chosen import Chosen
from muon_optax._transforms.by_path.settings import OF_MATRICES, Settings
from muon_optax._transforms.decay_mask import MaskFunction, decay_mask


def refuse_idle(chosen: Chosen, tree: Any, leaves: list[NamedLeaf], layouts: LayoutMap) -> None:
    """Raises ValueError for a glob that matches nothing or never acts, and for settings of matrices without any.

    Args:
        chosen: The settings by path.
        tree: The whole tree, or the part of a model that the optimizer sees.
        leaves: Its leaves.
        layouts: The layout of every leaf.
    """
    if not chosen.by_path:
        return
    found = matching(chosen.by_path, [leaf.path for leaf in leaves])
    refuse_unmatched(set(chosen.by_path).difference(*found.values()), tree, leaves, "by_path")
    taken = _by_glob(chosen, leaves)
    # What a part of a model hides may be what a glob acts on.
    sure = not_out_of_sight(set(chosen.by_path), tree)
    for glob in [glob for glob in chosen.by_path if glob in sure]:
        _refuse_shadowed(glob, taken[glob], found)
        _refuse_without_matrices(glob, chosen.by_path[glob], taken[glob], layouts)


def refuse_without_meaning(chosen: Chosen, optimizer: str, reasons: Mapping[str, str]) -> None:
    """Raises ValueError for a setting that ``optimizer`` has no use for, with the reason by name of the setting."""
    for glob, settings in chosen.by_path.items():
        for name in settings.given:
            if name in reasons:
                raise ValueError(
                    f"by_path[{glob!r}] sets {name}, which has no meaning in {optimizer}: {reasons[name]}. Leave it "
                    "out."
                )


def refuse_idle_decay(
    chosen: Chosen, mask: MaskFunction | None, own_adamw: bool
) -> Callable[[Any, list[NamedLeaf], LayoutMap], None]:
    """A function that refuses factors on the decay of parameters that do not decay, or as a foreign transform says.

    Args:
        chosen: The settings by path.
        mask: The mask of the optimizer's decay; ``None`` for matrices and :func:`muon_optax.decay_mask`.
        own_adamw: Whether a transform of the user's trains what has no layout.
    """

    def refuse(tree: Any, leaves: list[NamedLeaf], layouts: LayoutMap) -> None:
        own = {glob: settings for glob, settings in chosen.by_path.items() if settings.weight_decay is not None}
        if not own:
            return
        usual = dict(zip((leaf.path for leaf in leaves), jax.tree.leaves(decay_mask(tree)), strict=True))
        decays = usual if mask is None else _by_leaf(mask(tree), tree, leaves)
        taken, sure = _by_glob(chosen, leaves), not_out_of_sight(set(own), tree)
        foreign = {leaf.path for leaf in leaves if own_adamw and layouts[leaf.path] is None}
        for glob, settings in own.items():
            _refuse_foreign(glob, [path for path in taken[glob] if path in foreign and usual[path]])
            acts = any(path not in foreign and _decays(path, layouts, decays, mask) for path in taken[glob])
            if taken[glob] and not acts and glob in sure:
                _refuse_exempt(glob, settings, taken[glob])

    return refuse


def _by_glob(chosen: Chosen, leaves: Sequence[NamedLeaf]) -> dict[str, list[str]]:
    """The paths that each glob acts on."""
    taken: dict[str, list[str]] = {glob: [] for glob in chosen.by_path}
    for leaf in leaves:
        glob = chosen.glob(leaf.path)
        if glob is not None:
            taken[glob].append(leaf.path)
    return taken


def _by_leaf(mask: Any, tree: Any, leaves: Sequence[NamedLeaf]) -> dict[str, bool]:
    # A mask may stop above the leaves, as Optax allows.
    flags = jax.tree.map(lambda flag, below: jax.tree.map(lambda _: flag, below), mask, tree)
    return dict(zip((leaf.path for leaf in leaves), jax.tree.leaves(flags), strict=True))


def _decays(path: str, layouts: LayoutMap, decays: Mapping[str, bool], mask: MaskFunction | None) -> bool:
    return bool(decays[path]) or (mask is None and layouts[path] is not None)


def _refuse_shadowed(glob: str, taken: list[str], found: Mapping[str, list[str]]) -> None:
    if not taken:
        before = {globs[0]: None for globs in found.values() if glob in globs}
        raise ValueError(
            f"by_path[{glob!r}] never acts: the first glob that matches does, and all that it matches is taken by "
            f"{', '.join(map(repr, before))}. Put it before, or leave it out."
        )


def _refuse_without_matrices(glob: str, settings: Settings, taken: list[str], layouts: LayoutMap) -> None:
    names = [name for name in OF_MATRICES if name in settings.given]
    if names and all(layouts[path] is None for path in taken):
        raise ValueError(
            f"by_path[{glob!r}] sets {', '.join(names)}, which only matrices have, and AdamW trains all that it acts "
            f"on, such as {show(taken[0])}. Leave {'them' if len(names) > 1 else 'it'} out, or give layouts= the "
            "layout of a matrix."
        )


def _refuse_foreign(glob: str, foreign: list[str]) -> None:
    """Refuses decay of what a transform of the user's trains, but for biases and norms, which nobody expects to."""
    if foreign:
        raise ValueError(
            f"by_path[{glob!r}] sets weight_decay, and the transform in adamw= trains {show(foreign[0])} with a decay "
            "of its own. Give that transform a mask or a decay, and take the path out of the glob; or use "
            "adamw_learning_rate= in place of adamw=."
        )


def _refuse_exempt(glob: str, settings: Settings, taken: list[str]) -> None:
    """Refuses a factor other than zero, which is what happens anyway."""
    if isinstance(settings.weight_decay, int | float) and settings.weight_decay == 0:
        return
    raise ValueError(
        f"by_path[{glob!r}] sets weight_decay, a factor on the optimizer's, and nothing that it acts on decays: "
        f"{show(taken[0])} is a bias or a norm, or the mask exempts it. Give weight_decay_mask= what should decay."
    )
