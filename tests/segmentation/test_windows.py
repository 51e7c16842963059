"""Sliding windows against a plain loop, with volumes of several sizes in one array."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.parallel import layout as layouts
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout
from mlperf_jax.segmentation.windows import gaussian, segment

WINDOW, STRIDE, CLASSES = (4, 6, 8), (2, 3, 4), 3
SIZES = np.array([[8, 6, 12], [4, 12, 8], [6, 9, 16], [0, 0, 0]], np.int32)
SHAPE = (8, 12, 16)


def network(x):
    """Depends on the place within a window: nothing that could be computed on the whole."""
    ramp = jnp.arange(np.prod(WINDOW)).reshape(WINDOW) / np.prod(WINDOW)
    return jnp.stack([x[..., 0], x[..., 0] * ramp, jnp.cumsum(x[..., 0], 1) / 3], -1)


def plain(volume, size):
    total = np.zeros((*SHAPE, CLASSES))
    covered = np.zeros(SHAPE)
    places = itertools.product(
        *(range(0, n - w + 1, s) for n, w, s in zip(size, WINDOW, STRIDE, strict=True))
    )
    for place in places:
        at = tuple(slice(p, p + w) for p, w in zip(place, WINDOW, strict=True))
        total[at] += np.asarray(network(jnp.asarray(volume[at][None])))[0] * gaussian(WINDOW)[..., None]
        covered[at] += gaussian(WINDOW)
    with np.errstate(invalid="ignore"):
        normal = total / covered[..., None]
    return np.where(covered > 0, normal.argmax(-1), 0)


def segmented(volumes):
    return jax.jit(lambda v, s: segment(network, v, s, window=WINDOW, stride=STRIDE, num_classes=CLASSES))(
        volumes, SIZES
    )


@pytest.mark.parametrize("strategy", [None, "dp", "spatial"])
def test_windows_are_those_of_a_plain_loop(strategy):
    volumes = np.random.default_rng(1).normal(size=(4, *SHAPE, 1))
    with jax.enable_x64(True), layouts.use(make_layout(STRATEGIES[strategy]) if strategy else None):
        found = segmented(jnp.asarray(volumes))
    assert found.dtype == jnp.uint8
    for row, (volume, size) in enumerate(zip(volumes, SIZES.tolist(), strict=True)):
        np.testing.assert_array_equal(found[row], plain(volume, size))
    assert len(np.unique(found)) == CLASSES


def test_the_gaussian_is_the_references():
    """Its cube root, as written there with SciPy's window."""
    from scipy import signal

    for n in (5, 8):
        one = signal.windows.gaussian(n, 0.125 * n)
        cube = np.cbrt(np.outer(np.outer(one, one), one).reshape(n, n, n))
        np.testing.assert_allclose(gaussian((n, n, n)), cube / cube.max(), rtol=1e-12)
    assert gaussian(WINDOW).shape == WINDOW


def test_windows_of_many_volumes_are_split_over_devices():
    """No device holds another one's volumes."""
    layout = make_layout(STRATEGIES["dp"])
    count = len(jax.devices())
    with layouts.use(layout):
        v = layout.struct((count, *SHAPE, 1), jnp.float32, ("batch", None, None, None, None))
        s = layout.struct((count, 3), jnp.int32, ("batch", None))
        text = (
            jax.jit(lambda v, s: segment(network, v, s, window=WINDOW, stride=STRIDE, num_classes=CLASSES))
            .lower(v, s)
            .compile()
            .as_text()
        )
    assert "all-gather" not in text
