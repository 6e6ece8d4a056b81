"""Which settings act on which leaf."""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from typing import Any, TypeAlias

import jax

from muon_optax._layouts.paths import named_leaves
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction, Orthogonalizers
from muon_optax._transforms.by_path.settings import Settings

SettingsByPath: TypeAlias = Mapping[str, Settings] | None
EVERYWHERE = Settings()
_EXAMPLE = "{'*/router/*': muon_optax.Settings(learning_rate=0.1)}"


class Chosen:
    """Settings by path glob: those of a leaf's exact path, or else of the first glob that matches.

    A leaf's own path decides, and no sibling, so each part of a chain finds the same settings in what it sees of the
    tree. Only what is refused needs the whole tree (``refusals.py``).

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
        # Compiled here: fnmatch forgets its patterns where there are hundreds, as of rates by layer.
        self._patterns = {glob: re.compile(translate(glob)) for glob in self.by_path}
        self._globs: dict[str, str | None] = {}

    def gives(self, name: str) -> bool:
        """Whether any settings have ``name``."""
        return any(name in settings.given for settings in self.by_path.values())

    def glob(self, path: str) -> str | None:
        """The glob that acts on a path, if any."""
        if path not in self._globs:
            first = (glob for glob, pattern in self._patterns.items() if pattern.match(path))
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
        # A tree without leaves is one group, which shows how many trees are returned.
        for glob, numbers in (groups or {None: []}).items():
            settings = EVERYWHERE if glob is None else self.by_path[glob]
            results = function(settings, *([column[number] for number in numbers] for column in columns))
            made = made or [[None] * structure.num_leaves for _ in results]
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
