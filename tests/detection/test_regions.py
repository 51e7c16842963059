"""RoI align, the second stage's examples, losses and detections, and masks, against loops and PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.detection import roi_align as roi
from mlperf_jax.detection.regions import (
    Regions,
    detect_regions,
    draw_regions,
    mask_loss,
    mask_targets,
    of_class,
    region_loss,
    shares_of_255,
)
from mlperf_jax.detection.roi_align import level_of
from mlperf_jax.detection.suppression import Selection
from mlperf_jax.metrics.masks import run_lengths

torch = pytest.importorskip("torch", reason="PyTorch is the judge")
pycocotools_mask = pytest.importorskip("pycocotools.mask")

from tests.detection import region_reference as reference  # noqa: E402  it needs torch
from tests.detection.test_proposals import judged, true_boxes  # noqa: E402

HEIGHT, WIDTH, GRID = 64, 80, 112
STRIDES = (4, 8, 16, 32)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def some_boxes(random, count, height=HEIGHT, width=WIDTH):
    """Boxes [count, 4] that lie within, reach out, lie outside, or have less than a pixel."""
    low = random.uniform(-0.2, 1.1, (count, 2)) * [width, height]
    sides = random.choice([0.3, 5, 40, 300, 900], (count, 1)) * random.uniform(0.3, 1, (count, 2))
    return np.concatenate([low, low + sides], 1)


FORMS = {"products": roi.FEW_CELLS, "reading": 0}


@functools.cache
def align(form):
    """A function of its own for each form: traces are kept by function."""

    def aligned(levels, strides, boxes, window):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(roi, "FEW_CELLS", FORMS[form])
            return roi.roi_align(levels, strides, boxes, window)

    return jax.jit(aligned, static_argnums=(1, 3))


@functools.cache
def align_gradient(form):
    return jax.jit(
        lambda levels, boxes, weights: jax.grad(
            lambda x: (align(form)(x, STRIDES, boxes, 3) * weights).sum()
        )(levels)
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_what_boxes_hold_and_its_gradient_are_the_references(seed, form):
    random = np.random.default_rng(seed)
    levels = [random.normal(size=(2, HEIGHT // s, WIDTH // s, 3)) for s in STRIDES]
    boxes = np.stack([some_boxes(random, 9) for _ in range(2)])
    found = align(form)(levels, STRIDES, boxes, 3)
    theirs = [torch.tensor(level, requires_grad=True) for level in levels]
    expected = [
        [
            reference.roi_align([x[i] for x in theirs], STRIDES, reference.inclusive(torch.tensor(one)), 3)
            for one in boxes[i]
        ]
        for i in range(2)
    ]
    expected = torch.stack([torch.stack(some) for some in expected])
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-10, atol=1e-12)
    weights = random.normal(size=found.shape)
    (expected * torch.tensor(weights)).sum().backward()
    for ours, wanted in zip(align_gradient(form)(levels, boxes, weights), theirs, strict=True):
        wanted = np.zeros_like(ours) if wanted.grad is None else wanted.grad
        np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-12)


def test_sizes_have_their_levels():
    sides = np.array([1, 111.9, 112, 223.9, 224, 447, 448, 2000])
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1)
    np.testing.assert_array_equal(level_of(jnp.asarray(boxes), STRIDES), [0, 0, 1, 1, 2, 2, 3, 3])
    np.testing.assert_array_equal(level_of(jnp.asarray(boxes), STRIDES[:3]), [0, 0, 1, 1, 2, 2, 2, 2])
    for sides in np.random.default_rng(0).uniform(1, 900, (50, 2)):
        one = np.array([3, 4, 3 + sides[0], 4 + sides[1]])
        expected = reference.level_of(reference.inclusive(torch.tensor(one)), STRIDES)
        assert int(level_of(jnp.asarray(one), STRIDES)) == expected


@pytest.mark.parametrize("form", FORMS)
def test_features_in_bfloat16_are_summed_in_float32(form):
    levels = [np.ones((1, 8, 8, 2), jnp.bfloat16), np.ones((1, 4, 4, 2), jnp.bfloat16)]
    found = align(form)(levels, (4, 8), np.array([[[2.0, 2, 20, 20]]], np.float32), 2)
    assert found.dtype == jnp.bfloat16 and (np.asarray(found) == 1).all()


draw = jax.jit(functools.partial(draw_regions, count=100, share=0.6))


def near(random, boxes):
    """Proposals [30, 4] around true boxes and elsewhere, of at least a pixel; some coincide with a box."""
    centres = boxes[random.integers(0, len(boxes), 30)]
    moved = centres + random.normal(size=(30, 4)) * random.choice([0, 2, 20], (30, 1))
    low = np.clip(moved[:, :2], 0, [WIDTH - 1, HEIGHT - 1])
    return np.concatenate([low, np.maximum(moved[:, 2:], low + 1)], 1)


@pytest.mark.parametrize("seed", range(12))
def test_examples_are_matched_as_the_references(seed):
    """All are drawn here, in any order."""
    random = np.random.default_rng(seed)
    boxes, labels = true_boxes(random)
    proposals = np.stack([near(random, boxes[i]) for i in range(2)])
    present = random.random((2, 30)) < 0.8
    regions = draw(proposals, present, boxes, labels, jax.random.key(seed))
    for i in range(2):
        truth, classes, real = judged(boxes[i], labels[i])
        given = torch.cat([torch.tensor(proposals[i, present[i]]), torch.tensor(boxes[i, real])])
        matches = reference.match(truth, reference.inclusive(given), 0.5, 0.5, False)
        expected = [
            (*one, int(classes[row]), *boxes[i, real][row].tolist()) if row >= 0 else (*one, 0)
            for one, row in zip(given.tolist(), matches.tolist(), strict=True)
        ]
        corners, found, rows = (np.asarray(x[i]) for x in (regions.corners, regions.labels, regions.rows))
        ours = [
            (*corners[n].tolist(), int(found[n]), *(boxes[i, rows[n]].tolist() if found[n] else ()))
            for n in range(100)
            if found[n] >= 0
        ]
        assert sorted(ours) == sorted(expected)
        positive = found > 0
        assert (np.diff(positive.astype(int)) <= 0).all() and positive.sum() <= 60


def test_a_quarter_at_most_holds_something():
    boxes = np.array([[[0.0, 0, 30, 30]]])
    proposals = np.tile(boxes, (1, 50, 1)) + np.arange(50)[:, None] % 2 * 40
    some = jax.jit(functools.partial(draw_regions, count=20, share=0.25))
    regions = some(proposals, np.ones((1, 50), bool), boxes, np.array([[2]]), jax.random.key(0))
    np.testing.assert_array_equal(regions.labels, [[2] * 5 + [0] * 15])
    assert regions.first(3).labels.shape == (1, 3)


losses = jax.jit(
    jax.value_and_grad(
        lambda logits, codes, regions, boxes: sum(
            w * x for w, x in zip((1, 3), region_loss(logits, codes, Regions(*regions), boxes), strict=True)
        ),
        (0, 1),
    )
)


@pytest.mark.parametrize("seed", range(10))
def test_losses_and_gradients_are_the_references(seed):
    random = np.random.default_rng(seed)
    boxes, labels = true_boxes(random)
    proposals = np.stack([near(random, boxes[i]) for i in range(2)])
    regions = draw(proposals, random.random((2, 30)) < 0.8, boxes, labels, jax.random.key(seed))
    logits, codes = random.normal(size=(2, 100, 4)), random.normal(size=(2, 100, 4, 4))
    there = np.asarray(regions.labels) >= 0
    if not there.any():
        pytest.skip("nothing was drawn")
    theirs = [torch.tensor(x, requires_grad=True) for x in (logits, codes)]
    rows = np.take_along_axis(boxes, np.asarray(regions.rows)[..., None], 1)[there]
    expected = reference.region_loss(
        *(x[there] for x in theirs),
        torch.tensor(np.asarray(regions.labels)[there]).long(),
        reference.inclusive(torch.tensor(np.asarray(regions.corners)[there])),
        reference.inclusive(torch.tensor(rows)),
    )
    (expected[0] + 3 * expected[1]).backward()
    parts = regions.corners, regions.labels, regions.rows
    found, grads = losses(logits, codes, parts, boxes)
    assert float(found) == pytest.approx((expected[0] + 3 * expected[1]).item(), rel=1e-9)
    for ours, wanted in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(ours, wanted.grad, rtol=1e-7, atol=1e-12)


def polygon(random, box):
    """A star around the middle of a box, which it touches on all sides."""
    angles = np.sort(random.uniform(0, 2 * np.pi, random.integers(5, 12)))
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(0.4, 1, (len(angles), 1))
    low, high = points.min(0), points.max(0)
    return (points - low) / (high - low) * (box[2:] - box[:2]) + box[:2]


def rasterised(points, corner, sides, cells):
    """A polygon's mask on a grid of cells over a box, as pycocotools rasterises it."""
    scaled = (points - corner) * (cells / np.asarray(sides))
    return pycocotools_mask.decode(pycocotools_mask.frPyObjects([scaled.ravel().tolist()], cells, cells)[0])


