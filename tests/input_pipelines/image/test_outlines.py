"""Outlines on grids: against pycocotools at full size, and against pixels."""

import numpy as np
import pytest

from input_pipelines.image.outlines import bits_of_pixels, bits_of_polygons, mirrored

pycocotools_mask = pytest.importorskip("pycocotools.mask")


def unpacked(bits):
    return np.unpackbits(bits, axis=-1).astype(bool)


def star(random, centre, size):
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    return centre + np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(0.5, 1, (9, 1)) * size


@pytest.mark.parametrize("seed", range(10))
def test_a_grid_of_pixels_is_the_image(seed):
    """Where a cell is a pixel, the mask is that of the image; two parts belong to one object."""
    random = np.random.default_rng(seed)
    points = [star(random, (24, 40), 20), star(random, (60, 30), 16)]
    whole = pycocotools_mask.frPyObjects([part.ravel().tolist() for part in points], 80, 80)
    expected = pycocotools_mask.decode(pycocotools_mask.merge(whole)).astype(bool)
    corners = np.array([0.0, 0, 80, 80])
    np.testing.assert_array_equal(unpacked(bits_of_polygons(points, corners, 80)), expected)
    np.testing.assert_array_equal(unpacked(bits_of_pixels(expected, corners, 80)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_a_finer_grid_covers_the_same(seed):
    random = np.random.default_rng(seed)
    points = star(random, (300, 200), 150)
    corners = np.concatenate([points.min(0), points.max(0)])
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    share = unpacked(bits_of_polygons([points], corners, 112)).mean()
    assert share == pytest.approx(area / (corners[2:] - corners[:2]).prod(), abs=0.02)


def test_pixels_under_the_centres_of_cells_count():
    mask = np.zeros((20, 30), bool)
    mask[4:8, 10:18] = True
    mask[4, 10] = False
    found = unpacked(bits_of_pixels(mask, np.array([10, 4, 18, 8]), 16))
    np.testing.assert_array_equal(found, np.repeat(np.repeat(mask[4:8, 10:18], 4, 0), 2, 1))


def test_mirrored_twice_is_as_before():
    bits = np.random.default_rng(0).integers(0, 256, (3, 16, 2)).astype(np.uint8)
    np.testing.assert_array_equal(unpacked(mirrored(bits)), unpacked(bits)[..., ::-1])
    np.testing.assert_array_equal(mirrored(mirrored(bits)), bits)


def test_a_box_without_area_has_some_mask_of_the_right_size():
    found = bits_of_polygons([np.array([[3.0, 3], [3, 3], [3, 3]])], np.array([3.0, 3, 3, 3]), 16)
    assert found.shape == (16, 2) and found.dtype == np.uint8
