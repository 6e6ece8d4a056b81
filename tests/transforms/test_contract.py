"""What every transform owes Optax, JAX and checkpoints: one suite over all of them."""

from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import trees
from trees import assert_trees_equal

import muon_optax as mo

# Other tests reach all but a few of the same lines, and under coverage these take half as long again.
pytestmark = pytest.mark.no_cover

# In a state: one momentum for each matrix, two moments for each other leaf.
NUMBERS = 2 * 96 + 2 * (12 + 80)


class Subject(NamedTuple):
    """A transform, whether it takes trees with vectors too (and has a state), how near equals are, what it keeps.

    Two programs of the same arithmetic differ in the order of sums and in what XLA fuses. In bfloat16 that turns last
    bits of 0.4%, and the steps of Newton-Schulz carry them on.
    """

    build: Callable[[], optax.GradientTransformationExtraArgs]
    whole: bool
    same: float = 1e-4
    numbers: int = NUMBERS


def _partition() -> optax.GradientTransformationExtraArgs:
    matrices = optax.chain(optax.trace(0.9), mo.orthogonalize(FLOAT32), mo.scale_by_shape(), optax.scale(-0.1))
    return mo.partition_by_layout(matrices, optax.adam(0.1))


def _family() -> optax.GradientTransformationExtraArgs:
    matrices = optax.chain(
        mo.quantized_trace(0.9, nesterov=True),
        mo.orthogonalize(FLOAT32),
        mo.scale_by_normuon(axis="longer"),
        mo.scale_by_shape(),
        mo.add_cautious_decayed_weights(0.1),
        optax.scale(-0.1),
    )
    return mo.partition_by_layout(matrices, optax.adam(0.1))


def _adaptive_on_spheres() -> optax.GradientTransformationExtraArgs:
    return mo.partition_by_layout(
        optax.chain(mo.scale_by_adamuon(FLOAT32), mo.scale_by_hyperball(0.1)), optax.adam(0.1)
    )


# What is checked here does not depend on the number of steps, and the time to compile them does.
FLOAT32 = mo.newton_schulz(mo.KELLER[:2], dtype=jnp.float32)
SUBJECTS = {
    "orthogonalize": Subject(lambda: mo.orthogonalize(mo.polar_factor()), False),
    "via-newton-schulz": Subject(lambda: mo.orthogonalize_via_newton_schulz(mo.KELLER[:2]), False, 2e-2),
    "scale-keller": Subject(lambda: mo.scale_by_shape("keller"), False),
    "scale-moonlight": Subject(mo.scale_by_shape, False),
    "partition": Subject(_partition, True),
    "muon": Subject(lambda: mo.muon(0.1), True, 2e-2),
    # Scales of 20 blocks, second moments of 24 neurons; two radii.
    "family": Subject(_family, True, numbers=NUMBERS + 20 + 24),
    "adamuon-hyperball": Subject(_adaptive_on_spheres, True, numbers=NUMBERS + 2),
    "block-periodic": Subject(
        lambda: mo.partition_by_layout(mo.orthogonalize_block_periodic(FLOAT32), optax.adam(0.1)),
        True,
        numbers=2 * (12 + 80),
    ),
    # Second moments of 20 outputs, or of the 24 neurons along the longer axes; two radii. Products are in bfloat16.
    "normuon": Subject(lambda: mo.recipes.normuon(0.1), True, 2e-2, NUMBERS + 20),
    "muon_h": Subject(lambda: mo.recipes.muon_h(0.1, adamw_learning_rate=0.1), True, 2e-2, NUMBERS + 2),
    "muon_speedrun": Subject(lambda: mo.recipes.muon_speedrun(0.1, adamw_learning_rate=0.1), True, 4e-2, NUMBERS + 24),
    "muon-keller": Subject(
        lambda: mo.muon(0.1, nesterov=False, scale="keller", orthogonalizer=mo.polar_factor()), True
    ),
    # A stored bfloat16 momentum is rounded once a step.
    "muon-bfloat16-momentum": Subject(
        lambda: mo.muon(0.1, momentum_dtype=jnp.bfloat16, orthogonalizer=FLOAT32), True, 2e-2
    ),
    "muon-average": Subject(
        lambda: mo.muon(0.1, momentum=mo.nesterov_ema(0.9, debias=True), orthogonalizer=FLOAT32), True
    ),
    "muon-schedule": Subject(
        lambda: mo.muon(
            optax.linear_schedule(0.1, 0.0, 10), momentum=optax.linear_schedule(0.8, 0.9, 3), orthogonalizer=FLOAT32
        ),
        True,
    ),
    "muon-by-path": Subject(
        lambda: mo.muon(
            0.1,
            by_path={
                "*": mo.Settings(
                    learning_rate=lambda step: 1.0 + step,
                    weight_decay=0.5,
                    momentum=0.8,
                    scale="keller",
                    orthogonalizer=FLOAT32,
                )
            },
        ),
        True,
    ),
}
WHOLE = [name for name, subject in SUBJECTS.items() if subject.whole]
# Options of muon, whose own tests run by default.
OPTIONS = ("muon-by-path", "muon-keller", "muon-bfloat16-momentum", "muon-average", "muon-schedule")
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def with_options_slow(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in OPTIONS)) for name in names]


