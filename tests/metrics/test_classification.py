"""Loss and accuracy against PyTorch and counting by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.metrics import classification


@pytest.mark.parametrize(
    ("seed", "batch", "smoothing", "scale"),
    [(0, 5, 0.0, 1.0), (1, 1, 0.1, 1.0), (2, 5, 0.1, 200.0), (3, 5, 1.0, 1.0)],
)
def test_cross_entropy_equals_torchs(seed, batch, smoothing, scale):
    torch = pytest.importorskip("torch", reason="PyTorch is the independent judge")
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (batch, 7)).astype(np.float32)
    labels = rng.integers(7, size=batch)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.as_tensor(labels), label_smoothing=smoothing)
    expected.backward()

    def loss(logits):
        return classification.cross_entropy(logits, labels, label_smoothing=smoothing).mean()

    actual, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(actual, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, theirs.grad, rtol=1e-4, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**20), real=st.integers(0, 8))
def test_totals_over_batches_equal_counting(seed, real):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(12, 3)).astype(np.float32)
    labels = rng.integers(3, size=12)
    mask = np.r_[np.ones(4 + real), np.zeros(8 - real)].astype(np.float32)
    logits[4 + real :] = np.nan  # whatever stands in padding
    totals = classification.init()
    for i in range(0, 12, 4):
        totals = classification.update(totals, logits[i : i + 4], labels[i : i + 4], mask[i : i + 4])
    assert {k: v.dtype for k, v in totals.items()} == {
        "correct": jnp.int32,
        "count": jnp.int32,
        "loss": jnp.float32,
    }
    result = classification.compute(totals)
    rows = [
        (row - row.max(), label)
        for row, label in zip(logits[: 4 + real].astype(np.float64), labels, strict=False)
    ]
    assert result["count"] == len(rows)
    assert result["accuracy"] == sum(row.argmax() == label for row, label in rows) / len(rows)
    expected = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in rows])
    np.testing.assert_allclose(result["loss"], expected, rtol=1e-5)


def test_no_example_is_no_division_by_zero():
    assert classification.compute(classification.init()) == {"accuracy": 0.0, "loss": 0.0, "count": 0}
