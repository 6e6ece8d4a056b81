"""A state that keeps what an optimizer needs and is packed in another way: unpacked for a step, and packed again."""

from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from muon_optax._transforms.state.kept import Part, is_counter, key_of


class Fit(NamedTuple):
    """The mapping from the leaves of a given state to those of the wanted one.

    Counters may be missing or left over. An optimizer with a number where a schedule was needs fewer, and states of
    version 0.1's first commits have them for schedules only.
    """

    structure: Any  # of the wanted state
    sources: tuple[int | None, ...]  # for each wanted leaf the number of the given one; None for a missing counter
    counters: tuple[int, ...]  # the numbers of the given state's counters

    def unpack(self, state: Any) -> Any:
        """``state`` in the wanted structure. A missing counter gets the step of the others, or zero."""
        leaves = jax.tree.leaves(state)
        # The largest: a part that skips steps stays behind.
        step = reduce(jnp.maximum, [leaves[index] for index in self.counters], jnp.zeros([], jnp.int32))
        return jax.tree.unflatten(self.structure, [step if index is None else leaves[index] for index in self.sources])

    def pack(self, after: Any, state: Any) -> Any:
        """``after``, the wanted state one step on, in the structure of ``state``.

        The structure stays the same, since `lax.scan`, `optax.MultiSteps` and a compiled step need the same again.
        Only a state without any counter gets the wanted structure, or its steps would be lost.
        """
        if not self.counters and None in self.sources:
            return after
        leaves, structure = jax.tree.flatten(state)
        for index in self.counters:
            leaves[index] = jnp.asarray(optax.safe_increment(leaves[index]))
        for index, leaf in zip(self.sources, jax.tree.leaves(after), strict=True):
            if index is not None:
                leaves[index] = leaf
        return jax.tree.unflatten(structure, leaves)


def fit(given: list[Part], wanted: list[Part], structure: Any) -> Fit:
    """The fit of two states that keep the same arrays, ``structure`` being that of the wanted one."""
    leaves = [(key_of(part, leaf), leaf) for part in given for leaf in part.leaves]
    numbers = {key: index for index, (key, _) in enumerate(leaves)}
    keys = [key_of(part, leaf) for part in wanted for leaf in part.leaves]
    counters = (index for index, (_, leaf) in enumerate(leaves) if is_counter(leaf))
    return Fit(structure, tuple(map(numbers.get, keys)), tuple(counters))
