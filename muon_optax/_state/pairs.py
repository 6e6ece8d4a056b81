"""Which array of an earlier state goes on as which of a fresh one: the same thing of the same parameter."""

from collections.abc import Iterator, Mapping, Sequence, Set

from muon_optax._layouts.paths import show
from muon_optax._state.convert import common_shape
from muon_optax._state.kept_arrays import MEANINGS, Kept

_OF_THE_PARAMETERS_SIZE = {what for what, _ in MEANINGS.values()}
Pairs = dict[int, Kept]  # from the first number of what the fresh state keeps to what is carried there


def renamed_arrays(earlier: Sequence[Kept], renamed: Mapping[str, str]) -> list[Kept]:
    """``earlier`` under the paths of now.

    Raises:
        ValueError: For a path that the earlier state does not have, and for two that get one name.
    """
    paths = {kept.path for kept in earlier if kept.path}
    unused = [old for old in renamed if not any(path == old or path.startswith(f"{old}/") for path in paths)]
    if unused:
        raise ValueError(
            f"renamed has {show(unused[0])}, and the earlier state keeps nothing of a parameter with that path or "
            f"below it: it knows {', '.join(map(repr, sorted(paths)[:5]))}{' and more' * (len(paths) > 5)}."
        )
    names = {path: _renamed(path, renamed) for path in paths}
    olds = {new: old for old, new in names.items()}
    for old, new in names.items():
        if olds[new] != old:
            raise ValueError(f"renamed calls both {show(old)} and {show(olds[new])} {new!r}: each needs its own path.")
    return [kept._replace(path=names.get(kept.path, kept.path), former=kept.path) for kept in earlier]


def _renamed(path: str, renamed: Mapping[str, str]) -> str:
    # The longest first: "layers/0/head" goes before "layers/0".
    for old in sorted(renamed, key=len, reverse=True):
        if path == old or path.startswith(f"{old}/"):
            return (renamed[old] + path[len(old) :]).strip("/")
    return path


def resized_paths(earlier: Sequence[Kept], fresh: Sequence[Kept]) -> Set[str]:
    """The parameters whose size has changed, as the sizes of momentum and moments show."""
    before, now = (
        {kept.path: kept for kept in side if kept.what in _OF_THE_PARAMETERS_SIZE} for side in (earlier, fresh)
    )
    return {path for path in before.keys() & now.keys() if common_shape(before[path], now[path]) is None}


def pairs_of(
    earlier: Sequence[Kept], fresh: Sequence[Kept], resized: Set[str], from_first_moment: bool = False
) -> Pairs:
    """What ``earlier`` and ``fresh`` both keep; counters and settings are not asked for.

    Nothing of a parameter whose size has changed: its radius on a sphere or its second moment of a row would fit by
    their shapes, and are those of another matrix. Where a state keeps a thing twice (an average around the optimizer,
    and its momentum), the branches of partitions tell which is which, and then their order.
    """
    left, wanted = (
        [kept for kept in side if not (kept.counts or kept.is_setting or kept.path in resized)]
        for side in (earlier, fresh)
    )
    pairs: Pairs = {}
    for same_labels in (True, False):
        for kept in (kept for kept in wanted if kept.numbers[0] not in pairs):
            found = next(_alike(kept, left, kept.what, same_labels), None)
            if found is not None:
                pairs[kept.numbers[0]] = found
                left.remove(found)
    if from_first_moment:
        for kept in (kept for kept in wanted if kept.what == "momentum" and kept.numbers[0] not in pairs):
            found = next(_alike(kept, left, "first moment", False), None)
            if found is not None:
                # Adam's first moment is an average of the gradients.
                pairs[kept.numbers[0]] = found._replace(way="average")
                left.remove(found)
    return pairs


def _alike(kept: Kept, left: Sequence[Kept], what: str, same_labels: bool) -> Iterator[Kept]:
    for one in left:
        if (one.path, one.what) == (kept.path, what) and (not same_labels or one.node.labels == kept.node.labels):
            yield one