targets_of = jax.jit(lambda masks, regions, boxes: mask_targets(masks, Regions(*regions), boxes, 28))


def examples(seed):
    """Polygons of boxes [1, 6, 4], their masks as bits, and boxes [1, 12, 4] that overlap them by half or more."""
    random = np.random.default_rng(seed)
    low, sides = random.uniform(0, 200, (6, 2)), random.uniform(6, 300, (6, 2))
    boxes = np.concatenate([low, low + sides], 1)
    points = [polygon(random, one) for one in boxes]
    masks = [
        rasterised(some, one[:2], one[2:] - one[:2], GRID) for some, one in zip(points, boxes, strict=True)
    ]
    rows = np.repeat(np.arange(6), 2).astype(np.int32)
    moved = boxes[rows] + random.uniform(-0.1, 0.1, (12, 4)) * np.tile(sides[rows], 2)
    return points, np.stack(masks), boxes[None], moved[None], rows[None]


@pytest.mark.parametrize("seed", range(4))
def test_true_masks_are_cut_out_as_by_a_loop(seed):
    _, masks, boxes, moved, rows = examples(seed)
    regions = moved, np.ones_like(rows), rows
    found = np.asarray(targets_of(np.packbits(masks, -1)[None], regions, boxes))[0]
    for n in range(12):
        own, seen, grid = boxes[0, rows[0, n]], moved[0, n], np.pad(masks[rows[0, n]], 1).astype(float)
        for i in range(28):
            for j in range(28):
                at = []
                for axis, k in ((1, i), (0, j)):
                    step = max(seen[2 + axis] - 1 - seen[axis], 1) / 28
                    place = seen[axis] + (k + 0.5) * step
                    at.append((place - own[axis]) / (own[2 + axis] - own[axis]) * GRID - 0.5)
                y, x = np.clip(np.array(at) + 1, 0, GRID + 1 - 1e-9)  # in the grid with its border
                a, b, v, u = int(y), int(x), y % 1, x % 1
                share = (1 - v) * ((1 - u) * grid[a, b] + u * grid[a, b + 1])
                share += v * ((1 - u) * grid[a + 1, b] + u * grid[a + 1, b + 1])
                assert found[n, i, j] == (share >= 0.5) or abs(share - 0.5) < 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_true_masks_are_nearly_those_of_polygons_clipped_anew(seed):
    """What the reference makes of the polygon for each box; ours differ by less than a twentieth."""
    points, masks, boxes, moved, rows = examples(seed)
    found = np.asarray(targets_of(np.packbits(masks, -1)[None], (moved, np.ones_like(rows), rows), boxes))[0]
    both, either = 0, 0
    for n in range(12):
        seen = moved[0, n]
        sides = np.maximum(seen[2:] - 1 - seen[:2], 1)
        expected = rasterised(points[rows[0, n]], seen[:2], sides, 28).astype(bool)
        both, either = both + (expected & found[n]).sum(), either + (expected | found[n]).sum()
    assert both / either > 0.95


