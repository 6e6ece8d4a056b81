"""The factory: equal to its parts, to optax.contrib.muon where that is the same algorithm, and to AdamW elsewhere."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import trees
from trees import assert_trees_equal

import muon_optax as mo

FLOAT32 = mo.newton_schulz(dtype=jnp.float32, method="direct")
SAME = 1e-5  # shares of a leaf's norm: float32, a few operations in another order


def updates_of(optimizer: Any, params: Any, gradients: list[Any]) -> list[Any]:
    """The updates of each step, with parameters that follow them."""
    update, state, results = jax.jit(optimizer.update), optimizer.init(params), []
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        results.append(updates)
    return results


GRADIENTS = [trees.with_vectors(seed) for seed in range(1, 5)]


@pytest.mark.parametrize("scale", ["naive", "keller", "mup", "moonlight"])
@pytest.mark.parametrize("nesterov", [True, False], ids=["nesterov", "plain"])
def test_matrices_follow_the_algorithm(scale: str, nesterov: bool) -> None:
    optimizer = mo.muon(0.1, weight_decay=0.3, momentum=0.9, nesterov=nesterov, scale=scale, orthogonalizer=FLOAT32)
    params = trees.arrays()
    got = params
    for updates in updates_of(optimizer, params, [trees.arrays(seed) for seed in range(1, 5)]):
        got = optax.apply_updates(got, updates)
    for name in params:
        gradients = np.stack([trees.arrays(seed)[name] for seed in range(1, 5)])
        want = oracle.muon(
            np.asarray(params[name]),
            gradients,
            learning_rate=0.1,
            weight_decay=0.3,
            momentum=0.9,
            nesterov=nesterov,
            scale=scale,
        ).params[-1]
        assert oracle.relative_error(got[name] - params[name], want - np.asarray(params[name])) <= SAME


def test_equals_the_chain_of_its_parts() -> None:
    layouts = {"down": "oi"}
    parts = optax.chain(
        optax.trace(0.95, nesterov=True),
        mo.orthogonalize_via_newton_schulz(),
        mo.scale_by_shape("moonlight"),
        optax.add_decayed_weights(0.1),
        optax.scale_by_learning_rate(0.02),
    )
    vectors = optax.adamw(0.02, b2=0.95, weight_decay=0.1, mask={"bias": False, "embedding": True, "down": 0, "up": 0})
    by_hand = optax.partition(
        {"muon": mo.partition_by_layout(parts, optax.identity(), layouts), "adamw": vectors},
        {"down": "muon", "up": "muon", "bias": "adamw", "embedding": "adamw"},
    )
    got = updates_of(mo.muon(0.02, layouts=layouts), trees.with_vectors(), GRADIENTS)
    # bfloat16: a sum in another order turns last bits.
    assert_trees_equal(got, updates_of(by_hand, trees.with_vectors(), GRADIENTS), 1e-2)


@pytest.mark.parametrize("scale, consistent_rms", [("keller", None), ("moonlight", 0.2)], ids=["keller", "moonlight"])
def test_equals_optax_contrib_muon_without_nesterov(scale: str, consistent_rms: float | None) -> None:
    theirs = optax.contrib.muon(
        0.02,
        weight_decay=0.1,
        nesterov=False,
        consistent_rms=consistent_rms,
        adam_b2=0.95,
        # Its partition knows no embeddings and no biases of two axes: the tree below has none.
        adam_weight_decay=0.0,
    )
    ours = mo.muon(0.02, weight_decay=0.1, nesterov=False, scale=scale, orthogonalizer=FLOAT32)
    params = trees.arrays() | {"bias": jnp.linspace(-1.0, 1.0, 12)}
    steps = [trees.arrays(seed) | {"bias": oracle.gaussian(12, seed=seed).astype(np.float32)} for seed in range(1, 21)]
    for got, want in zip(updates_of(ours, params, steps), updates_of(theirs, params, steps), strict=True):
        assert_trees_equal(got, want, 1e-4)


# The AdamW branch.


def decays(optimizer: Any, params: Any) -> dict[str, bool]:
    """Which leaves decay: a zero gradient moves nothing else."""
    (updates,) = updates_of(optimizer, params, [jax.tree.map(jnp.zeros_like, params)])
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): bool((leaf != 0).any())
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
    }


STACKED = {
    "layers": {
        "attention": {"kernel": jnp.ones((3, 8, 8)), "bias": jnp.ones((3, 8))},
        "norm": {"scale": jnp.ones((3, 8)), "bias": jnp.ones((3, 8))},
    },
    "query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4))},
    "embed": {"embedding": jnp.ones((10, 8))},
    "head": {"kernel": jnp.ones((8, 10)), "bias": jnp.ones(10)},
}


def test_default_decay_leaves_out_biases_and_norms_of_any_rank() -> None:
    assert decays(mo.muon(0.1), STACKED) == {
        "embed/embedding": True,
        "head/bias": False,
        "head/kernel": True,
        "layers/attention/bias": False,
        "layers/attention/kernel": True,
        "layers/norm/bias": False,
        "layers/norm/scale": False,
        "query/bias": False,
        "query/kernel": True,
    }


def test_haikus_b_is_a_bias_beside_w_and_a_matrix_alone() -> None:
    params = {"linear": {"w": jnp.ones((2, 8, 8)), "b": jnp.ones((2, 8))}, "low_rank": {"b": jnp.ones((4, 8))}}
    layouts = {"linear/w": "bio", "low_rank/b": None}
    assert decays(mo.muon(0.1, layouts=layouts), params) == {"linear/b": False, "linear/w": True, "low_rank/b": True}


def test_other_leaves_equal_adamw() -> None:
    params, gradients = trees.with_vectors(), GRADIENTS
    adamw = optax.adamw(
        0.02, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.3, mask={"bias": False, "embedding": True, "down": 0, "up": 0}
    )
    got = updates_of(mo.muon(0.02, weight_decay=0.3), params, gradients)
    want = updates_of(adamw, params, gradients)
    for name in ("bias", "embedding"):
        assert_trees_equal([step[name] for step in got], [step[name] for step in want], SAME)


def test_adamw_is_replaced() -> None:
    optimizer = mo.muon(0.02, weight_decay=0.3, adamw=optax.sgd(0.5))
    got = updates_of(optimizer, trees.with_vectors(), GRADIENTS)
    plain = updates_of(mo.muon(0.02, weight_decay=0.3), trees.with_vectors(), GRADIENTS)
    for step, gradient, matrices in zip(got, GRADIENTS, plain, strict=True):
        for name in ("bias", "embedding"):
            np.testing.assert_allclose(step[name], -0.5 * gradient[name], rtol=1e-6)
        assert_trees_equal(step["up"], matrices["up"], 1e-2)  # two programs in bfloat16


MASK = {"down": True, "up": False, "bias": True, "embedding": False}


@pytest.mark.parametrize(
    "mask", [MASK, lambda params: {name: name in ("down", "bias") for name in params}], ids=["tree", "function"]
)
def test_weight_decay_mask_holds_for_both_branches(mask: Any) -> None:
    assert decays(mo.muon(0.1, weight_decay_mask=mask), trees.with_vectors()) == MASK


class CallableModule(eqx.Module):
    down: Any
    up: Any
    bias: Any

    def __call__(self, x: Any) -> Any:
        return x


def test_weight_decay_mask_may_be_a_module() -> None:
    """An Equinox module is callable, and a tree all the same."""
    arrays = trees.with_vectors()
    params = CallableModule(arrays["down"], arrays["up"], arrays["bias"])
    optimizer = mo.muon(0.1, weight_decay_mask=CallableModule(False, True, True))
    assert decays(optimizer, params) == {"down": False, "up": True, "bias": True}


def test_weight_decay_is_decoupled_from_the_scale() -> None:
    params = trees.arrays()
    zero = jax.tree.map(jnp.zeros_like, params)
    (updates,) = updates_of(mo.muon(0.1, weight_decay=0.5, scale=lambda fan_in, fan_out: 100.0), params, [zero])
    assert_trees_equal(updates, jax.tree.map(lambda leaf: -0.05 * leaf, params), 1e-6)


# The arguments.


def test_orthogonalizer_may_be_any_function() -> None:
    def signs(matrices: jax.Array) -> jax.Array:
        return jnp.sign(matrices)

    params, gradient = trees.arrays(), trees.arrays(1)
    optimizer = mo.muon(0.1, weight_decay=0.0, scale="naive", orthogonalizer=signs)
    (updates,) = updates_of(optimizer, params, [gradient])
    assert_trees_equal(updates, jax.tree.map(lambda leaf: -0.1 * jnp.sign(leaf), gradient), 1e-6)


def test_orthogonalizer_sees_inputs_as_rows() -> None:
    seen = []

    def spy(matrices: jax.Array) -> jax.Array:
        seen.append(matrices.shape)
        return matrices

    params = {"oi": jnp.ones((3, 5)), "ibo": jnp.ones((4, 2, 7)), "iio": jnp.ones((2, 3, 4))}
    optimizer = mo.muon(0.1, orthogonalizer=spy, layouts={name: name for name in params})
    optimizer.update(params, optimizer.init(params), params)
    assert sorted(seen) == [(2, 4, 7), (5, 3), (6, 4)]


def test_scale_may_be_a_function_of_fan_in_and_fan_out() -> None:
    params, gradient = trees.arrays(), trees.arrays(1)
    optimizer = mo.muon(
        0.1,
        weight_decay=0.0,
        orthogonalizer=lambda matrices: matrices,
        scale=lambda fan_in, fan_out: fan_in + 100 * fan_out,
        momentum=0.0,
    )
    (updates,) = updates_of(optimizer, params, [gradient])
    for name, factor in {"down": 812, "up": 1208}.items():
        np.testing.assert_allclose(updates[name], -0.1 * factor * gradient[name], rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)], ids=str)
def test_moonlights_updates_are_as_large_as_adamws(shape: tuple[int, int]) -> None:
    params, gradient = {"w": jnp.zeros(shape)}, {"w": oracle.gaussian(*shape).astype(np.float32)}
    (updates,) = updates_of(mo.muon(1.0, orthogonalizer=mo.polar_factor()), params, [gradient])
    assert float(jnp.sqrt(jnp.mean(updates["w"] ** 2))) == pytest.approx(0.2, rel=1e-4)
    # Keller's singular values end between 0.68 and 1.2.
    (updates,) = updates_of(mo.muon(1.0), params, [gradient])
    assert 0.2 * 0.65 <= float(jnp.sqrt(jnp.mean(updates["w"] ** 2))) <= 0.2 * 1.2


def momentum_of(state: Any) -> Any:
    return state.inner_states["muon"].inner_state[0].trace


@pytest.mark.parametrize("momentum_dtype", [jnp.bfloat16, jnp.float32, None], ids=["bfloat16", "float32", "own"])
def test_momentum_dtype_is_that_of_the_stored_momentum(momentum_dtype: Any) -> None:
    params, gradient = trees.arrays(0, jnp.float16), trees.arrays(1, jnp.float16)
    optimizer = mo.muon(0.1, momentum_dtype=momentum_dtype)
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(gradient, state, params)
    stored = momentum_of(state)["up"]
    assert stored.dtype == (momentum_dtype or jnp.float16)
    want = 1.95 * np.asarray(gradient["up"], np.float64)
    assert oracle.relative_error(stored, want) <= {jnp.bfloat16: 4e-3, jnp.float32: 1e-3, None: 1e-3}[momentum_dtype]


def test_learning_rate_schedule() -> None:
    schedule = optax.linear_schedule(0.1, 0.0, 4)
    identity: Callable = lambda matrices: matrices  # noqa: E731
    optimizer = mo.muon(
        schedule, weight_decay=0.5, momentum=0.0, scale="naive", orthogonalizer=identity, adamw=optax.sgd(1.0)
    )
    params = trees.arrays()
    steps = updates_of(optimizer, params, [trees.arrays(seed) for seed in range(1, 5)])
    for index, updates in enumerate(steps):
        want = jax.tree.map(lambda g, p, index=index: -schedule(index) * (g + 0.5 * p), trees.arrays(index + 1), params)
        assert_trees_equal(updates, want, SAME)
        params = optax.apply_updates(params, updates)


def test_weight_decay_schedule_holds_for_both_branches() -> None:
    schedule = optax.linear_schedule(0.4, 0.0, 4)
    params = trees.with_vectors()
    zeros = [jax.tree.map(jnp.zeros_like, params)] * 4
    for index, updates in enumerate(updates_of(mo.muon(0.1, weight_decay=schedule), params, zeros)):
        for name in ("up", "embedding"):
            np.testing.assert_allclose(updates[name], -0.1 * schedule(index) * params[name], rtol=1e-5, atol=1e-9)
        params = optax.apply_updates(params, updates)


def test_zero_learning_rate_moves_nothing_and_keeps_the_momentum() -> None:
    params, optimizer = trees.with_vectors(), mo.muon(0.0)
    updates, state = optimizer.update(GRADIENTS[0], optimizer.init(params), params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
    np.testing.assert_array_equal(momentum_of(state)["up"], GRADIENTS[0]["up"])


# Any scale of the gradient.


POWERS = {"float32": (-100, -37, -1, 1, 50, 100), "bfloat16": (-100, -37, -1, 1, 50, 100), "float16": range(-4, 13)}


@pytest.mark.parametrize("momentum_dtype", [None, jnp.bfloat16], ids=["own-momentum", "bfloat16-momentum"])
@pytest.mark.parametrize("dtype", POWERS)
def test_gradients_times_a_power_of_two_give_the_same_bits(dtype: str, momentum_dtype: Any) -> None:
    rng = np.random.default_rng(0)  # entries in +-[0.5, 2): their products with these powers are exact
    gradients = (rng.choice([-1.0, 1.0], (2, 6, 9)) * rng.uniform(0.5, 2.0, (2, 6, 9))).astype(jnp.dtype(dtype))
    optimizer = mo.muon(0.1, momentum_dtype=momentum_dtype)
    params = {"w": jnp.asarray(rng.standard_normal((6, 9)), dtype)}

    @jax.jit
    def train(gradients: jax.Array) -> jax.Array:
        state, updates = optimizer.init(params), None
        for gradient in gradients:
            updates, state = optimizer.update({"w": gradient}, state, params)
        return updates["w"]

    want = np.asarray(train(gradients), np.float32)
    for power in POWERS[dtype]:
        got = np.asarray(train(gradients * np.asarray(2.0**power, gradients.dtype)), np.float32)
        np.testing.assert_array_equal(got, want)


def test_a_subnormal_float16_gradient_counts_as_it_is() -> None:
    """Not so of float32 and bfloat16: on CPU the product in ``optax.trace`` flushes what is below 2^-126 to zero."""
    units = np.array([[100.0, -300.0, 0.0], [700.0, 200.0, -500.0]])
    params = {"w": jnp.zeros((2, 3), jnp.float16)}
    optimizer = mo.muon(1.0, scale="naive", orthogonalizer=FLOAT32)
    (updates,) = updates_of(optimizer, params, [{"w": (units * 2.0**-24).astype(np.float16)}])
    # Nesterov's 1.95 times these integers is rounded to integers again, to 0.2%; the second singular value is small.
    assert oracle.relative_error(updates["w"], -oracle.newton_schulz(units)) <= 1e-2


def test_a_poisoned_matrix_of_a_stack_harms_no_other() -> None:
    params = {"experts": jnp.zeros((3, 4, 6))}
    gradient = oracle.gaussian(3, 4, 6).astype(np.float32)
    poisoned = gradient.copy()
    poisoned[1, 2, 3] = np.nan
    optimizer = mo.muon(0.1, layouts={"experts": "bio"})
    (want,), (got,) = (updates_of(optimizer, params, [{"experts": array}]) for array in (gradient, poisoned))
    assert np.isnan(got["experts"][1]).all()
    np.testing.assert_array_equal(got["experts"][jnp.array([0, 2])], want["experts"][jnp.array([0, 2])])


@pytest.mark.parametrize("shape", [(0, 4), (1, 7), (7, 1), (1, 1)], ids=str)
def test_degenerate_matrices_train(shape: tuple[int, int]) -> None:
    params, gradient = {"w": jnp.zeros(shape)}, {"w": oracle.gaussian(*shape).astype(np.float32)}
    optimizer = mo.muon(1.0, scale="naive", orthogonalizer=mo.polar_factor(), layouts={"w": "io"})
    (updates,) = updates_of(optimizer, params, [gradient])
    np.testing.assert_allclose(
        updates["w"], -oracle.polar_factor(gradient["w"]) if updates["w"].size else gradient["w"], rtol=1e-5
    )
