"""The family in float64 NumPy, one matrix ``(fan_in, fan_out)`` at a time, and the variants of it that are wrong."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from oracle import newton_schulz

Matrix = np.ndarray
# From (update, memory or None, weight) to (update, memory).
Step = Callable[[Matrix, Any, Matrix], tuple[Matrix, Any]]


def matrices_of(array: np.ndarray, axes: str, split: Sequence[int] | None) -> list[Matrix]:
    """All matrices of a leaf."""
    order = sorted(range(array.ndim), key=lambda axis: "bio".index(axes[axis]))
    sizes = {letter: [size for size, name in zip(array.shape, axes, strict=True) if name == letter] for letter in "bio"}
    shape = [int(np.prod(sizes[letter])) for letter in "bio"]
    blocks = np.split(array.transpose(order).reshape(shape), np.cumsum(split or shape[2:])[:-1], axis=-1)
    return [matrix for block in blocks for matrix in block]


def leaf_of(matrices: Sequence[Matrix], shape: Sequence[int], axes: str, split: Sequence[int] | None) -> np.ndarray:
    """The inverse of :func:`matrices_of`."""
    order = sorted(range(len(shape)), key=lambda axis: "bio".index(axes[axis]))
    count = len(matrices) // len(split or "1")
    blocks = [np.stack(matrices[start : start + count]) for start in range(0, len(matrices), count)]
    joined = np.concatenate(blocks, axis=-1).reshape([shape[axis] for axis in order])
    return joined.transpose(np.argsort(order))


def run(step: Step, leaf_steps: Sequence[np.ndarray], weight: np.ndarray, axes: str, split: Any) -> list[np.ndarray]:
    """The updates of every step of a leaf; the weight follows them."""
    memories: dict[int, Any] = {}
    updates = []
    for leaf in leaf_steps:
        moved = []
        pairs = zip(matrices_of(leaf, axes, split), matrices_of(weight, axes, split), strict=True)
        for index, (matrix, own) in enumerate(pairs):
            update, memories[index] = step(matrix, memories.get(index), own)
            moved.append(update)
        updates.append(leaf_of(moved, leaf.shape, axes, split))
        weight = weight + updates[-1]
    return updates


def normuon(b2: float = 0.95, longer: bool = False, wrong_axis: bool = False, restored: bool = True) -> Step:
    def step(orthogonal: Matrix, v: Any, weight: Matrix) -> tuple[Matrix, Any]:
        fan_in, fan_out = orthogonal.shape
        axis = 1 if (longer and fan_in > fan_out) != wrong_axis else 0
        v = b2 * (0 if v is None else v) + (1 - b2) * np.mean(orthogonal**2, axis=axis, keepdims=True)
        normalized = orthogonal / np.sqrt(np.maximum(v, 1e-10))
        factor = np.linalg.norm(orthogonal) / np.linalg.norm(normalized) if restored else 1
        return factor * normalized, v

    return step


def adamuon(b2: float = 0.95, sign: bool = True, rms: bool = True) -> Step:
    def step(u: Matrix, v: Any, weight: Matrix) -> tuple[Matrix, Any]:
        orthogonal = newton_schulz(np.sign(u) if sign else u)
        v = b2 * (0 if v is None else v) + (1 - b2) * orthogonal**2
        scaled = orthogonal / (np.sqrt(v) + 1e-8)
        return scaled * (0.2 * np.sqrt(u.size) / np.linalg.norm(scaled) if rms else 1), v

    return step


def cautious(decay: float, wrong_sign: bool = False) -> Step:
    def step(u: Matrix, memory: Any, weight: Matrix) -> tuple[Matrix, Any]:
        agree = (u * weight >= 0) != wrong_sign
        return u + decay * weight * agree, memory

    return step


def hyperball(rate: float) -> Step:
    def step(u: Matrix, radius: Any, weight: Matrix) -> tuple[Matrix, Any]:
        radius = np.linalg.norm(weight) if radius is None else radius
        stepped = weight - rate * radius * u / np.linalg.norm(u)
        return radius * stepped / np.linalg.norm(stepped) - weight, radius

    return step