@pytest.fixture(params=with_options_slow(SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


@pytest.fixture(params=with_options_slow(WHOLE))
def stateful(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


class Outcome(NamedTuple):
    """How far the parameters came, the last updates, the state."""

    moved: Any
    updates: Any
    state: Any


def tree_of(subject: Subject, seed: int = 0, dtype: Any = jnp.float32) -> Any:
    return (trees.with_vectors if subject.whole else trees.arrays)(seed, dtype)


def gradients_of(subject: Subject, steps: int, dtype: Any = jnp.float32) -> list[Any]:
    return [tree_of(subject, seed, dtype) for seed in range(1, steps + 1)]


def run(transform: Any, params: Any, gradients: list[Any], update: Callable | None = None) -> Outcome:
    update = update or jax.jit(transform.update)
    start, state, updates = params, transform.init(params), None
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return Outcome(jax.tree.map(jnp.subtract, params, start), updates, state)


@cache
def plain_run(subject: Subject, steps: int) -> Outcome:
    """What every integration must come to."""
    return run(subject.build(), tree_of(subject), gradients_of(subject, steps))


def without_up(tree: Any) -> Any:
    return {name: leaf for name, leaf in tree.items() if name != "up"}


@cache
def plain_run_without_up(subject: Subject) -> Outcome:
    return run(subject.build(), without_up(tree_of(subject)), list(map(without_up, gradients_of(subject, 2))))


def test_chained_is_composition(subject: Subject) -> None:
    gradients = [jax.tree.map(lambda leaf: leaf / 4, gradient) for gradient in gradients_of(subject, 2)]
    chain = optax.chain(optax.scale(4.0), subject.build(), optax.scale(0.5))
    got = run(chain, tree_of(subject), gradients).updates
    if not subject.whole:  # what has no decay does not see that the parameters moved by half
        want = jax.tree.map(lambda leaf: 0.5 * leaf, plain_run(subject, 2).updates)
        assert_trees_equal(got, want, subject.same)
        return
    by_hand, params = subject.build(), tree_of(subject)
    state, update = by_hand.init(params), jax.jit(by_hand.update)
    for gradient in gradients_of(subject, 2):
        updates, state = update(gradient, state, params)
        updates = jax.tree.map(lambda leaf: 0.5 * leaf, updates)
        params = optax.apply_updates(params, updates)
    assert_trees_equal(got, updates, subject.same)


@pytest.mark.parametrize("kind", trees.KINDS)
def test_every_kind_of_tree(subject: Subject, kind: str) -> None:
    build, transform = trees.KINDS[kind], subject.build()
    params, *gradients = (build(**trees.arrays(seed)) for seed in range(3))
    got = run(transform, params, gradients)
    # Matrices alone: an AdamW or a stack of other leaves changes nothing about them.
    want = build(**{name: plain_run(subject, 2).updates[name] for name in trees.SHAPES})
    assert_trees_equal(got.updates, want, subject.same)
    assert jax.tree.structure(got.state) == jax.tree.structure(transform.init(params))


def test_jit_traces_once(subject: Subject) -> None:
    transform, traces = subject.build(), 0

    @jax.jit
    def update(updates: Any, state: Any, params: Any) -> tuple[Any, Any]:
        nonlocal traces
        traces += 1
        return transform.update(updates, state, params)

    run(transform, tree_of(subject), gradients_of(subject, 3), update)
    assert traces == 1


def test_jit_equals_eager(subject: Subject) -> None:
    transform = subject.build()
    got = run(transform, tree_of(subject), gradients_of(subject, 2), transform.update)
    assert_trees_equal(got, plain_run(subject, 2), subject.same)


def test_abstract_shapes(subject: Subject) -> None:
    transform, params = subject.build(), tree_of(subject)
    abstract = jax.eval_shape(lambda: params)

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    state = jax.eval_shape(transform.init, abstract)
    assert shapes(state) == shapes(transform.init(params))
    updates, new_state = jax.eval_shape(transform.update, abstract, state, abstract)
    assert shapes(updates) == shapes(params)
    assert shapes(new_state) == shapes(state)


def test_donated_buffers_are_reused(subject: Subject) -> None:
    transform = subject.build()

    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    start, params = tree_of(subject), tree_of(subject)
    state = transform.init(params)
    for gradient in gradients_of(subject, 2):  # JAX warns of a donated buffer without use, and warnings are errors
        given = params, state
        params, state = donating(params, state, gradient)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
    assert_trees_equal(jax.tree.map(jnp.subtract, params, start), plain_run(subject, 2).moved, subject.same)


def test_vmap_over_learning_rates(subject: Subject) -> None:
    rates = jnp.array([0.0, 0.1, 1.0])

    @jax.jit
    def train(rate: jax.Array) -> Any:
        transform = optax.chain(subject.build(), optax.scale_by_learning_rate(rate))
        return run(transform, tree_of(subject), gradients_of(subject, 2), transform.update).moved

    mapped = jax.jit(jax.vmap(train))(rates)
    for index, rate in enumerate(rates):
        assert_trees_equal(jax.tree.map(lambda leaf, index=index: leaf[index], mapped), train(rate), subject.same)


def test_scan_over_updates(subject: Subject) -> None:
    transform, start = subject.build(), tree_of(subject)

    def step(carry: Any, gradient: Any) -> tuple[Any, None]:
        params, state = carry
        updates, state = transform.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(gradients: Any) -> Any:
        (params, state), _ = jax.lax.scan(step, (start, transform.init(start)), gradients)
        return jax.tree.map(jnp.subtract, params, start), state

    moved, state = train(jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients_of(subject, 2)))
    assert_trees_equal(moved, plain_run(subject, 2).moved, subject.same)
    assert_trees_equal(state, plain_run(subject, 2).state, subject.same)


def test_masked_leaves_pass_unchanged(subject: Subject) -> None:
    params, gradients = tree_of(subject), gradients_of(subject, 2)
    masked = optax.masked(subject.build(), {name: name != "up" for name in params})
    got = run(masked, params, gradients).updates
    np.testing.assert_array_equal(got["up"], gradients[-1]["up"])
    assert_trees_equal(without_up(got), plain_run_without_up(subject).updates, subject.same)


def test_partitioned_by_the_user(subject: Subject) -> None:
    params, gradients = tree_of(subject), gradients_of(subject, 2)
    labels = {name: "sgd" if name == "up" else "ours" for name in params}
    transform = optax.partition({"ours": subject.build(), "sgd": optax.sgd(0.5)}, labels)
    got = run(transform, params, gradients).updates
    np.testing.assert_allclose(got["up"], -0.5 * gradients[-1]["up"], rtol=1e-6)
    assert_trees_equal(without_up(got), plain_run_without_up(subject).updates, subject.same)


def test_multi_steps_update_with_the_mean(subject: Subject) -> None:
    halves = [
        jax.tree.map(lambda leaf, part=part: part * leaf, gradient)
        for gradient in gradients_of(subject, 2)
        for part in (0.5, 1.5)
    ]
    got = run(optax.MultiSteps(subject.build(), every_k_schedule=2), tree_of(subject), halves).moved
    assert_trees_equal(got, plain_run(subject, 2).moved, subject.same)


def test_apply_if_finite_skips_a_poisoned_step(subject: Subject) -> None:
    first, second = gradients_of(subject, 2)
    poisoned = {**first, "up": first["up"].at[0, 0].set(jnp.nan)}
    transform = optax.apply_if_finite(subject.build(), max_consecutive_errors=3)
    got = run(transform, tree_of(subject), [first, poisoned, second])
    assert_trees_equal(got.moved, plain_run(subject, 2).moved, subject.same)
    assert int(got.state.total_notfinite) == 1


@pytest.mark.parametrize("gradient_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_stable(subject: Subject, dtype: str, gradient_dtype: str) -> None:
    with jax.enable_x64(True):
        transform = subject.build()
        params, gradient = tree_of(subject, 0, dtype), tree_of(subject, 1, gradient_dtype)
        state = jax.eval_shape(transform.init, params)
        updates, new_state = jax.eval_shape(transform.update, gradient, state, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(gradient_dtype)}
        assert jax.tree.map(lambda leaf: leaf.dtype, new_state) == jax.tree.map(lambda leaf: leaf.dtype, state)
        # A weakly typed state would be traced again at the second step.
        assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, new_state)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_numbers_hold_in_every_dtype(subject: Subject, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        updates = run(subject.build(), tree_of(subject, 0, dtype), gradients_of(subject, 2, dtype)).updates
        got = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float32)), updates)
    # 5 to 10 times the unit roundoff: parameters and momentum are rounded too, and some directions are small. Two runs
    # with bfloat16 products, each 1.5% from the exact one, may be twice as far apart.
    within = {"bfloat16": 4e-2, "float16": 1e-2, "float64": 0.0}[dtype] + 2 * subject.same
    assert_trees_equal(got, plain_run(subject, 2).updates, within)


