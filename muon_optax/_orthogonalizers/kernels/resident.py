"""Newton-Schulz in one kernel: each matrix is read once, stays in vector memory for all steps, and is written once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.kernels import resident_program as program
from muon_optax._orthogonalizers.kernels import tiles
from muon_optax._orthogonalizers.kernels.resident_kernel import kernel
from muon_optax._orthogonalizers.precision import power_of_two
from muon_optax._orthogonalizers.start import Norm
from muon_optax._orthogonalizers.tiling import MEMORY, Iteration, Resident


@partial(jax.jit, static_argnames=("coefficients", "dtype", "method", "norm", "shape", "interpret"))
def resident_newton_schulz(
    matrices: jax.Array,
    coefficients: Coefficients,
    dtype: jax.typing.DTypeLike,
    method: Iteration,
    norm: Norm,
    shape: Resident,
    interpret: tiles.Interpret = False,
) -> jax.Array:
    """As :func:`symmetric_newton_schulz`, for ``(batch, rows, cols)`` of which each fits vector memory."""
    out = matrices.dtype if matrices.dtype == jnp.bfloat16 else jnp.float32
    # bfloat16 has float32's range: rounding comes first, while the matrix is made.
    given = matrices.astype(jnp.bfloat16 if dtype == jnp.bfloat16 else jnp.float32)
    tiny, reciprocals = power_of_two(given.astype(jnp.float32))
    instructions = program.program_of(coefficients, dtype, method)
    panels = shape.panels
    steps = (program.LOADING,) * panels + instructions.middle + (instructions.last,) * panels

    def coming(batch: jax.Array, phase: jax.Array, *_: jax.Array) -> tuple[jax.Array | int, ...]:
        panel = jnp.minimum(phase, panels - 1)
        return (batch, 0, panel) if shape.wide else (batch, panel, 0)

    def going(batch: jax.Array, phase: jax.Array, *_: jax.Array) -> tuple[jax.Array | int, ...]:
        panel = jnp.maximum(phase - (len(steps) - panels), 0)
        return (batch, 0, panel) if shape.wide else (batch, panel, 0)

    part = (None, shape.short, shape.panel) if shape.wide else (None, shape.panel, shape.short)
    lower = [(i, j) for i in range(shape.short // shape.block) for j in range(i + 1)]
    square = (shape.short, shape.short)
    scratch = [
        pltpu.VMEM((8, shape.block), jnp.float32),
        pltpu.SMEM((4,), jnp.float32),
        *[pltpu.VMEM((shape.short, shape.long), jnp.dtype(dtype))] * 2,
        *[pltpu.VMEM(square, jnp.dtype(dtype))] * instructions.slots,
        *[pltpu.VMEM(square, jnp.float32)] * instructions.keeps,
    ]
    bodies = instructions.bodies
    return pl.pallas_call(
        partial(kernel, bodies=bodies, shape=shape, norm=norm),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(len(matrices), len(steps)),
            in_specs=[pl.BlockSpec(part, coming)],
            out_specs=pl.BlockSpec(part, going),
            scratch_shapes=scratch,
        ),
        out_shape=tiles.like(matrices, matrices.shape, out),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=MEMORY),
        interpret=interpret,
        name=f"resident_{instructions.name}",
    )(
        np.array([[bodies.index(step.body), *(power for _, power in step[1:])] for step in steps], np.int32),
        np.array([[number for number, _ in step[1:]] for step in steps], np.float32),
        np.array(lower, np.int32),
        tiny[:, 0, 0].astype(jnp.int32),
        reciprocals[:, 0, 0],
        given,
    ).astype(matrices.dtype)
