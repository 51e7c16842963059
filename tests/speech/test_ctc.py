"""CTC's loss and gradient: the sum over every path, PyTorch's, finite differences; all kinds of texts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.speech.ctc import ctc_loss


def merged(path):
    """What a path of tokens says."""
    return tuple(token for token, _ in itertools.groupby(path) if token)


def by_all_paths(logits, frames, labels):
    """The negative log of the sum over V**T paths; None where there is none."""
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    paths = itertools.product(range(logits.shape[1]), repeat=frames)
    sums = [log_probs[range(frames), path].sum() for path in paths if merged(path) == tuple(labels)]
    return -np.logaddexp.reduce(sums) if sums else None


def drawn(seed, batch, time, texts, vocab_size, least=1):
    """Logits, frames and texts of any length, of few characters, so that many follow themselves."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(batch, time, vocab_size)) * 2
    frames = random.integers(least, time + 1, batch)
    labels = random.integers(1, vocab_size, (batch, texts))
    return logits, frames, labels, random.integers(0, texts + 1, batch)


def test_it_is_the_sum_over_every_path():
    with jax.enable_x64(True):
        logits, frames, labels, counts = drawn(0, 40, 5, 4, 3)
        found = np.asarray(jax.jit(ctc_loss)(logits, frames, labels, counts))
    expected = [
        by_all_paths(*row[:2], row[2][: row[3]]) for row in zip(logits, frames, labels, counts, strict=True)
    ]
    assert None in expected and 0 in counts
    np.testing.assert_allclose(found, [0 if e is None else e for e in expected], rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_pytorchs(seed):
    torch = pytest.importorskip("torch", reason="PyTorch judges ours")
    logits, frames, labels, counts = drawn(seed, 12, 24, 14, 5)
    weights = np.random.default_rng(9).normal(size=12)
    with jax.enable_x64(True):

        def loss(logits):
            losses = ctc_loss(logits, frames, labels, counts)
            return (losses * weights).sum(), losses

        gradient, found = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(logits)))
    there = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        there.log_softmax(-1).transpose(0, 1),
        torch.tensor(labels),
        torch.tensor(frames),
        torch.tensor(counts),
        reduction="none",
        zero_infinity=True,
    )
    (expected * torch.tensor(weights)).sum().backward()
    assert 0 < (found == 0).sum() < 12  # some texts do not fit
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-10)
    np.testing.assert_allclose(gradient, there.grad.numpy(), rtol=1e-9, atol=1e-11)


def test_gradients_are_differences():
    logits, frames, labels, counts = drawn(4, 3, 6, 3, 4, least=4)
    direction = np.random.default_rng(5).normal(size=logits.shape)
    with jax.enable_x64(True):

        def loss(logits):
            return ctc_loss(logits, frames, labels, counts).sum()

        gradient = jax.grad(loss)(jnp.asarray(logits))
        step = 1e-6
        difference = (loss(logits + step * direction) - loss(logits - step * direction)) / (2 * step)
    found = (np.asarray(gradient) * direction).sum()
    assert found == pytest.approx(float(difference), rel=1e-7)


def test_padding_changes_nothing_and_float32_suffices():
    """Frames and characters after the end may be anything; a long recording keeps six digits."""
    logits, frames, labels, counts = drawn(6, 4, 400, 120, 29, least=300)
    random = np.random.default_rng(7)
    with jax.enable_x64(True):
        exact = np.asarray(ctc_loss(logits, frames, labels, counts))
    wide = np.pad(logits, ((0, 0), (0, 30), (0, 0)), constant_values=9)
    inside = np.arange(130) < counts[:, None]
    noise = np.where(inside, np.pad(labels, ((0, 0), (0, 10))), random.integers(1, 29, (4, 130)))
    found = jax.jit(ctc_loss)(wide.astype(np.float32), frames, noise, counts)
    assert (exact > 0).all()
    np.testing.assert_allclose(found, exact, rtol=1e-5)
