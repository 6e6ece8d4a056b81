"""QK-clip (MuonClip): attention logits held below a threshold by shrinking query and key weights, head by head."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from muon_optax._layouts.assigning.resolve import Layouts
from muon_optax._layouts.paths import NamedLeaf, named_leaves, show
from muon_optax._mesh.typed import gather
from muon_optax._orthogonalizers.precision import accumulation_dtype
from muon_optax._transforms.checks.arguments import check_number
from muon_optax._transforms.tools.attention import Attention, Kernel, find_attention, heads_of


def clip_qk(threshold: float = 100.0, *, layouts: Layouts = None) -> optax.GradientTransformationExtraArgs:
    """Shrinks the query and key weights of every head whose attention logits passed ``threshold``.

    With ``S`` the largest logit of a head in this step and ``eta = threshold / S`` where ``S > threshold``, else 1:

    ======================== ================================================================================
    attention                after the step, ``W + u`` is multiplied by
    ======================== ================================================================================
    multi-head               query and key of a head: ``sqrt(eta)``
    grouped-query            key of a group: ``sqrt(min eta)`` of its heads; query of a head: ``eta`` over that
    multi-head latent (MLA)  query and key without position: ``sqrt(eta)``; rotary query: ``eta``. The rotary
                             key, which all heads share, and the values stay
    ======================== ================================================================================

    So every head's logits shrink by its own ``eta``. Biases of queries and keys shrink with their kernels. Put it last,
    after :func:`muon_optax.muon`: it must see every parameter and the finished update. A head whose largest logit is
    negative or not finite is left alone.

    Kernels are found by name (``query``/``key``, ``q_proj``/``k_proj``, ``wq``/``wk``, ``q_b_proj``/``kv_b_proj``, ...)
    in a common scope. The axes of heads follow from the layout and from the number of maxima; heads of a kernel of two
    axes lie side by side. Query head ``h`` of ``H`` belongs to key head ``h // (H / K)``. In MLA a head's features are
    (non-rotary, rotary). The number of rotary features is the width of the down-projection (``kv_a_proj_with_mqa``,
    ``wkv_a``) minus the latent's.

    When to choose it: large runs without a norm on queries and keys, whose logits grow. The evidence is good at scale
    (Kimi K2, 1T parameters, without a loss spike); small models rarely pass 100.

    Args:
        threshold: The largest logit that is left alone, > 0. Default 100, Kimi K2's.
        layouts: As in :func:`muon_optax.assign_layouts`; ``None`` for a path leaves it alone.

    Returns:
        A transform without state. ``update(updates, state, params, max_logits=...)`` needs a tree, such as what
        ``sow`` collected or a dict, with one array ``(*layers, heads)`` for every attention layer, at the path of the
        scope of its kernels or below. Updates keep their shape and dtype.

    Raises:
        ValueError: At construction, for a threshold out of range; at ``init``, if there are no such kernels or some
            can't be paired; at ``update``, without ``params`` or ``max_logits``, and if a layer's maxima are missing,
            without a layer, or of another number of heads. Paths are named.

    References:
        Kimi Team, "Kimi K2: Open Agentic Intelligence", https://arxiv.org/abs/2507.20534, 2025.

    Example:
        >>> import jax.numpy as jnp, muon_optax as mo
        >>> params = {"q_proj": jnp.ones((4, 6)), "k_proj": jnp.ones((4, 6))}
        >>> updates = {name: jnp.zeros((4, 6)) for name in params}
        >>> clip = mo.clip_qk(100.0)
        >>> updates, _ = clip.update(updates, clip.init(params), params, max_logits=jnp.array([50.0, 400.0]))
        >>> (params["k_proj"] + updates["k_proj"])[0].tolist()
        [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    """
    check_number("threshold", threshold, "use a finite number > 0, such as 100.0", math.ulp(0.0))

    def init(params: optax.Params) -> optax.EmptyState:
        find_attention(params, layouts)
        return optax.EmptyState()

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        max_logits: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        del extra_args
        if params is None or max_logits is None:
            raise ValueError("clip_qk needs parameters and maxima: update(updates, state, params, max_logits=...).")
        attentions = find_attention(updates, layouts)
        factors: dict[str, jax.Array] = {}
        for scope, logits in _by_scope(named_leaves(max_logits), attentions).items():
            factors |= _factors(attentions[scope], _shrinkage(logits, threshold))
        weights = {leaf.path: leaf.value for leaf in named_leaves(params)}
        clipped = [
            _clipped(leaf.value, weights[leaf.path], factors[leaf.path]) if leaf.path in factors else leaf.value
            for leaf in named_leaves(updates)
        ]
        return jax.tree.unflatten(jax.tree.structure(updates), clipped), state

    return optax.GradientTransformationExtraArgs(init, update)


def _by_scope(maxima: list[NamedLeaf], attentions: dict[str, Attention]) -> dict[str, jax.Array]:
    """The maxima of every attention layer."""
    found: dict[str, jax.Array] = {}
    for leaf in maxima:
        scopes = [scope for scope in attentions if f"{leaf.path}/".startswith(f"{scope}/" if scope else "")]
        scope = max(scopes, key=len, default=None)
        if scope is None or scope in found or not leaf.shape:
            raise ValueError(
                f"max_logits holds {show(leaf.path)} of shape {leaf.shape}, which is no attention layer's, a second "
                "one of a layer, or a single number. Give one array (*layers, heads) for each of: "
                f"{_listed(attentions)}."
            )
        found[scope] = gather(jnp.asarray(leaf.value, accumulation_dtype(leaf.dtype)))
    if found.keys() != attentions.keys():
        raise ValueError(
            f"max_logits lacks the maxima of {_listed(attentions.keys() - found.keys())}. To leave a layer alone, give "
            "its kernels the layout None in clip_qk(layouts=...)."
        )
    return found


def _listed(scopes: Any) -> str:
    return ", ".join(show(scope) for scope in sorted(scopes))


def _shrinkage(logits: jax.Array, threshold: float) -> jax.Array:
    """The factor ``eta`` of each head's logits."""
    # By comparison and not by min(1, threshold / S), which is negative for S < 0; NaN and infinity clip nothing.
    passed = (logits > threshold) & jnp.isfinite(logits)
    return jnp.where(passed, threshold / jnp.where(passed, logits, 1), 1)


def _factors(attention: Attention, eta: jax.Array) -> dict[str, jax.Array]:
    """The factor of every entry of the layer's kernels and biases, by path, broadcastable to them."""
    *stack, heads = eta.shape
    query_axes = heads_of(attention.query, tuple(stack), heads)
    size = math.prod(query_axes) // heads
    if attention.rotary is None:
        query, key = _grouped(attention, eta, size)
    else:
        query, key = _latent(attention, eta, size)
    return _spread(query, attention.query, len(stack)) | _spread(key, attention.key, len(stack))


def _grouped(attention: Attention, eta: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    *stack, heads = eta.shape
    features = math.prod(attention.key.outputs[len(stack) :])
    groups = max(1, features // size)
    heads_of(attention.key, tuple(stack), groups)
    if features != groups * size or heads % groups:
        raise ValueError(
            f"{show(attention.key.leaf.path)} makes {features} features, which are no whole number of heads of {size} "
            f"features, as {show(attention.query.leaf.path)} has {heads}, or no divisor of their number."
        )
    by_group = eta.reshape(*stack, groups, heads // groups)
    key = jnp.sqrt(jnp.min(by_group, axis=-1, keepdims=True))
    query = (by_group / key).reshape(*stack, heads, 1)
    return _repeated(query, size), _repeated(key, size)


def _latent(attention: Attention, eta: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    *stack, heads = eta.shape
    key_size = math.prod(heads_of(attention.key, tuple(stack), heads)) // heads
    rotary = attention.rotary or 0
    plain = size - rotary
    if not (0 < rotary < size and plain <= key_size):
        raise ValueError(
            f"{show(attention.key.leaf.path)} and its down-projection tell {rotary} rotary features, and heads of "
            f"{show(attention.query.leaf.path)} have {size}, those of keys and values {key_size}: they do not fit."
        )
    eta, root = eta[..., None], jnp.sqrt(eta)[..., None]
    query = jnp.concatenate([_repeated(root, plain), _repeated(eta, rotary)], axis=-1)
    values = _repeated(jnp.ones_like(eta), key_size - plain)
    return query, jnp.concatenate([_repeated(root, plain), values], axis=-1)


def _repeated(factors: jax.Array, size: int) -> jax.Array:
    return jnp.broadcast_to(factors, (*factors.shape[:-1], size))


def _spread(factors: jax.Array, kernel: Kernel, stack: int) -> dict[str, jax.Array]:
    """``(*layers, heads, features)`` along the axes of the kernel and of its bias."""
    outputs = factors.reshape(*factors.shape[:stack], *kernel.outputs[stack:])
    inputs = [axis for axis, letter in enumerate(kernel.layout.axes) if letter == "i"]
    spread = {kernel.leaf.path: jnp.expand_dims(outputs, inputs)}
    return spread if kernel.bias is None else spread | {kernel.bias.path: outputs}


def _clipped(update: Any, weight: Any, factor: jax.Array) -> jax.Array:
    """The update that takes the weight to ``factor (weight + update)``."""
    update = jnp.asarray(update)
    dtype = accumulation_dtype(jnp.result_type(update, weight))
    wide, weight = update.astype(dtype), jnp.asarray(weight, dtype)
    # Heads that are not clipped keep their update to the last bit.
    return jnp.where(factor == 1, update, (factor * (weight + wide) - weight).astype(update.dtype))
