"""The estimate of kernels: bundles are read, calls are told apart, and a grid is run through as it will be."""

import importlib.util
from pathlib import Path

import pytest

from benchmarks.accelerators._kernel_cycles import Chip, cycles
from benchmarks.accelerators._schedule import Array, Call, Schedule, call_of, read_schedule, schedules, types_of
from benchmarks.tests.running import run

OPERANDS = [
    "%s1 = inlined_call_operand.vmem [shape: s32[3], index: 0, kind: input, shape index: {}]",
    "%s2 = inlined_call_operand.hbm [shape: bf16[1,2048,2048], index: 1, kind: input, shape index: {}]",
    "%s3 = inlined_call_operand.hbm [shape: f32[1,2048,2048], index: 2, kind: output, shape index: {}]",
]
# Two bundles before the loop over the grid, a step of three and a wait, loops of two and of three, one bundle after.
BUNDLES = """
= control target key start
LB: loop body
     0   :  { OPERANDS }
   0x1   :  {}
   0x2 LB: > { %s4 = sadd.s32 4294967295, %s1 }
   0x3   : > { %s5 = sadd.s32 1, %s4 }
   0x4   :  {}
   0x5 LB: >> { %v1 = vld [vmem:[%s5] sm:$0xff] }
   0x6 PF: >> { %s6 = sadd.s32 1, %s5 }
   0x7 LB: >> { %v2 = vld [vmem:[%s5] sm:$0xff] }
   0x8   :  {}
   0x9   : >> { %s7 = sadd.s32 1, %s5 }
   0xa PF: > { %s8 = sadd.s32 1, %s4 }
   0xb   :  { %4037 = vsyncpa [#allocation10 + $0x1], 1 }
""".replace("OPERANDS", "  ;;  ".join(OPERANDS))
PROGRAM = """
ENTRY %main (x: bf16[1,2048,2048]) -> f32[1,2048,2048] {
  %constant.2 = s32[3]{0:T(128)S(1)} constant({0, 1, 1})
  %fusion = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} fusion(%x), kind=kLoop, calls=%c
  ROOT %gram_wide.7 = f32[1,2048,2048]{2,1,0} custom-call(%constant.2, %fusion), custom_call_target="tpu_custom_call"
}
"""
GRAM = Call(
    "gram_wide",
    (Array("f32", (1, 2048, 2048), False),),
    (Array("bf16", (1, 2048, 2048), False),),
)


def test_bundles_are_counted_loop_by_loop() -> None:
    assert read_schedule(BUNDLES) == Schedule(once=3, step=4, loops=(2, 3))


def test_a_grid_of_one_step_is_no_loop() -> None:
    text = "\n".join(line for line in BUNDLES.splitlines() if ": > " not in line).replace(">>", ">")
    assert read_schedule(text) == Schedule(once=4, step=0, loops=(2, 3))


def test_a_loop_in_a_loop_of_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="a loop within a loop of a step"):
        read_schedule(BUNDLES.replace("0x6 PF: >>", "0x6 LB: >>>"))


