"""Crops, flips and colours against plain transcriptions of the reference's and Pillow's arithmetic."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageStat

from input_pipelines.image import box_augmentation as augmentation


def some_boxes(random, count):
    corners = np.sort(random.random((count, 2, 2), np.float32), axis=1)
    return corners.reshape(count, 4)


def photograph(random, height=60, width=80):
    """Smooth enough to look like something, with all colours."""
    field = random.random((height // 10, width // 10, 3), np.float32) * 255
    return np.asarray(
        Image.fromarray(field.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    )


class Draws:
    """Random numbers that remember which were taken."""

    def __init__(self, seed):
        self.numbers, self.taken = augmentation.stream(seed, 0), []

    def __iter__(self):
        return self

    def __next__(self):
        self.taken.append(next(self.numbers))
        return self.taken[-1]


def reference_crop(boxes, numbers, attempts):
    """SSDCropping in plain floats, one box at a time: (edges or None, boxes, kept)."""
    numbers = iter(numbers)
    choices = [None, 0.1, 0.3, 0.5, 0.7, 0.9, float("-inf")]
    while True:
        least = choices[int(next(numbers) * 7)]
        if least is None:
            return None, boxes, list(range(len(boxes)))
        for _ in range(attempts):
            w, h, left, top = (next(numbers) for _ in range(4))
            w, h = 0.3 + 0.7 * w, 0.3 + 0.7 * h
            if w / h < 0.5 or w / h > 2:
                continue
            left, top = left * (1 - w), top * (1 - h)
            right, bottom = left + w, top + h
            kept, cut, enough = [], [], True
            for index, (x0, y0, x1, y1) in enumerate(boxes):
                shared = max(0, min(x1, right) - max(x0, left)) * max(0, min(y1, bottom) - max(y0, top))
                union = (x1 - x0) * (y1 - y0) + w * h - shared
                enough = enough and shared / union > least
                if left < (x0 + x1) / 2 < right and top < (y0 + y1) / 2 < bottom:
                    kept.append(index)
                    cut.append(
                        [
                            (max(x0, left) - left) / w,
                            (max(y0, top) - top) / h,
                            (min(x1, right) - left) / w,
                            (min(y1, bottom) - top) / h,
                        ]
                    )
            if enough and kept:
                return (left, top, right, bottom), cut, kept


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**63), count=st.integers(0, 6), attempts=st.sampled_from([1, 5, 50]))
def test_crop_is_the_reference_s(seed, count, attempts):
    boxes = some_boxes(np.random.default_rng(seed), count)
    draws = Draws(seed)
    crop = augmentation.random_crop(boxes, draws, attempts=attempts)
    edges, cut, kept = reference_crop(boxes.astype(float).tolist(), draws.taken, attempts)
    assert crop.edges == pytest.approx(edges or (0, 0, 1, 1), abs=1e-12)
    assert crop.kept.tolist() == kept
    np.testing.assert_allclose(crop.boxes, np.reshape(cut, (-1, 4)), atol=1e-6)
    assert crop.boxes.dtype == np.float32


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**63), count=st.integers(1, 6))
def test_what_is_kept_lies_inside_and_has_an_area(seed, count):
    boxes = some_boxes(np.random.default_rng(seed), count)
    crop = augmentation.random_crop(boxes, augmentation.stream(seed, 0), attempts=1)
    assert crop.kept.size and (crop.boxes >= 0).all() and (crop.boxes <= 1).all()
    assert (crop.boxes[:, 2:] > crop.boxes[:, :2]).all()
    left, top, right, bottom = crop.edges
    assert 0 <= left < right <= 1 + 1e-12 and 0 <= top < bottom <= 1 + 1e-12


def test_every_bound_is_drawn_and_holds():
    """A box that fills the image overlaps a crop by the crop's own area."""
    whole = np.array([[0, 0, 1, 1]], np.float32)
    areas, uncropped = [], 0
    for seed in range(2000):
        (left, top, right, bottom), _, _ = augmentation.random_crop(
            whole, augmentation.stream(seed, 0), attempts=50
        )
        areas.append((right - left) * (bottom - top))
        uncropped += areas[-1] == 1
    assert 1 / 7 - 0.03 < uncropped / 2000 < 1 / 7 + 0.04
    # Each bound is drawn once in seven times and met within 50 attempts, .9 alone mostly not.
    assert np.mean(np.array(areas) > 0.5) > 3 / 7 and min(areas) < 0.15


def test_an_image_without_boxes_stays_whole():
    none = np.zeros((0, 4), np.float32)
    for seed in range(50):
        crop = augmentation.random_crop(none, augmentation.stream(seed, 0), attempts=1)
        assert crop.edges == (0, 0, 1, 1) and crop.boxes.shape == (0, 4) and not crop.kept.size


@given(seed=st.integers(0, 2**32), count=st.integers(0, 6))
def test_flips_are_involutive_and_move_the_objects_with_the_pixels(seed, count):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 64, size=(count, 2, 2))
    boxes = np.concatenate([pixels.min(1), pixels.max(1) + 1], 1).astype(np.float32) / 64
    np.testing.assert_allclose(augmentation.flipped(augmentation.flipped(boxes)), boxes, atol=1e-7)
    for box, mirrored in zip(boxes, augmentation.flipped(boxes), strict=True):
        image = np.zeros((64, 64), bool)
        left, top, right, bottom = (box * 64).astype(int)
        image[top:bottom, left:right] = True
        rows, columns = np.nonzero(image[:, ::-1])
        assert np.allclose(
            mirrored * 64, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], atol=1e-4
        )


