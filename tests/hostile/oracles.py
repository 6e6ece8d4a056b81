"""What is owed: the last update of one leaf in float64, from its gradients of all steps."""

from collections.abc import Callable, Sequence

import numpy as np
import oracle

LEARNING_RATE, MOMENTUM, B1, B2, EPSILON = 0.1, 0.9, 0.9, 0.95, 1e-8

Gradients = Sequence[np.ndarray]


def on_matrices(function: Callable[[np.ndarray], np.ndarray], array: np.ndarray, axes: str) -> np.ndarray:
    """``function`` of the matrices ``(*batch, fan_in, fan_out)`` in ``array``; of one that isn't finite it is NaN."""
    order = [axis for letter in "bio" for axis, name in enumerate(axes) if name == letter]
    ordered = np.transpose(array, order)
    if ordered.size == 0:
        return array
    inputs, outputs = axes.count("b"), axes.count("b") + axes.count("i")
    shape = ordered.shape
    matrices = ordered.reshape(*shape[:inputs], int(np.prod(shape[inputs:outputs])), int(np.prod(shape[outputs:])))
    finite = np.isfinite(matrices).all(axis=(-2, -1), keepdims=True)
    result = np.where(finite, function(np.where(finite, matrices, 0.0)), np.nan)
    return np.transpose(result.reshape(shape), np.argsort(order))


def muon_update(
    gradients: Gradients,
    axes: str,
    newton_schulz: Callable[[np.ndarray], np.ndarray] = oracle.newton_schulz,
    nesterov: bool = False,
) -> np.ndarray:
    """Muon with Keller Jordan's scale, without decay."""
    momentum = np.zeros_like(gradients[0])
    for gradient in gradients:
        momentum = MOMENTUM * momentum + gradient
    if nesterov:
        momentum = gradients[-1] + MOMENTUM * momentum

    def update(matrices: np.ndarray) -> np.ndarray:
        return -LEARNING_RATE * oracle.SCALES["keller"](*matrices.shape[-2:]) * newton_schulz(matrices)

    return on_matrices(update, momentum, axes)


def adam_update(gradients: Gradients) -> np.ndarray:
    """Adam without decay."""
    m, v = np.zeros_like(gradients[0]), np.zeros(gradients[0].shape)
    for gradient in gradients:
        m, v = B1 * m + (1 - B1) * gradient, B2 * v + (1 - B2) * np.abs(gradient) ** 2
    count = len(gradients)
    return -LEARNING_RATE * (m / (1 - B1**count)) / (np.sqrt(v / (1 - B2**count)) + EPSILON)
