"""The reader of what runs beside copies from and to the host."""

from benchmarks.accelerators.host_memory import cycles_beside_copies

TEXT = """\
HloModule step, num_partitions=1

ENTRY %main.1 (m: f32[8], g: f32[8]) -> f32[8] {
  %before = f32[8]{0} fusion(%g), kind=kLoop, calls=%a, backend_config={"estimated_cycles":"1"}
  %copy-start.1 = (f32[8]{0}, f32[8]{0:S(5)}, u32[]{:S(2)}) copy-start(%m)
  %beside = f32[8]{0} fusion(%g), kind=kLoop, calls=%a, backend_config={"estimated_cycles":"10"}
  %copy-done.1 = f32[8]{0} copy-done(%copy-start.1)
  %copy-start.2 = (f32[8]{0:S(1)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%g)
  %within-the-device = f32[8]{0} fusion(%g), kind=kLoop, calls=%a, backend_config={"estimated_cycles":"100"}
  %copy-done.2 = f32[8]{0:S(1)} copy-done(%copy-start.2)
  %copy-start.3 = (f32[8]{0:S(5)}, f32[8]{0}, u32[]{:S(2)}) copy-start(%beside)
  %also-beside = f32[8]{0} fusion(%g), kind=kLoop, calls=%a, backend_config={"estimated_cycles":"1000"}
  ROOT %copy-done.3 = f32[8]{0:S(5)} copy-done(%copy-start.3)
}
"""


def test_cycles_count_between_start_and_end_of_a_copy_from_or_to_the_host() -> None:
    assert cycles_beside_copies(TEXT) == 1010
