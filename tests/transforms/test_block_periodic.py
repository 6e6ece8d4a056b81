"""MuonBP: whole matrices every few steps, each device's block between, and bytes in one branch alone."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from family_oracle import leaf_of, matrices_of
from jax.sharding import PartitionSpec as P
from jaxpr import equations
from meshes import KINDS, ONE_STEP, assert_near, mesh_of, random_tree, shardings, types

import muon_optax as mo

LAYOUTS = {"kernel": "io", "torch": "oi", "query": "ioo", "experts": "bio", "split": mo.Layout("io", split=(8, 8, 16))}
SHAPES = {"kernel": (16, 32), "torch": (8, 16), "query": (16, 4, 8), "experts": (20, 16, 8), "split": (16, 32)}
PLACEMENTS = {
    "tensor": ({"model": 4}, {"kernel": P(None, "model"), "torch": P("model"), "query": P(None, "model"),
                              "experts": P(None, "model"), "split": P("model")}),
    "two axes": ({"data": 2, "model": 2}, {"kernel": P("data", "model"), "torch": P("model", "data"),
                                           "query": P("data"), "experts": P("data", None, "model"), "split": P()}),
}  # fmt: skip


def polar(matrix: np.ndarray) -> np.ndarray:
    return oracle.newton_schulz(matrix, mo.CUBIC[:1])


def by_blocks(name: str, array: np.ndarray, spec: P, sizes: dict[str, int], scale: float) -> np.ndarray:
    """Float64 NumPy: each shard orthogonalized alone, with the RMS of an orthogonal matrix of the whole shape."""
    layout = mo.Layout(LAYOUTS[name]) if isinstance(LAYOUTS[name], str) else LAYOUTS[name]
    parts = [sizes.get(part, 1) for part in (*spec, *[None] * (array.ndim - len(spec)))]
    made = np.empty(array.shape)
    for index in np.ndindex(*parts):
        place = tuple(slice(i * n // p, (i + 1) * n // p) for i, n, p in zip(index, array.shape, parts, strict=True))
        shard = array[place].astype(np.float64)
        matrices = []
        for matrix in matrices_of(shard, layout.axes, layout.split):
            size, letters = matrix.shape, dict.fromkeys("io", 1)
            for letter, p in zip(layout.axes, parts, strict=True):
                letters[letter] = letters.get(letter, 1) * p
            whole = (size[0] * letters["i"], size[1] * letters["o"])
            factor = 1.0 if whole == size else scale * np.sqrt(max(size) / max(whole))
            matrices.append(factor * polar(matrix))
        made[place] = leaf_of(matrices, shard.shape, layout.axes, layout.split)
    return made


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_blocks_between_whole_matrices(placement: str, kind: Any) -> None:
    axes, specs = PLACEMENTS[placement]
    places, values = shardings(mesh_of(kind, **axes), specs), random_tree(SHAPES, 0)
    gradients = jax.device_put(values, places)
    transform = mo.orthogonalize_block_periodic(
        ONE_STEP, period=3, block_scale=0.5, layouts=LAYOUTS, shardings=places if kind is KINDS["Auto"] else None
    )
    plain = mo.orthogonalize(ONE_STEP, layouts=LAYOUTS)
    whole = plain.update(values, optax.EmptyState())[0]
    blocks = {name: np.float32(by_blocks(name, values[name], specs[name], axes, 0.5)) for name in SHAPES}
    state, update = transform.init(gradients), jax.jit(transform.update)
    for step in range(5):
        updates, new_state = update(gradients, state)
        assert_near(updates, whole if step % 3 == 0 else blocks)
        assert (new_state.step.dtype, int(new_state.step)) == (jnp.int32, step + 1)
        assert types(updates) == types(gradients)
        state = new_state
    assert oracle.relative_error(blocks["kernel"], np.asarray(whole["kernel"])) > 0.3


@pytest.mark.parametrize("given, period", [({}, 5), ({"period": 2}, 2), ({"period": 1}, 1)], ids=["default", "2", "1"])
def test_steps_of_a_period_and_the_factor_of_blocks(given: dict[str, int], period: int) -> None:
    """A square that devices quarter: each block is orthogonalized alone, times the root of a half."""
    places = shardings(mesh_of(data=2, model=2), {"w": P("data", "model")})
    gradients = jax.device_put({"w": np.float32(3 * np.eye(4))}, places)
    transform = mo.orthogonalize_block_periodic(mo.polar_factor(), layouts={"w": "io"}, shardings=places, **given)
    state, update, found = transform.init(gradients), jax.jit(transform.update), []
    for _ in range(7):
        updates, state = update(gradients, state)
        found.append(float(updates["w"][0, 0]))
    np.testing.assert_allclose(found, [0.5**0.5 if step % period else 1.0 for step in range(7)], rtol=1e-6)
    branches = [
        each for each in equations(jax.make_jaxpr(transform.update)(gradients, state)) if each.primitive.name == "cond"
    ]
    assert bool(branches) == (period > 1)  # without a period no step pays for a branch


def test_of_a_divided_split_a_devices_part_is_one_block() -> None:
    """It gets the RMS of the widest block: its side is 4, that of the widest 8."""
    places = shardings(mesh_of(model=4), {"w": P(None, "model")})
    own = np.float32(np.eye(4, 3))
    gradients = jax.device_put({"w": np.tile(own, 4)}, places)
    transform = mo.orthogonalize_block_periodic(
        mo.polar_factor(), layouts={"w": mo.Layout("io", split=(8, 2, 2))}, shardings=places
    )
    updates, _ = jax.jit(transform.update)(gradients, transform.init(gradients)._replace(step=jnp.int32(1)))
    np.testing.assert_allclose(updates["w"], 0.5**0.5 * np.tile(own, 4), atol=1e-6)


class Twice:
    """A loop that starts from constants, which are the same on all devices."""

    dtype = jnp.float32

    def flops(self, rows: int, cols: int) -> int:
        return 2 * rows * cols

    def __call__(self, matrices: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 2, lambda _, total: total + matrices, jnp.zeros(matrices.shape))


def test_an_orthogonalizer_may_loop_on_each_device() -> None:
    """And matrices that devices hold whole get no factor, not even the user's."""
    specs, shapes = {"w": P("data", "model"), "experts": P("data")}, {"w": (4, 4), "experts": (8, 2, 2)}
    places, values = shardings(mesh_of(data=2, model=2), specs), random_tree(shapes, 0)
    layouts = {"w": "io", "experts": "bio"}
    transform = mo.orthogonalize_block_periodic(Twice(), block_scale=0.25, layouts=layouts, shardings=places)
    gradients = jax.device_put(values, places)
    updates, _ = jax.jit(transform.update)(gradients, transform.init(gradients)._replace(step=jnp.int32(1)))
    np.testing.assert_allclose(updates["w"], 2 * 0.25 * 0.5**0.5 * values["w"], rtol=1e-6)
    np.testing.assert_allclose(updates["experts"], 2 * values["experts"], rtol=1e-6)


