"""The oracle: Keller Jordan's Muon in float64 NumPy, and matrices whose singular values are known."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from muon_optax import KELLER
from muon_optax._orthogonalizers.coefficients import Coefficients


def newton_schulz(matrices: np.ndarray, coefficients: Coefficients = KELLER) -> np.ndarray:
    """The direct iteration on ``(*batch, rows, cols)``, in float64."""
    X = np.asarray(matrices, np.float64)
    tall = X.shape[-2] > X.shape[-1]
    if tall:
        X = np.swapaxes(X, -1, -2)
    norm = np.linalg.norm(X, axis=(-2, -1), keepdims=True)
    X = X / np.where(norm == 0, 1, norm)
    for a, b, c in coefficients:
        A = X @ np.swapaxes(X, -1, -2)
        X = a * X + (b * A + c * A @ A) @ X
    return np.swapaxes(X, -1, -2) if tall else X


def polar_factor(matrices: np.ndarray) -> np.ndarray:
    """``U V^T`` of ``U S V^T``; directions without a singular value stay zero."""
    U, S, Vh = np.linalg.svd(np.asarray(matrices, np.float64), full_matrices=False)
    present = S > 1e-12 * np.max(S, axis=-1, keepdims=True, initial=0)
    return (U * present[..., None, :]) @ Vh


SCALES = {
    "naive": lambda fan_in, fan_out: 1.0,
    "keller": lambda fan_in, fan_out: max(1.0, fan_out / fan_in) ** 0.5,
    "mup": lambda fan_in, fan_out: (fan_out / fan_in) ** 0.5,
    "moonlight": lambda fan_in, fan_out: 0.2 * max(fan_in, fan_out) ** 0.5,
}


class Run(NamedTuple):
    """Parameters after each step, ``(steps, fan_in, fan_out)``, and the heavy-ball momentum after the last."""

    params: np.ndarray
    momentum: np.ndarray


def muon(
    params0: np.ndarray,
    gradients: np.ndarray,
    *,
    learning_rate: float,
    weight_decay: float,
    momentum: float = 0.95,
    nesterov: bool = True,
    scale: str = "keller",
    coefficients: Coefficients = KELLER,
) -> Run:
    """Muon on one matrix ``(fan_in, fan_out)``, in float64."""
    W = np.asarray(params0, np.float64)
    m = np.zeros_like(W)
    factor = SCALES[scale](*W.shape)
    params = []
    for g in np.asarray(gradients, np.float64):
        m = momentum * m + g
        u = g + momentum * m if nesterov else m
        W = W - learning_rate * (factor * newton_schulz(u, coefficients) + weight_decay * W)
        params.append(W)
    return Run(np.stack(params), m)


def with_spectrum(singular_values: Sequence[float] | np.ndarray, rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """A float64 matrix ``(rows, cols)`` with the given singular values between random orthonormal bases."""
    rng = np.random.default_rng(seed)
    S = np.asarray(singular_values, np.float64)
    U, _ = np.linalg.qr(rng.standard_normal((rows, S.size)))
    V, _ = np.linalg.qr(rng.standard_normal((cols, S.size)))
    return (U * S) @ V.T


def spectra(size: int) -> dict[str, np.ndarray]:
    """The singular values that an orthogonalizer must cope with, ``size`` of them or fewer (the rest are zero)."""
    return {
        "log-1e-3": np.logspace(0, -3, size),
        "log-1e-7": np.logspace(0, -7, size),
        "flat": np.ones(size),
        "rank-1": np.ones(1),
        "rank-3": np.array([1.0, 0.5, 0.1]),
        "near-rank-1": np.array([1.0] + [1e-3] * (size - 1)),
    }


def kinds_of_matrices(rows: int, cols: int) -> dict[str, np.ndarray]:
    """Matrices of two dozen kinds of spectra, with ``rows <= cols``; ``rows`` is a multiple of 4."""
    index, draw = np.arange(rows), np.random.default_rng(7)
    values = {
        "linear": np.linspace(1, 0.01, rows),
        "uniform": np.sort(draw.uniform(0, 1, rows))[::-1],
        "clustered": np.repeat([1, 0.3, 0.1, 0.03], rows // 4),
        "duplicate": np.repeat(np.linspace(1, 0.1, rows // 2), 2),
        "half-rank": np.where(index < rows // 2, 1.0, 0.0),
        "near-rank-1": np.where(index < 1, 1.0, 1e-3),
        "one-large": np.where(index < 1, 1.0, 3e-2),
        "two-large": np.where(index < 2, 1.0, 0.1),
        "gamma": np.sort(draw.gamma(1.0, 1.0, rows))[::-1],
        "orthogonal": np.ones(rows),
        "power-law": 1 / (1 + index) ** 2.0,
        "exponential": np.exp(-0.5 * index),
    }
    values |= {f"geometric-1e-{k}": np.geomspace(1, 10.0**-k, rows) for k in (2, 4, 6, 8)}
    values |= {f"rank-{k}": np.where(index < k, 1 / (1.0 + index), 0.0) for k in (1, 2, 3)}
    gaps = gaussian(rows, cols, seed=6)
    gaps[::3] = 0
    return {kind: with_spectrum(own, rows, cols, seed=3) for kind, own in values.items()} | {
        "hilbert": 1 / (1.0 + index[:, None] + np.arange(cols)),
        "vandermonde": np.vander(np.linspace(0.1, 1, rows), cols),
        "diagonal": np.eye(rows, cols) * values["linear"][:, None],
        "gaussian": gaussian(rows, cols, seed=5),
        "zero-rows": gaps,
    }


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal entries."""
    return np.random.default_rng(seed).standard_normal(shape)


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """``||value - reference|| / ||reference||``, Frobenius, in float64."""
    value, reference = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))
