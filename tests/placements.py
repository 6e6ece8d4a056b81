"""How parameters of every kind may lie on a mesh."""

from typing import Any

from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import SHAPES, mesh_of, shardings

# Sizes of the mesh axes, and for each parameter the mesh axes of its axes.
PLACEMENTS = {
    "replicated": ({"data": 8}, {}),
    "FSDP on the first axis": ({"data": 4}, dict.fromkeys(set(SHAPES) - {"conv"}, P("data"))),
    "FSDP on the last axis": (
        {"data": 8},
        {name: P(*[None] * (len(shape) - 1), "data") for name, shape in SHAPES.items()},
    ),
    "FSDP x tensor": (
        {"data": 4, "model": 2},
        {
            "kernel": P("data", "model"),
            "torch": P("model", "data"),
            "query": P("data", "model"),
            "out": P("model", None, "data"),
            "experts": P("data", None, "model"),
            "fused": P("data", "model"),
            "conv": P(None, None, "data", "model"),
        },
    ),
    "tensor-parallel attention": (
        {"data": 2, "model": 4},
        {"query": P(None, "model"), "out": P("model"), "torch": P(None, "model"), "fused": P("model", None)},
    ),
    "head_dim, one axis over two": (
        {"data": 4, "model": 2},
        {
            "kernel": P(("data", "model")),
            "torch": P(("model", "data")),
            "query": P(None, None, ("model", "data")),
            "out": P(None, ("data", "model")),
            "experts": P(None, ("model", "data")),
            "fused": P(None, ("model", "data")),
            "conv": P(None, None, None, ("data", "model")),
        },
    ),
    "FSDP x expert": (
        {"data": 2, "expert": 4},
        {"experts": P("expert", "data"), "kernel": P("data"), "torch": P("expert"), "fused": P(("data", "expert"))},
    ),
    "experts over the whole mesh": ({"data": 2, "expert": 4}, {"experts": P(("expert", "data")), "kernel": P("data")}),
    "three axes": (
        {"data": 2, "model": 2, "expert": 2},
        {
            "kernel": P("data", "model"),
            "torch": P(("expert", "data"), "model"),
            "query": P("data", ("model", "expert")),
            "out": P("model", "expert", "data"),
            "experts": P("expert", "data", "model"),
            "fused": P("model", ("expert", "data")),
            "conv": P(None, None, "data", "model"),
        },
    ),
    "axes of one device": (
        {"replica": 1, "data": 4, "model": 1},
        dict.fromkeys(set(SHAPES) - {"conv"}, P(("replica", "data"), "model")),
    ),
}


def placed(kind: Any, axes: dict[str, int], specs: dict[str, P]) -> dict[str, NamedSharding]:
    return shardings(mesh_of(kind, **axes), {name: specs.get(name, P()) for name in SHAPES})
