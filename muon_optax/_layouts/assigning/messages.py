"""Messages on arrays that no rule knows or that weak evidence decides, grouped, at the user's own line."""

import fnmatch
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from muon_optax._layouts.decision import Decision
from muon_optax._layouts.layout import Layout
from muon_optax._layouts.path_patterns import pattern, without_numbers
from muon_optax._layouts.paths import NamedLeaf, show

# A warning from within these blames whoever called them.
_LIBRARIES = {"muon_optax", "jax", "jaxlib", "optax", "flax", "equinox", "haiku", "contextlib", "functools"}
_LISTED = 12  # groups that a warning names


class MuonWarning(UserWarning):
    """The class of all warnings of muon_optax. ``warnings.simplefilter("error", MuonWarning)`` raises them."""


def is_trainable(leaf: NamedLeaf) -> bool:
    """Whether updates in the leaf's dtype can be anything but zero: not in integers, nor in eight bits."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.inexact)) and jnp.finfo(leaf.dtype).bits >= 16


def warn_unknown(unknown: Sequence[NamedLeaf], leaves: Sequence[NamedLeaf]) -> None:
    """Names the ``unknown`` among ``leaves`` in one warning, with the layouts that the first of them may have."""
    # What can't be trained is refused by `init`, and a warning that AdamW trains it would contradict that.
    trainable = [leaf for leaf in unknown if is_trainable(leaf)]
    real, complex_ = (
        _groups([leaf for leaf in trainable if jnp.issubdtype(leaf.dtype, jnp.complexfloating) == is_complex])
        for is_complex in (False, True)
    )
    texts = []
    if real:
        texts.append(
            "No rule knows which axes of these arrays are inputs and outputs, so AdamW trains them: "
            f"{_listed(real)}. {_readings(real[0], leaves)}"
        )
    if complex_:
        texts.append(
            f"Only real arrays can be orthogonalized, so AdamW trains these complex ones: {_listed(complex_)}. To keep "
            f"that, say layouts={{{_glob(complex_[0], leaves)!r}: None}}. To train the real and the imaginary "
            "part as matrices, use optax.contrib.split_real_and_imaginary(optimizer)."
        )
    if texts:
        warnings.warn(" ".join(texts), MuonWarning, stacklevel=_level_of_user())


def refuse_uncertain(decisions: Mapping[str, Decision], leaves: Sequence[NamedLeaf]) -> None:
    """Raises ValueError if evidence is weak or missing, with the paths."""
    weak, unknown = (
        _groups([leaf for leaf in leaves if getattr(decisions[leaf.path], kind) and is_trainable(leaf)])
        for kind in ("weak", "unknown")
    )
    texts = []
    if weak:
        shown = (f"{_listed([group])} as {_read_as(decisions[group[0].path])}" for group in weak[:_LISTED])
        more = f" and {len(weak) - _LISTED} more" if len(weak) > _LISTED else ""
        texts.append(f"Weak evidence decides on {', '.join(shown)}{more}.")
    if unknown:
        texts.append(f"No evidence decides on {_listed(unknown)}.")
    if texts:
        raise ValueError(
            f"strict: {' '.join(texts)} Look at print(muon_optax.summarize(params)) and say in layouts what each is, "
            "also where the table is right; muon_optax.flax.layouts_of asks a Flax model's layers."
        )


def _read_as(decision: Decision) -> str:
    return f"{'no matrix' if decision.layout is None else repr(str(decision.layout))} ({decision.why})"


def warn_without_matrices(leaves: Sequence[NamedLeaf]) -> None:
    """Says that no leaf has a layout, and why that may be."""
    listed = _listed(_groups(leaves))
    warnings.warn(
        f"No parameter is seen as a matrix, so Muon trains nothing: {listed}. Raveled parameters "
        "(optax.flatten, jax.flatten_util.ravel_pytree) have lost their shapes: give the optimizer the tree itself. "
        "Where matrices are there, name their layout in layouts.",
        MuonWarning,
        stacklevel=_level_of_user(),
    )


def warn_user(text: str) -> None:
    """Warns at the nearest line outside the libraries."""
    warnings.warn(text, MuonWarning, stacklevel=_level_of_user())


def _level_of_user() -> int:
    """The ``stacklevel``, seen from this function's caller, of the nearest line outside the libraries."""
    here = inspect.currentframe()
    frame, level = here.f_back if here else None, 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    return level


def _groups(leaves: Sequence[NamedLeaf]) -> list[list[NamedLeaf]]:
    """Leaves of one shape and dtype whose paths differ in nothing but numbers."""
    groups: dict[tuple, list[NamedLeaf]] = {}
    for leaf in leaves:
        groups.setdefault((without_numbers(leaf.path), leaf.shape, str(leaf.dtype)), []).append(leaf)
    return list(groups.values())


def _paths(group: Sequence[NamedLeaf]) -> list[str]:
    return [leaf.path for leaf in group]


def _listed(groups: Sequence[Sequence[NamedLeaf]]) -> str:
    shown = []
    for group in groups[:_LISTED]:
        times = f" x{len(group)}" if len(group) > 1 else ""
        shown.append(f"{show(pattern(_paths(group)))}{times} {group[0].dtype}{list(group[0].shape)}")
    more = len(groups) - _LISTED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _glob(group: Sequence[NamedLeaf], leaves: Sequence[NamedLeaf]) -> str:
    """A path, or a glob that matches the whole group and nothing of other axes."""
    first = group[0]
    wide = pattern(_paths(group), "*")
    # A star also spans slashes: the glob may reach an array of other axes, where the layout would not fit.
    reached = {len(leaf.shape) for leaf in leaves if fnmatch.fnmatchcase(leaf.path, wide)}
    return wide if reached == {len(first.shape)} else first.path


# What most layers are; other layouts, and those of more axes, are on the page about layouts.
_COMMON = {2: ("io", "oi"), 3: ("bio", "boi", "ioo", "oio", "iio", "oii")}


def _readings(group: Sequence[NamedLeaf], leaves: Sequence[NamedLeaf]) -> str:
    """Says how to give the first array a layout. No single one is proposed, since several fit."""
    shape, chosen = group[0].shape, repr(_glob(group, leaves))
    fitting = "; ".join(f"{letters!r} is {_matrices(letters, shape)}" for letters in _COMMON.get(len(shape), ()))
    return (
        f"Give {chosen} a letter for each axis in layouts: i input, o output, b each index is a matrix of its own"
        f"{f' ({fitting})' if fitting else ''}; None leaves it to AdamW. For Flax models "
        "muon_optax.flax.layouts_of asks the layers."
    )


def _matrices(letters: str, shape: tuple[int, ...]) -> str:
    ((*batch, inputs, outputs),) = Layout(letters).matrix_shapes(shape)
    count = f"{math.prod(batch)} matrices" if batch else "one matrix"
    return f"{count} from {inputs} inputs to {outputs} outputs"
