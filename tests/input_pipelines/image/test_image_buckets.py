"""Shapes of images that keep their aspect: as PyTorch's reference resizes them, and how much is padding."""

import numpy as np
import pytest

from input_pipelines.image.buckets import bucket_of, padding, resized_shape, shapes

# Height x width of the first 128 images of COCO's train2017 by id, and how many have it: ids say nothing of sizes.
COCO = """
480x640*35 427x640*12 640x480*9 640x427*6 426x640*5 428x640*4 425x640*3 375x500*3 481x640*2 640x481 478x640
500x381 488x640 640x565 612x612 640x512 416x640 640x416 374x500 573x640 500x600 536x640 424x640 333x500
640x591 640x428 600x600 491x640 327x640 218x640 332x500 640x446 611x640 580x640 640x638 640x426 640x359
360x640 389x640 640x516 226x640 500x333 406x640 495x500 313x500 640x360 336x448 484x640 312x460 640x423
640x520 513x640 500x473 500x409 248x640 407x640 500x375 446x640
"""
LONGER = (896, 1088, 1216, 1344)


def coco_sizes():
    rows = []
    for one in COCO.split():
        size, _, count = one.partition("*")
        rows += [[int(side) for side in size.split("x")]] * int(count or 1)
    return np.array(rows)


def test_sizes_are_the_references():
    for size, expected in {
        (480, 640): (800, 1066),
        (640, 480): (1066, 800),
        (427, 640): (800, 1199),
        (612, 612): (800, 800),
        (360, 640): (750, 1333),
        (218, 640): (454, 1332),
        (640, 226): (1333, 471),
        (800, 900): (800, 900),
    }.items():
        assert resized_shape(*size, 800, 1333) == expected


@pytest.mark.parametrize(("longer", "share"), [(LONGER, 0.042), ((1088, 1344), 0.085)])
def test_coco_is_padded_by_less_than_15_percent(longer, share):
    """Eight shapes or four; with two it would be 18.7 %."""
    images = coco_sizes()
    assert len(images) == 128
    sizes = np.array([resized_shape(*size, 800, 1333) for size in images.tolist()])
    padded = shapes(800, 1333, longer)
    assert len(padded) == 2 * len(longer) == len(np.unique(bucket_of(sizes, padded)))
    assert padding(sizes, padded) == pytest.approx(share, abs=0.001)


def test_every_size_goes_into_the_smallest_shape_that_holds_it():
    padded = shapes(800, 1333, LONGER)
    sizes = np.array([[800, 800], [896, 800], [800, 897], [1333, 480], [800, 1333]])
    assert [padded[i] for i in bucket_of(sizes, padded)] == [
        (800, 896),
        (896, 800),
        (800, 1088),
        (1344, 800),
        (800, 1344),
    ]
    with pytest.raises(ValueError, match="1345 x 20"):
        bucket_of(np.array([[1345, 20]]), padded)


def test_squares_are_one_shape_and_wrong_sides_are_refused():
    assert shapes(120, 128, (128,)) == [(128, 128)]
    for wrong in ((700, 1344), (1088, 896, 1344), (896, 1088)):
        with pytest.raises(ValueError, match="do not rise"):
            shapes(800, 1333, wrong)
