"""The best answers without a network, on volumes in which they are known."""

import numpy as np
import pytest

from benchmarks.trivial_segmentation import best_interval, moved, overlaps


def test_the_best_interval_is_found():
    image = np.random.default_rng(0).random((16, 16, 16))
    inside = (image > 0.3) & (image < 0.5)
    assert best_interval(image, inside) > 0.98
    elsewhere = np.random.default_rng(1).random(image.shape) < 0.2  # what values say nothing of
    assert best_interval(image, elsewhere) == pytest.approx(2 * 0.2 / 1.2, abs=0.03)


def test_labels_are_moved_by_whole_voxels():
    labels = np.arange(1, 28, dtype=np.uint8).reshape(3, 3, 3)
    found = moved(labels, (1, 0, -1))
    np.testing.assert_array_equal(found[1:, :, :-1], labels[:-1, :, 1:])
    assert not found[0].any() and not found[..., -1].any()
    np.testing.assert_array_equal(moved(labels, (0, 0, 0)), labels)


def test_overlaps_are_dice():
    true, found = np.array([1, 1, 2, 0]), np.array([1, 0, 2, 2])
    assert overlaps(true, found)[:2] == pytest.approx([2 / 3, 2 / 3])
