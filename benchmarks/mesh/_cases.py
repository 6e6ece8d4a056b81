"""Models on meshes: what benchmarks/mesh/mesh.py and the tests of its budgets compile."""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import muon_optax as mo
from benchmarks.shared.optimizers import Tree, experts, gpt2, layers

Spec = Callable[[tuple[int, ...]], P]  # how an array of this shape lies


class Case(NamedTuple):
    """A model on a mesh."""

    params: Tree
    sizes: dict[str, int]  # of the mesh's axes
    spec: Spec
    over: str | None = None  # the axis along which momentum is spread (ZeRO-1)
    update_only: bool = False  # without optax.apply_updates, and the gradients' memory is taken for the updates

    @property
    def count(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.sizes.values())

    def mesh(self, devices: Iterable[Any], kind: AxisType = AxisType.Auto) -> Mesh:
        """The mesh of these devices."""
        shape = tuple(self.sizes.values())
        return Mesh(np.array(list(devices)).reshape(shape), tuple(self.sizes), axis_types=(kind,) * len(shape))

    def shardings(self, mesh: Mesh | AbstractMesh) -> Tree:
        """A ``NamedSharding`` for each parameter."""
        return jax.tree.map(lambda leaf: NamedSharding(mesh, self.spec(leaf.shape)), self.params)

    def plan(self, mesh: Mesh | AbstractMesh | None = None, **arguments: Any) -> mo.Plan:
        """The plan; without a mesh, of one that has no devices."""
        mesh = mesh or AbstractMesh(tuple(self.sizes.values()), tuple(self.sizes))
        return mo.plan(self.params, self.shardings(mesh), over=self.over, **arguments)


def whole(shape: tuple[int, ...]) -> P:
    """Every device holds everything."""
    del shape
    return P()


def first_axis(*axes: str) -> Spec:
    """Matrices on their first axis, vectors whole."""
    return lambda shape: P(axes) if len(shape) > 1 else P()


def first_even_axis(devices: int, *axes: str) -> Spec:
    """Matrices on the first axis that so many devices divide evenly, as arguments of ``jit`` have to be."""

    def spec(shape: tuple[int, ...]) -> P:
        even = [axis for axis, size in enumerate(shape) if size % devices == 0]
        return P(*[None] * even[0], axes) if len(shape) > 1 and even else P()

    return spec


def long_axis(*axes: str) -> Spec:
    """Matrices on their longer axis."""
    return lambda shape: P(axes) if shape[0] >= shape[1] else P(None, axes)


def expert_parallel(others: Spec) -> Spec:
    """Stacks of experts on ``expert``, and each matrix in there on ``data``; everything else as in ``others``."""
    return lambda shape: P("expert", "data", None) if len(shape) == 3 else others(shape)


def _kernels(dtype: Any, **shapes: tuple[int, ...]) -> Tree:
    return {name: {"kernel": jax.ShapeDtypeStruct(shape, dtype)} for name, shape in shapes.items()}


def _ends(dtype: Any, vocabulary: int, d: int) -> Tree:
    embedding = jax.ShapeDtypeStruct((vocabulary, d), dtype)
    return {"embed": {"embedding": embedding}, **_norms(dtype, norm=d), **_kernels(dtype, lm_head=(d, vocabulary))}


def _norms(dtype: Any, **sizes: int) -> Tree:
    return {name: {"scale": jax.ShapeDtypeStruct((size,), dtype)} for name, size in sizes.items()}


def llama_7b(count: int = 32, dtype: Any = jnp.float32) -> Tree:
    """``count`` layers of Llama-7B, and its embeddings."""
    d, hidden = 4096, 11008
    attention = dict.fromkeys(("query", "key", "value", "out"), (d, d))
    layer = _kernels(dtype, **attention, gate=(d, hidden), up=(d, hidden), down=(hidden, d))
    norms = _norms(dtype, norm_attention=d, norm_mlp=d)
    return {**{f"layer_{index}": layer | norms for index in range(count)}, **_ends(dtype, 32_000, d)}


