"""Patches and whole volumes, against transcriptions of the references."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from input_pipelines.volumes import patches, segmentation
from input_pipelines.volumes.segmentation import Case, Wholes, Windows, fitted

OPTIONS = dict(
    patch=(8, 8, 8), stride=(4, 4, 4), buckets=2, patches_per_volume=3, oversampling=0.4, flips=(0.3, 0.3, 0.3),
    brightness=0.5, noise=0.5, num_threads=1,
)  # fmt: skip


def case(shape, seed=0, name="a"):
    random = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    for one in (1, 2):
        first = [random.integers(0, max(1, size - 3)) for size in shape]
        label[tuple(slice(f, f + 3) for f in first)] = one
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Case(name, image, label, patches.objects(label))


# Where a patch lies.


def reference_axis(box, size, side, before):
    """One axis of the reference's rand_foreg_cropd, with its random number given: (low, high)."""
    start, stop = box
    diff = side - (stop - start)
    sign = -1 if diff < 0 else 1
    diff = abs(diff)
    after = diff - before
    low = max(0, start - sign * before)
    high = min(size, stop + sign * after)
    diff = side - (high - low)
    if diff > 0 and low == 0:
        high += diff
    elif diff > 0:
        low -= diff
    return low, high


@pytest.mark.parametrize("seed", range(20))
def test_a_patch_around_an_object_lies_as_the_references(seed):
    random = np.random.default_rng(seed)
    side = int(random.integers(4, 9))
    size = side + int(random.integers(0, 9))
    start = int(random.integers(0, size - 1))
    box = (start, int(random.integers(start + 1, size + 1)))
    draw = float(random.random())
    draws = iter([0.0, 0.0, 0.0, draw])  # yes, the first class, its first object, and where
    (first,) = patches.corner((size,), (side,), {1: [(box,)]}, draws, 0.4)
    before = int(draw * abs(side - (box[1] - box[0])))
    assert (first, first + side) == reference_axis(box, size, side, before)


def test_other_patches_lie_anywhere():
    found = {
        patches.corner((12, 9, 8), (8, 8, 8), {1: [((0, 1),) * 3]}, iter([0.9, a, b, 0.5]), 0.4)
        for a, b in itertools.product(np.arange(0, 1, 0.1), repeat=2)
    }
    assert found == {(a, 0, 0) for a in range(4)}  # the last place is never drawn, as in the reference


def test_objects_are_connected_regions_of_a_class():
    label = np.zeros((6, 6, 6), np.uint8)
    label[0:2, 0, 0], label[4:6, 2:5, 3], label[0, 5, 5] = 1, 1, 1
    label[3, 3, 0] = 2
    found = patches.objects(label)
    assert set(found) == {1, 2} and len(found[1]) == 3
    assert patches.largest(found[1]) == [((0, 2), (0, 1), (0, 1)), ((4, 6), (2, 5), (3, 4))]
    for box in found[1]:
        assert (label[tuple(slice(*axis) for axis in box)] == 1).any()
    assert len(found[1]) == ndimage.label(label == 1)[1]


def test_augmentation_is_what_was_drawn():
    image = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    label = np.random.default_rng(1).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    numbers = patches.Augmentation()

    def augmented(*draws):
        return patches.augment(image, label, seed=1, position=2, numbers=numbers, draws=iter(draws))

    same, labels = augmented(0.9, 0.9, 0.9, 0.9, 0.9)
    np.testing.assert_array_equal(same, image)
    turned, labels = augmented(0.1, 0.9, 0.1, 0.9, 0.9)
    np.testing.assert_array_equal(turned, image[::-1, :, ::-1])
    np.testing.assert_array_equal(labels, label[::-1, :, ::-1])
    bright, _ = augmented(0.9, 0.9, 0.9, 0.05, 0.5, 0.9)
    np.testing.assert_allclose(bright, 2.0 * image, rtol=1e-6)
    noisy, _ = augmented(0.9, 0.9, 0.9, 0.9, 0.05, 0.5)
    noise = (noisy - image) / 0.05
    assert noise.std() == pytest.approx(1, abs=0.2) and abs(noise.mean()) < 0.3


# Whole volumes.