def test_orbax_round_trip_continues_identically(stateful: Subject, tmp_path: Path) -> None:
    transform, params = stateful.build(), tree_of(stateful)
    update = jax.jit(transform.update)
    state = run(transform, params, gradients_of(stateful, 2), update).state
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(transform.init, params))
    assert_trees_equal(restored, state)
    for gradient in gradients_of(stateful, 2):
        one, state = update(gradient, state, params)
        other, restored = update(gradient, restored, params)
        assert_trees_equal(other, one)


def test_state_holds_moments_and_counters_only(stateful: Subject) -> None:
    """Coefficients, layouts and plans are static: none of them is in a checkpoint."""
    params = tree_of(stateful)
    # A statistic of a leaf has its shape, with size 1 on some axes.
    shapes = {reduced for leaf in jax.tree.leaves(params) for reduced in product(*({size, 1} for size in leaf.shape))}
    leaves = jax.tree.leaves(stateful.build().init(params))
    assert {leaf.shape for leaf in leaves} <= shapes | {()}
    assert sum(leaf.size for leaf in leaves if leaf.shape) == stateful.numbers


def test_equinox_model_under_filter_jit(subject: Subject) -> None:
    model, gradient = (trees.Module(**trees.arrays(seed)) for seed in (0, 1))
    transform = subject.build()
    state = transform.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model: Any, state: Any, gradient: Any) -> Any:
        updates, state = transform.update(gradient, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    got, _ = step(model, state, eqx.filter(gradient, eqx.is_inexact_array))
    moved = {name: getattr(got, name) - getattr(model, name) for name in trees.SHAPES}
    want = plain_run(subject, 1).moved
    assert_trees_equal(moved, {name: want[name] for name in trees.SHAPES}, subject.same)


# Optax's own wrappers around whole optimizers: each takes muon, moves all leaves, and keeps its state's structure.
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "mechanize": lambda muon: optax.contrib.mechanize(muon),
    "sam": lambda muon: optax.contrib.sam(muon, optax.sgd(0.01), sync_period=2),
    "schedule-free": lambda muon: optax.contrib.schedule_free(muon, 0.1),
    "split-complex": optax.contrib.split_real_and_imaginary,
    "conditionally-transform": lambda muon: optax.conditionally_transform(muon, lambda step: step >= 0),
    "conditionally-mask": lambda muon: optax.conditionally_mask(muon, lambda step: step >= 0),
    "skip-not-finite": lambda muon: optax.MultiSteps(muon, 1, should_skip_update_fn=optax.skip_not_finite),
    "reduce-on-plateau": lambda muon: optax.chain(muon, optax.contrib.reduce_on_plateau(patience=2)),
    "snapshot": lambda muon: optax.chain(muon, optax.snapshot("norm", optax.tree.norm)),
    "monitor": lambda muon: optax.chain(muon, optax.monitor({"norm": optax.tree.norm})),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_optax_wrappers_take_muon(wrapper: str) -> None:
    plain = mo.muon(0.1, orthogonalizer=FLOAT32)
    optimizer, params = WRAPPERS[wrapper](plain), trees.with_vectors()
    extra = {"value": jnp.asarray(1.0)} if wrapper == "reduce-on-plateau" else {}
    state, moved, update = optimizer.init(params), params, jax.jit(optimizer.update)
    for gradient in gradients_of(SUBJECTS["muon"], 2):
        before = state
        updates, state = update(gradient, state, moved, **extra)
        # Optax's monitor itself starts without measurements: there muon's own state, the first, is compared.
        both = (before[0], state[0]) if wrapper == "monitor" else (before, state)
        assert jax.tree.structure(both[0]) == jax.tree.structure(both[1])
        moved = optax.apply_updates(moved, updates)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(moved))
    if wrapper not in ("mechanize", "sam", "schedule-free"):  # these change the steps on purpose
        want = run(plain, params, gradients_of(SUBJECTS["muon"], 2)).moved
        assert_trees_equal(jax.tree.map(jnp.subtract, moved, params), want, 1e-4)
    elif wrapper != "mechanize":  # which learns its own rate, from nearly zero
        assert all(bool((new != old).any()) for new, old in zip(*map(jax.tree.leaves, (moved, params)), strict=True))


