"""Refusals of the array functions, which name the call that was meant."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_matrices(given: Any) -> jax.Array:
    """``given`` as an array of matrices ``(*batch, rows, cols)`` of real floats.

    Raises:
        TypeError: For complex numbers, integers and booleans.
        ValueError: For fewer than two axes.
    """
    refusal = TypeError(
        f"An orthogonalizer takes one array of matrices (*batch, rows, cols); got {type(given).__name__}. For a "
        "tree of parameters use muon_optax.orthogonalize, a transform, or jax.tree.map."
    )
    named = hasattr(given, "_fields")  # such as a state or an optimizer
    if named or (not hasattr(given, "dtype") and not isinstance(given, list | tuple | int | float | complex)):
        raise refusal
    try:
        matrices = jnp.asarray(given)
    except (TypeError, ValueError):  # texts, shapes without numbers, rows of unequal length
        raise refusal from None
    if matrices.ndim == 0 and jnp.issubdtype(matrices.dtype, jnp.integer):
        raise TypeError(
            f"An orthogonalizer takes matrices (*batch, rows, cols); got a scalar of dtype {matrices.dtype}. "
            "optax.inject_hyperparams calls every function as a schedule, with the step: name the argument there, as "
            "in inject_hyperparams(muon, static_args=('orthogonalizer',))."
        )
    # Complex numbers would lose their imaginary part and integers would come back rounded to zeros.
    if not jnp.issubdtype(matrices.dtype, jnp.floating):
        raise TypeError(
            f"An orthogonalizer takes real floating matrices; got dtype {matrices.dtype}. Convert first, for example "
            "with .astype(jnp.float32); orthogonalize real and imaginary parts separately."
        )
    if matrices.ndim < 2:
        raise ValueError(
            f"An orthogonalizer takes matrices (*batch, rows, cols); got shape {matrices.shape}. A vector can be "
            "passed as a matrix of one row, x[None, :]."
        )
    return matrices


def refuse_array(coefficients: Any) -> None:
    """Raises TypeError if the matrix was passed to ``newton_schulz`` itself."""
    shape = getattr(coefficients, "shape", None)
    # Coefficients may come as an array, too: one row of three for each step.
    if shape is not None and not (len(shape) == 2 and shape[1] == 3):
        raise TypeError(
            f"newton_schulz makes an orthogonalizer and takes no matrix; got an array of shape {tuple(shape)}. Call "
            "the function that it returns: newton_schulz()(matrix)."
        )


def is_floating(dtype: Any) -> bool:
    """Whether ``dtype`` names a floating type; to JAX ``None`` is one, and an unknown name an error of its own."""
    if dtype is None or isinstance(dtype, jax.Array | np.ndarray):  # an array has a type and is none
        return False
    try:
        return bool(jnp.issubdtype(dtype, jnp.floating))
    except (TypeError, ValueError):  # NumPy reads a mapping as the fields of a structure
        return False
