"""Real ``nn.scan`` of a Linen block on axis 0 and on axis 1, as MaxText does it: every kernel has its stack's ``b``."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from models import LinenBlock, shown

ATTENTION = {"query": "ioo", "key": "ioo", "value": "ioo", "out": "iio"}
CORE = {f"MultiHeadDotProductAttention_0/{name}": core for name, core in ATTENTION.items()} | {"up": "io", "down": "io"}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("norms", [False, True], ids=["", "norms"])
@pytest.mark.parametrize("bias", [False, True], ids=["", "biases"])
@pytest.mark.parametrize(("layers", "heads"), [(1, 3), (3, 3), (2, 4), (12, 3)], ids=str)
def test_a_scanned_block(layers: int, heads: int, bias: bool, norms: bool, axis: int):
    block = nn.scan(LinenBlock, variable_axes={"params": axis}, split_rngs={"params": True}, length=layers)
    model = block(heads=heads, bias=bias, norms=norms)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((2, 5, 12))))["params"]
    kernels = {path: layout for path, layout in shown(params).items() if path.endswith("/kernel")}
    assert kernels == {f"{path}/kernel": f"{core[:axis]}b{core[axis:]}" for path, core in CORE.items()}


def test_a_transposed_kernel_of_linen():
    layer = nn.ConvTranspose(4, (3, 3), transpose_kernel=True)
    params = jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.ones((1, 8, 8, 6))))["params"]
    assert shown(params) == {"bias": None, "kernel": "iioi"}
