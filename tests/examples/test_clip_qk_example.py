"""The example's maxima are those of the logits, and stay bounded with the clip only."""

import importlib

import flax.nnx as nnx
import numpy as np
import tolerances

example = importlib.import_module("clip_qk")


def test_the_maxima_are_those_of_the_logits():
    attention = example.Attention(nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((2, example.TIME, example.WIDTH)).astype(np.float32)
    query, key = (
        np.einsum("btw,whd->bthd", np.float64(x), np.float64(layer.kernel[...]))
        for layer in (attention.query, attention.key)
    )
    logits = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1])
    expected = np.where(np.tri(example.TIME, dtype=bool), logits, -np.inf).max(axis=(0, 2, 3))
    np.testing.assert_allclose(attention(x)[1], expected, rtol=tolerances.RTOL["float32"])


def test_only_the_clip_bounds_the_logits():
    free, clipped = example.main()
    assert free[30:].max() > 5 * example.THRESHOLD
    assert clipped[30:].max() < 3 * example.THRESHOLD  # a step can take them past the threshold, the next brings back
