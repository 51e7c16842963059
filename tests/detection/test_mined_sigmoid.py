"""SSD-MobileNet's anchors, matching, mined loss and picking against plain loops, on boxes of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlperf_jax.detection.greedy import GreedySelection, pick
from mlperf_jax.detection.grid_anchors import GridAnchorConfig, make_grid_anchors
from mlperf_jax.detection.mined_sigmoid import match, mined, mined_loss
from tests.detection import reference, reference_mined

ANCHORS = make_grid_anchors(GridAnchorConfig(), (4, 2, 1))
MOST, CLASSES = 6, 4


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# Boxes on a coarse grid touch, coincide, contain one another, lie at the border and have no area.
grid = st.integers(0, 8).map(lambda n: n / 8)
fine = st.floats(0, 1, allow_nan=False, width=32)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def images(draw):
    """Boxes [MOST, 4] and labels [MOST]: none, few, or a crowd."""
    side = draw(st.sampled_from([grid, fine]))
    boxes, labels = np.zeros((MOST, 4)), np.zeros(MOST, np.int32)
    for m in range(draw(st.integers(0, MOST))):
        x, y = sorted([draw(side), draw(side)]), sorted([draw(side), draw(side)])
        boxes[m] = x[0], y[0], x[1], y[1]
        labels[m] = draw(st.integers(1, CLASSES - 1))
    assume(not any(label and _tied(one) for one, label in zip(boxes, labels, strict=True)))
    return boxes, labels


def _tied(one):
    """Whether rounding alone says which of two anchors overlaps a box more, or whether one does enough."""
    overlaps = np.sort([reference.iou(one, reference.corners(anchor)) for anchor in ANCHORS])
    close = any(0 < gap < 1e-14 for gap in np.diff(overlaps[overlaps > overlaps[-1] - 1e-12]))
    return close or (np.abs(overlaps - 0.5) < 1e-12).any()


match_one = jax.jit(lambda boxes, labels: match(boxes, labels, jnp.asarray(ANCHORS)))


def _loss(mining_iou):
    return jax.jit(lambda *args: mined_loss(*args, ANCHORS, mining_iou=mining_iou))


losses_of = {mining_iou: _loss(mining_iou) for mining_iou in (0.5, 1.0)}
mined_of = jax.jit(mined, static_argnums=3)
picked = jax.jit(lambda *args: pick(*args).rows(), static_argnums=2)
SELECTIONS = [
    GreedySelection(score=0.0, iou=0.3, detections=3),
    GreedySelection(score=0.4, iou=0.6, detections=12),
    GreedySelection(score=0.9, iou=0.3, detections=12),
    GreedySelection(score=0.0, iou=0.6, detections=60),
]


def test_the_closed_anchors_are_the_references():
    """The 1,917 of create_ssd_anchors; a first and a last cell, by hand."""
    anchors = make_grid_anchors(GridAnchorConfig(), (19, 10, 5, 3, 2, 1))
    assert anchors.shape == (1917, 4)
    root = np.sqrt(2)
    first = [(0.1, 0.1), (0.2 * root, 0.2 / root), (0.2 / root, 0.2 * root)]
    np.testing.assert_allclose(anchors[:3], [(0.5 / 19, 0.5 / 19, *shape) for shape in first])
    # x runs fastest among cells, and anchors of a cell follow one another.
    np.testing.assert_allclose(anchors[3 * (19 * 2 + 5), :2], [5.5 / 19, 2.5 / 19])
    ratios = [1, 2, 0.5, 3, 0.3333]
    last = [(0.95 * r**0.5, 0.95 / r**0.5) for r in ratios] + [(np.sqrt(0.95),) * 2]
    np.testing.assert_allclose(anchors[-6:], [(0.5, 0.5, *shape) for shape in last])
    second = anchors[1083 : 1083 + 6]
    np.testing.assert_allclose(second[0, 2:], 0.35)
    np.testing.assert_allclose(second[5, 2:], np.sqrt(0.35 * 0.5))


@settings(max_examples=60, deadline=None)
@given(images())
def test_matching_is_that_of_plain_loops(image):
    boxes, labels = image
    rows, found = map(np.asarray, match_one(boxes, labels))
    expected = reference_mined.match(boxes, labels, ANCHORS)
    assert [None if label == 0 else int(row) for row, label in zip(rows, found, strict=True)] == expected
    for row, label in zip(rows, found, strict=True):
        assert label == 0 or label == labels[row]


@settings(max_examples=30, deadline=None)
@given(st.lists(images(), min_size=2, max_size=2), seeds, st.sampled_from([0.5, 1.0]))
def test_loss_is_that_of_plain_loops(batch, seed, mining_iou):
    random = np.random.default_rng(seed)
    codes = random.normal(size=(2, len(ANCHORS), 4)) * 2
    logits = random.normal(size=(2, len(ANCHORS), CLASSES)) * 3
    boxes, labels = (np.stack(part) for part in zip(*batch, strict=True))
    total, weight = losses_of[mining_iou](codes, logits, boxes, labels)
    sums, counts = zip(
        *(
            reference_mined.loss(*one, ANCHORS, mining_iou)
            for one in zip(codes, logits, boxes, labels, strict=True)
        ),
        strict=True,
    )
    assert float(weight) == max(sum(counts), 1)
    assert float(total) == pytest.approx(sum(sums), rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.3, 0.99, 1.0]))
def test_mining_with_ties_and_coinciding_boxes(seed, threshold):
    """Losses of few kinds, and boxes that are copies of few."""
    random = np.random.default_rng(seed)
    losses = random.integers(1, 4, (2, 20)).astype(float)
    low = random.uniform(0, 0.6, (5, 2))
    boxes = np.concatenate([low, low + random.uniform(0.1, 0.4, (5, 2))], 1)[random.integers(5, size=(2, 20))]
    matched = random.random((2, 20)) < random.choice([0.0, 0.2, 0.6])
    found = np.asarray(mined_of(losses, boxes, matched, threshold))
    for row in range(2):
        owner = [0 if yes else None for yes in matched[row]]
        assert set(np.flatnonzero(found[row])) == set(
            reference_mined.mined(losses[row], boxes[row], owner, threshold)
        )


def test_gradients_are_finite_where_there_is_nothing_to_predict():
    shape = (2, len(ANCHORS))
    boxes, labels = np.zeros((2, MOST, 4)), np.zeros((2, MOST), np.int32)
    boxes[1, 0], labels[1, 0] = (0.1, 0.1, 0.1, 0.9), 2  # a box without width
    gradient = jax.jit(jax.grad(lambda *args: mined_loss(*args, ANCHORS, mining_iou=0.99)[0], (0, 1)))
    grads = gradient(np.ones((*shape, 4)), np.ones((*shape, CLASSES)), boxes, labels)
    assert all((np.asarray(g) == 0).all() for g in grads)
    boxes[1, 1], labels[1, 1] = (0.2, 0.2, 0.6, 0.7), 1
    grads = gradient(np.ones((*shape, 4)), np.ones((*shape, CLASSES)), boxes, labels)
    for g in map(np.asarray, grads):
        assert np.isfinite(g).all() and g[1].any() and not g[0].any()


def test_loss_in_bfloat16_is_summed_in_float32():
    args = [np.zeros((1, len(ANCHORS), n), jnp.bfloat16) for n in (4, CLASSES)]
    boxes, labels = np.array([[[0.1, 0.1, 0.5, 0.6]]], np.float32), np.array([[1]], np.int32)
    total, weight = jax.eval_shape(losses_of[1.0], *args, boxes, labels)
    assert total.dtype == weight.dtype == jnp.float32


@settings(max_examples=50, deadline=None)
@given(seeds, st.sampled_from(SELECTIONS))
def test_picks_are_those_of_plain_loops(seed, selection):
    """Fewer candidates than slots and more of them; boxes that touch, coincide, and lie outside."""
    random = np.random.default_rng(seed)
    anchors = 15
    low = random.integers(-4, 9, (2, anchors, 2)) / 8
    boxes = np.concatenate([low, low + random.integers(0, 6, (2, anchors, 2)) / 8], -1)
    scores = random.permutation(2 * anchors * 3).reshape(2, anchors, 3) / (2 * anchors * 3.0)
    rows = np.asarray(picked(boxes, scores, selection))
    most = selection.detections
    assert rows.shape == (2, most, 6)
    for image in range(2):
        expected = reference_mined.detect(boxes[image], scores[image], selection.score, selection.iou, most)
        assert not rows[image, len(expected) :].any()
        for row, (corners, value, label) in zip(rows[image], expected, strict=False):
            np.testing.assert_allclose(row, [*corners, value, label], rtol=1e-12)