def moe_1t(count: int = 61, dtype: Any = jnp.bfloat16) -> Tree:
    """A Mixture-of-Experts of a trillion parameters, of the shapes of Kimi K2, embeddings included.

    Latent attention of 64 heads (128 and 64 rotary dimensions), one dense layer, then 384 experts and a shared one.
    """
    d, hidden, heads = 7168, 2048, 64
    attention = _kernels(
        dtype,
        query_down=(d, 1536),
        query_up=(1536, heads * (128 + 64)),
        latent_down=(d, 512 + 64),
        latent_up=(512, heads * (128 + 128)),
        out=(heads * 128, d),
    ) | _norms(dtype, norm_attention=d, norm_query=1536, norm_latent=512, norm_mlp=d)
    dense = _kernels(dtype, gate=(d, 18_432), up=(d, 18_432), down=(18_432, d))
    shared = {"shared": _kernels(dtype, gate=(d, hidden), up=(d, hidden), down=(hidden, d))}
    mixture = experts(384, d, hidden, dtype) | shared | _kernels(dtype, router=(d, 384))
    blocks = {f"layer_{index}": attention | (mixture if index else dense) for index in range(count)}
    return blocks | _ends(dtype, 163_840, d)


def fsdp(params: Tree, devices: int) -> Case:
    """All matrices divided over all devices."""
    return Case(params, {"data": devices}, first_even_axis(devices, "data"))


# Of 8 virtual devices, in the order of the project's table of targets.
ON_8: dict[str, Case] = {
    "replicated": Case(layers(4, 256), {"data": 8}, whole),
    "replicated, ZeRO-1": Case(layers(4, 256), {"data": 8}, whole, over="data"),
    "FSDP, first axis": Case(layers(4, 256), {"data": 8}, first_axis("data")),
    "FSDP, long axis": Case(layers(4, 256), {"data": 8}, long_axis("data")),
    "4 x 2": Case(layers(4, 256), {"data": 4, "model": 2}, lambda _: P("data", "model")),
    "one layer, replicated": Case(layers(1, 256), {"data": 8}, whole),
    "one layer, FSDP": Case(layers(1, 256), {"data": 8}, first_axis("data")),
    "16 experts of 256 x 512": Case(experts(16, 256, 512), {"data": 2, "expert": 4}, expert_parallel(whole)),
}
QUICK: dict[str, Case] = {"FSDP": Case(layers(1, 32), {"data": 8}, first_axis("data"))}

# Through the compiler for TPUs, by topology.
ON_TPU: dict[str, dict[str, Case]] = {
    "v5e:4x4": {
        "4 layers of d=1024, FSDP": fsdp(layers(4, 1024), 16),
        "4 layers of d=1024, replicated": Case(layers(4, 1024), {"data": 16}, whole),
        "4 layers of d=1024, replicated, ZeRO-1": Case(layers(4, 1024), {"data": 16}, whole, over="data"),
    },
    "v5e:16x16": {
        "GPT-2 medium, FSDP": fsdp(gpt2(24, 1024, vocabulary=50_304), 256),
        "Llama-7B, FSDP": fsdp(llama_7b(), 256),
    },
    "v5p:8x8x16": {
        "1T MoE, expert-parallel, update only": Case(
            moe_1t(),
            {"data": 8, "expert": 128},
            expert_parallel(first_even_axis(1024, "data", "expert")),
            update_only=True,
        ),
        # The experts are nearly all of those parameters. Twelve layers of them compile in a sixth of the time.
        "1T MoE, 12 layers of its experts, update only": Case(
            {f"layer_{index}": experts(384, 7168, 2048, jnp.bfloat16) for index in range(12)},
            {"data": 8, "expert": 128},
            expert_parallel(whole),
            update_only=True,
        ),
    },
}

# What takes too long, with the reason, by case and optimizer.
LEFT_OUT = {
    ("Llama-7B, FSDP", "optax.contrib.muon"): "not tried: one of its 32 layers takes minutes to compile",
    ("1T MoE, expert-parallel, update only", "optax.contrib.muon"): "not tried, as Llama-7B",
    ("1T MoE, 12 layers of its experts, update only", "optax.contrib.muon"): "not tried, as Llama-7B",
}
