"""One matrix explodes: what a clip of the whole tree does to AdamW's leaves, and what a clip of their own does."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models import NNXTransformer

import muon_optax as mo

RATE = 3e-3
EXPLODES = "blocks/0/up/kernel"  # by 1e8, as where one layer's activations run away
TWO_STEPS = mo.newton_schulz(mo.KELLER[:2])  # compile fast


def muon(**arguments: Any) -> Any:
    return mo.muon(RATE, orthogonalizer=TWO_STEPS, **arguments)


def before_muon(matrices: Any, others: Any) -> Any:
    return optax.chain(mo.partition_by_layout(matrices, others), muon())


# As docs/reliability.md writes them.
WAYS: dict[str, Callable[[], Any]] = {
    "none": muon,
    "of the whole tree": lambda: optax.chain(optax.clip_by_global_norm(1.0), muon()),
    "of AdamW's leaves": lambda: before_muon(optax.identity(), optax.clip_by_global_norm(1.0)),
    "in adamw=": lambda: muon(adamw=optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, b2=0.95))),
    "of each leaf": lambda: before_muon(optax.clip_by_block_rms(0.1), optax.clip_by_block_rms(0.1)),
}
OWN = ["of AdamW's leaves", "in adamw=", "of each leaf"]
in_turn = pytest.mark.parametrize("way", [OWN[0], *(pytest.param(way, marks=pytest.mark.slow) for way in OWN[1:])])


@cache
def model() -> tuple[dict[str, jax.Array], Callable[[Any, int], Any], frozenset[str]]:
    """Parameters of a transformer by path, its gradients on a batch, and the paths that AdamW trains."""
    graph, state = nnx.split(NNXTransformer(16, 8, 16, 2, 2, True, nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)

    def loss(params: Any, seed: int) -> jax.Array:
        tokens = jax.random.randint(jax.random.key(seed), (8, 8), 0, 16)
        filled = nnx.clone(state)
        nnx.replace_by_pure_dict(filled, params)
        logits = nnx.merge(graph, filled)(tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()

    others = frozenset(path for path, label in by_path(mo.label_params(params)).items() if label == "adamw")
    return params, jax.jit(jax.grad(loss)), others


def by_path(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def changed(gradients: Any, path: str, change: Callable[[jax.Array], jax.Array]) -> Any:
    def leaf(keys: Any, gradient: jax.Array) -> jax.Array:
        return change(gradient) if jax.tree_util.keystr(keys, simple=True, separator="/") == path else gradient

    return jax.tree_util.tree_map_with_path(leaf, gradients)


@cache
def moved(way: str, factor: float) -> float:
    """How far AdamW's leaves go in ten steps, one matrix's gradient being ``factor`` times as large for ten already."""
    params, gradients_of, others = model()
    optimizer = WAYS[way]()

    @jax.jit
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state, visited = optimizer.init(params), []
    for seed in range(25):
        visited.append(by_path(params))
        gradients = changed(gradients_of(params, seed), EXPLODES, lambda gradient: factor * gradient)
        params, state = step(params, state, gradients if seed >= 5 else gradients_of(params, seed))
    before, after = visited[15], by_path(params)
    return float(np.sqrt(sum(float(jnp.sum((after[path] - before[path]) ** 2)) for path in others)))


def test_a_clip_of_the_whole_tree_starves_what_adamw_trains() -> None:
    """AdamW's memory fades, and 1e-8 of a gradient is less than its eps. Part of what is left is decay."""
    assert moved("of the whole tree", 1e8) < 0.4 * moved("of the whole tree", 1.0)


@in_turn
def test_a_clip_of_their_own_does_not(way: str) -> None:
    assert moved(way, 1e8) == pytest.approx(moved(way, 1.0), rel=0.05)


def one_update(way: str, path: str, change: Callable[[jax.Array], jax.Array]) -> dict[str, jax.Array]:
    params, gradients_of, _ = model()
    optimizer, gradients = WAYS[way](), gradients_of(params, 0)
    large = jax.tree.map(lambda gradient: 100.0 * gradient, gradients)  # every clip has something to do
    return by_path(jax.jit(optimizer.update)(changed(large, path, change), optimizer.init(params), params)[0])


@in_turn
def test_no_bit_of_adamws_updates_depends_on_a_matrix(way: str) -> None:
    calm, wild = (one_update(way, EXPLODES, lambda gradient, f=factor: f * gradient) for factor in (1.0, 1e8))
    for path in model()[2]:
        np.testing.assert_array_equal(calm[path], wild[path])


def not_finite(way: str, path: str, value: float) -> set[str]:
    updates = one_update(way, path, lambda gradient: gradient.at[(0,) * gradient.ndim].set(value))
    return {path for path, update in updates.items() if not bool(jnp.isfinite(update).all())}


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_what_is_not_finite_stays_where_the_clip_does(value: float) -> None:
    """What the table in docs/reliability.md says of each clip."""
    params, _, others = model()
    paths, bias = {*by_path(params)}, "blocks/0/up/bias"
    for path in (EXPLODES, bias):
        assert not_finite("none", path, value) == {path}
    if value != value:
        assert not_finite("of the whole tree", EXPLODES, value) == paths
        assert not_finite("of the whole tree", bias, value) == paths
        for way in ("of AdamW's leaves", "in adamw="):
            assert not_finite(way, bias, value) == others
    else:  # a quotient by infinity is zero, and that of infinity itself is not a number
        assert not_finite("of the whole tree", EXPLODES, value) == {EXPLODES}
        updates = one_update("of the whole tree", EXPLODES, lambda gradient: gradient.at[0, 0].set(value))
        for path in ("blocks/1/up/kernel", "embed/embedding"):  # decay alone
            np.testing.assert_allclose(updates[path], -0.1 * RATE * by_path(params)[path], rtol=1e-5)
    for way in OWN:
        assert not_finite(way, EXPLODES, value) == {EXPLODES}
    assert not_finite("of each leaf", bias, value) == {bias}


def test_a_clip_of_each_matrix_bounds_what_its_momentum_remembers() -> None:
    """Without one a single explosion is all that momentum holds for hundreds of steps: 0.95^360 is 1e-8."""
    params, gradients_of, _ = model()
    calm = [gradients_of(params, seed) for seed in range(25)]

    def update(way: str, factor: float) -> np.ndarray:
        optimizer = WAYS[way]()
        state, step = optimizer.init(params), jax.jit(optimizer.update)
        for seed, gradients in enumerate(calm):
            given = changed(gradients, EXPLODES, lambda g, f=factor if seed == 4 else 1.0: f * g)
            updates, state = step(given, state, params)
        return np.asarray(by_path(updates)[EXPLODES]).ravel()

    def cosine(way: str) -> float:
        one, other = update(way, 1e8), update("none", 1.0)
        return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))

    assert cosine("none") < 0.7
    assert cosine("of each leaf") > 0.95
