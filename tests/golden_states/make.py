"""Writes the states of a commit's optimizers after three steps, and the updates that they give at the fourth.

git worktree add /tmp/at 7b40106 && PYTHONPATH=/tmp/at python tests/golden_states/make.py tests/golden_states/7b40106
"""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import muon_optax as mo

SHAPES = {
    "embedding": (6, 4),
    "q_proj": (4, 4),
    "k_proj": (4, 4),
    "up": {"kernel": (4, 8), "bias": (8,)},
    "head": {"kernel": (4, 6)},
}
# Said, so that better rules change nothing here.
LAYOUTS = {"embedding": None, "q_proj": "io", "k_proj": "io", "up/kernel": "io", "up/bias": None, "head/kernel": None}
STEPS = 3


def tree(seed: int) -> Any:
    """Numbers that need no generator to be the same everywhere."""

    def leaf(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(np.cos(seed + 1.7 * np.arange(np.prod(shape)) ** 1.5).reshape(shape), jnp.float32)

    return jax.tree.map(leaf, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def falling(value: float) -> optax.Schedule:
    return optax.linear_schedule(value, 0.0, 10)


def rising(step: Any) -> Any:
    return 0.8 + 0.01 * step


def muon_h(rate: Any, others: Any) -> Any:
    names = inspect.signature(mo.recipes.muon_h).parameters
    name = "adam_learning_rate" if "adam_learning_rate" in names else "adamw_learning_rate"
    return mo.recipes.muon_h(rate, layouts=LAYOUTS, **{name: others})


MASK = {"embedding": False, "q_proj": True, "k_proj": True, "up": True, "head": True}
SETTINGS: dict[str, Callable[[], Any]] = {
    "muon": lambda: mo.muon(0.02, layouts=LAYOUTS),
    "muon, rate": lambda: mo.muon(falling(0.02), layouts=LAYOUTS),
    "muon, decay": lambda: mo.muon(0.02, layouts=LAYOUTS, weight_decay=falling(0.1)),
    "muon, momentum": lambda: mo.muon(0.02, layouts=LAYOUTS, momentum=rising),
    "muon, AdamW's rate": lambda: mo.muon(0.02, layouts=LAYOUTS, adamw_learning_rate=falling(0.003)),
    "muon, no nesterov": lambda: mo.muon(0.02, layouts=LAYOUTS, nesterov=False),
    "muon, bfloat16": lambda: mo.muon(0.02, layouts=LAYOUTS, momentum_dtype=jnp.bfloat16),
    "muon, bfloat16 and momentum": lambda: mo.muon(0.02, layouts=LAYOUTS, momentum=rising, momentum_dtype=jnp.bfloat16),
    "muon, quantized": lambda: mo.muon(0.02, layouts=LAYOUTS, momentum=mo.quantized_trace(0.95, nesterov=True)),
    "muon, average": lambda: mo.muon(0.02, layouts=LAYOUTS, momentum=mo.nesterov_ema(0.95)),
    "muon, mask": lambda: mo.muon(0.02, layouts=LAYOUTS, weight_decay_mask=MASK),
    "muon, mask and decay": lambda: mo.muon(0.02, layouts=LAYOUTS, weight_decay_mask=MASK, weight_decay=falling(0.1)),
    "muon, sgd": lambda: mo.muon(0.02, layouts=LAYOUTS, adamw=optax.sgd(0.1)),
    "muon in MultiSteps": lambda: optax.MultiSteps(mo.muon(0.02, layouts=LAYOUTS), 2),
    "muon in a chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), mo.muon(0.02, layouts=LAYOUTS)),
    "muon in inject_hyperparams": lambda: optax.inject_hyperparams(mo.muon)(0.02, layouts=LAYOUTS, weight_decay=0.1),
    "normuon": lambda: mo.recipes.normuon(0.02, layouts=LAYOUTS),
    "normuon, rate": lambda: mo.recipes.normuon(falling(0.02), layouts=LAYOUTS),
    "muon_clip": lambda: mo.recipes.muon_clip(0.02, layouts=LAYOUTS, threshold=10.0),
    "muon_h": lambda: muon_h(0.02, 0.003),
    "muon_h, rate": lambda: muon_h(falling(0.02), falling(0.003)),
    "muon_speedrun": lambda: mo.recipes.muon_speedrun(0.02, layouts=LAYOUTS, adamw_learning_rate=0.003),
    "muon_speedrun, rate": lambda: mo.recipes.muon_speedrun(
        falling(0.02), layouts=LAYOUTS, adamw_learning_rate=falling(0.003)
    ),
}


def kinds_of(node: Any) -> dict[str, type]:
    """The classes of all states in ``node``, some of which have no public name."""
    children = list(node.values()) if isinstance(node, dict) else list(node) if isinstance(node, tuple) else []
    own = {type(node).__name__: type(node)} if hasattr(node, "_fields") else {}
    return own | {name: kind for child in children for name, kind in kinds_of(child).items()}


def extra_of(name: str) -> dict[str, Any]:
    return {"max_logits": jnp.array([50.0, 20.0])} if name == "muon_clip" else {}


def encode(node: Any) -> Any:
    """JSON: a state is its class's name and its fields, an array its dtype and numbers."""
    if hasattr(node, "_fields"):
        fields = {name: encode(getattr(node, name)) for name in node._fields}
        return {"class": type(node).__name__, "fields": fields}
    if isinstance(node, dict):
        return {"dict": {name: encode(value) for name, value in node.items()}}
    if isinstance(node, tuple | list):
        return {"tuple": [encode(value) for value in node]}
    array = np.asarray(node)
    return {"dtype": array.dtype.name, "numbers": np.asarray(array, np.float64).tolist()}


def decode(node: Any, kinds: dict[str, type]) -> Any:
    if "class" in node:
        return kinds[node["class"]](**{name: decode(value, kinds) for name, value in node["fields"].items()})
    if "dict" in node:
        return {name: decode(value, kinds) for name, value in node["dict"].items()}
    if "tuple" in node:
        return tuple(decode(value, kinds) for value in node["tuple"])
    return jnp.asarray(np.asarray(node["numbers"], np.float64), node["dtype"])


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for name, build in SETTINGS.items():
        optimizer, params = build(), tree(0)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        before = None
        for step in range(1, STEPS + 2):
            before = state
            updates, state = update(tree(step), state, params, **extra_of(name))
        file = folder / f"{name.replace(', ', '-').replace(' ', '_').replace(chr(39), '')}.json"
        file.write_text(json.dumps({"name": name, "state": encode(before), "updates": encode(updates)}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
