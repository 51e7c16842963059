"""Decoding, cropping and resizing against PIL, float arithmetic and the rules' distribution."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from input_pipelines.image import fake_images, preprocessing
from mlperf_jax.errors import UserError


def smooth(height, width):
    """A picture that resizing methods agree on: one slow wave for each channel."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 40 + y / 70), np.cos(x / 60 - y / 50), np.sin(x / 90 + 1)]
    return np.stack([128 + 100 * wave for wave in waves], -1).astype(np.uint8)


def encoded(array, file_format="JPEG", mode=None, **options):
    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, file_format, **options)
    return stream.getvalue()


def bilinear(image, height, width):
    """Bilinear without antialiasing, pixel centres at half, as tf.image.resize; in float64."""

    def taps(size, source):
        at = (np.arange(size) + 0.5) * source / size - 0.5
        low = np.clip(np.floor(at), 0, source - 1).astype(int)
        return low, np.minimum(low + 1, source - 1), np.clip(at - low, 0, 1)

    y0, y1, fy = taps(height, image.shape[0])
    x0, x1, fx = taps(width, image.shape[1])
    image = image.astype(np.float64)
    rows = image[y0] * (1 - fy)[:, None, None] + image[y1] * fy[:, None, None]
    return rows[:, x0] * (1 - fx)[None, :, None] + rows[:, x1] * fx[None, :, None]


def tf_attempt(height, width, u_aspect, u_height, u_y, u_x):
    """One attempt of sample_distorted_bounding_box by brute force over heights; None where it fails."""
    aspect = 0.75 + u_aspect * (1.33 - 0.75)
    area = height * width
    fitting = [h for h in range(1, height + 1) if round(h * aspect) <= width]
    fitting = [h for h in fitting if h <= round(math.sqrt(area / aspect))]
    if not fitting:
        return None
    tallest = fitting[-1]
    lowest = min(round(math.sqrt(0.05 * area / aspect)), tallest)
    choices = range(lowest, tallest + 1)
    h = choices[int(u_height * len(choices))]
    for step, wrong in ((1, lambda a: a < 0.05 * area), (-1, lambda a: a > area)):
        if wrong(h * round(h * aspect)):
            h += step
    w = round(h * aspect)
    if not (0 < h <= height and 0 < w <= width and 0.05 * area <= h * w <= area):
        return None
    return int(u_y * (height - h)), int(u_x * (width - w)), h, w


sides = st.integers(1, 700)
# Not hypothesis's own floats: on round aspects heights tie between two roundings, which an epsilon decides.
draws = st.integers(0, 2**32).map(lambda seed: np.random.default_rng(seed).random(4).tolist())


@settings(max_examples=300, deadline=None)
@given(height=sides, width=sides, first=draws, later=draws)
def test_crop_is_the_first_attempt_that_covers_a_tenth(height, width, first, later):
    expected = None
    for attempt in (first, later):
        crop = tf_attempt(height, width, *attempt)
        if crop and crop[2] * crop[3] >= 0.1 * height * width:
            expected = crop
            break
    assert preprocessing.random_crop(height, width, [*first, *(later * 99)]) == expected


@settings(max_examples=100, deadline=None)
@given(height=sides, width=sides, seed=st.integers(0, 2**64 - 1), position=st.integers(0, 2**40))
def test_crop_lies_within_the_image(height, width, seed, position):
    crop = preprocessing.random_crop(height, width, preprocessing.uniforms(seed, position, 400).tolist())
    y, x, h, w = crop or (0, 0, height, width)
    assert y >= 0 and x >= 0 and h > 0 and w > 0 and y + h <= height and x + w <= width
    assert h * w >= 0.1 * height * width


def test_crops_are_distributed_as_the_rules_say():
    height, width = 375, 500
    crops = np.array(
        [
            preprocessing.random_crop(height, width, preprocessing.uniforms(5, i, 400).tolist())
            for i in range(3000)
        ],
        float,
    )
    aspects = crops[:, 3] / crops[:, 2]
    assert aspects.min() > 0.74 and aspects.max() < 1.345
    # Given its size, a crop's place is uniform: the mean is the middle, to five standard errors.
    for place, side, total in ((0, 2, height), (1, 3, width)):
        free = total - crops[:, side]
        wide = free > 20
        share = (crops[wide, place] + 0.5) / free[wide]
        assert abs(share.mean() - 0.5) < 5 * math.sqrt(1 / 12 / wide.sum())
    # Heights are uniform between those of a tenth of the area and of the tallest crop, which for an
    # aspect a are sqrt(0.1 * area / a) and min(height, width / a).
    draws = np.random.default_rng(0).uniform(0.75, 1.33, 200_000)
    low = np.sqrt(0.05 * height * width / draws)
    heights = low + np.random.default_rng(1).uniform(size=draws.size) * (
        np.minimum(height, width / draws) - low
    )
    heights = heights[heights**2 * draws >= 0.1 * height * width]
    assert abs(crops[:, 2].mean() - heights.mean()) < 5 * heights.std() / math.sqrt(3000) + 1