def test_lookahead_takes_muon() -> None:
    optimizer = optax.lookahead(mo.muon(0.1, orthogonalizer=FLOAT32), sync_period=3, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(trees.with_vectors())
    (gradient,) = gradients_of(SUBJECTS["muon"], 1)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    want = run(mo.muon(0.1, orthogonalizer=FLOAT32), trees.with_vectors(), [gradient]).updates
    assert_trees_equal(updates.fast, want, 1e-4)


def test_tree_map_params_reaches_momenta_and_no_counters() -> None:
    optimizer = mo.muon(0.1)
    state = optimizer.init(trees.with_vectors())
    marked = optax.tree_map_params(optimizer, lambda leaf: leaf + 1, state)
    values = {leaf.ndim > 0: float(leaf.max()) for leaf in jax.tree.leaves(marked)}
    assert values == {True: 1.0, False: 0.0}


# muon_clip, which takes no tree but a model's with attention, and needs the maxima of its logits.

ATTENTION = {"q_proj": (8, 12), "k_proj": (8, 12), "up": (8, 16), "bias": (16,)}


def attention(seed: int, dtype: Any = jnp.float32) -> Any:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), dtype) for name, shape in ATTENTION.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_muon_clip_keeps_the_contract(dtype: str) -> None:
    """Compiled, scanned, wrapped and eager steps are one, of stable types, and clip."""
    with jax.enable_x64(dtype == "float64"):
        optimizer, params = mo.recipes.muon_clip(0.1, threshold=10.0), attention(0, dtype)
        gradients, maxima = [attention(seed, dtype) for seed in (1, 2)], jnp.array([5.0, 40.0])
        state, clipped = optimizer.init(params), partial(optimizer.update, max_logits=maxima)
        assert jax.eval_shape(optimizer.init, params) == jax.eval_shape(lambda: state)
        compiled, one, other = jax.jit(clipped), state, state
        for gradient in gradients:
            want, one = clipped(gradient, one, params)
            got, other = compiled(gradient, other, params)
        assert types(one) == types(state)
        assert types(want) == types(params)
        within = {"bfloat16": 4e-2, "float16": 2e-2}.get(dtype, 2e-2)
        assert_trees_equal(got, want, within)
        last, updates = jax.lax.scan(
            lambda state, gradient: clipped(gradient, state, params)[::-1],
            state,
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients),
        )
        assert_trees_equal(jax.tree.map(lambda leaf: leaf[-1], updates), want, within)
        assert types(last) == types(state)
        wrapped = optax.apply_if_finite(optax.chain(optax.scale(2.0), optimizer), 2)
        doubled, _ = wrapped.update(gradients[0], wrapped.init(params), params, max_logits=maxima)
        assert_trees_equal(doubled["up"], clipped(gradients[0], state, params)[0]["up"], within)
        plain, _ = clipped(gradients[0], state, params, max_logits=jnp.array([5.0, 5.0]))
        assert bool((plain["q_proj"][:, :6] == clipped(gradients[0], state, params)[0]["q_proj"][:, :6]).all())
        assert bool((plain["q_proj"][:, 6:] != clipped(gradients[0], state, params)[0]["q_proj"][:, 6:]).any())