def test_a_call_has_the_schedule_of_its_kernel(tmp_path: Path) -> None:
    """By what it is given and where that lies: equal kernels are compiled once, under the name of one of them."""
    line = PROGRAM.splitlines()[4]
    (tmp_path / "17-gram_wide.3-72-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "17-gram_wide.3-71-schedule-analysis_final_bundles.txt").write_text(line)
    (tmp_path / "18-fusion.3-71-schedule-analysis_final_bundles.txt").write_text(PROGRAM.splitlines()[3])
    assert call_of(line, types_of(PROGRAM)) == GRAM
    assert schedules(tmp_path) == {GRAM: read_schedule(BUNDLES)}


def gram(size: int) -> Call:
    X = Array("bf16", (1, size, size), False)
    return Call("gram_wide", (X,), (X, X))


def test_a_step_takes_what_takes_longest() -> None:
    """Of 2048 x 2048 three tiles of 1024 x 1024 are made in two steps each; two of them lie on the diagonal."""
    schedule = Schedule(once=7, step=100, loops=(900, 50, 80))
    units = 256 * 256 * 1024
    iterations = 2 * (10 + 16 + 10)  # of 16 blocks of a tile 10 are on or below the diagonal
    other = 7 + 6 * 100 + 16 * 50 + 2 * 10 * 80 + 16 * 2 * 3 * 6
    nothing_waits = Chip(multiplications=units // 1024, bytes=float("inf"))
    assert cycles(gram(2048), schedule, nothing_waits) == other + iterations * 1024
    # Faster matrix units leave the bundles.
    assert cycles(gram(2048), schedule, Chip(units // 100, float("inf"))) == other + iterations * 900
    # Slow memory: all tiles that change, two a step, and the three results. The last step's instructions still count.
    tile = 2 * 1024**2
    last = 100 + 10 * 900 + 16 * 2 * 6 + 10 * 80
    assert cycles(gram(2048), schedule, Chip(units, 1.0)) == 7 + last + (2 * 6 + 3) * tile


@pytest.mark.parametrize("name, products", [("symmetric_product", 3), ("symmetric_product_whole", 4)])
def test_each_product_of_tiles_is_made_once(name: str, products: int) -> None:
    """Whatever way it is read: with one bundle an iteration the cycles are the blocks that are multiplied."""
    X = Array("bf16", (2, 3072, 3072), True)
    call = Call(name, (X,), (X, X, X))
    schedule = Schedule(0, 0, (1,) * products + (0, 0))
    multiplied = 3 * (9 * 16 if "whole" in name else 3 * 16 + 3 * 10)
    skipped = 0 if "whole" in name else 3 * (3 + 1) * 6 * 16
    assert cycles(call, schedule, Chip(2**40, 1.0)) == 2 * (multiplied + skipped)


@pytest.mark.parametrize("name", ["apply_wide", "apply_tall", "apply_wide_whole"])
def test_each_tile_of_a_long_matrix_meets_its_row(name: str) -> None:
    shape = (1, 4096, 2048) if "tall" in name else (1, 2048, 4096)
    B, X = Array("bf16", (1, 2048, 2048), True), Array("bf16", shape, True)
    call = Call(name, (X,), (B, X, X))
    schedule = Schedule(0, 0, (1, 0) if "whole" in name else (1, 1, 0))
    # A block of a wide matrix is 256 x 512, one of a tall matrix 256 x 256.
    assert cycles(call, schedule, Chip(2**40, 1.0)) == 2 * 4 * 2 * (16 if "tall" in name else 8)


@pytest.mark.parametrize(
    "name, shape, iterations",
    [
        # Two steps of 1024 x 1024 in 4 x 4 blocks, 10 of them lower: in and out in four panels of four blocks, X X^T
        # twice, A^2 twice, B X once before it goes out.
        ("resident_lgnpagr_bcdefdg", (1024, 1024), 2 * (4 * 4) + 2 * (10 + 10) + 4 * 4),
        # One segment of two steps of 4096 x 1024: 16 panels, X X^T once, A^2 twice, twice for R, all blocks for Q.
        ("resident_lgnpkkpwr_bcdefghi", (4096, 1024), 16 * 4 + 10 + 10 + 2 * 10 + 10 + 16 + 16 * 4),
    ],
)
def test_a_kernel_that_holds_a_matrix_does_what_its_name_says(
    name: str, shape: tuple[int, int], iterations: int
) -> None:
    X = Array("bf16", (3, *shape), True)
    schedule = Schedule(0, 0, (1,) * 8)
    assert cycles(Call(name, (X,), (X,)), schedule, Chip(2**40, 1.0)) == 3 * iterations


def test_a_matrix_comes_and_goes_while_another_is_multiplied() -> None:
    """With instructions that take no time the cycles are all transfers, each once."""
    given, result = Array("bf16", (2, 1024, 4096), False), Array("f32", (2, 1024, 4096), False)
    call = Call("resident_lgnpr_bcde", (result,), (given,))
    nothing = Chip(2**60, 1.0)
    assert cycles(call, Schedule(0, 0, (0,) * 4), nothing) == pytest.approx(2 * 1024 * 4096 * (2 + 4), rel=1e-6)
    # Instructions of the middle hide the next matrix's first panel only; a slow one in each step of the grid hides all.
    slow = cycles(call, Schedule(0, 10**8, (0,) * 4), nothing)
    panel = 1024 * 256
    assert slow == pytest.approx(2 * (16 + 3 + 16) * 10**8 + panel * (2 + 4), rel=1e-6)


def test_a_matrix_of_one_block_is_refused() -> None:
    X = Array("bf16", (1, 256, 256), True)
    with pytest.raises(ValueError, match="one block is multiplied without a loop"):
        cycles(Call("resident_lgnpr_bcde", (X,), (X,)), Schedule(0, 0, (1,)))


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="this kernel is not known: flash_attention"):
        cycles(gram(2048)._replace(name="flash_attention"), Schedule(0, 0, (1,)))


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='the TPU compiler is in pip install "jax[tpu]"')
def test_symmetric_compiles_for_a_v5e_and_writes_its_table(tmp_path: Path) -> None:
    rows = run("symmetric", tmp_path, "--quick")["rows"]
    plain, *updates = rows
    assert plain["kernel over XLA, by schedule"] == pytest.approx(1, abs=0.05)
    kernels = {row["optimizer"]: row["kernels"] for row in updates}
    assert kernels["muon_optax.muon"] == kernels["optax.contrib.muon"] == 0
    # Four square matrices, of which one kernel holds each; two in tiles by Gram's method: 3 segments, 5 squares, 2 R's
    # of two products, 2 Q's.
    assert kernels["muon, symmetric"] == 4 + 2 * (3 + 3 + 5 + 4 + 2)
    assert all(row["cycles"] > 0 for row in updates)
