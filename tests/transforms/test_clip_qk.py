"""QK-clip against attention itself: the logits of the new weights are those of W + u times each head's eta."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AUTO_FIRST, mesh_of

import muon_optax as mo

D, SIZE, TOKENS, TAU = 6, 4, 5, 3.0
RNG = np.random.default_rng(0)
X = RNG.standard_normal((TOKENS, D))
MAXIMA = np.array([1.5, 3.0, 12.0, 7.5])  # below, at, and above TAU
ETA = np.array([1.0, 1.0, 0.25, 0.4])

# The names and shapes of kernels, their layouts, and how queries (tokens, heads, size) come from a kernel.
KINDS = {
    "flax": ("query/kernel", "key/kernel", "ioo", lambda n: (D, n, SIZE), lambda W: np.einsum("td,dnh->tnh", X, W)),
    "per head": ("query/kernel", "key/kernel", "ibo", lambda n: (D, n, SIZE), lambda W: np.einsum("td,dnh->tnh", X, W)),
    "dense": ("q_proj/w", "k_proj/w", "io", lambda n: (D, n * SIZE), lambda W: (X @ W).reshape(TOKENS, -1, SIZE)),
    "torch": ("wq/weight", "wk/weight", "oi", lambda n: (n * SIZE, D), lambda W: (X @ W.T).reshape(TOKENS, -1, SIZE)),
}


def tree(flat: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts of a mapping from paths."""
    nested: dict[str, Any] = {}
    for path, leaf in flat.items():
        *scopes, name = path.split("/")
        node = nested
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[name] = leaf
    return nested


def clipped(shapes: dict[str, tuple[int, ...]], layouts: Any, maxima: Any, tau: float = TAU) -> Any:
    """W + u, and the weights after the clipped update, both as mappings from paths, in float64."""
    weights, updates = ({path: RNG.standard_normal(shape) for path, shape in shapes.items()} for _ in range(2))
    with jax.enable_x64(True):
        params, steps = (jax.tree.map(jnp.asarray, tree(leaves)) for leaves in (weights, updates))
        clip = optax.chain(optax.identity(), mo.clip_qk(tau, layouts=layouts))
        moved, _ = jax.jit(clip.update)(steps, clip.init(params), params, max_logits=maxima)
        after = optax.apply_updates(params, moved)
    after = dict(zip(sorted(shapes), map(np.asarray, jax.tree.leaves(after)), strict=True))
    return {path: weights[path] + updates[path] for path in shapes}, after