def types(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# The learning rate and the decay, which only muon has.


def muon_at(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformationExtraArgs:
    return mo.muon(learning_rate, weight_decay=weight_decay, orthogonalizer=FLOAT32)


GRADIENTS = [trees.with_vectors(seed) for seed in (1, 2, 3)]
VALUES = {"learning_rate": 0.1, "weight_decay": 0.5}
# Optax takes any function for a schedule, unless it is named here.
INJECT = optax.inject_hyperparams(mo.muon, static_args="orthogonalizer")


@pytest.mark.parametrize("name", VALUES)
def test_a_changed_hyperparameter_takes_effect(name: str) -> None:
    params, changed = trees.with_vectors(), VALUES | {name: 3 * VALUES[name]}
    injected = INJECT(**VALUES, orthogonalizer=FLOAT32)
    update = jax.jit(injected.update)
    _, state = update(GRADIENTS[0], injected.init(params), params)
    state.hyperparams[name] = jnp.asarray(changed[name])
    got, _ = update(GRADIENTS[1], state, params)
    # Neither value enters the momentum, so the first step may be made with the changed one.
    plain = muon_at(**changed)
    _, state = plain.update(GRADIENTS[0], plain.init(params), params)
    assert_trees_equal(got, plain.update(GRADIENTS[1], state, params)[0], 1e-4)


@pytest.mark.parametrize("name", VALUES)
def test_an_injected_schedule_equals_a_given_one(name: str) -> None:
    values = VALUES | {name: optax.linear_schedule(VALUES[name], 0.0, 4)}
    injected = INJECT(**values, orthogonalizer=FLOAT32)
    got = run(injected, trees.with_vectors(), GRADIENTS)
    assert_trees_equal(got.moved, run(muon_at(**values), trees.with_vectors(), GRADIENTS).moved, 1e-4)
    assert float(got.state.hyperparams[name]) == pytest.approx(VALUES[name] / 2)


def test_vmap_over_muons_own_learning_rate_and_decay() -> None:
    def train(rate: Any, decay: Any) -> Any:
        transform = muon_at(rate, decay)
        return run(transform, trees.with_vectors(), GRADIENTS[:1], transform.update).moved

    rates, decays = jnp.array([0.0, 0.1, 1.0]), jnp.array([0.1, 0.0, 0.5])
    mapped = jax.jit(jax.vmap(train))(rates, decays)
    for index, pair in enumerate(zip(rates, decays, strict=True)):
        want = jax.jit(train)(*pair)
        assert_trees_equal(jax.tree.map(lambda leaf, index=index: leaf[index], mapped), want, 1e-4)
