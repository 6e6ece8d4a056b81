"""What every optimizer owes every tree: properties over drawn trees, layouts, dtypes, chains, wrappers and meshes."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.stateful as stateful
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from strategies import (
    GLOBAL,
    MESHES,
    WITHOUT_SHRINKING,
    Leaf,
    Problem,
    Recipe,
    flat,
    placements,
    problems,
    property_of,
)

Tree = dict[str, Any]

STEPS = (1, 2, 3)


def updates_of(
    problem: Problem,
    optimizer: Any,
    update: Callable[..., Any],
    factors: dict[str, float] | None = None,
    place: Callable[[Tree], Tree] = lambda tree: tree,
) -> dict[str, np.ndarray]:
    """The updates of the last step, with parameters that follow all of them."""
    params, updates = place(problem.params()), None
    state = optimizer.init(params)
    for step in STEPS:
        updates, state = update(place(problem.gradients(step, factors)), state, params)
        params = optax.apply_updates(params, updates)
    return flat(updates)


def jitted_updates(problem: Problem) -> dict[str, np.ndarray]:
    optimizer = problem.optimizer()
    return updates_of(problem, optimizer, jax.jit(optimizer.update))


def assert_near(problem: Problem, got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    """The same but for rounding."""
    arrays = [leaf for leaf in problem.leaves if leaf.shape is not None]
    assert got.keys() == {leaf.path for leaf in arrays}
    for leaf in arrays:
        distance = np.linalg.norm(got[leaf.path] - want[leaf.path])
        assert distance <= problem.rounding(leaf) * np.linalg.norm(want[leaf.path]), leaf


@property_of(few=3, many=10, problem=problems(without=GLOBAL), data=st.data())
def test_the_scale_of_a_gradient_does_not_count(problem: Problem, data: st.DataObject) -> None:
    """Powers of two, one for each leaf, give the same bits; other factors the same but for rounding."""
    matrices = tuple(leaf for leaf in problem.leaves if leaf.layout is not None)
    ranges = {"float16": (0, 4), "bfloat16": (-60, 60), "float32": (-60, 60)}
    powers = {leaf.path: 2.0 ** data.draw(st.integers(*ranges[leaf.dtype])) for leaf in matrices}
    part = data.draw(st.floats(0.5, 1.0, exclude_max=True))

    optimizer = problem.optimizer()
    update = jax.jit(optimizer.update)  # one program for all three

    def run(factors: dict[str, float]) -> dict[str, np.ndarray]:
        updates = updates_of(problem, optimizer, update, factors)
        return {leaf.path: updates[leaf.path] for leaf in matrices}

    want, exact = run({}), run(powers)
    for path in want:
        np.testing.assert_array_equal(exact[path], want[path], path)
    assert_near(replace(problem, leaves=matrices), run({path: part * power for path, power in powers.items()}), want)


@property_of(few=2, many=6, problem=problems(without=GLOBAL), data=st.data())
def test_parameters_do_not_see_each_other(problem: Problem, data: st.DataObject) -> None:
    """Renamed and in another order, or given to two optimizers, each gets the same updates."""
    want = jitted_updates(problem)
    names = {leaf.path: f"{index}" for index, leaf in enumerate(data.draw(st.permutations(problem.leaves)))}
    renamed = replace(problem, leaves=tuple(replace(leaf, path=names[leaf.path]) for leaf in problem.leaves))
    got = jitted_updates(renamed)
    assert_near(problem, {path: got[name] for path, name in names.items() if name in got}, want)

    first = data.draw(st.integers(1, len(problem.leaves) - 1))
    halves = (replace(problem, leaves=part) for part in (problem.leaves[:first], problem.leaves[first:]))
    one, other = map(jitted_updates, halves)
    assert_near(problem, one | other, want)


@property_of(few=1, many=4, problem=problems())
def test_jit_equals_disable_jit(problem: Problem) -> None:
    """But for rounding, not to the last bit: what XLA fuses into one loop it rounds once, operation by operation more
    often, and a fused product and sum are one instruction on most processors.
    """
    optimizer = problem.optimizer()
    with jax.disable_jit():
        want = updates_of(problem, optimizer, optimizer.update)
    assert_near(problem, jitted_updates(problem), want)


@property_of(
    few=2,
    many=6,
    problem=problems(),
    sizes=st.sampled_from(MESHES),
    kind=st.sampled_from([AxisType.Auto, AxisType.Explicit]),
    data=st.data(),
)
def test_sharded_equals_unsharded(
    problem: Problem, sizes: tuple[int, ...], kind: AxisType, data: st.DataObject
) -> None:
    devices = jax.devices()[: int(np.prod(sizes))]
    mesh = jax.make_mesh(sizes, tuple("xyz"[: len(sizes)]), axis_types=(kind,) * len(sizes), devices=devices)
    entries = data.draw(placements(problem.leaves, sizes))
    named: dict[str, Any] = {leaf.path: None for leaf in problem.leaves}
    named |= {path: NamedSharding(mesh, PartitionSpec(*axes)) for path, axes in entries.items()}
    shardings = unflatten_dict(named, sep="/")

    def place(tree: Tree) -> Tree:
        return jax.tree.map(jax.device_put, tree, shardings)

    optimizer = problem.optimizer(shardings=shardings)
    got = updates_of(problem, optimizer, jax.jit(optimizer.update), place=place)
    assert_near(problem, got, jitted_updates(problem))


# Saved, killed and resumed.

# The same leaves under three wrappers that keep a state of their own: without jit every operation is compiled alone,
# once for each shape.
LEAVES = (Leaf("dense", "dense", "float32"), Leaf("inner/fused", "fused", "bfloat16"), Leaf("bias", "bias", "float32"))
USUAL = Recipe(None, "MultiSteps", "KELLER", "bfloat16", "auto", "moonlight", 0.95, True, None, 0.1, True)
RESUMED = [
    Problem(LEAVES, replace(USUAL, wrapper=wrapper, momentum_dtype=dtype), 0)
    for wrapper, dtype in [("MultiSteps", "bfloat16"), ("apply_if_finite", None), ("inject_hyperparams", "float32")]
]
MODES = ("jit", "eager")


def make_update(optimizer: Any, mode: str) -> Callable[..., Any]:
    return jax.jit(optimizer.update) if mode == "jit" else optimizer.update


def advance(update: Callable[..., Any], problem: Problem, run: Tree, step: int, poisoned: bool) -> Tree:
    gradients = problem.gradients(step)
    if poisoned:
        gradients = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), gradients)
    updates, state = update(gradients, run["state"], run["params"])
    return {"params": optax.apply_updates(run["params"], updates), "state": state}


@cache
def programs(problem: Problem) -> dict[str, Callable[..., Any]]:
    optimizer = problem.optimizer()
    return {mode: make_update(optimizer, mode) for mode in MODES}


@cache
def uninterrupted(problem: Problem, history: tuple[tuple[str, bool], ...]) -> Tree:
    """What steps of these modes, poisoned or not, come to without a stop."""
    if not history:
        return {"params": problem.params(), "state": problem.optimizer().init(problem.params())}
    *before, (mode, poisoned) = history
    run = uninterrupted(problem, tuple(before))
    return advance(programs(problem)[mode], problem, run, len(history), poisoned)


def bits(tree: Tree) -> list[tuple[str, Any, bytes]]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf.dtype, np.asarray(leaf).tobytes()) for path, leaf in paths]


class Resumed(stateful.RuleBasedStateMachine):
    """A run that is saved and resumed at random steps, by a new optimizer, as after a restart of the machine."""

    problems = st.sampled_from(RESUMED)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self.folder.cleanup()

    @stateful.initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.problem = data.draw(self.problems)
        self.history, self.mode, self.saved = (), "jit", None
        self.run, self.updates = uninterrupted(self.problem, ()), programs(self.problem)

    @stateful.rule(poisoned=st.booleans())
    def step(self, poisoned: bool) -> None:
        # Only apply_if_finite skips such a step; everywhere else NaN would stay for good.
        poisoned = poisoned and self.problem.recipe.wrapper == "apply_if_finite"
        self.history = (*self.history, (self.mode, poisoned))
        self.run = advance(self.updates[self.mode], self.problem, self.run, len(self.history), poisoned)

    @stateful.rule()
    def switch_jit(self) -> None:
        self.mode = "eager" if self.mode == "jit" else "jit"

    @stateful.rule()
    def save_as_bytes(self) -> None:
        leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(self.run)]

        def read(data: bytes, like: jax.ShapeDtypeStruct) -> jax.Array:
            return jnp.asarray(np.frombuffer(data, like.dtype).reshape(like.shape))

        self.saved = (
            self.history,
            lambda like: jax.tree.unflatten(jax.tree.structure(like), map(read, leaves, jax.tree.leaves(like))),
        )

    @stateful.rule()
    def save_with_orbax(self) -> None:
        path = Path(tempfile.mkdtemp(dir=self.folder.name)) / "run"
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, self.run)
            checkpointer.wait_until_finished()

        def restore(structure: Tree) -> Tree:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(path, structure)

        self.saved = self.history, restore

    @stateful.precondition(lambda self: self.saved is not None)
    @stateful.rule()
    def resume(self) -> None:
        optimizer = self.problem.optimizer()
        self.updates = {mode: make_update(optimizer, mode) for mode in MODES}
        self.history, restore = self.saved
        params = self.problem.params()
        self.run = restore(jax.eval_shape(lambda: {"params": params, "state": optimizer.init(params)}))

    @stateful.invariant()
    def is_the_run_without_a_stop(self) -> None:
        want = uninterrupted(self.problem, self.history)
        assert jax.tree.structure(self.run) == jax.tree.structure(want)
        assert bits(self.run) == bits(want)


class AnyResumed(Resumed):
    problems = problems(largest=3)


@pytest.mark.parametrize("machine, examples", [(Resumed, 4), pytest.param(AnyResumed, 6, marks=pytest.mark.slow)])
def test_a_resumed_run_is_one_without_a_stop(machine: type[Resumed], examples: int) -> None:
    stateful.run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=15, phases=WITHOUT_SHRINKING)
    )
