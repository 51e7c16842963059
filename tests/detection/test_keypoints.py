"""Keypoints as cells of a grid, their loss, and places found, each against NumPy written out case by case."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.detection.keypoints import enlarged, find_keypoints, keypoint_loss, keypoint_targets
from mlperf_jax.detection.regions import Regions

B, M, N, K, CELLS = 2, 3, 7, 5, 6


def random_case(seed):
    """Boxes of whole and half pixels, so that keypoints lie on edges; some without area, padding and background."""
    random = np.random.default_rng(seed)
    corners = np.sort(random.integers(0, 20, (B, N, 2, 2)) / 2, axis=2).reshape(B, N, 4).astype(np.float32)
    points = np.concatenate(
        [random.integers(-1, 22, (B, M, K, 2)) / 2, random.integers(3, size=(B, M, K, 1))], -1
    )
    labels = random.integers(-1, 2, (B, N)).astype(np.int32)
    rows = random.integers(M, size=(B, N)).astype(np.int32)
    return points.astype(np.float32), Regions(jnp.asarray(corners), jnp.asarray(labels), jnp.asarray(rows))


def targets_by_hand(points, regions):
    cells, counts = np.zeros((B, N, K), int), np.zeros((B, N, K), bool)
    corners, labels, rows = (np.asarray(x) for x in (regions.corners, regions.labels, regions.rows))
    for b, n, k in np.ndindex(B, N, K):
        left, top, right, bottom = corners[b, n]
        x, y, flag = points[b, rows[b, n], k]
        if labels[b, n] <= 0 or not flag or not (left <= x <= right and top <= y <= bottom):
            continue
        place = []
        for value, low, high in ((x, left, right), (y, top, bottom)):
            place.append(CELLS - 1 if value == high else int((value - low) / (high - low) * CELLS))
        cells[b, n, k], counts[b, n, k] = place[1] * CELLS + place[0], True
    return cells, counts


@pytest.mark.parametrize("seed", range(5))
def test_targets_and_loss(seed):
    points, regions = random_case(seed)
    cells, counts = jax.jit(keypoint_targets, static_argnums=2)(points, regions, CELLS)
    expected, counted = targets_by_hand(points, regions)
    np.testing.assert_array_equal(counts, counted)
    np.testing.assert_array_equal(np.asarray(cells)[counted], expected[counted])

    maps = np.random.default_rng(seed).normal(size=(B, N, CELLS, CELLS, K)).astype(np.float32)
    losses = []
    for b, n, k in zip(*np.nonzero(counted), strict=True):
        logits = maps[b, n, :, :, k].ravel().astype(float)
        losses.append(np.log(np.exp(logits).sum()) - logits[expected[b, n, k]])
    expected_loss = np.mean(losses) if losses else 0
    assert float(keypoint_loss(maps, cells, counts)) == pytest.approx(expected_loss, rel=1e-5)


def test_without_keypoints_there_is_no_loss_and_no_gradient():
    maps = jnp.ones((1, 2, 4, 4, 3))
    nothing = jnp.zeros((1, 2, 3), jnp.int32), jnp.zeros((1, 2, 3), bool)
    loss, gradient = jax.value_and_grad(keypoint_loss)(maps, *nothing)
    assert loss == 0 and not np.asarray(gradient).any()


@pytest.mark.parametrize("seed", range(3))
def test_places_are_the_middles_of_the_first_largest_cells(seed):
    random = np.random.default_rng(seed)
    maps = random.integers(0, 9, (B, N, 4, 5, K)).astype(np.float32)  # with equal ones
    corners = np.sort(random.random((B, N, 2, 2)), axis=2).reshape(B, N, 4).astype(np.float32)
    found = np.asarray(jax.jit(find_keypoints)(maps, corners))
    for b, n, k in np.ndindex(B, N, K):
        row, column = divmod(int(maps[b, n, :, :, k].argmax()), 5)
        left, top, right, bottom = corners[b, n]
        expected = left + (column + 0.5) / 5 * (right - left), top + (row + 0.5) / 4 * (bottom - top)
        np.testing.assert_allclose(found[b, n, k], expected, rtol=1e-5)


def test_what_is_found_at_a_target_lies_in_its_cell():
    """A map that is largest at the target gives back the keypoint to half a cell."""
    points, regions = random_case(9)
    cells, counts = keypoint_targets(points, regions, CELLS)
    maps = jax.nn.one_hot(cells, CELLS**2, axis=2).reshape(B, N, CELLS, CELLS, K)
    found = np.asarray(find_keypoints(maps, regions.corners))
    own = np.take_along_axis(points, np.asarray(regions.rows)[..., None, None], axis=1)[..., :2]
    half = np.asarray(regions.corners[..., 2:] - regions.corners[..., :2])[..., None, :] / CELLS / 2
    apart = np.abs(found - own) - half
    assert (apart[np.asarray(counts)] <= 1e-5).all()


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_enlarged_as_pytorch_enlarges(platform, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("mlperf_jax.detection.keypoints.compiled_for", lambda: platform)
    maps = np.random.default_rng(0).normal(size=(3, 4, 6, 2))
    with jax.enable_x64(True):
        ours = np.asarray(enlarged(jnp.asarray(maps)[None]))[0]
    theirs = torch.nn.functional.interpolate(
        torch.tensor(maps).permute(0, 3, 1, 2), scale_factor=2, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=1e-9)