def test_boxes_without_area_have_empty_masks():
    masks = np.full((1, 1, 8, 1), 255, np.uint8)
    regions = Regions(jnp.array([[[3.0, 3, 20, 20]]]), jnp.array([[0]]), jnp.array([[0]]))
    found = jax.jit(mask_targets, static_argnums=3)(masks, regions, jnp.zeros((1, 1, 4)), 4)
    assert not np.asarray(found).any()


def test_mask_loss_and_gradient_are_pytorchs():
    random = np.random.default_rng(0)
    logits = random.normal(size=(2, 5, 4, 4, 3)) * 3
    targets, labels = random.random((2, 5, 4, 4)) < 0.5, np.array([[1, 2, 1, 0, -1], [2, 0, 0, 0, -1]])
    ours, gradient = jax.jit(jax.value_and_grad(mask_loss))(logits, targets, labels)
    theirs = torch.tensor(logits, requires_grad=True)
    there = labels > 0
    chosen = theirs[there].movedim(-1, 1)[torch.arange(4), torch.tensor(labels[there])]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        chosen, torch.tensor(targets[there]).double()
    )
    expected.backward()
    assert float(ours) == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-9, atol=1e-15)
    assert float(mask_loss(logits, targets, np.zeros((2, 5), int))) == 0


