"""RetinaNet's anchors, matching, loss and selection over levels against PyTorch, on boxes of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.focal import IGNORED, focal_loss, match, retinanet_loss
from mlperf_jax.detection.levels import VARIANCES, detect_on_levels, level_anchors, pick
from mlperf_jax.detection.suppression import Selection

torch = pytest.importorskip("torch", reason="PyTorch is the judge")

from tests.detection import pyramid_reference as reference  # noqa: E402  it needs torch

SIZE, CELLS, SIZES = 64, (8, 4, 2), (8, 16, 32)
LEVELS = level_anchors(SIZE, CELLS, SIZES)
PLACES = torch.cat(reference.anchors(SIZE, CELLS, SIZES)).double()
MOST, CLASSES = 11, 3


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_anchors_are_the_references():
    for size, cells, sizes in ((800, (100, 50, 25, 13, 7), (32, 64, 128, 256, 512)), (SIZE, CELLS, SIZES)):
        ours = level_anchors(size, cells, sizes)
        for level, expected in zip(ours, reference.anchors(size, cells, sizes), strict=True):
            np.testing.assert_array_equal(box.to_corners(jnp.asarray(level)), expected)
    assert sum(map(len, level_anchors(800, (100, 50, 25, 13, 7), (32, 64, 128, 256, 512)))) == 120_087
    with pytest.raises(ValueError, match="2 levels need as many"):
        level_anchors(64, (8, 4), (8,))


# Whole pixels touch, coincide, contain one another, tie between anchors and have no area; fine ones do none of it.
whole = st.integers(0, SIZE // 4).map(lambda n: 4.0 * n)
fine = st.floats(0, SIZE, allow_nan=False, width=32)


@st.composite
def images(draw):
    """Boxes [MOST, 4] in pixels and labels [MOST]: none, few, or a crowd in one place."""
    side = draw(st.sampled_from([whole, fine]))
    boxes, labels = np.zeros((MOST, 4)), np.zeros(MOST, np.int32)
    for m in range(draw(st.integers(0, MOST))):
        x, y = sorted([draw(side), draw(side)]), sorted([draw(side), draw(side)])
        boxes[m] = x[0], y[0], x[1], y[1]
        if m and draw(st.booleans()):
            boxes[m] = boxes[m - 1]
        labels[m] = draw(st.integers(1, CLASSES))
    real = judged(boxes, labels)[0]
    assume(not len(real) or not _near(reference.iou(real, PLACES)))
    return boxes, labels


def judged(boxes, labels):
    """What the reference is given: it refuses boxes without an area, and has no padding."""
    real = (labels > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return torch.tensor(boxes[real]), torch.tensor(labels[real]).long()


def _near(quality):
    """Whether rounding alone decides: between anchors, or at a bound."""
    near = [(quality - bound).abs().flatten() for bound in (0.4, 0.5)]
    near.append((quality.max(1, keepdim=True).values - quality).flatten())
    near.append((quality.max(0, keepdim=True).values - quality).flatten())
    apart = torch.cat(near)
    return bool(((apart > 0) & (apart < 1e-12)).any() or (quality.max(1).values < 1e-6).any())


PLACES_CENTRES = np.concatenate(LEVELS).astype(float)
match_all = jax.jit(lambda boxes, labels: match(boxes, labels, box.to_corners(jnp.asarray(PLACES_CENTRES))))


def match_one(boxes, labels):
    """Beside an image without boxes, which has none of the other's."""
    rows, found = match_all(np.stack([0 * boxes, boxes]), np.stack([0 * labels, labels]))
    assert not np.asarray(found[0]).any()
    return rows[1], found[1]


@settings(max_examples=80, deadline=None)
@given(images())
def test_matching_is_the_references(image):
    boxes, labels = image
    rows, found = map(np.asarray, match_one(boxes, labels))
    real, real_labels = judged(boxes, labels)
    expected = reference.match(real, PLACES).numpy()
    matched = expected >= 0
    np.testing.assert_array_equal(found > 0, matched)
    np.testing.assert_array_equal(found == IGNORED, expected == reference.BETWEEN)
    np.testing.assert_array_equal(boxes[rows[matched]], real[expected[matched]])
    np.testing.assert_array_equal(found[matched], real_labels[expected[matched]])


def split(x):
    return [part for part in np.split(x, np.cumsum([len(level) for level in LEVELS])[:-1], axis=1)]


loss_of = jax.jit(lambda *args: retinanet_loss(*args, LEVELS).mean())
gradient = jax.jit(jax.grad(lambda *args: retinanet_loss(*args, LEVELS).mean(), (0, 1)))


@settings(max_examples=30, deadline=None)
@given(st.lists(images(), min_size=2, max_size=2), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 4.0]))
def test_loss_and_gradient_are_the_references(batch, seed, spread):
    random = np.random.default_rng(seed)
    codes, logits = (random.normal(size=(2, len(PLACES), n)) * spread for n in (4, CLASSES))
    boxes, labels = (np.stack(part) for part in zip(*batch, strict=True))
    theirs = [torch.tensor(x, requires_grad=True) for x in (codes, logits)]
    expected = sum(
        reference.loss(theirs[0][i], theirs[1][i], *judged(boxes[i], labels[i]), PLACES) for i in range(2)
    )
    (expected / 2).backward()
    arguments = split(codes), split(logits), boxes, labels
    assert float(loss_of(*arguments)) == pytest.approx(expected.item() / 2, rel=1e-9, abs=1e-12)
    for ours, wanted in zip(gradient(*arguments), theirs, strict=True):
        np.testing.assert_allclose(np.concatenate(ours, 1), wanted.grad, rtol=1e-7, atol=1e-11)


