"""Codes, matching, loss and suppression against plain loops, on boxes of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.anchors import AnchorConfig, make_anchors
from mlperf_jax.detection.suppression import Selection, detect, suppress
from mlperf_jax.detection.training import largest, match, multibox_loss
from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.mesh import single_device_layout
from tests.detection import reference

ANCHORS = make_anchors(AnchorConfig(60, (12, 20, 60), (12, 24, 44, 60), (4, 6, 4)), (5, 3, 1))
MOST, CLASSES = 6, 4


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


# Boxes on a coarse grid touch, coincide, contain one another and have no area; fine ones do none of it.
grid = st.integers(0, 8).map(lambda n: n / 8)
fine = st.floats(0, 1, allow_nan=False, width=32)


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
    """Whether rounding alone says which of two anchors overlaps a box more: there any order is right."""
    overlaps = np.sort([reference.iou(one, reference.corners(anchor)) for anchor in ANCHORS])
    return any(0 < gap < 1e-14 for gap in np.diff(overlaps[overlaps > overlaps[-1] - 1e-12]))


seeds = st.integers(0, 2**32 - 1)
match_one = jax.jit(lambda boxes, labels: match(boxes, labels, jnp.asarray(ANCHORS)))
largest_of = jax.jit(largest)
loss_of = jax.jit(lambda *args: multibox_loss(*args, ANCHORS).mean())
gradient = jax.jit(jax.grad(lambda *args: multibox_loss(*args, ANCHORS).mean(), (0, 1)))


@settings(max_examples=60, deadline=None)
@given(images())
def test_matching_is_that_of_plain_loops(image):
    boxes, labels = image
    rows, found = map(np.asarray, match_one(boxes, labels))
    expected = reference.match(boxes, labels, ANCHORS)
    assert [None if label == 0 else int(row) for row, label in zip(rows, found, strict=True)] == expected
    for row, label in zip(rows, found, strict=True):
        assert label == 0 or label == labels[row]


@settings(max_examples=40, deadline=None)
@given(st.lists(images(), min_size=2, max_size=2), seeds)
def test_loss_is_that_of_plain_loops(batch, seed):
    random = np.random.default_rng(seed)
    codes = random.normal(size=(2, len(ANCHORS), 4)) * 2
    logits = random.normal(size=(2, len(ANCHORS), CLASSES)) * 3
    boxes, labels = (np.stack(part) for part in zip(*batch, strict=True))
    expected = np.mean(
        [reference.loss(*one, ANCHORS) for one in zip(codes, logits, boxes, labels, strict=True)]
    )
    assert float(loss_of(codes, logits, boxes, labels)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 3, 1000]), st.sampled_from([np.float32, np.float64]), seeds)
def test_the_largest_are_those_a_stable_sort_begins_with(length, kinds, dtype, seed):
    random = np.random.default_rng(seed)
    x = (random.integers(kinds, size=(4, length)) * random.exponential()).astype(dtype)
    x[0, : length // 2] = -0.0
    count = random.integers(-1, length + 3, 4).clip(0)
    order = np.argsort(-x, axis=1, kind="stable")
    expected = np.zeros(x.shape, bool)
    for row, places, n in zip(expected, order, count, strict=True):
        row[places[:n]] = True
    found = np.asarray(largest_of(x, count))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.sort(x * found, axis=1), np.sort(x * expected, axis=1))


@pytest.mark.parametrize("spread", [0, 3])
def test_loss_is_the_same_on_cpu_with_and_without_ties(spread):
    """Where the largest are marked, and where they are sorted; without spread all anchors tie."""
    random = np.random.default_rng(0)
    codes = random.normal(size=(2, len(ANCHORS), 4))
    logits = random.integers(-1, 2, size=(2, len(ANCHORS), CLASSES)) * float(spread)
    boxes = np.tile([0.1, 0.1, 0.5, 0.6], (2, MOST, 1))
    labels = np.tile([1, 0, 0, 0, 0, 0], (2, 1))

    def values(codes, logits):
        return multibox_loss(codes, logits, boxes, labels, ANCHORS).sum()

    def both():
        return jax.jit(lambda *args: jax.value_and_grad(values, (0, 1))(*args))(codes, logits)

    sorted_ = both()
    with layouts.use(single_device_layout()):
        marked = both()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), marked, sorted_)


def test_what_is_no_number_is_among_the_largest():
    x = np.array([[1.0, np.nan, 3.0, np.inf]])
    assert np.asarray(largest_of(x, np.array([2]))).tolist() == [[False, True, False, True]]


def test_gradients_are_finite_where_there_is_nothing_to_predict():
    """Padding has no logarithm of a size, and an empty image no positives to divide by."""
    shape = (2, len(ANCHORS))
    boxes, labels = np.zeros((2, MOST, 4)), np.zeros((2, MOST), np.int32)
    boxes[1, 0], labels[1, 0] = (0.1, 0.1, 0.1, 0.9), 2  # a box without width
    grads = gradient(np.ones((*shape, 4)), np.ones((*shape, CLASSES)), boxes, labels)
    assert all((np.asarray(g) == 0).all() for g in grads)
    boxes[1, 1], labels[1, 1] = (0.2, 0.2, 0.6, 0.7), 1
    grads = gradient(np.ones((*shape, 4)), np.ones((*shape, CLASSES)), boxes, labels)
    for g in map(np.asarray, grads):
        assert np.isfinite(g).all() and g[1].any() and not g[0].any()


def test_gradient_of_the_loss_is_its_slope():
    random = np.random.default_rng(3)
    codes, logits = (random.normal(size=(2, len(ANCHORS), n)) for n in (4, CLASSES))
    boxes, labels = np.zeros((2, MOST, 4)), np.zeros((2, MOST), np.int32)
    boxes[1, :2], labels[1, :2] = [[0.1, 0.1, 0.5, 0.6], [0.4, 0.4, 0.9, 0.8]], [1, 3]
    grads = gradient(codes, logits, boxes, labels)
    for i, values in enumerate((codes, logits)):
        way = random.normal(size=values.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = [codes, logits]
            moved[i] = values + step * way
            ends.append(float(loss_of(*moved, boxes, labels)))
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((grads[i] * way).sum()), rel=1e-5)


def test_loss_in_bfloat16_is_summed_in_float32():
    args = [np.zeros((1, len(ANCHORS), n), jnp.bfloat16) for n in (4, CLASSES)]
    boxes, labels = np.array([[[0.1, 0.1, 0.5, 0.6]]], np.float32), np.array([[1]], np.int32)
    assert jax.eval_shape(loss_of, *args, boxes, labels).dtype == jnp.float32


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_decoding_undoes_encoding(seed):
    random = np.random.default_rng(seed)
    low, sides = random.uniform(0, 0.5, (len(ANCHORS), 2)), random.uniform(0.01, 0.5, (len(ANCHORS), 2))
    boxes = np.concatenate([low, low + sides], axis=1)
    codes = jax.jit(box.encode)(boxes, ANCHORS)
    np.testing.assert_allclose(codes[7], reference.code(boxes[7], ANCHORS[7]), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jax.jit(box.decode)(codes, ANCHORS), boxes, rtol=1e-9, atol=1e-12)


corner = st.tuples(grid, grid, grid, grid).map(
    lambda c: (min(c[::2]), min(c[1::2]), max(c[::2]), max(c[1::2]))
)
settle = jax.jit(suppress, static_argnums=2)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(corner, st.booleans()), min_size=12, max_size=12))
def test_suppression_is_the_sequential_one(drawn):
    boxes, present = np.array([b for b, _ in drawn]), np.array([p for _, p in drawn])
    np.testing.assert_array_equal(settle(boxes, present, 0.5), reference.suppress(boxes, present, 0.5))


def test_a_chain_settles_from_its_best_box():
    """Each box overlaps only its neighbours: every second one stays, which takes as many rounds as boxes."""
    left = np.arange(40) * 0.3
    boxes = np.stack([left, 0 * left, left + 1, 0 * left + 1], axis=1)
    stays = settle(boxes, np.ones(40, bool), 0.5)
    np.testing.assert_array_equal(stays, np.arange(40) % 2 == 0)


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from([0.3, 3.0, 8.0]))
def test_detections_are_those_of_plain_loops(seed, spread):
    random = np.random.default_rng(seed)
    codes = random.normal(size=(2, len(ANCHORS), 4))
    logits = random.normal(size=(2, len(ANCHORS), CLASSES)) * spread
    found = find(codes, logits)
    for i in range(2):
        expected = reference.detect(codes[i], logits[i], ANCHORS, 0.05, 20, 0.5, 12)
        count = int((np.asarray(found[i, :, 5]) > 0).sum())
        assert count == len(expected)
        for row, (corners, score, label) in zip(np.asarray(found[i]), expected, strict=False):
            np.testing.assert_allclose(row, [*corners, score, label], rtol=1e-9, atol=1e-12)
        assert not np.asarray(found[i, count:]).any()


find = jax.jit(lambda codes, logits: detect(codes, logits, ANCHORS, Selection(0.05, 20, 0.5, 12)).rows())


def test_rows_are_as_many_as_asked_though_there_are_fewer_candidates():
    few = jax.jit(lambda *found: detect(*found, ANCHORS[:2], Selection(detections=50)).rows())
    rows = few(np.zeros((3, 2, 4)), np.zeros((3, 2, 3)))
    assert rows.shape == (3, 50, 6)
    assert (np.asarray(rows[:, :, 5]) > 0).sum(1).max() <= 4