SELECTION = Selection(score=0.05, candidates=200, iou=0.5, detections=15)
find = jax.jit(lambda *args: vars(detect_regions(*args, SELECTION)))


@pytest.mark.parametrize("seed", range(8))
def test_detections_are_the_references(seed):
    random = np.random.default_rng(seed)
    boxes, _ = true_boxes(random)
    proposals = np.stack([near(random, boxes[i]) for i in range(2)])
    present = random.random((2, 30)) < 0.8
    logits, codes = (
        random.normal(size=(2, 30, 4)) * 2,
        random.normal(size=(2, 30, 4, 4)) * random.choice([0.5, 5]),
    )
    sizes = np.array([[HEIGHT, WIDTH], [50, 61]])
    found = find(logits, codes, proposals, present, sizes)
    for i in range(2):
        kept = torch.tensor(present[i])
        expected = reference.detect(
            torch.tensor(logits[i])[kept],
            torch.tensor(codes[i])[kept],
            reference.inclusive(torch.tensor(proposals[i])[kept]),
            sizes[i].tolist(),
            0.05,
            0.5,
            15,
        )
        assert int((found["labels"][i] > 0).sum()) == len(expected)
        for n, (one, score, label) in enumerate(expected):
            np.testing.assert_allclose(found["corners"][i, n], reference.exclusive(one), rtol=1e-9, atol=1e-9)
            assert (
                float(found["scores"][i, n]) == pytest.approx(score, rel=1e-9)
                and found["labels"][i, n] == label
            )


def test_masks_are_of_the_class_that_was_found():
    logits = np.arange(2 * 3 * 2 * 2 * 4, dtype=float).reshape(2, 3, 2, 2, 4)
    labels = np.array([[1, 0, -1], [3, 2, 1]])
    found = np.asarray(of_class(logits, labels))
    for i in range(2):
        for n in range(3):
            np.testing.assert_array_equal(found[i, n], logits[i, n, :, :, max(labels[i, n], 0)])
    np.testing.assert_array_equal(shares_of_255(np.array([-1e3, 0, 1e3])), [0, 128, 255])


@pytest.mark.parametrize("seed", range(30))
def test_masks_are_put_into_their_image_as_the_references(seed):
    random = np.random.default_rng(seed)
    mask = random.integers(0, 256, (28, 28)).astype(np.uint8)
    one = some_boxes(random, 1)[0].clip(0, [WIDTH - 1, HEIGHT - 1, WIDTH, HEIGHT])
    one[2:] = np.maximum(one[2:], one[:2] + 1)
    runs = run_lengths(mask, one, HEIGHT, WIDTH)
    expected = reference.paste(
        torch.tensor(mask / 255, dtype=torch.float32),
        reference.inclusive(torch.tensor(one, dtype=torch.float32)),
        HEIGHT,
        WIDTH,
    )
    found = pycocotools_mask.decode(runs).astype(bool)
    assert (found != expected.numpy()).mean() < 1e-3  # where rounding decides about one half
    assert isinstance(runs["counts"], str) and runs["size"] == [HEIGHT, WIDTH]