COLLECTIVE = re.compile(r" (all-[\w-]+|reduce-scatter|collective-permute)\(")


def collectives_of(bodies: dict[str, str], computation: str) -> int:
    """Collectives in a computation of a compiled program and in all that it calls."""
    called = {name for name in re.findall(r"%?([\w.\-]+)", bodies[computation]) if name in bodies} - {computation}
    own = len(COLLECTIVE.findall(bodies[computation]))
    return own + sum(collectives_of(bodies, name) for name in called)


def test_nothing_travels_between() -> None:
    """All bytes are in the branch that one step of the period takes."""
    axes, specs = PLACEMENTS["tensor"]
    places = shardings(mesh_of(**axes), specs)
    gradients = jax.device_put(random_tree(SHAPES, 0), places)
    transform = mo.orthogonalize_block_periodic(ONE_STEP, period=5, layouts=LAYOUTS, shardings=places)
    text = jax.jit(transform.update).lower(gradients, transform.init(gradients)).compile().as_text()
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    (entry,) = re.findall(r"^ENTRY %?([\w.\-]+) ", text, re.MULTILINE)
    ((first, second),) = re.findall(
        r" conditional\(.*branch_computations=\{%?([\w.\-]+), %?([\w.\-]+)\}", bodies[entry]
    ) or [re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", bodies[entry])]
    planned = sum(mo.plan(gradients, places, LAYOUTS, orthogonalizer=ONE_STEP).collectives.values())
    assert planned > 0
    assert sorted([collectives_of(bodies, first), collectives_of(bodies, second)]) == [0, planned]
    assert collectives_of(bodies, entry) == len(COLLECTIVE.findall(text)) == planned


def test_off_a_mesh_and_inside_shard_map_every_step_is_whole() -> None:
    values = random_tree(SHAPES, 0)
    transform, plain = (
        mo.orthogonalize_block_periodic(ONE_STEP, layouts=LAYOUTS), mo.orthogonalize(ONE_STEP, layouts=LAYOUTS)
    )  # fmt: skip
    state, want = transform.init(values), plain.update(values, optax.EmptyState())[0]
    for _ in range(2):
        updates, state = transform.update(values, state)
        assert_near(updates, want)
    local = jax.shard_map(
        lambda tree: transform.update(tree, state)[0], mesh=mesh_of(model=4), in_specs=P(), out_specs=P(),
        check_vma=False,
    )  # fmt: skip
    assert_near(jax.jit(local)(values), want)


def plan_over() -> Any:
    params = {"w": jnp.ones((8, 8))}
    return mo.plan(params, shardings(mesh_of(data=4), {"w": P()}), over="data")


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: mo.orthogonalize_block_periodic(ONE_STEP, period=0), "period=0 is not allowed"),
        (lambda: mo.orthogonalize_block_periodic(ONE_STEP, block_scale=-1), "block_scale=-1 is not allowed"),
        (lambda: mo.orthogonalize_block_periodic(ONE_STEP, shardings=plan_over()), "The plan is made over 'data'"),
        (lambda: mo.orthogonalize_block_periodic(ONE_STEP).init({"b": jnp.ones(3)}), "'b' of shape .* no layout"),
    ],
    ids=["period", "scale", "ZeRO-1", "no matrix"],
)
def test_refusals(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
