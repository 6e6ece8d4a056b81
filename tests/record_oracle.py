"""The update of the NanoGPT speed runs in float64 NumPy, one matrix at a time, and the variants of it that are wrong.

Facts from modded-nanogpt's train_gpt.py at f411b3d (August 2026). Matrices are (out, in) here, as they are there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# As printed there: five steps, safety factor 0.02, cushion 0.02.
COEFFICIENTS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


class Record(NamedTuple):
    """The record's choices; each may be changed to what would be wrong."""

    coefficients: Sequence[Sequence[float]] = COEFFICIENTS
    larger: float = 1.02  # what the norm is multiplied by before the matrix is divided by it
    added: float = 1e-6  # to the norm
    average: bool = True  # momentum as an average, or as a sum
    b2: float = 0.9
    longer: bool = True  # second moments along the longer axis
    cautious: bool = True
    scaled_decay: bool = True  # whether the shape's factor multiplies the decay too
    weight_decay: float = 1.2


def train(
    W: np.ndarray, gradients: np.ndarray, rates: Sequence[float], momenta: Sequence[float], record: Record
) -> np.ndarray:
    """The weight after all steps."""
    m, v = np.zeros_like(W), 0.0
    rows, cols = W.shape
    factor = max(1.0, rows / cols) ** 0.5
    for g, rate, momentum in zip(gradients, rates, momenta, strict=True):
        share = 1 - momentum if record.average else 1.0
        m = momentum * m + share * g
        step = orthogonalized(share * g + momentum * m, record)
        axis = 1 if (rows >= cols) == record.longer else 0
        mean = np.mean(step**2, axis=axis, keepdims=True)
        v = record.b2 * v + (1 - record.b2) * mean
        normalized = step / np.sqrt(np.maximum(v, 1e-10))
        step = normalized * np.linalg.norm(step) / max(np.linalg.norm(normalized), 1e-10)
        decays = (step * W >= 0) | (not record.cautious)
        decay = record.weight_decay * rate * rate * (factor if record.scaled_decay else 1.0)
        W = W - decay * W * decays - factor * rate * step
    return W


def orthogonalized(u: np.ndarray, record: Record) -> np.ndarray:
    X = u / (record.larger * np.linalg.norm(u) + record.added)
    for a, b, c in record.coefficients:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X
