"""Scikit-learn's digits for the convergence benchmark: the data, a small vision transformer and a small ConvNet."""

import hashlib
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

BATCH, HELD_OUT, CLASSES = 64, 397, 10

Examples = tuple[np.ndarray, np.ndarray]  # images (n, 8, 8, 1) from 0 to 1, labels (n,)


class Digits(NamedTuple):
    """1,400 images for training, 397 held out, and the sha256 of all."""

    training: Examples
    held_out: Examples
    sha256: str


@cache
def digits() -> Digits:
    """Downloads nothing. The division is one fixed permutation, whatever the seed of a run."""
    data = load_digits()
    images, labels = np.float32(data.images[..., None] / 16), np.int32(data.target)
    order = np.random.default_rng(0).permutation(len(labels))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    sha256 = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    return Digits((images[training], labels[training]), (images[held_out], labels[held_out]), sha256)


def sample_images(examples: Examples, seed: int, step: int) -> Examples:
    """The batch of a step, each image moved by up to one pixel: of seed and step alone, as ``sample_batch``."""
    random = np.random.default_rng((seed, step))
    images, labels = examples
    chosen = random.integers(len(labels), size=BATCH)
    return shifted(images[chosen], random.integers(-1, 2, size=(BATCH, 2))), labels[chosen]


def shifted(images: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Each image moved down and right by its row of ``by``, -1 to 1; what comes in at the edge is empty."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (1 - by[:, axis, None] + np.arange(size) for axis, size in enumerate((height, width)))
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


class Block(nnx.Module):
    """Attention, then a perceptron; each adds to its input."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        each = heads, width // heads
        self.attention_norm, self.mlp_norm = nnx.RMSNorm(width, rngs=rngs), nnx.RMSNorm(width, rngs=rngs)
        self.query, self.key, self.value = (nnx.LinearGeneral(width, each, rngs=rngs) for _ in range(3))
        self.out = nnx.LinearGeneral(each, width, axis=(-2, -1), rngs=rngs)
        self.up, self.down = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.attention_norm(x)
        x = x + self.out(jax.nn.dot_product_attention(self.query(y), self.key(y), self.value(y)))
        return x + self.down(nnx.gelu(self.up(self.mlp_norm(x))))


class ViT(nnx.Module):
    """Images (batch, 8, 8, 1) in, logits (batch, 10) out: sixteen patches of 2 x 2 pixels, three blocks."""

    def __init__(self, rngs: nnx.Rngs, width: int = 48) -> None:
        self.patch_embedding = nnx.Conv(1, width, (2, 2), strides=2, rngs=rngs)
        self.position_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (16, width)))
        self.blocks = nnx.List([Block(width, 4, rngs) for _ in range(3)])
        self.norm, self.head = nnx.RMSNorm(width, rngs=rngs), nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        patches = self.patch_embedding(images)
        x = patches.reshape(len(patches), 16, -1) + self.position_embedding[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class ConvNet(nnx.Module):
    """Images (batch, 8, 8, 1) in, logits (batch, 10) out: four 3 x 3 convolutions, two of which halve the size."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        widths, strides = (1, 24, 32, 48, 64), (1, 2, 1, 2)
        sizes = zip(pairwise(widths), strides, strict=True)
        self.convolutions = nnx.List([nnx.Conv(*size, (3, 3), strides=by, rngs=rngs) for size, by in sizes])
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for width in widths[1:]])
        self.head = nnx.Linear(widths[-1], CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = images
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = nnx.relu(norm(convolution(x)))
        return self.head(x.mean((1, 2)))


MODELS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {"digits ViT": ViT, "digits ConvNet": ConvNet}


def image_loss(model: Any, examples: Any) -> jax.Array:
    """Cross entropy in nats per image."""
    images, labels = examples
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()