def test_randomness_hangs_on_seed_and_position_alone_and_is_uniform():
    again = preprocessing.uniforms(3, 17, 10)
    assert np.array_equal(again, preprocessing.uniforms(3, 17, 10))
    assert not np.array_equal(again, preprocessing.uniforms(3, 18, 10))
    assert not np.array_equal(again, preprocessing.uniforms(4, 17, 10))
    values = np.concatenate([preprocessing.uniforms(1, i, 100) for i in range(500)])
    assert values.min() >= 0 and values.max() < 1
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    assert ((counts - 2500) ** 2 / 2500).sum() < 60  # chi-square with 19 degrees of freedom: p < 1e-5


def test_train_image_is_the_crop_resized_and_flipped_half_the_time():
    jpeg = encoded(smooth(375, 500), quality=95)
    whole = preprocessing.decode(jpeg, "x")
    flips = 0
    for position in range(60):
        u = preprocessing.uniforms(9, position, 401)
        y, x, h, w = preprocessing.random_crop(375, 500, u[1:].tolist())
        expected = bilinear(whole[y : y + h, x : x + w], 224, 224)
        expected = expected[:, ::-1] if u[0] < 0.5 else expected
        flips += u[0] < 0.5
        got = preprocessing.train_image(jpeg, "x", size=224, seed=9, position=position)
        assert got.shape == (224, 224, 3) and got.dtype == np.uint8
        assert np.abs(got - expected).max() <= 1
    assert 15 < flips < 45


@pytest.mark.parametrize(
    ("height", "width"), [(375, 500), (500, 333), (256, 256), (100, 80), (600, 1000), (1, 5)]
)
def test_eval_image_is_the_centre_of_the_image_at_256(height, width):
    jpeg = encoded(smooth(height, width), quality=95)
    got = preprocessing.eval_image(jpeg, "x", size=224)
    short = min(height, width)
    h, w = 256 * height // short, 256 * width // short
    y, x = (h - 224) // 2, (w - 224) // 2
    whole = preprocessing.decode(jpeg, "x")
    assert np.abs(got - bilinear(whole, h, w)[y : y + 224, x : x + 224]).max() <= 1
    if short >= 100:  # PIL smooths what it makes smaller, which a smooth picture hardly shows.
        pil = Image.fromarray(whole).resize((w, h), Image.Resampling.BILINEAR).crop((x, y, x + 224, y + 224))
        assert np.abs(got.astype(int) - np.asarray(pil)).mean() < 1


def test_oddities_of_the_real_set_decode():
    picture = smooth(60, 80)
    plain = preprocessing.decode(encoded(picture, quality=95), "x").astype(int)
    assert np.abs(plain - picture).mean() < 3
    assert np.array_equal(preprocessing.decode(encoded(picture, "PNG"), "x"), picture)
    cmyk = preprocessing.decode(encoded(picture, mode="CMYK", quality=95), "x")
    assert cmyk.shape == (60, 80, 3) and np.abs(cmyk - picture.astype(int)).mean() < 6
    grey = preprocessing.decode(encoded(picture, mode="L", quality=95), "x")
    assert grey.shape == (60, 80, 3) and (grey[..., 0] == grey[..., 2]).all()
    progressive = preprocessing.decode(encoded(picture, quality=95, progressive=True), "x")
    assert np.abs(progressive - plain).max() <= 1


def test_garbage_before_the_last_marker_is_tolerated():
    jpeg = encoded(smooth(60, 80))
    assert np.array_equal(
        preprocessing.decode(jpeg[:-2] + b"garbage" + jpeg[-2:], "x"), preprocessing.decode(jpeg, "x")
    )


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 10**9))
def test_any_cut_image_is_named(cut):
    for data in (
        encoded(smooth(60, 80)),
        encoded(smooth(60, 80), "PNG"),
        encoded(smooth(60, 80), mode="CMYK"),
    ):
        # A PNG that lacks but its last chunk and checksums has all its pixels.
        cut_data = data[: cut % (len(data) - 32)]
        with pytest.raises(UserError, match="folder/a.JPEG is not a whole image") as caught:
            preprocessing.decode(cut_data, "folder/a.JPEG")
        assert "\n" not in str(caught.value)


def test_overwritten_data_and_strangers_are_named():
    jpeg = encoded(smooth(200, 200))
    for bad in (
        jpeg[:2000] + bytes(len(jpeg) - 2000),
        b"",
        b"GIF89a" + bytes(100),
        b"<html>not found</html>",
    ):
        with pytest.raises(UserError, match="a.JPEG is not a whole image"):
            preprocessing.decode(bad, "a.JPEG")


def test_made_up_images_look_like_photographs_to_a_decoder():
    random = np.random.default_rng(0)
    sizes = []
    for label in range(6):
        image = fake_images.photograph(random, label)
        assert image.dtype == np.uint8 and image.shape[2] == 3
        sizes.append(len(encoded(image, quality=90)) / image.shape[0] / image.shape[1])
        # Amplitude falls as 1/f: octaves, each with four times the frequencies of the last, have equal power.
        power = np.abs(np.fft.fft2(image[..., 1] - image[..., 1].mean())) ** 2
        f = np.hypot(np.fft.fftfreq(image.shape[0])[:, None], np.fft.fftfreq(image.shape[1])[None])
        octaves = [power[(f > low) & (f <= 2 * low)].sum() for low in (1 / 64, 1 / 32, 1 / 16, 1 / 8)]
        assert max(octaves) < 3 * min(octaves)
    assert 0.3 < np.mean(sizes) < 1.0  # bytes a pixel; ImageNet's 110 kB at 400x350 are 0.8
