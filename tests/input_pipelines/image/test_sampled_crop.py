"""Crops as TensorFlow draws them, against a transcription and their own promises."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipelines.image import sampled_crop
from input_pipelines.image.box_augmentation import stream

seeds = st.integers(0, 2**31)


def some_boxes(random, count):
    """Some of them without area, some at the border."""
    corners = np.sort(random.integers(0, 9, (count, 2, 2)), axis=1) / 8
    return corners.reshape(count, 4).astype(np.float32)


def reference_window(width, height, numbers):
    """GenerateRandomCrop of TensorFlow's kernel, number by number."""
    aspect = 0.5 + next(numbers) * 1.5
    least, most = 0.1 * width * height, 1.0 * width * height
    rows, high = round(math.sqrt(least / aspect)), round(math.sqrt(most / aspect))
    if round(high * aspect) > width:
        high = int((width + 0.5 - 1e-7) / aspect)
        if round(high * aspect) > width:
            high -= 1
    high = min(high, height)
    rows = min(rows, high)
    share = next(numbers)
    if rows < high:
        rows += int(share * (high - rows + 1))
    columns = round(rows * aspect)
    if columns * rows < least:
        rows += 1
        columns = round(rows * aspect)
    if columns * rows > most:
        rows -= 1
        columns = round(rows * aspect)
    x, y = next(numbers), next(numbers)
    if not (least <= columns * rows <= most and 0 < columns <= width and 0 < rows <= height):
        return None
    left, top = int(x * (width - columns + 1)), int(y * (height - rows + 1))
    return left / width, top / height, (left + columns) / width, (top + rows) / height


def reference_crop(boxes, width, height, numbers, attempts):
    least = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)[int(next(numbers) * 7)]
    if next(numbers) <= 0.15:
        return (0, 0, 1, 1), boxes, list(range(len(boxes)))
    edges = (0.0, 0.0, 1.0, 1.0)
    boxes = boxes.astype(float)
    objects = boxes if len(boxes) else [edges]

    def share(box, window):
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        width = min(box[2], window[2]) - max(box[0], window[0])
        height = min(box[3], window[3]) - max(box[1], window[1])
        return max(width, 0) * max(height, 0) / area if area > 0 else -1

    for _ in range(attempts):
        window = reference_window(width, height, numbers)
        if window and any(share(box, window) >= least for box in objects):
            edges = window
            break
    kept = [i for i, box in enumerate(boxes) if (s := share(box, edges)) > 0 and s >= least]
    across, down = edges[2] - edges[0], edges[3] - edges[1]
    seen = [
        [
            (boxes[i][0] - edges[0]) / across,
            (boxes[i][1] - edges[1]) / down,
            (boxes[i][2] - edges[0]) / across,
            (boxes[i][3] - edges[1]) / down,
        ]
        for i in kept
    ]
    return edges, np.clip(np.array(seen).reshape(-1, 4), 0, 1), kept


@settings(max_examples=150, deadline=None)
@given(seeds, st.integers(0, 5), st.integers(8, 90), st.integers(8, 90), st.sampled_from([1, 5, 100]))
def test_crops_are_those_of_the_reference(seed, count, width, height, attempts):
    boxes = some_boxes(np.random.default_rng(seed), count)
    found = sampled_crop.random_crop(boxes, width, height, stream(seed, 3), attempts=attempts)
    edges, seen, kept = reference_crop(boxes, width, height, stream(seed, 3), attempts)
    np.testing.assert_allclose(found.edges, edges, rtol=1e-12)
    assert found.kept.tolist() == kept
    np.testing.assert_allclose(found.boxes, seen, atol=1e-6)


def test_a_part_stays_whole_and_the_others_are_of_every_size():
    boxes = np.array([[0.2, 0.2, 0.8, 0.8]], np.float32)
    edges = np.array(
        [
            sampled_crop.random_crop(boxes, 128, 96, stream(0, position), attempts=100).edges
            for position in range(600)
        ]
    )
    whole = (edges == [0, 0, 1, 1]).all(1)
    assert 0.1 < whole.mean() < 0.25
    sides = edges[~whole, 2:] - edges[~whole, :2]
    assert sides.prod(1).min() >= 0.1 and sides.prod(1).max() > 0.8
    aspects = sides[:, 0] * 128 / (sides[:, 1] * 96)
    assert 0.45 < aspects.min() < 0.6 and 1.8 < aspects.max() < 2.1


@pytest.mark.parametrize("count", [0, 4])
def test_views_are_reproducible_and_half_of_them_flipped(count):
    random = np.random.default_rng(1)
    image = random.integers(256, size=(40, 60, 3), dtype=np.uint8)
    boxes = np.array([[0.0, 0.0, 0.5, 1.0]] * count, np.float32).reshape(count, 4)
    labels = np.arange(1, count + 1, dtype=np.int32)
    views = []
    for position in range(40):
        pair = []
        for _ in range(2):
            out = np.zeros((24, 24, 3), np.uint8)
            arguments = dict(size=24, seed=5, position=position, attempts=10, out=out)
            seen, classes = sampled_crop.train_image(image, boxes, labels, **arguments)
            assert len(seen) == len(classes) <= count and ((seen >= 0) & (seen <= 1)).all()
            pair.append((out, seen))
        np.testing.assert_array_equal(pair[0][0], pair[1][0])
        np.testing.assert_array_equal(pair[0][1], pair[1][1])
        views.append(pair[0])
    if count:
        # The left half of the image, wherever the crop: a box at the left edge was not flipped.
        left = [seen[0][0] < 1 - seen[0][2] for _, seen in views if len(seen)]
        assert 0.2 < np.mean(left) < 0.8
