"""GPT-2's loss on the tree of parameters that ``_optimizers.gpt2`` describes, in plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.shared.optimizers import Tree

DTYPE = jnp.bfloat16  # of the products; parameters, norms and the loss are float32


def loss(params: Tree, tokens: jax.Array, heads: int) -> jax.Array:
    """The mean cross-entropy of the next token; ``tokens`` is ``(batch, time + 1)``, int32."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    embedding = params["wte"]["embedding"]
    x = (embedding[inputs] + params["wpe"]["embedding"][: inputs.shape[1]]).astype(DTYPE)
    for index in range(sum(name.startswith("h_") for name in params)):
        x = _block(params[f"h_{index}"], x, heads)
    logits = (_norm(params["ln_f"], x) @ embedding.T.astype(DTYPE)).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def loss_gradient(params: Tree, tokens: jax.Array, heads: int) -> Tree:
    """The gradient of :func:`loss`."""
    return jax.grad(loss)(params, tokens, heads)


def _block(params: Tree, x: jax.Array, heads: int) -> jax.Array:
    query, key, value = (
        part.reshape(*x.shape[:2], heads, -1)
        for part in jnp.split(_dense(params["attn"]["c_attn"], _norm(params["ln_1"], x)), 3, axis=-1)
    )
    attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    x = x + _dense(params["attn"]["c_proj"], attended.reshape(x.shape))
    hidden = jax.nn.gelu(_dense(params["mlp"]["c_fc"], _norm(params["ln_2"], x)))
    return x + _dense(params["mlp"]["c_proj"], hidden)


def _dense(params: Tree, x: jax.Array) -> jax.Array:
    return x @ params["kernel"].astype(DTYPE) + params["bias"].astype(DTYPE)


def _norm(params: Any, x: jax.Array) -> jax.Array:
    y = jax.nn.standardize(x.astype(jnp.float32))
    return (y * params["scale"] + params["bias"]).astype(DTYPE)
