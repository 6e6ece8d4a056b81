"""Arrays that scale features one by one, written with a row for each head: no matrices."""

import math

from muon_optax._layouts.evidence import names
from muon_optax._layouts.evidence.tree import Reading, Seen


def by_elements(seen: Seen) -> Reading | None:
    """An array (heads, size) of its own name, with as many elements as the model is wide: one for each feature."""
    # "r_k" and "bonus" may be that; "feat_2d_weights" and "w1" say that they are weights.
    own = names.is_weight(seen.name) is None or seen.name.rpartition("_")[2] in ("q", "k", "v", "o")
    if own and len(seen.core) == 2 and seen.bias is None and seen.is_width(math.prod(seen.core)):
        return Reading(None, "one for each feature", weak=True)
    return None
