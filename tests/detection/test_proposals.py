"""Sampling, anchors, the first stage's loss and proposals against PyTorch, on boxes of every kind."""

import functools

import jax
import numpy as np
import pytest

from mlperf_jax.detection import boxes as box
from mlperf_jax.detection.proposals import clipped, proposal_anchors, proposal_loss, propose
from mlperf_jax.detection.sampling import sample

torch = pytest.importorskip("torch", reason="PyTorch is the judge")

from tests.detection import region_reference as reference  # noqa: E402  it needs torch

# So few anchors that all examples are drawn.
MAPS, STRIDES, SIZES = ((4, 5), (2, 3), (1, 2)), (16, 32, 64), (24, 48, 64)
HEIGHT, WIDTH, MOST = 64, 80, 7
LEVELS = proposal_anchors(MAPS, STRIDES, SIZES)
PLACES = reference.anchors(MAPS, STRIDES, SIZES)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def split(x):
    return np.split(x, np.cumsum([len(level) for level in LEVELS])[:-1], axis=1)


def true_boxes(random, images=2):
    """Boxes [B, MOST, 4] and labels: none, whole pixels that touch and tie, at the border, without area, twice the same."""
    boxes, labels = np.zeros((images, MOST, 4)), np.zeros((images, MOST), np.int32)
    for i in range(images):
        for m in range(random.integers(0, MOST + 1)):
            step = random.choice(
                [1, 16, 2.0**-10]
            )  # sums and products of these are exact, so that ties are ties
            x, y = (np.sort(random.integers(0, side / step + 1, 2)) * step for side in (WIDTH, HEIGHT))
            boxes[i, m] = x[0], y[0], x[1], y[1]
            if m and random.random() < 0.2:
                boxes[i, m] = boxes[i, m - 1]
            labels[i, m] = random.integers(1, 4)
    return boxes, labels


