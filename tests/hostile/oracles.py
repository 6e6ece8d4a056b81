"""The oracles: the last update of one leaf, from its gradients of all steps, in float64."""

from collections.abc import Callable, Sequence

import numpy as np
import oracle

import muon_optax as mo
from muon_optax._orthogonalizers.coefficients import Coefficients

LEARNING_RATE = 0.1
MOMENTUM = 0.9
B1, B2, EPSILON = 0.9, 0.95, 1e-8


def _order(axes: str) -> list[int]:
    return [axis for letter in "bio" for axis, name in enumerate(axes) if name == letter]


def map_matrices(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray, axes: str) -> np.ndarray:
    """``function`` of the matrices ``(*batch, fan_in, fan_out)`` that ``axes`` sees in ``array``."""
    order = _order(axes)
    ordered = np.transpose(array, order)
    ends = axes.count("b"), axes.count("b") + axes.count("i")
    sizes = (*ordered.shape[: ends[0]], np.prod(ordered.shape[ends[0] : ends[1]]), np.prod(ordered.shape[ends[1] :]))
    return np.transpose(
        function(ordered.reshape([int(size) for size in sizes])).reshape(ordered.shape), np.argsort(order)
    )


def poisoned(orthogonalize: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """``orthogonalize`` for matrices with NaN and infinity too: all of such a matrix is NaN, and none of another."""

    def orthogonalized(matrices: np.ndarray) -> np.ndarray:
        if matrices.size == 0:
            return matrices
        finite = np.isfinite(matrices).all(axis=(-2, -1), keepdims=True)
        return np.where(finite, orthogonalize(np.where(finite, matrices, 0.0)), np.nan)

    return orthogonalized


def scaled(scale: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda matrices: matrices * (oracle.SCALES[scale](*matrices.shape[-2:]) if matrices.size else 1.0)


def momentum(gradients: Sequence[np.ndarray]) -> np.ndarray:
    """The heavy-ball momentum after the last step."""
    total = np.zeros_like(gradients[0])
    for gradient in gradients:
        total = MOMENTUM * total + gradient
    return total


def muon_update(
    gradients: Sequence[np.ndarray], axes: str, coefficients: Coefficients = mo.KELLER, scale: str = "keller"
) -> np.ndarray:
    """Muon with Newton-Schulz, without Nesterov's look-ahead and without decay."""
    orthogonalize = poisoned(lambda matrices: oracle.newton_schulz(matrices, coefficients))
    return map_matrices(
        lambda matrices: -LEARNING_RATE * scaled(scale)(orthogonalize(matrices)), momentum(gradients), axes
    )


def adam_update(gradients: Sequence[np.ndarray]) -> np.ndarray:
    """Adam without decay."""
    m, v = np.zeros_like(gradients[0]), np.zeros(gradients[0].shape)
    for gradient in gradients:
        m, v = B1 * m + (1 - B1) * gradient, B2 * v + (1 - B2) * np.abs(gradient) ** 2
    count = len(gradients)
    return -LEARNING_RATE * (m / (1 - B1**count)) / (np.sqrt(v / (1 - B2**count)) + EPSILON)
