"""The test for where the kernels run, which is a TPU that has the matrices for itself."""

from functools import partial

import jax
from jax.sharding import AxisType

from muon_optax._orthogonalizers.coefficients import Coefficients
from muon_optax._orthogonalizers.kernels.symmetric import symmetric_newton_schulz
from muon_optax._orthogonalizers.orthogonalizer import MatrixFunction
from muon_optax._orthogonalizers.start import Norm
from muon_optax._orthogonalizers.tiling import Iteration


def on_a_tpu(
    coefficients: Coefficients,
    dtype: jax.typing.DTypeLike,
    method: Iteration,
    norm: Norm,
    otherwise: MatrixFunction,
    matrices: jax.Array,
) -> jax.Array:
    """Newton-Schulz by the kernels where one TPU computes alone, and ``otherwise(matrices)`` everywhere else."""
    if not _is_alone(matrices):
        return otherwise(matrices)
    symmetric = partial(symmetric_newton_schulz, coefficients=coefficients, dtype=dtype, method=method, norm=norm)
    return jax.lax.platform_dependent(matrices, tpu=symmetric, default=otherwise)


def _is_alone(matrices: jax.Array) -> bool:
    """Whether one device computes: XLA can't divide a kernel among several, and JAX refuses to compile one for them."""
    typed = jax.typeof(matrices).sharding.mesh
    mesh = jax.sharding.get_abstract_mesh() if typed.empty else typed
    if not mesh.empty:
        return mesh.size == 1 or set(mesh.axis_types) == {AxisType.Manual}
    # Under Auto axes neither types nor context show whether an array is sharded. On a lone device it is surely not.
    return jax.device_count() == 1
