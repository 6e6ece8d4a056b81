"""How arrays lie on a mesh, as tuples of mesh axes: from shardings and back, and what is refused on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import AUTO, EXPLICIT, mesh_of

from muon_optax._mesh.dims import count, dims_of, local_shape, padded_shape, short_spec_of, spec_of
from muon_optax._mesh.placement import given_placement, spread
from muon_optax._mesh.typed import inside_shard_map, relocate, typed_sharding

SIZES = {"data": 4, "one": 1, "model": 2}
MESH = AbstractMesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
    "spec, ndim, dims",
    [
        (P(), 2, ((), ())),
        (P("data"), 3, (("data",), (), ())),
        (P(None, ("model", "data")), 2, ((), ("model", "data"))),
        (P(("one", "data"), "model"), 2, (("data",), ("model",))),
        (P("data", None), 1, (("data",),)),
        (P(), 0, ()),
    ],
    ids=str,
)
def test_dims_name_the_mesh_axes_that_divide(spec, ndim, dims):
    assert dims_of("w", NamedSharding(MESH, spec), ndim) == dims


@pytest.mark.parametrize("dims", [(), ((), ("data",)), (("model", "data"), ())], ids=str)
def test_a_spec_of_dims_gives_them_back(dims):
    assert dims_of("w", NamedSharding(MESH, spec_of(dims)), len(dims)) == dims
    assert len(spec_of(dims)) == len(dims)


@pytest.mark.parametrize(
    "dims, spec",
    [
        ((), P()),
        (((), ()), P()),
        ((("data",), ()), P("data")),
        (((), ("data",)), P(None, "data")),
        (((), ("model", "data"), ()), P(None, ("model", "data"))),
    ],
    ids=str,
)
def test_a_short_spec_ends_with_the_last_axis_that_is_divided(dims, spec):
    assert tuple(short_spec_of(dims)) == tuple(spec)


def test_local_and_padded_shapes():
    dims = (("model", "data"), (), ("model",))
    assert padded_shape((9, 5, 3), dims, SIZES) == (16, 5, 4)
    assert padded_shape((16, 5, 4), dims, SIZES) == (16, 5, 4)
    assert local_shape((16, 5, 4), dims, SIZES) == (2, 5, 2)


def test_devices_along_mesh_axes():
    assert (count((), SIZES), count(("model", "data"), SIZES)) == (1, 8)


@pytest.mark.parametrize(
    "spec, message",
    [
        (
            P("data", None, "model"),
            r"'w' has 2 axes, but its sharding P\('data', None, 'model'\) on the mesh \{'data': 4",
        ),
        (P(P.UNCONSTRAINED, "data"), r"'w' has the sharding P\(UNCONSTRAINED, 'data'\), which leaves an axis to XLA"),
    ],
    ids=["more entries than axes", "unconstrained"],
)
def test_specs_that_tell_too_much_or_nothing_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        dims_of("w", NamedSharding(MESH, spec), 2)


# Trees of shardings.


def test_shardings_of_a_tree_come_by_path():
    place = NamedSharding(mesh_of(data=4, one=1), P("data"))
    tree = {
        "block": [place, jax.device_put(jnp.ones(4), place)],
        "shape": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=place),
        "none": None,
    }
    placement = given_placement(tree)
    assert (placement.mesh, placement.sizes) == (place.mesh, {"data": 4})
    assert placement.there == placement.back == {"block/0": place, "block/1": place, "shape": place}


def test_a_tree_on_one_device_is_on_no_mesh():
    tree = {"a": jnp.ones(3), "b": jax.sharding.SingleDeviceSharding(jax.devices()[0])}
    assert given_placement(tree) is None
    assert given_placement({}) is None
    assert given_placement(None) is None


REFUSED = {
    "two meshes": (
        lambda: [NamedSharding(mesh_of(data=4), P()), NamedSharding(mesh_of(data=2), P())],
        ValueError,
        r"'1' is on Mesh\('data': 2.*and '0' on Mesh\('data': 4.*One update runs on one mesh",
    ),
    "Auto and Explicit": (
        lambda: [NamedSharding(mesh_of(AUTO, data=4), P()), NamedSharding(mesh_of(EXPLICIT, data=4), P())],
        ValueError,
        r"'1' is on Mesh.*Explicit.*and '0' on Mesh.*Auto",
    ),
    "one leaf on one device": (
        lambda: {"bias": jnp.ones(3), "kernel": NamedSharding(mesh_of(data=4), P())},
        ValueError,
        r"'bias' is on SingleDeviceSharding.*Give every leaf a NamedSharding on that mesh",
    ),
    "specs": (lambda: {"a": P("data")}, TypeError, r"'a' is P\w* and carries no sharding"),
    "text": (lambda: {"a": "data"}, TypeError, r"'a' is str and carries no sharding"),
    "NumPy arrays": (lambda: {"a": np.ones(3)}, TypeError, r"'a' is ndarray and carries no sharding"),
    "shapes alone": (
        lambda: [jax.ShapeDtypeStruct((3,), jnp.float32)],
        TypeError,
        r"'0' is ShapeDtypeStruct and carries no sharding",
    ),
}


@pytest.mark.parametrize("make, error, message", REFUSED.values(), ids=REFUSED)
def test_trees_that_name_no_mesh_or_several_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        given_placement(make())


def test_arrays_inside_jit_carry_no_sharding():
    place = NamedSharding(mesh_of(data=4), P("data"))
    with pytest.raises(
        TypeError, match=r"'a' is \w*Tracer and carries no sharding.*Inside jit.*take the shardings outside"
    ):
        jax.jit(lambda array: given_placement({"a": array}))(jax.device_put(jnp.ones(4), place))


# Types.


def seen_inside_jit(array):
    seen = []
    jax.jit(lambda array: seen.append(typed_sharding(array)))(array)
    return seen[0]


def test_only_types_of_explicit_axes_are_believed():
    spec = P("data", None)
    explicit = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh_of(EXPLICIT, data=4), spec))
    for seen in (typed_sharding(explicit), seen_inside_jit(explicit)):
        assert (seen.spec, seen.mesh.axis_sizes) == (spec, (4,))
    assert typed_sharding(jnp.ones(3)) is None
    assert seen_inside_jit(jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh_of(AUTO, data=4), spec))) is None
    mixed = jax.make_mesh((2, 2), ("data", "model"), axis_types=(EXPLICIT, AUTO), devices=jax.devices()[:4])
    assert seen_inside_jit(jax.device_put(jnp.ones((8, 4)), NamedSharding(mixed, spec))) is None


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT], ids=["Auto", "Explicit"])
def test_only_arrays_of_explicit_axes_that_lie_elsewhere_are_moved(kind):
    here, elsewhere = (NamedSharding(mesh_of(kind, data=4), spec) for spec in (P("data", None), P(None, "data")))
    array = jax.device_put(jnp.ones((8, 4)), here)
    assert relocate(array, here) is array
    moved = relocate(array, elsewhere)
    assert (moved is array) == (kind == AUTO)
    assert moved.sharding.spec == (here if kind == AUTO else elsewhere).spec


def test_code_knows_that_it_is_inside_shard_map():
    mesh, seen = mesh_of(data=2), []

    def local(array):
        seen.append((inside_shard_map(), typed_sharding(array)))
        return array

    jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(jnp.ones(4))
    assert seen == [(True, None)]
    assert not inside_shard_map()
    with jax.set_mesh(mesh):
        assert not inside_shard_map()


# Spreading momentum.


@pytest.mark.parametrize(
    "spec, shape, axis, kept, spread_to",
    [
        (P(), (8, 16), "data", "io", P(None, "data")),
        (P(), (16, 8), "data", "io", P("data", None)),
        (P(), (16, 8), "model", "io", P("model", None)),
        (P(), (8, 8), "data", "io", P("data", None)),
        (P(), (6, 4), "data", "io", P(None, "data")),
        (P(), (16, 4, 8), "data", "bio", P(None, None, "data")),
        (P(), (16, 6, 6), "data", "bio", P(None, None, None)),
        (P("model"), (8, 4), "data", "", P(("model", "data"), None)),
        (P("model"), (8, 8), "data", "", P("model", "data")),
        (P(), (6, 6), "data", "io", P(None, None)),
        (P("data"), (8, 8), "data", "io", P("data", None)),
        (P(), (8, 8), "one", "io", P(None, None)),
        (P(), (8, 1), "data", "io", P("data", None)),
        (P(), (0, 8), "data", "io", P(None, None)),
    ],
    ids=str,
)
def test_momentum_is_spread_over_its_longest_axis_that_divides(spec, shape, axis, kept, spread_to):
    sharding = NamedSharding(MESH, spec)
    found = spread(sharding, "w", shape, axis, kept)
    assert spec_of(dims_of("w", found, len(shape))) == spread_to


def test_explicit_axes_spread_only_what_is_whole():
    """A gradient that is divided over one mesh axis adds to no momentum that is divided over two there."""
    mesh = AbstractMesh(tuple(SIZES.values()), tuple(SIZES), axis_types=(AxisType.Explicit,) * 3)
    for spec, expected in [(P("model"), P("model", "data")), (P("model", "one"), P("model", None))]:
        sharding = NamedSharding(mesh, spec)
        found = spread(sharding, "w", (16, 4), "data", "io")
        assert spec_of(dims_of("w", found, 2)) == expected