@pytest.mark.parametrize("groups", [4, 2, 1], ids=["multi-head", "grouped", "multi-query"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_heads_logits_shrink_by_its_own_eta(kind: str, groups: int) -> None:
    query, key, layout, shape, project = KINDS[kind]
    shapes = {f"attention/{key}": shape(groups), f"attention/{query}": shape(4), "mlp/kernel": (D, 3)}
    before, after = clipped(shapes, {"attention/*": layout}, {"attention": MAXIMA})

    def logits(weights: Any) -> np.ndarray:
        queries, keys = (project(weights[f"attention/{name}"]) for name in (query, key))
        return np.einsum("tnh,snh->nts", queries, np.repeat(keys, 4 // groups, axis=1))

    np.testing.assert_allclose(logits(after), ETA[:, None, None] * logits(before), rtol=1e-12, atol=1e-12)
    # Keys take the square root of their group's smallest eta, not of one that the layer shares.
    factor = np.sqrt(ETA.reshape(groups, -1).min(axis=1))
    np.testing.assert_allclose(
        project(after[f"attention/{key}"]), factor[:, None] * project(before[f"attention/{key}"]), rtol=1e-12
    )
    np.testing.assert_array_equal(after["mlp/kernel"], before["mlp/kernel"])


NOPE, LATENT = 3, 4


@pytest.mark.parametrize("layers", [(), (2,)], ids=["one layer", "scanned"])
@pytest.mark.parametrize("rope, values", [(2, 5), (1, 0)], ids=["with values", "keys alone"])
def test_latent_attention_leaves_the_shared_rotary_key_and_the_values(
    rope: int, values: int, layers: tuple[int, ...]
) -> None:
    shapes = {
        "wq_b/kernel": (*layers, D, 4, NOPE + rope),
        "wkv_a/kernel": (*layers, D, LATENT + rope),
        "wkv_b/kernel": (*layers, LATENT, 4, NOPE + values),
        "out/kernel": (*layers, 4, 5, D),
    }
    stack = "b" * len(layers)
    layouts = {"wq_b/*": f"{stack}ioo", "wkv_b/*": f"{stack}ioo", "wkv_a/*": f"{stack}io"}
    maxima, eta = (np.stack([one, one[::-1]]) if layers else one for one in (MAXIMA, ETA))
    before, after = clipped(shapes, layouts, maxima)
    eta, root = (factor[..., None, :, None] for factor in (eta, np.sqrt(eta)))  # of every input and feature
    queries, keys = before["wq_b/kernel"], before["wkv_b/kernel"]
    np.testing.assert_allclose(after["wq_b/kernel"][..., :NOPE], root * queries[..., :NOPE], rtol=1e-12)
    np.testing.assert_allclose(after["wq_b/kernel"][..., NOPE:], eta * queries[..., NOPE:], rtol=1e-12)
    np.testing.assert_allclose(after["wkv_b/kernel"][..., :NOPE], root * keys[..., :NOPE], rtol=1e-12)
    np.testing.assert_array_equal(after["wkv_b/kernel"][..., NOPE:], keys[..., NOPE:])
    np.testing.assert_array_equal(after["wkv_a/kernel"], before["wkv_a/kernel"])


STACKED = {"layers/attention/key/kernel": (2, D, 2, SIZE), "layers/attention/key/bias": (2, 2, SIZE),
           "layers/attention/query/kernel": (2, D, 4, SIZE), "layers/attention/query/bias": (2, 4, SIZE)}  # fmt: skip


def test_scanned_layers_and_their_biases() -> None:
    layouts = {"*/kernel": "bioo"}
    maxima = {"layers": {"attention": {"max_logits": (np.stack([MAXIMA, MAXIMA[::-1]]),)}}}  # as linen's sow leaves it
    before, after = clipped(STACKED, layouts, maxima)
    for layer, eta in enumerate((ETA, ETA[::-1])):
        key = np.sqrt(eta.reshape(2, 2).min(axis=1))
        for name, factor in (("key", key), ("query", eta / np.repeat(key, 2))):
            for leaf in ("kernel", "bias"):
                path = f"layers/attention/{name}/{leaf}"
                np.testing.assert_allclose(after[path][layer], factor[:, None] * before[path][layer], rtol=1e-12)


SHAPES = {"k_proj": (D, 8), "q_proj": (D, 8)}


def test_an_attention_within_another_has_its_own_maxima() -> None:
    shapes = {f"{scope}{name}": shape for scope in ("", "inner/") for name, shape in SHAPES.items()}
    before, after = clipped(shapes, None, {"inner": {"max": np.array([1.0, 4 * TAU])}, "max": np.array([9 * TAU, 1.0])})
    for scope, factor in {"": [1 / 3, 1], "inner/": [1, 1 / 2]}.items():
        for name in SHAPES:
            path = f"{scope}{name}"
            np.testing.assert_allclose(after[path], np.repeat(factor, SIZE) * before[path], rtol=1e-12)


def test_the_usual_threshold_is_100() -> None:
    params, maxima = {name: jnp.ones(shape) for name, shape in SHAPES.items()}, jnp.array([100.0, 400.0])
    updates, clip = jax.tree.map(jnp.zeros_like, params), mo.clip_qk()
    updates, _ = clip.update(updates, clip.init(params), params, max_logits=maxima)
    for update in updates.values():
        np.testing.assert_allclose(update, np.tile(np.repeat([0, -0.5], SIZE), (D, 1)), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, -1e-6, -50.0, -np.inf, np.inf, np.nan, TAU])
def test_what_did_not_pass_the_threshold_is_left_alone(value: float) -> None:
    before, after = clipped(SHAPES, None, np.array([value, 2 * TAU]))
    for path in SHAPES:
        np.testing.assert_array_equal(after[path][:, :SIZE], before[path][:, :SIZE])
        np.testing.assert_allclose(after[path][:, SIZE:], before[path][:, SIZE:] / np.sqrt(2), rtol=1e-12)


@pytest.mark.parametrize(
    "shapes, maxima, layouts, message",
    [
        ({"mlp": (4, 4)}, [1.0], None, "found no query and key kernels"),
        ({"a/query/kernel": (4, 4)}, [1.0], None, "'a/query/kernel' has no key kernel beside it.*None"),
        ({"wk": (4, 4), "x": (4, 4)}, [1.0], None, "'wk' has no query kernel beside it"),
        ({"query/kernel": (4, 2, 3), "key/kernel": (4, 2, 3)}, [1.0], None, "has a layout that no rule knows"),
        ({"q": (4, 4), "k": (4, 4), "q_proj": (4, 4)}, [1.0], None, "'q_proj' is one of several"),
        ({"a/q/w": (4, 4), "a/k/w": (4, 4), "a/q_norm/scale": (4,)}, [1.0], None, "normalizes queries or keys"),
        ({"wq_b": (4, 8), "wkv_b": (4, 8)}, [1.0], None, "'wkv_b' has no down-projection"),
        ({"wq_b": (4, 8), "wkv_a": (4, 4), "wkv_b": (4, 8)}, [1.0], None, "tell 0 rotary features"),
        ({"wq_b": (4, 8), "wkv_a": (4, 12), "wkv_b": (4, 8)}, [1.0], None, "tell 8 rotary features"),
        (
            {"wq_b": (4, 8), "wkv_a": (4, 6), "wkv_b": (4, 4)},
            [1.0],
            None,
            "tell 2 .* have 8, those of keys and values 4",
        ),
        (SHAPES, None, None, "needs parameters and maxima"),
        (SHAPES, [1.0, 1.0, 1.0], None, "'q_proj' of shape .6, 8. and layout 'io' does not hold 3 heads"),
        ({"query/w": (4, 4, 4), "key/w": (4, 4, 4)}, [1.0] * 8, {"*/w": "ioo"}, "'query/w' .* does not hold 8 heads"),
        (SHAPES, [[1.0, 1.0]], None, "'q_proj' .* does not hold 2 heads in a stack of .1,."),
        (SHAPES, 1.0, None, "a single number"),
        (SHAPES, {"a": [1.0], "b": [1.0]}, None, "max_logits holds 'a/0' of shape .., which is no|a second"),
        (
            {"a/k": (D, 8), "a/q": (D, 8)},
            {"c": [1.0]},
            None,
            "max_logits holds 'c' of shape .1,., which is no attention",
        ),
        ({"k": (D, 6), "q": (D, 8)}, [1.0, 1.0], None, "no whole number of heads"),
        ({"k": (D, 12), "q": (D, 8)}, [1.0, 1.0], None, "no whole number of heads"),
        (
            {f"{n}/{w}": (D, 8) for n in "abcdef" for w in "qk"},
            {"a": [1.0]},
            None,
            "the maxima of 'b', 'c', 'd', 'e', 'f'.",
        ),
        ({"wk": (D, 8), "wq": (D, 8), "bq": (3,)}, [1.0], None, "'bq' has shape .3,., where its kernel makes .8,."),
    ],
)
def test_refusals(shapes: Any, maxima: Any, layouts: Any, message: str) -> None:
    params = tree({path: jnp.ones(shape) for path, shape in shapes.items()})
    maxima = jax.tree.map(jnp.asarray, maxima, is_leaf=lambda node: isinstance(node, list))
    clip = mo.clip_qk(TAU, layouts=layouts)
    with pytest.raises(ValueError, match=message):
        clip.update(params, clip.init(params), params, max_logits=maxima)


def test_a_partition_hides_biases() -> None:
    params = {"q_proj": jnp.ones((4, 4)), "k_proj": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"must see the whole tree.*chain it after"):
        mo.partition_by_layout(mo.clip_qk(), optax.sgd(0.1)).init(params)


@pytest.mark.parametrize("kind", AUTO_FIRST)
@pytest.mark.parametrize("axes, spec", [({"data": 8}, P(None, "data")), ({"data": 2, "model": 4}, P("data", "model"))])
def test_sharded_equals_unsharded(axes: Any, spec: Any, kind: Any) -> None:
    weights = {path: np.float32(RNG.standard_normal((8, 16))) for path in ("k_proj", "q_proj")}
    clip, maxima = mo.clip_qk(TAU), np.float32(MAXIMA)
    want, _ = clip.update(weights, clip.init(weights), weights, max_logits=maxima)
    placed = jax.device_put(weights, NamedSharding(mesh_of(kind, **axes), spec))
    got, _ = jax.jit(clip.update)(placed, clip.init(placed), placed, max_logits=maxima)
    for path in weights:
        np.testing.assert_allclose(got[path], want[path], rtol=1e-6, atol=1e-6)


def test_muon_hands_the_maxima_on() -> None:
    params = {"q_proj": jnp.ones((4, 4)), "k_proj": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    plain, clipping = mo.muon(0.1), optax.chain(mo.muon(0.1), mo.clip_qk(TAU))
    maxima = jnp.array([1.0, 4 * TAU])
    want = optax.apply_updates(params, plain.update(params, plain.init(params), params)[0])
    updates, _ = clipping.update(params, clipping.init(params), params, max_logits=maxima)
    got = optax.apply_updates(params, updates)
    np.testing.assert_allclose(got["q_proj"], want["q_proj"] * np.array([1, 1, 0.5, 0.5]), rtol=1e-6)
    np.testing.assert_array_equal(got["bias"], want["bias"])
