"""The work of matrix products is read rightly from compiled programs, for CPUs and as TPUs write them."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.shared.hlo_products import product_flops


def program(product: str, *shapes: str) -> str:
    defined = "\n".join(f"  %p{number} = {shape} parameter({number})" for number, shape in enumerate(shapes))
    return (
        f"HloModule step\n\nENTRY %main (p0: f32[2], p1: f32[2]) -> f32[2] {{\n{defined}\n  ROOT %r = {product}\n}}\n"
    )


# As XLA writes them for a TPU: a product, a transposed one, a batch of two, pieces of 16 devices side by side.
TPU = {
    "product": ("f32[4,6]{1,0:T(8,128)} convolution(%p0, %p1), dim_labels=bf_io->bf", "[4,5]", "[5,6]", 4 * 5 * 6),
    "transposed": ("f32[4,6]{1,0} convolution(%p0, %p1), dim_labels=bf_oi->bf", "[4,5]", "[6,5]", 4 * 5 * 6),
    "batch": (
        "f32[2,4,6]{2,1,0} convolution(%p0, %p1), window={size=2 lhs_dilate=2}, dim_labels=0bf_0io->0bf",
        "[2,4,5]",
        "[2,5,6]",
        2 * 4 * 5 * 6,
    ),
    "batch by stride": (
        "f32[3,4,6]{2,1,0} convolution(%p0, %p1), window={size=3 stride=2 pad=0_0 lhs_dilate=3 rhs_reversal=1}, "
        "dim_labels=0bf_0io->0bf",
        "[3,4,5]",
        "[3,5,6]",
        3 * 4 * 5 * 6,
    ),
    "pieces": (
        "f32[4,6,1]{1,0,2} convolution(%p0, %p1), window={size=16}, dim_labels=0fb_0io->bf0",
        "[16,5,4]",
        "[16,5,6]",
        16 * 4 * 5 * 6,
    ),
    "padded": (
        "f32[1,7,1] convolution(%p0, %p1), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
        "[1,7,1]",
        "[3,1,1]",
        3 * 7 - 2,
    ),
}


@pytest.mark.parametrize("product, left, right, multiplications", TPU.values(), ids=TPU)
def test_a_tpu_writes_products_as_convolutions(product: str, left: str, right: str, multiplications: int) -> None:
    assert product_flops(program(product, f"f32{left}", f"bf16{right}")) == 2 * multiplications


def test_a_convolution_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no dim_labels: ROOT %r"):
        product_flops(program("f32[4,6] convolution(%p0, %p1)", "f32[4,5]", "f32[5,6]"))


def test_compiled_products_count_with_batches_loops_and_the_costliest_branch() -> None:
    def function(x: jax.Array, y: jax.Array) -> jax.Array:
        x = jnp.einsum("bij,bjk->bik", x, y)
        x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x @ y), x)
        return jax.lax.cond(x[0, 0, 0] > 0, lambda x: x @ y @ y, lambda x: x @ y, x)

    arguments = jax.ShapeDtypeStruct((2, 4, 8), jnp.float32), jax.ShapeDtypeStruct((2, 8, 8), jnp.float32)
    assert product_flops(jax.jit(function).lower(*arguments).compile().as_text()) == 6 * 2 * (2 * 4 * 8 * 8)
