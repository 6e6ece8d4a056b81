"""Which settings act on which leaf, and what is refused once the whole tree is in sight."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import jax

from muon_optax._layouts.assigning.globs import matching, not_out_of_sight, refuse_unmatched
from muon_optax._layouts.assigning.resolve import LayoutMap
from muon_optax._layouts.paths import NamedLeaf, named_leaves, show
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction, Orthogonalizers
from muon_optax._transforms.by_path.settings import OF_MATRICES, Settings
from muon_optax._transforms.decay_mask import decay_mask

SettingsByPath: TypeAlias = Mapping[str, Settings] | None
EVERYWHERE = Settings()


class Chosen:
    """Settings by path glob: those of a leaf's exact path, or else of the first glob that matches.

    A leaf's own path decides, and no sibling, so each part of a chain finds the same settings in what it sees of the
    tree. Only what is refused needs the whole tree.

    Raises:
        TypeError: Unless it gets a mapping from globs to ``Settings``, or ``None``.
    """

    def __init__(self, by_path: SettingsByPath) -> None:
        if by_path is not None and not isinstance(by_path, Mapping):
            raise TypeError(f"by_path={by_path!r} is not allowed: give a mapping such as {_EXAMPLE}.")
        for glob, settings in (by_path or {}).items():
            if not isinstance(glob, str) or not isinstance(settings, Settings):
                raise TypeError(
                    f"by_path has {settings!r} at {glob!r}: give Settings by path glob, such as {_EXAMPLE}."
                )
        self.by_path: dict[str, Settings] = dict(by_path or {})
        self._globs: dict[str, str | None] = {}

    def gives(self, name: str) -> bool:
        """Whether any settings have ``name``."""
        return any(name in settings.given for settings in self.by_path.values())

    def glob(self, path: str) -> str | None:
        """The glob that acts on a path, if any."""
        if path not in self._globs:
            first = (glob for glob in self.by_path if fnmatchcase(path, glob))
            self._globs[path] = path if path in self.by_path else next(first, None)
        return self._globs[path]

    def at(self, path: str) -> Settings:
        """The settings of the parameter at ``path``."""
        glob = self.glob(path)
        return EVERYWHERE if glob is None else self.by_path[glob]

    def map_groups(self, function: Callable[..., Sequence[Sequence[Any]]], tree: Any, *others: Any) -> list[Any]:
        """Trees like ``tree`` of what ``function(settings, *leaves)`` returns for each group of leaves.

        ``function`` takes and returns lists of the leaves that have the same settings, in place of trees.
        """
        structure = jax.tree.structure(tree)
        columns = [structure.flatten_up_to(other) for other in (tree, *others)]
        groups: dict[str | None, list[int]] = {}
        for number, leaf in enumerate(named_leaves(tree)):
            groups.setdefault(self.glob(leaf.path), []).append(number)
        made: list[list[Any]] = []
        # A tree without leaves is asked for as one group, which tells how many trees are returned.
        for glob, numbers in (groups or {None: []}).items():
            settings = EVERYWHERE if glob is None else self.by_path[glob]
            results = function(settings, *([column[number] for number in numbers] for column in columns))
            made = made or [[None] * len(columns[0]) for _ in results]
            for column, result in zip(made, results, strict=True):
                for number, value in zip(numbers, result, strict=True):
                    column[number] = value
        return [jax.tree.unflatten(structure, column) for column in made]

    def orthogonalizers(self, everywhere: MatrixFunction) -> Orthogonalizers:
        """The orthogonalizer at every path, ``everywhere`` where none is given. Equal ones share a name.

        A name is the first glob that gives the function, so it is the same for functions that are made again.
        """
        functions, names = {"": everywhere}, {}
        for glob, settings in self.by_path.items():
            function = settings.orthogonalizer
            if function is not None:
                names[glob] = next((name for name, known in functions.items() if known == function), glob)
                functions.setdefault(names[glob], function)
        return Orthogonalizers(functions, lambda path: names.get(self.glob(path) or "", ""))

    def refuse(self, tree: Any, leaves: list[NamedLeaf], layouts: LayoutMap, own_adamw: bool = False) -> None:
        """Raises ValueError for globs that match nothing or never act, and for settings that can't act.

        Args:
            tree: The whole tree, or the part of a model that the optimizer sees.
            leaves: Its leaves.
            layouts: Of every leaf.
            own_adamw: Whether a transform of the user's trains what has no layout.
        """
        if not self.by_path:
            return
        found = matching(self.by_path, [leaf.path for leaf in leaves])
        refuse_unmatched(set(self.by_path).difference(*found.values()), tree, leaves, "by_path")
        for glob, settings in self.by_path.items():
            taken = [path for path, globs in found.items() if globs[0] == glob]
            # What a part of a model hides may be what the glob acts on.
            if not_out_of_sight({glob}, tree):
                _refuse_shadowed(glob, taken, found)
                _refuse_without_matrices(glob, settings, taken, layouts)
            if own_adamw and settings.weight_decay is not None:
                _refuse_foreign_decay(glob, taken, layouts, tree, leaves)


_EXAMPLE = "{'*/router/*': muon_optax.Settings(learning_rate=0.1)}"


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


def _refuse_foreign_decay(glob: str, taken: list[str], layouts: LayoutMap, tree: Any, leaves: list[NamedLeaf]) -> None:
    """Refuses decay of what a transform of the user's trains, but for biases and norms, which nobody expects to."""
    decays = dict(zip((leaf.path for leaf in leaves), jax.tree.leaves(decay_mask(tree)), strict=True))
    foreign = [path for path in taken if layouts[path] is None and decays[path]]
    if foreign:
        raise ValueError(
            f"by_path[{glob!r}] sets weight_decay, and the transform in adamw= trains {show(foreign[0])} with a decay "
            "of its own. Give that transform a mask or a decay, and take the path out of the glob; or use "
            "adamw_learning_rate= in place of adamw=."
        )