def reference_fit(volume, window, stride, value):
    """Edge, cut and padding as in the reference's preprocessing for inference."""
    short = [max(0, w - n) for n, w in zip(volume.shape, window, strict=True)]
    volume = np.pad(volume, [(b // 2, b - b // 2) for b in short], mode="edge")
    cut = [n % s if n % s < s // 2 else 0 for n, s in zip(volume.shape, stride, strict=True)]
    volume = volume[tuple(slice(c // 2, n - (c - c // 2)) for n, c in zip(volume.shape, cut, strict=True))]
    bounds = [(s - n % s) % s for n, s in zip(volume.shape, stride, strict=True)]
    bounds = [
        b if n + b >= w else b + s for n, b, w, s in zip(volume.shape, bounds, window, stride, strict=True)
    ]
    return np.pad(volume, [(b // 2, b - b // 2) for b in bounds], constant_values=value)


@pytest.mark.parametrize("seed", range(8))
def test_volumes_are_cut_and_padded_as_the_references(seed):
    shape = np.random.default_rng(seed).integers(3, 24, 3)
    one = case(shape, seed)
    wholes = Wholes([one], Windows((8, 8, 8), (4, 4, 4), -2.2))
    expected = reference_fit(one.image, (8, 8, 8), (4, 4, 4), np.float32(-2.2))
    np.testing.assert_array_equal(wholes.image(0), expected)
    assert wholes.shapes[0] == expected.shape and all(n % 4 == 0 and n >= 8 for n in expected.shape)
    np.testing.assert_array_equal(wholes.label(0), reference_fit(one.label, (8, 8, 8), (4, 4, 4), 255))


def test_an_axis_says_where_its_voxels_are_from():
    axis = fitted(9, 8, 4)  # one too many: cut
    assert axis.source.tolist() == list(range(8)) and axis.inside.all()
    axis = fitted(10, 8, 4)  # two too few: padded
    assert axis.inside.tolist() == [False, *[True] * 10, False]


def test_buckets_hold_volumes_of_about_their_size():
    cases = [case(shape, i) for i, shape in enumerate([(8, 8, 8), (20, 20, 8), (12, 8, 8), (20, 8, 20)])]
    wholes = Wholes(cases, Windows((8, 8, 8), (4, 4, 4), 0.0, buckets=2))
    assert wholes.buckets == {"12x8x8": (12, 8, 8), "20x20x20": (20, 20, 20)}
    assert wholes.bucket_of == ["12x8x8", "20x20x20", "12x8x8", "20x20x20"]
    batch = wholes.read(np.array([3, 1]), ("image", "label", "size"))
    assert batch["image"].shape == (2, 20, 20, 20, 1)
    assert batch["size"].tolist() == [[20, 8, 20], [20, 20, 8]]
    np.testing.assert_array_equal(batch["image"][0, :, :8, :, 0], cases[3].image)
    assert not batch["label"][0, :, 8:].any()
    with pytest.raises(ValueError, match="too many"):
        wholes.read(np.array([0, 1]), ("size",))


# The data set.


def opened(cases, evaluation=(), **changed):
    return segmentation.dataset(
        cases, evaluation or cases, None, OPTIONS | changed,
        class_names=("a", "b"), padding=-2.2, fake=True, description="x",
    )  # fmt: skip


def test_patches_depend_on_nothing_but_seed_and_position():
    data = opened([case((12, 10, 9), 0), case((6, 14, 9), 1)])
    assert data.num_train == 6 and data.num_eval == 2
    whole = data.read_train(0, 12, seed=3)
    assert whole["image"].shape == (12, 8, 8, 8, 1) and whole["label"].dtype == np.uint8
    part = data.read_train(5, 9, seed=3)
    for name in whole:
        np.testing.assert_array_equal(whole[name][5:9], part[name])
    other = data.read_train(0, 12, seed=4)
    assert any((whole[name] != other[name]).any() for name in whole)


def test_a_patch_is_a_part_of_its_volume():
    one = case((6, 14, 9))  # shorter than a patch: continued with its edge
    data = opened([one], flips=(0, 0, 0), brightness=0.0, noise=0.0)
    padded = np.pad(one.image, ((1, 1), (0, 0), (0, 0)), mode="edge")
    labels = np.pad(one.label, ((1, 1), (0, 0), (0, 0)), mode="edge")
    parts = {
        padded[:, y : y + 8, z : z + 8].tobytes(): labels[:, y : y + 8, z : z + 8]
        for y in range(7)
        for z in range(2)
    }
    batch = data.read_train(0, 20, seed=0)
    for image, label in zip(batch["image"][..., 0], batch["label"], strict=True):
        np.testing.assert_array_equal(label, parts[image.tobytes()])


def test_whole_batches_hold_each_volume_once():
    data = opened([case((8, 8, 8))], [case((8 + 4 * i, 8, 8), i) for i in range(5)])
    seen = []
    for bucket in data.evaluation.buckets:
        for batch in data.whole_batches(bucket, batch_size=2, rows=slice(0, 2)):
            assert batch["image"].shape[0] == 2
            seen += batch["size"][batch["mask"] > 0, 0].tolist()
    assert sorted(seen) == [8, 12, 16, 20, 24]