def test_images_without_boxes_have_gradients_of_their_background_alone():
    shape = (1, len(PLACES))
    boxes, labels = np.zeros((1, MOST, 4)), np.zeros((1, MOST), np.int32)
    boxes[0, 0], labels[0, 0] = (4, 4, 4, 60), 2  # a box without width
    codes, logits = gradient(split(np.ones((*shape, 4))), split(np.ones((*shape, CLASSES))), boxes, labels)
    assert all((np.asarray(g) == 0).all() for g in codes)
    assert all(np.isfinite(g).all() and (np.asarray(g) > 0).all() for g in logits)


def test_a_box_that_overlaps_no_anchor_takes_no_part():
    boxes, labels = np.zeros((MOST, 4)), np.zeros(MOST, np.int32)
    boxes[0], labels[0] = (500, 500, 510, 520), 1
    assert not np.asarray(match_one(boxes, labels)[1]).any()


def test_loss_in_bfloat16_is_summed_in_float32():
    codes, logits = (split(np.zeros((1, len(PLACES), n), jnp.bfloat16)) for n in (4, CLASSES))
    boxes, labels = np.array([[[4, 4, 30, 30]]], np.float32), np.array([[1]], np.int32)
    assert jax.eval_shape(loss_of, codes, logits, boxes, labels).dtype == jnp.float32


def test_focal_loss_of_extreme_logits_is_finite():
    logits, targets = np.array([[[500.0, -500.0]], [[-500.0, 500.0]]]), np.array([[1], [1]], np.int32)
    values, grads = jax.value_and_grad(lambda x: focal_loss(x, targets).sum())(logits)
    assert float(values) == pytest.approx(0.25 * 500 + 0.75 * 500) and np.isfinite(grads).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_codes_are_the_references_and_large_ones_are_held(seed):
    random = np.random.default_rng(seed)
    codes = random.normal(size=(len(PLACES), 4)) * 3
    expected = reference.decode(torch.tensor(codes), PLACES).numpy()
    places = jnp.asarray(PLACES_CENTRES)
    found = box.decode(jnp.asarray(codes), places, VARIANCES, 1000 / 16)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert (codes[:, 2:] > np.log(1000 / 16)).any()
    low, sides = random.uniform(0, 30, (len(PLACES), 2)), random.uniform(1, 30, (len(PLACES), 2))
    boxes = np.concatenate([low, low + sides], 1)
    ours = box.encode(jnp.asarray(boxes), places, VARIANCES)
    np.testing.assert_allclose(ours, reference.encode(torch.tensor(boxes), PLACES), rtol=1e-9, atol=1e-9)


SELECTION = Selection(score=0.05, candidates=20, iou=0.5, detections=12)
find = jax.jit(lambda codes, logits: detect_on_levels(codes, logits, LEVELS, SIZE, SELECTION).rows())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([-8.0, -4.0, 0.0]), st.sampled_from([0.05, 0.6]))
def test_detections_are_the_references(seed, mean, spread):
    """Few above the bound on the score, or more than there is room for; boxes that overlap more or less."""
    random = np.random.default_rng(seed)
    codes = random.normal(size=(2, len(PLACES), 4)) * spread
    logits = mean + random.normal(size=(2, len(PLACES), CLASSES)) * 2
    found = np.asarray(find(split(codes), split(logits)))
    places = reference.anchors(SIZE, CELLS, SIZES)
    for i in range(2):
        parts = [[torch.tensor(part[i]) for part in split(x)] for x in (codes, logits)]
        expected = reference.detect(*parts, [level.double() for level in places], SIZE, 0.05, 20, 0.5, 12)
        count = int((found[i, :, 5] > 0).sum())
        assert count == len(expected)
        for row, (corners, score, label) in zip(found[i], expected, strict=False):
            np.testing.assert_allclose(row, [*corners, score, label], rtol=1e-9, atol=1e-12)
        assert not found[i, count:].any()


def test_boxes_that_only_touch_the_bound_both_stay():
    """Half of each overlapped: suppressed are those that overlap more. One of another class stays anyhow."""
    corners = np.array([[[0, 0, 2, 3], [0, 1, 2, 4], [0, 0, 2, 3], [0, 0, 2, 2.9]]], float)
    scores, labels = np.array([[0.9, 0.8, 0.7, 0.6]]), np.array([[1, 1, 2, 1]], np.int32)
    found = pick(corners, scores, labels, Selection(iou=0.5, detections=6))
    np.testing.assert_array_equal(found.scores[0], [0.9, 0.8, 0.7, 0, 0, 0])
    np.testing.assert_array_equal(found.labels[0], [1, 1, 2, 0, 0, 0])
