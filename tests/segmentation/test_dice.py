"""Loss and figure against plain transcriptions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.segmentation.dice import dice_and_cross_entropy, overlaps

SHAPE, CLASSES = (3, 4, 5, 6), 4


def drawn(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, SHAPE)
    labels[0] %= 2  # two classes are not there
    return random.normal(size=(*SHAPE, CLASSES)), labels


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_is_the_references_in_float64(seed):
    torch = pytest.importorskip("torch", reason="PyTorch is the judge")
    logits, labels = drawn(seed)
    theirs = torch.tensor(logits, requires_grad=True)
    target = torch.tensor(labels)
    entropy = torch.nn.functional.cross_entropy(theirs.movedim(-1, 1), target)
    true, found = torch.nn.functional.one_hot(target, CLASSES)[..., 1:], theirs.softmax(-1)[..., 1:]
    places = (1, 2, 3)
    both = (true * found).sum(places)
    dice = (2 * both + 1e-6) / (true.sum(places) + found.sum(places) + 1e-6)
    expected = ((1 - dice).mean() + entropy) / 2
    expected.backward()
    with jax.enable_x64(True):
        loss, gradient = jax.value_and_grad(lambda x: dice_and_cross_entropy(x, labels).mean())(
            jnp.asarray(logits)
        )
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-9, atol=1e-14)


def test_the_loss_is_summed_in_float32():
    logits, labels = drawn(0)
    assert dice_and_cross_entropy(jnp.asarray(logits, jnp.bfloat16), labels).dtype == jnp.float32


@pytest.mark.parametrize("seed", range(3))
def test_overlaps_are_counted_voxel_by_voxel(seed):
    _, labels = drawn(seed)
    found = np.random.default_rng(seed + 9).integers(0, CLASSES, SHAPE).astype(np.uint8)
    labels[1, :2] = 255
    figures = np.asarray(overlaps(jnp.asarray(labels, jnp.uint8), jnp.asarray(found), CLASSES, 255))
    for b in range(SHAPE[0]):
        counted = labels[b] != 255
        for k in range(1, CLASSES):
            true, seen = (labels[b] == k) & counted, (found[b] == k) & counted
            expected = (2 * (true & seen).sum() + 1e-6) / (true.sum() + seen.sum() + 1e-6)
            assert figures[b, k - 1] == pytest.approx(expected, rel=1e-6)
    nothing = jnp.zeros((1, 2, 2, 2), jnp.uint8)
    np.testing.assert_array_equal(overlaps(nothing, nothing, 3, 255), 1)
