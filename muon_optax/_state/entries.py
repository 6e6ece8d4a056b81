"""PyTorch's entries by parameter, as the arrays of a state."""

from collections.abc import Mapping
from itertools import count
from typing import Any, TypeAlias

import jax.numpy as jnp

from muon_optax._state.kept_arrays import Kept, Node

Entry: TypeAlias = Mapping[str, Any]  # what another optimizer keeps of one parameter, under PyTorch's names
_MEANINGS = {
    "momentum_buffer": ("momentum", "average"),
    "exp_avg": ("first moment", ""),
    "exp_avg_sq": ("second moment", ""),
}


def are_entries(state: Any) -> bool:
    """Whether ``state`` is a mapping from paths to what PyTorch keeps."""
    return isinstance(state, Mapping) and all(
        isinstance(entry, Mapping) and all(name in (*_MEANINGS, "step") for name in entry) for entry in state.values()
    )


def entry_arrays(state: Mapping[str, Entry]) -> list[Kept]:
    """As ``kept_arrays``; the leaves are numbered as they are listed."""
    numbers, found = count(), []
    for node, (path, entry) in enumerate(state.items()):
        for name, value in entry.items():
            owner = Node(node, "torch", (), False)
            if name == "step":
                step = jnp.asarray(int(value), jnp.int32)
                found.append(Kept("", "torch.step", "", owner, name, (next(numbers),), (step,)))
            else:
                what, way = _MEANINGS[name]
                found.append(Kept(path, what, way, owner, name, (next(numbers),), (jnp.asarray(value),)))
    return found