def judged(boxes, labels):
    """What the reference is given: boxes with an area, as it counts pixels."""
    real = (labels > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return reference.inclusive(torch.tensor(boxes[real])), torch.tensor(labels[real]).long(), real


@pytest.mark.parametrize(
    "arguments",
    [
        (MAPS, STRIDES, SIZES),
        (((10, 11), (5, 6), (3, 3), (2, 2), (1, 1)), (4, 8, 16, 32, 64), (32, 64, 128, 256, 512)),
    ],
)
def test_anchors_are_the_references(arguments):
    for ours, theirs in zip(proposal_anchors(*arguments), reference.anchors(*arguments), strict=True):
        np.testing.assert_array_equal(box.to_corners(ours), reference.exclusive(theirs))


draw = jax.jit(sample, static_argnums=(2, 3))


@pytest.mark.parametrize("seed", range(12))
def test_examples_are_drawn_of_each_kind(seed):
    random = np.random.default_rng(seed)
    shares = random.dirichlet([0.3, 0.3, 0.3], 3)
    labels = np.stack([random.choice([-1, 0, 2], 60, p=p) for p in shares]).astype(np.int32)
    places, there = map(np.asarray, draw(labels, jax.random.key(seed), 20, 0.3))
    for i in range(3):
        drawn = places[i, there[i]]
        assert len(set(drawn.tolist())) == len(drawn)
        positives = min(6, int((labels[i] > 0).sum()))
        background = min(20 - positives, int((labels[i] == 0).sum()))
        assert there[i].tolist() == [True] * (positives + background) + [False] * (
            20 - positives - background
        )
        assert (labels[i, drawn[:positives]] > 0).all() and (labels[i, drawn[positives:]] == 0).all()


def test_every_example_is_as_likely_as_any_other():
    labels = np.tile(np.array([0, 1] * 20, np.int32), (2000, 1))
    places, there = draw(labels, jax.random.key(0), 10, 0.5)
    assert np.asarray(there).all()
    counts = np.bincount(np.asarray(places).ravel(), minlength=40)
    assert abs(counts - 500).max() < 5 * np.sqrt(500 * 0.75)
    again, _ = draw(labels, jax.random.key(0), 10, 0.5)
    np.testing.assert_array_equal(again, places)


def test_fewer_than_are_wanted_leave_places_empty():
    _, there = draw(np.array([[0, 1, -1]], np.int32), jax.random.key(0), 20, 0.5)
    assert np.asarray(there).sum() == 2 and there.shape == (1, 20)


loss = jax.jit(
    jax.value_and_grad(
        lambda logits, codes, *rest: sum(proposal_loss(logits, codes, *rest, LEVELS, KEY)), (0, 1)
    )
)
KEY = jax.random.key(3)


@pytest.mark.parametrize("seed", range(20))
def test_loss_and_gradients_are_the_references(seed):
    random = np.random.default_rng(seed)
    boxes, labels = true_boxes(random)
    sizes = np.stack([random.integers(50, HEIGHT + 1, 2), random.integers(60, WIDTH + 1, 2)], 1).astype(
        np.int32
    )
    anchors = sum(len(level) for level in LEVELS)
    logits, codes = random.normal(size=(2, anchors)) * 2, random.normal(size=(2, anchors, 4)) * 0.2
    theirs = [torch.tensor(x, requires_grad=True) for x in (logits, codes)]
    truths = [judged(boxes[i], labels[i])[0] for i in range(2)]
    expected = sum(reference.proposal_loss(*theirs, truths, torch.cat(PLACES), sizes.tolist()))
    expected.backward()
    found, grads = loss(split(logits), split(codes), boxes, labels, sizes)
    assert float(found) == pytest.approx(expected.item(), rel=1e-9)
    for ours, wanted in zip(grads, theirs, strict=True):
        wanted = 0 if wanted.grad is None else wanted.grad  # without any true box codes have none
        np.testing.assert_allclose(np.concatenate(ours, 1), wanted, rtol=1e-7, atol=1e-12)


def test_half_of_many_examples_are_positive_and_as_many_count_as_there_are_to_be():
    anchors = proposal_anchors([(40, 40)], [8], [16])
    boxes = np.stack(np.meshgrid(np.arange(0, 304, 16.0), np.arange(0, 304, 16.0)), -1).reshape(1, -1, 2)
    boxes = np.concatenate([boxes, boxes + 16], -1)
    labels = np.ones(boxes.shape[:2], np.int32)

    def total(logits):
        zeros = np.zeros((*logits.shape, 4))
        return proposal_loss([logits], [zeros], boxes, labels, np.array([[320, 320]]), anchors, KEY)[0]

    grads = np.asarray(jax.jit(jax.grad(total))(np.zeros((1, len(anchors[0])))))
    assert (grads != 0).sum() == 256 and (grads < 0).sum() == 128


found_boxes = jax.jit(functools.partial(propose, anchors=LEVELS, candidates=30, iou=0.5, count=25))


@pytest.mark.parametrize("seed", range(12))
def test_proposals_are_the_references(seed):
    random = np.random.default_rng(seed)
    sizes = np.stack([random.integers(50, HEIGHT + 1, 2), random.integers(60, WIDTH + 1, 2)], 1).astype(
        np.int32
    )
    anchors = sum(len(level) for level in LEVELS)
    spread = random.choice([0.05, 0.5, 5.0])
    logits, codes = random.normal(size=(2, anchors)), random.normal(size=(2, anchors, 4)) * spread
    boxes, there = map(np.asarray, found_boxes(split(logits), split(codes), sizes))
    for i in range(2):
        parts = [[torch.tensor(part[i]) for part in split(x)] for x in (logits, codes)]
        expected = reference.exclusive(reference.propose(*parts, PLACES, sizes[i].tolist(), 30, 0.5, 25))
        assert there[i].tolist() == [n < len(expected) for n in range(25)]
        np.testing.assert_allclose(boxes[i, : len(expected)], expected, rtol=1e-9, atol=1e-9)


def test_boxes_beyond_the_image_keep_a_pixel():
    corners = np.array([[[-9.0, -9, -5, -5], [100, 100, 120, 120], [-5, 3, 100, 200], [4, 4, 4, 4]]])
    found = clipped(corners, np.array([[40, 50]]))
    np.testing.assert_array_equal(found, [[[0, 0, 1, 1], [49, 39, 50, 40], [0, 3, 50, 40], [4, 4, 4, 4]]])


def test_fewer_candidates_than_there_is_room_for():
    few = jax.jit(functools.partial(propose, anchors=LEVELS, candidates=2, iou=0.99, count=9))
    anchors = sum(map(len, LEVELS))
    zeros = split(np.zeros((1, anchors))), split(np.zeros((1, anchors, 4)))
    boxes, there = few(*zeros, np.array([[HEIGHT, WIDTH]]))
    assert boxes.shape == (1, 9, 4) and there.tolist() == [[True] * 6 + [False] * 3]
