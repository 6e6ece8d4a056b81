"""What a plan says before a step runs: its figures against the compiled program, and what it is not for."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AUTO, EXPLICIT, FLOAT32, LAYOUTS, ONE_STEP, SHAPES, mesh_of, random_tree, shardings

import muon_optax as mo
from benchmarks.shared.hlo_collectives import collectives
from benchmarks.shared.hlo_products import product_flops
from muon_optax._mesh import checks

BFLOAT16 = mo.newton_schulz()


def compiled(plan, shapes, orthogonalizer, layouts=None):
    """The update that follows a plan, of arrays that lie as it says."""
    params = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=plan.shardings[name]) for name, shape in shapes.items()
    }
    transform = mo.orthogonalize(orthogonalizer, layouts=layouts, shardings=plan)
    update = jax.jit(lambda tree: transform.update(tree, optax.EmptyState())[0], out_shardings=dict(plan.shardings))
    return update.lower(params).compile()


def planned(mesh, shapes, specs, orthogonalizer, layouts=None, over=None):
    places = shardings(mesh, {name: specs.get(name, P()) for name in shapes})
    return mo.plan(random_tree(shapes, 0), places, layouts, orthogonalizer=orthogonalizer, over=over)


TRAVELS = {
    "replicated": ({"data": 8}, {}),
    "FSDP": ({"data": 8}, dict.fromkeys(set(SHAPES) - {"conv", "out"}, P("data"))),
    "FSDP x tensor": (
        {"data": 4, "model": 2},
        {"kernel": P("data", "model"), "query": P("data", "model"), "out": P("model"), "fused": P(None, "data")},
    ),
    "FSDP x expert": ({"data": 2, "expert": 4}, {"experts": P("expert", "data"), "kernel": P(("data", "expert"))}),
    "experts over the whole mesh": ({"data": 2, "expert": 4}, {"experts": P(("data", "expert"))}),
}


@pytest.mark.parametrize("axes, specs", TRAVELS.values(), ids=TRAVELS)
def test_a_plan_knows_all_that_is_sent(axes, specs):
    """Kinds, numbers and bytes of the collectives, to the byte."""
    plan = planned(mesh_of(**axes), SHAPES, specs, ONE_STEP, LAYOUTS)
    found = collectives(compiled(plan, SHAPES, ONE_STEP, LAYOUTS).as_text())
    kinds = Counter()
    for one in found:
        kinds[one.kind] += one.times
    assert plan.collectives == kinds
    assert plan.bytes == pytest.approx(sum(one.times * one.sent_bytes for one in found), rel=1e-12)


def test_half_the_bytes_in_bfloat16():
    axes, specs = TRAVELS["FSDP"]
    wide, narrow = (planned(mesh_of(**axes), {"kernel": (16, 32)}, specs, one) for one in (FLOAT32, BFLOAT16))
    assert wide.bytes == 2 * narrow.bytes == 2 * (2 * 7 / 8 * 16 * 32 * 2)


# The same shapes on each device, in one program, without a branch.
WORK = {
    "layers on their first axis": ({"data": 4}, {str(layer): (128, 128) for layer in range(8)}, P("data"), None),
    "layers, replicated": ({"data": 4}, {str(layer): (128, 256) for layer in range(4)}, P(), None),
    "experts": ({"data": 2, "expert": 2}, {"experts": (4, 128, 128)}, P("expert", "data"), {"experts": "bio"}),
    "experts on their devices": ({"expert": 4}, {"experts": (4, 128, 128)}, P("expert"), {"experts": "bio"}),
}


@pytest.mark.parametrize("axes, shapes, spec, layouts", WORK.values(), ids=WORK)
def test_a_plan_knows_the_products_of_a_device(axes, shapes, spec, layouts):
    plan = planned(mesh_of(**axes), shapes, dict.fromkeys(shapes, spec), ONE_STEP, layouts)
    assert plan.flops_over_ideal == 1.0
    assert product_flops(compiled(plan, shapes, ONE_STEP, layouts).as_text()) == plan.flops


def test_no_device_waits_where_kinds_come_by_two_ways():
    """Keys are whole everywhere, all else is divided: two mixed stacks, in which no device has more than its share."""
    layer = {"query": (64, 64), "key": (64, 64), "value": (64, 64), "out": (64, 64), "up": (64, 256), "down": (256, 64)}
    shapes = {f"{name}_{number}": shape for number in range(4) for name, shape in layer.items()}
    specs = {name: P() if name.startswith("key") else P("data", None) for name in shapes}
    plan = planned(mesh_of(data=8), shapes, specs, ONE_STEP)
    assert plan.flops_over_ideal == 1.0
    assert product_flops(compiled(plan, shapes, ONE_STEP).as_text()) <= 1.05 * plan.ideal_flops


def test_products_are_nearly_all_that_xla_counts():
    axes, shapes, spec, _ = WORK["layers, replicated"]
    plan = planned(mesh_of(**axes), shapes, dict.fromkeys(shapes, spec), BFLOAT16)
    assert compiled(plan, shapes, BFLOAT16).cost_analysis()["flops"] == pytest.approx(plan.flops, rel=0.05)


def test_stacks_are_counted():
    """Two matrices of 8 x 16 in float32, on two devices, pieces of 4 x 16: a stack of 2 x 4 rows each way."""
    plan = planned(mesh_of(data=2), {"a": (8, 16), "b": (8, 16)}, {"a": P("data"), "b": P("data")}, FLOAT32)
    stack = 2 * 4 * 16 * 4
    assert plan.peak_bytes == 4 * stack  # packed and received, there and back
    assert plan.bytes == 2 * stack / 2
    assert plan.collectives == {"all-to-all": 2}
    assert plan.flops == plan.ideal_flops == FLOAT32.flops(8, 16)


@pytest.mark.parametrize("layers, batches", [(4, 1), (6, 2)])
def test_a_device_has_a_quarter_of_a_gibibyte_at_once(layers, batches):
    """Half of the layers each, of 128 MiB."""
    params = {"a": jax.ShapeDtypeStruct((layers, 2**13, 2**12), jnp.float32)}
    plan = mo.plan(params, shardings(mesh_of(data=2), {"a": P()}), {"a": "bio"}, orthogonalizer=FLOAT32)
    assert len(plan.batches) == batches


def test_what_is_gathered_is_counted():
    """The same where every device holds all: nothing comes, and each owner passes its matrix on to the other."""
    plan = planned(mesh_of(data=2), {"a": (8, 16), "b": (8, 16)}, {}, FLOAT32)
    matrix = 8 * 16 * 4
    assert plan.peak_bytes == 2 * matrix + 3 * matrix  # gathered from both
    assert plan.bytes == matrix
    assert plan.collectives == {"all-gather": 1}


@pytest.mark.parametrize(
    "leaf, products, sent",
    [
        ("float32", "bfloat16", "bfloat16"),
        ("float32", "float32", "float32"),
        ("float32", "float16", "float32"),  # overflows
        ("bfloat16", "float32", "bfloat16"),
        ("bfloat16", "float16", "bfloat16"),
        ("float16", "bfloat16", "float16"),  # as many bits
        ("float32", None, "float32"),
    ],
)
def test_what_travels_is_no_wider_than_needed_and_overflows_nowhere(leaf, products, sent):
    def orthogonalizer(matrices):
        return matrices

    orthogonalizer.dtype, orthogonalizer.flops = products and jnp.dtype(products), FLOAT32.flops
    params = {"a": jax.ShapeDtypeStruct((8, 16), leaf)}
    plan = mo.plan(params, shardings(mesh_of(data=2), {"a": P("data")}), orthogonalizer=orthogonalizer)
    assert [leaf.dtype for leaf in plan.leaves] == [sent]


@pytest.mark.parametrize("shape, letters", [((8, 16), "io"), ((1, 8, 16), "bio")], ids=["matrix", "stack of one"])
def test_a_matrix_comes_as_its_momentum_lies(shape, letters):
    plan = planned(mesh_of(data=4), {"a": shape}, {}, FLOAT32, {"a": letters}, over="data")
    whole = ((),) * len(shape)
    assert [(leaf.there, leaf.back) for leaf in plan.leaves] == [((*whole[1:], ("data",)), whole)]
    assert plan.collectives == {"all-to-all": 1, "all-gather": 1}


def test_a_matrix_too_few_is_seen_in_the_ratio():
    """Nine matrices on eight devices, or one: somebody waits."""
    nine = {str(number): (8, 16) for number in range(9)}
    assert planned(mesh_of(data=8), nine, {}, FLOAT32).flops_over_ideal == pytest.approx(16 / 9)
    assert planned(mesh_of(data=8), {"a": (8, 16)}, {}, FLOAT32).flops_over_ideal == pytest.approx(8)


@pytest.mark.parametrize("shape", [(8, 64), (64, 8)], ids=["wide", "tall"])
def test_costs_are_guessed_for_a_function_that_does_not_say(shape):
    shapes = {"other": shape, "square": (8, 8)}
    with pytest.warns(
        UserWarning, match=r"has no dtype and no flops.*Pass muon_optax.newton_schulz\(\) itself, or a"
    ) as caught:
        plan = planned(mesh_of(data=2), shapes, {}, lambda matrices: matrices)
    assert [warning.filename for warning in caught] == [__file__]  # the user's, not the library's
    # Five steps of three products, as Newton-Schulz would do.
    assert sorted(plan.loads) == [2 * 5 * 8**3 * 3, 2 * 5 * 8**2 * (2 * 64 + 8)]
    assert {leaf.dtype for leaf in plan.leaves} == {"float32"}


def test_a_plan_is_printed_for_people():
    mesh = AbstractMesh((2, 4), ("data", "expert"))
    specs = {"kernel": P("data"), "experts": P("expert", "data"), "alone": P(("data", "expert")), "bias": P()}
    shapes = {"kernel": (64, 128), "experts": (8, 64, 128), "alone": (8, 64, 64), "bias": (128,)}
    places = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    assert str(mo.plan(params, places, {"experts": "bio", "alone": "bio"})).splitlines() == [
        "mesh data=2, expert=4: 8 devices",
        "8 of 64 x 64: 1 a device, where they are, stacks over data, expert",
        "8 of 64 x 128: 1 a device, from P('data', None) to P('data', None) in bfloat16, stacks over expert",
        "1 of 64 x 128: 0 to 1 a device, from P('data', None) to P('data', None) in bfloat16",
        "products: 0.03408 GFLOP on the busiest device, 1.51 times an even share",
        "travel: 0.08192 MB sent by a device, 4 all-to-all, 1 all-gather, 1 batch",
        "memory: 0.1802 MB of stacks on a device at once",
    ]


@pytest.mark.parametrize(
    "device, host, line",
    [
        (1_234_567, 0, "state: 1.235 MB on a device"),
        (1_234_567_890, 400, "state: 1,235 MB on a device"),  # counters
        (8, 600, "state: 0 MB on a device, 0.001 MB in host memory"),
    ],
)
def test_a_state_is_printed_by_memory(device, host, line):
    plan = planned(mesh_of(data=2), {"a": (8, 16)}, {}, FLOAT32)
    told = replace(plan, state_bytes=Counter(device=device, pinned_host=host), batches=plan.batches * 2)
    assert str(told).splitlines()[-1] == line
    assert "2 all-gather, 2 batches" in str(told)
    assert "state" not in str(plan)


def test_a_mesh_without_axes_or_matrices_has_nothing_to_do():
    single = planned(mesh_of(data=1), {"a": (8, 8)}, {}, FLOAT32)
    assert (single.devices, single.bytes, single.collectives, single.flops) == (1, 0, {}, FLOAT32.flops(8, 8))
    vectors = planned(mesh_of(data=2), {"bias": (8,)}, {}, FLOAT32)
    assert (vectors.flops, vectors.flops_over_ideal, vectors.peak_bytes) == (0, 1.0, 0)
    assert "no collectives" in str(vectors)


# Refusals.

KERNEL = np.ones((16, 32), np.float32)
PARAMS = {"kernel": KERNEL, "bias": np.ones(4, np.float32)}


def places(mesh=None):
    return shardings(mesh or mesh_of(data=4, model=2), {"kernel": P("data"), "bias": P()})


def plan_of(params=PARAMS, **options):
    return mo.plan(params, places(), orthogonalizer=ONE_STEP, **options)


def update(transform, tree):
    return jax.jit(lambda tree: transform.update(tree, optax.EmptyState())[0])(tree)


def orthogonalize(passed, **options):
    return mo.orthogonalize(ONE_STEP, shardings=passed, **options)


def on(mesh, spec=None):
    return jax.device_put(KERNEL, NamedSharding(mesh, spec or P("data")))


ANOTHER = {"data": 2, "model": 4}
REFUSALS = {
    "a path too few, at init of muon": (
        lambda: mo.muon(0.1, shardings={"kernel": places()["kernel"]}).init(PARAMS | {"extra": KERNEL}),
        r"'extra' has no sharding \(1 missing, 0 too many\)",
    ),
    "a path too few, at init": (
        lambda: orthogonalize({"kernel": places()["kernel"]}).init({"kernel": KERNEL, "extra": KERNEL}),
        r"'extra' has no sharding \(1 missing, 0 too many\)",
    ),
    "a path too many, at init": (
        lambda: orthogonalize(places()).init({"kernel": KERNEL}),
        r"'bias' is not a parameter \(0 missing, 1 too many\)",
    ),
    "a path too few, at update": (
        lambda: update(orthogonalize({"kernel": places()["kernel"]}), {"kernel": KERNEL, "extra": KERNEL}),
        r"'extra' has no sharding",
    ),
    "a path too few, in a plan": (
        lambda: mo.plan(PARAMS, {"kernel": places()["kernel"]}),
        r"'bias' has no sharding",
    ),
    "a path too many, in a plan": (
        lambda: mo.plan({"kernel": KERNEL}, places()),
        r"'bias' is not a parameter",
    ),
    "no mesh at all": (
        lambda: mo.plan({"kernel": jnp.asarray(KERNEL)}),
        r"plan: no parameter lies on a mesh. Give a tree of NamedShardings",
    ),
    "a spec longer than the array": (
        lambda: update(
            orthogonalize(shardings(mesh_of(data=2), {"kernel": P(None, None, "data")})), {"kernel": KERNEL}
        ),
        r"'kernel' has 2 axes, but its sharding P\(None, None, 'data'\) on the mesh \{'data': 2\} names 3",
    ),
    "an unknown axis to spread over": (
        lambda: plan_of(over="batch"),
        r"over='batch' is not an axis of the mesh: use one of 'data', 'model'",
    ),
    "a plan without one of the parameters": (
        lambda: mo.muon(0.1, shardings=plan_of()).init(PARAMS | {"extra": KERNEL}),
        r"'extra' has shape none in the plan for the mesh \{'data': 4, 'model': 2\} and \(16, 32\) here \(1 such",
    ),
    "a plan with one parameter more": (
        lambda: update(orthogonalize(plan_of()), {"other": KERNEL}),
        r"'kernel' has shape \(16, 32\) in the plan for the mesh .* and none here \(2 such paths\)",
    ),
    "a plan of another shape": (
        lambda: update(orthogonalize(plan_of()), {"kernel": KERNEL.T}),
        r"'kernel' has shape \(16, 32\) in the plan .* and \(32, 16\) here",
    ),
    "a plan of another layout": (
        lambda: update(orthogonalize(plan_of(), layouts={"kernel": "oi"}), {"kernel": KERNEL}),
        r"not for these layouts: 'kernel' is 'io' in the plan for the mesh \{'data': 4, 'model': 2\} and 'oi' here",
    ),
    "a plan that rounds more": (
        lambda: update(orthogonalize(mo.plan(PARAMS, places())), {"kernel": KERNEL}),
        r"it sends 'kernel' in bfloat16, and here it needs float32. Give muon_optax.plan the same orthog",
    ),
    "a plan of narrower parameters": (
        lambda: update(
            orthogonalize(plan_of(jax.tree.map(lambda leaf: leaf.astype("float16"), PARAMS))), {"kernel": KERNEL}
        ),
        r"it sends 'kernel' in float16, and here it needs float32",
    ),
    "a plan for another mesh": (
        lambda: update(orthogonalize(plan_of()), {"kernel": on(mesh_of(**ANOTHER))}),
        r"'kernel' is on the mesh data=2 \(Auto\), model=4 \(Auto\), .* for the mesh data=4 \(Auto\), model=2 \(Auto\)",
    ),
    "shardings on another mesh": (
        lambda: update(orthogonalize({"kernel": places()["kernel"]}), {"kernel": on(mesh_of(**ANOTHER))}),
        r"'kernel' is on the mesh data=2 \(Auto\), model=4 \(Auto\)",
    ),
    "a plan for Auto axes where they are Explicit": (
        lambda: update(orthogonalize(plan_of()), {"kernel": on(mesh_of(EXPLICIT, data=4, model=2))}),
        r"'kernel' is on the mesh data=4 \(Explicit\), model=2 \(Explicit\), .* data=4 \(Auto\), model=2 \(Auto\)",
    ),
    "two meshes in types": (
        lambda: update(
            mo.orthogonalize(ONE_STEP),
            {"a": on(mesh_of(EXPLICIT, data=4, model=2)), "b": on(mesh_of(EXPLICIT, **ANOTHER))},
        ),
        r"'b' is on the mesh data=2 \(Explicit\), model=4 \(Explicit\), .* for the mesh data=4",
    ),
    "types of some leaves only": (
        lambda: update(mo.orthogonalize(ONE_STEP), {"a": KERNEL, "b": on(mesh_of(EXPLICIT, data=2))}),
        r"'a' lies on no mesh, and 'b' on data=2 \(Explicit\) \(1 such paths\). Put all parameters on it",
    ),
}


@pytest.mark.parametrize("do, message", REFUSALS.values(), ids=REFUSALS)
def test_what_does_not_fit_is_refused_with_its_path_and_mesh(do, message):
    with pytest.raises(ValueError, match=message):
        do()


@pytest.mark.parametrize(
    "planned, needed, fits",
    [
        ("float32", "float32", True),
        ("float32", "bfloat16", True),
        ("float32", "float16", True),
        ("bfloat16", "float32", False),
        ("bfloat16", "float16", False),  # fewer digits
        ("float16", "bfloat16", False),  # a smaller range
    ],
)
def test_a_plan_is_refused_that_rounds_or_overflows(planned, needed, fits):
    uses = ({"a": checks.Use((8, 16), mo.Layout("io"), dtype)} for dtype in (planned, needed))
    if fits:
        checks.refuse_other_uses(mesh_of(data=2), *uses)
    else:
        with pytest.raises(ValueError, match=f"it sends 'a' in {planned}, and here it needs {needed}"):
            checks.refuse_other_uses(mesh_of(data=2), *uses)


@pytest.mark.parametrize("has, message", [("dtype", "has no flops"), ("flops", "has no dtype")])
def test_a_warning_names_what_an_orthogonalizer_lacks(has, message):
    with pytest.warns(mo.MuonWarning, match=rf"{message}\. Without"):
        checks.warn_of_silence(type("Orthogonalizer", (), {has: None})())


def test_a_plan_of_wider_parameters_will_do():
    """It sends more bytes than it has to, and rounds nothing."""
    tree = {"kernel": random_tree({"kernel": (16, 32)}, 1)["kernel"].astype(jnp.bfloat16)}
    np.testing.assert_array_equal(
        update(orthogonalize(plan_of()), tree)["kernel"], update(mo.orthogonalize(ONE_STEP), tree)["kernel"]
    )


def test_behind_a_mask_shardings_may_be_of_more_than_is_seen():
    masked = optax.masked(orthogonalize(places()), {"kernel": True, "bias": False})
    state = masked.init(PARAMS)
    assert jax.tree.leaves(state) == []
    with pytest.raises(ValueError, match="'kernel' has no sharding"):
        optax.masked(orthogonalize({"bias": places()["bias"]}), {"kernel": True, "bias": False}).init(PARAMS)


def test_a_plan_on_one_device_leaves_the_work_to_it():
    plan = mo.plan({"kernel": KERNEL}, shardings(mesh_of(data=1), {"kernel": P("data")}), orthogonalizer=ONE_STEP)
    text = jax.jit(orthogonalize(plan).update).lower({"kernel": KERNEL}, optax.EmptyState()).as_text()
    assert "shard_map" not in text
    assert "manual_computation" not in text


def test_axes_of_both_kinds_are_left_to_xla_unless_shardings_are_given():
    """A mixed mesh's types tell only of some axes."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(EXPLICIT, AUTO), devices=jax.devices()[:4])
    tree = {"kernel": on(mesh, P("data", "model"))}
    expected = update(mo.orthogonalize(ONE_STEP), {"kernel": KERNEL})["kernel"]
    for passed in (None, tree):
        updates = update(orthogonalize(passed), tree)
        np.testing.assert_allclose(updates["kernel"], expected, atol=1e-6)
        assert jax.typeof(updates["kernel"]).sharding == jax.typeof(tree["kernel"]).sharding
