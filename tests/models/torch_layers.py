"""A float64 function of arrays and PyTorch's: the same values, and the same gradients."""

import jax
import numpy as np
import torch


def assert_equals_torchs(ours, theirs, *arrays):
    """Compares values, and gradients by every array of a random product with them, to 1e-10.

    Args:
        ours: takes jax arrays and gives one.
        theirs: takes tensors of the same shapes and gives one.
        arrays: float64 arrays.
    """
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = theirs(*tensors)
    weights = np.random.default_rng(0).normal(size=expected.shape)
    (expected * torch.tensor(weights)).sum().backward()

    def loss(*arrays):
        y = ours(*arrays)
        return (y * weights).sum(), y

    grads, y = jax.jit(jax.grad(loss, tuple(range(len(arrays))), has_aux=True))(*arrays)
    assert y.shape == expected.shape and y.dtype == np.float64
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-10, atol=1e-10)
    for grad, tensor in zip(grads, tensors, strict=True):
        np.testing.assert_allclose(grad, tensor.grad, rtol=1e-10, atol=1e-10)
