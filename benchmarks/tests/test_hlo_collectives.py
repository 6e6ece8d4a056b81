"""What a compiled program sends is counted rightly: kinds, bytes, loops, alternatives, spread collectives."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.shared.hlo import executed
from benchmarks.shared.hlo_collectives import Collective, collectives

LISTED = "channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}"
COUNTED = "channel_id=1, replica_groups=[2,4]<=[8]"
NAMED = "channel_id=1, replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}"


def program(*lines: str, others: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule step, num_partitions=8\n\n{others}\n\nENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n"


# A result of 1024 bytes among four devices.
ONE = [
    pytest.param("all-gather", "f32[256]{0}", 768.0, id="all-gather"),
    pytest.param("all-reduce", "f32[16,16]{1,0}", 1536.0, id="all-reduce"),
    pytest.param("reduce-scatter", "bf16[512]{0:T(8,128)(2,1)}", 3072.0, id="reduce-scatter"),
    pytest.param("all-to-all", "(pred[512]{0}, s8[512]{0})", 768.0, id="all-to-all of two arrays"),
]


@pytest.mark.parametrize("groups", [LISTED, COUNTED, NAMED], ids=["listed", "counted", "named"])
@pytest.mark.parametrize("kind, written, sent", ONE)
def test_a_ring_sends_what_the_formula_says(kind: str, written: str, sent: float, groups: str) -> None:
    text = program(f"ROOT %a = {written} {kind}(%x), {groups}, dimensions={{0}}")
    assert collectives(text) == [Collective(kind, 1, 1024, sent)]


def test_a_permutation_sends_its_result() -> None:
    text = program("ROOT %a = f32[256]{0} collective-permute(%x), channel_id=1, source_target_pairs={{0,1},{1,0}}")
    assert collectives(text) == [Collective("collective-permute", 1, 1024, 1024.0)]


def test_without_groups_it_is_among_all_devices() -> None:
    text = program("ROOT %a = f32[256]{0} all-gather(%x), channel_id=1, replica_groups={}")
    assert collectives(text) == [Collective("all-gather", 1, 1024, 896.0)]


def test_part_of_a_named_axis_is_the_group() -> None:
    text = program("ROOT %a = f32[256]{0} all-gather(%x), replica_groups=mesh['a'=8] {'a':(1)2}")
    assert collectives(text) == [Collective("all-gather", 1, 1024, 512.0)]


def test_unknown_groups_are_refused() -> None:
    text = program("ROOT %a = f32[256]{0} all-gather(%x), replica_groups=<strange>")
    with pytest.raises(ValueError, match="among how many devices this is, is not known: ROOT %a"):
        collectives(text)


def test_what_starts_and_is_done_later_counts_once_with_its_result() -> None:
    """The start holds operand and result; the done is no other collective."""
    text = program(
        f"%s = ((f32[8]{{0}}, f32[56]{{0}}), (f32[32]{{0}}, f32[224]{{0}})) all-gather-start(%x, %y), {LISTED}",
        "%d = (f32[32]{0}, f32[224]{0}) all-gather-done(%s)",
        f"%r = f32[256]{{0}} all-reduce-start(%x), {LISTED}",
        "ROOT %e = f32[256]{0} all-reduce-done(%r)",
    )
    assert collectives(text) == [Collective("all-gather", 1, 1024, 768.0), Collective("all-reduce", 1, 1024, 1536.0)]


LOOP = f"""\
%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %g = f32[256]{{0}} all-gather(%state), {LISTED}
}}

%condition (state.1: (s32[], f32[8])) -> pred[] {{
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}}"""


def test_loops_count_by_their_trip_counts() -> None:
    loop = '%w = f32[8] while(%x), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    assert collectives(program(loop, others=LOOP)) == [Collective("all-gather", 5, 1024, 768.0)]


BRANCHES = f"""\
%few (x.1: f32[8]) -> f32[8] {{
  %a = f32[4096]{{0}} all-gather(%x.1), channel_id=1, replica_groups={{{{0,1}}}}
}}

%many (x.2: f32[8]) -> f32[8] {{
  %b = f32[256]{{0}} all-reduce(%x.2), {LISTED}
  %c = f32[4096]{{0}} all-to-all(%x.2), {LISTED}
}}"""
CONDITIONAL = "%i = f32[8] conditional(%n, %x, %x), branch_computations={%few, %many}"


def test_of_alternatives_the_one_that_sends_most_counts() -> None:
    found = collectives(program(CONDITIONAL, others=BRANCHES))
    assert found == [Collective("all-reduce", 1, 1024, 1536.0), Collective("all-to-all", 1, 16384, 12288.0)]


def test_executed_shows_all_branches_or_the_one_that_weighs_most() -> None:
    def names(**options) -> list[str]:
        text = program(CONDITIONAL, others=BRANCHES)
        return [line.split()[0] for line, _ in executed(text, **options)]

    assert names() == ["%i", "%a", "%b", "%c"]
    assert names(weigh=lambda line: line.count("all-gather")) == ["%i", "%a"]


SPREAD = f"""\
%start (x.1: bf16[64]) -> bf16[256] {{
  %a = bf16[256]{{0}} all-gather(%x.1), {LISTED}, backend_config={{"async":{{"flag_start":"-1","flag_end":"-1"}}}}
}}

%step (x.2: bf16[64]) -> bf16[256] {{
  %b = bf16[256]{{0}} all-gather(%x.2), {LISTED}, backend_config={{"async":{{"flag_start":"2","flag_end":"8"}}}}
}}

%done (x.3: bf16[64]) -> bf16[256] {{
  %c = bf16[256]{{0}} all-gather(%x.3), {LISTED}, backend_config={{"async":{{"flag_start":"2","flag_end":"8"}}}}
}}"""


def test_a_collective_spread_over_fusions_counts_once_and_channels_say_nothing() -> None:
    """As the compiler for TPUs writes two of them; both have the channel 1, as inside shard_map."""
    chain = [f"%{name} = bf16[256] fusion(%x), kind=kCustom, calls=%{name}" for name in ("start", "step", "done")]
    found = collectives(program(*chain, *chain, others=SPREAD))
    assert found == [Collective("all-gather", 1, 512, 384.0)] * 2


def test_real_programs_are_read() -> None:
    """Five steps of a loop, each with an all-gather over four of eight devices, and one all-reduce over all."""
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=P("a", "b"), out_specs=P())
    def function(x: jax.Array) -> jax.Array:
        def step(_: int, x: jax.Array) -> jax.Array:
            whole = jax.lax.all_gather(x, "b", axis=1, tiled=True)
            return jnp.sin(whole @ jnp.ones((whole.shape[1], x.shape[1])))

        return jax.lax.psum(jax.lax.fori_loop(0, 5, step, x), ("a", "b"))

    sharded = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P("a", "b")))
    found = collectives(function.lower(sharded).compile().as_text())
    gathers = [one for one in found if one.kind == "all-gather"]
    assert sum(one.times for one in gathers) == 5
    assert {(one.result_bytes, one.sent_bytes) for one in gathers} == {(8 * 32 * 4, 8 * 32 * 4 * 3 / 4)}
    assert [one for one in found if one.kind != "all-gather"] == [Collective("all-reduce", 1, 256, 448.0)]
