"""The digits' data: nothing is lost or held out twice, and moving an image changes no label."""

from itertools import product

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.training._digits import digits, sample_images, shifted


def bordered(count: int) -> np.ndarray:
    """Images of random pixels behind an empty border."""
    return np.pad(np.random.default_rng(0).random((count, 6, 6, 1)), ((0, 0), (1, 1), (1, 1), (0, 0)))


def test_every_image_is_on_one_side_with_its_label() -> None:
    data, parts = load_digits(), (digits().training, digits().held_out)
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    assert [len(part[1]) for part in parts] == [1400, 397]
    assert images.min() == 0
    assert images.max() == 1
    found = np.column_stack([16 * images.reshape(-1, 64), labels])
    expected = np.column_stack([data.data, data.target])
    np.testing.assert_array_equal(*(rows[np.lexsort(rows.T)] for rows in (found, expected)))


def test_the_division_is_the_same_each_time() -> None:
    first = digits()
    digits.cache_clear()
    again = digits()
    assert again.sha256 == first.sha256
    np.testing.assert_array_equal(again.held_out[1], first.held_out[1])


def test_an_image_moves_down_and_right_and_leaves_nothing_behind() -> None:
    by = np.array(list(product((-1, 0, 1), repeat=2)))
    images = bordered(len(by))
    expected = [np.roll(image, moved, (0, 1)) for image, moved in zip(images, by, strict=True)]
    np.testing.assert_array_equal(shifted(images, by), expected)
    full = shifted(np.ones((1, 8, 8, 1)), np.array([[1, -1]]))[0, ..., 0]
    assert full.sum() == 49
    assert full[1:, :-1].all()


def test_a_batch_is_of_seed_and_step_alone_and_keeps_its_labels() -> None:
    labels = np.arange(20)
    examples = np.ones((20, 8, 8, 1)) * labels[:, None, None, None], labels
    images, drawn = sample_images(examples, 1, 2)
    np.testing.assert_array_equal(images.max((1, 2, 3)), drawn)
    np.testing.assert_array_equal(sample_images(examples, 1, 2)[0], images)
    assert not np.array_equal(sample_images(examples, 1, 3)[1], drawn)
    assert not np.array_equal(sample_images(examples, 2, 2)[1], drawn)