def test_degenerate_boxes_are_dropped_and_the_others_clipped():
    boxes = np.array(
        [
            [0.1, 0.1, 0.5, 0.5],
            [0.2, 0.3, 0.2, 0.6],  # no width
            [0.2, 0.3, 0.4, 0.3],  # no height
            [0.5, 0.5, 0.4, 0.7],  # turned
            [-0.1, 0.2, 0.3, 1.2],  # over the edge
            [1.0, 0.2, 1.3, 0.4],  # beyond it
        ],
        np.float32,
    )
    kept, labels = augmentation.without_degenerate(boxes, np.arange(1, 7, dtype=np.int32))
    assert labels.tolist() == [1, 5]
    np.testing.assert_allclose(kept, [[0.1, 0.1, 0.5, 0.5], [0, 0.2, 0.3, 1]], atol=1e-7)


@pytest.mark.parametrize("edges", [(0, 0, 1, 1), (0.21, 0.13, 0.77, 0.89), (0.5, 0.5, 0.5, 0.5)])
def test_parts_are_resized_as_pillow_does(edges):
    image = photograph(np.random.default_rng(0))
    left, top, right, bottom = (int(e * s) for e, s in zip(edges, (80, 60) * 2, strict=True))
    part = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    expected = Image.fromarray(part).resize((30, 30), Image.Resampling.BILINEAR)
    assert np.array_equal(augmentation.resized(image, 30, edges), np.asarray(expected))


def pillow_hue(image, turn):
    """torchvision's adjust_hue on a Pillow image."""
    h, s, v = Image.fromarray(image).convert("HSV").split()
    shifted = (np.asarray(h).astype(int) + int(turn * 255)) % 256
    return np.asarray(Image.merge("HSV", (Image.fromarray(shifted.astype(np.uint8)), s, v)).convert("RGB"))


def pillow_contrast(image, factor):
    mean = int(ImageStat.Stat(Image.fromarray(image).convert("L")).mean[0] + 0.5)
    flat = Image.new("RGB", image.shape[1::-1], (mean,) * 3)
    return np.asarray(Image.blend(flat, Image.fromarray(image), factor))


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.7, 1.0])
def test_colours_change_as_pillow_changes_them(amount):
    image = photograph(np.random.default_rng(1))
    picture = Image.fromarray(image)

    def within(changed, expected, most, mean):
        difference = np.abs(changed.astype(int) - np.asarray(expected).astype(int))
        assert difference.max() <= most and difference.mean() <= mean

    brighter, stronger, turn = 0.875 + amount / 4, 0.5 + amount, 0.1 * amount - 0.05
    within(
        augmentation.brightness(image, brighter), ImageEnhance.Brightness(picture).enhance(brighter), 1, 0.5
    )
    within(augmentation.contrast(image, stronger), pillow_contrast(image, stronger), 1, 0.5)
    within(augmentation.saturation(image, stronger), ImageEnhance.Color(picture).enhance(stronger), 2, 1)
    # Both round hue and saturation to eight bits, each in its own way.
    within(augmentation.hue(image, turn), pillow_hue(image, turn), 12, 2)


def test_numbers_of_the_stream_do_not_depend_on_how_many_are_taken():
    long = list(itertools.islice(augmentation.stream(3, 4), 300))
    assert len(set(long)) == 300 and all(0 <= number < 1 for number in long)
    assert list(itertools.islice(augmentation.stream(3, 4), 10)) == long[:10]
    assert list(itertools.islice(augmentation.stream(3, 5), 10)) != long[:10]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**63))
def test_boxes_follow_a_coloured_object_through_everything(seed):
    """A saturated rectangle on grey can be found again in the pixels, whatever was done to them."""
    random = np.random.default_rng(seed)
    x, y = (
        np.sort(random.choice(np.arange(81), 2, replace=False)),
        np.sort(random.choice(61, 2, replace=False)),
    )
    if (x[1] - x[0]) < 8 or (y[1] - y[0]) < 8:
        return
    image = np.full((60, 80, 3), 128, np.uint8)
    image[y[0] : y[1], x[0] : x[1]] = (230, 30, 30)
    boxes = np.array([[x[0] / 80, y[0] / 60, x[1] / 80, y[1] / 60]], np.float32)
    out = np.zeros((96, 96, 3), np.uint8)
    view, labels = augmentation.train_image(
        image, boxes, np.array([7], np.int32), size=96, seed=seed, position=1, attempts=1, out=out
    )
    assert labels.tolist() == [7] and out.any()
    spread = out.max(2).astype(int) - out.min(2)
    rows, columns = np.nonzero(spread > spread.max() / 2)
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 96
    # Crops begin at whole pixels, of which the smallest crop has 18.
    np.testing.assert_allclose(view[0], found, atol=2.5 / 18)
