"""The reader of what runs beside copies from and to the host."""

import pytest

from benchmarks.accelerators.host_memory import shares_beside_copies

TEXT = """\
HloModule step, num_partitions=1

%sums (a: f32[8,8]) -> f32[8,8] {
  ROOT %sum = f32[8,8]{1,0} add(%a, %a)
}

%products (a: f32[8,8]) -> f32[8,8] {
  %product = f32[8,8]{1,0} convolution(%a, %a), dim_labels=bf_io->bf
  ROOT %after = f32[8,8]{1,0} add(%product, %a)
}

ENTRY %main.1 (m: f32[8,8], g: f32[8,8]) -> f32[8,8] {
  %before = f32[8,8]{1,0} fusion(%g), kind=kLoop, calls=%sums, backend_config={"estimated_cycles":"1"}
  %copy-start.1 = (f32[8,8]{1,0}, f32[8,8]{1,0:S(5)}, u32[]{:S(2)}) copy-start(%m)
  %beside = f32[8,8]{1,0} fusion(%g), kind=kLoop, calls=%sums, backend_config={"estimated_cycles":"10"}
  %product.1 = f32[8,8]{1,0} fusion(%g), kind=kOutput, calls=%products, backend_config={"estimated_cycles":"3000"}
  %copy-done.1 = f32[8,8]{1,0} copy-done(%copy-start.1)
  %copy-start.2 = (f32[8,8]{1,0:S(1)}, f32[8,8]{1,0}, u32[]{:S(2)}) copy-start(%g)
  %within-the-device = f32[8,8]{1,0} fusion(%g), kind=kLoop, calls=%sums, backend_config={"estimated_cycles":"100"}
  %product.2 = f32[8,8]{1,0} convolution(%g, %g), dim_labels=bf_io->bf, backend_config={"estimated_cycles":"9000"}
  %copy-done.2 = f32[8,8]{1,0:S(1)} copy-done(%copy-start.2)
  %copy-start.3 = (f32[8,8]{1,0:S(5)}, f32[8,8]{1,0}, u32[]{:S(2)}) copy-start(%beside)
  %also-beside = f32[8,8]{1,0} fusion(%g), kind=kLoop, calls=%sums, backend_config={"estimated_cycles":"1000"}
  ROOT %copy-done.3 = f32[8,8]{1,0:S(5)} copy-done(%copy-start.3)
}
"""


def test_cycles_count_between_start_and_end_of_a_copy_from_or_to_the_host() -> None:
    beside, of_products = shares_beside_copies(TEXT)
    assert beside == pytest.approx((10 + 3000 + 1000) / (1 + 10 + 3000 + 100 + 9000 + 1000))
    assert of_products == pytest.approx(3000 / 12000)


def test_without_products_there_is_no_share_of_them() -> None:
    lines = [line for line in TEXT.splitlines() if "%product" not in line or " f32[8,8]) ->" in line]
    assert shares_beside_copies("\n".join(lines))[1] is None
