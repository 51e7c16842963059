"""The loss by tiles against the plain one, in float64, and what it keeps in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlperf_jax.language import token_loss
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.layout import use as use_layout
from mlperf_jax.parallel.mesh import make_layout


def drawn(batch, length, width, vocab_size, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    states = random.normal(size=(batch, length, width)).astype(dtype)
    kernel = random.normal(size=(width, vocab_size)).astype(dtype)
    labels = random.integers(vocab_size, size=(batch, length))
    return states, kernel, labels, (random.random((batch, length)) < 0.7) * random.random((batch, length))


def plain(states, kernel, labels, weights):
    log_p = jax.nn.log_softmax(jnp.einsum("bld,dv->blv", states, kernel))
    return -(jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0] * weights).sum()


@pytest.mark.parametrize("length, tile", [(12, 12), (12, 4), (13, 4), (7, 5), (8, 1), (3, 100)])
def test_loss_and_gradients_are_those_of_all_logits(length, tile):
    with jax.enable_x64(True):
        states, kernel, labels, weights = drawn(3, length, 8, 17, seed=length)
        tiled = jax.value_and_grad(
            lambda s, k: 3 * token_loss.summed_loss(s, k, labels, weights, tile=tile), (0, 1)
        )
        expected = jax.value_and_grad(lambda s, k: 3 * plain(s, k, labels, weights), (0, 1))
        expected, found = jax.jit(expected)(states, kernel), jax.jit(tiled)(states, kernel)
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
        losses = jax.jit(lambda s, k: token_loss.token_losses(s, k, labels, tile=tile))(states, kernel)
    logits = states @ kernel
    of_label = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses, np.log(np.exp(logits).sum(-1)) - of_label, rtol=1e-11, atol=1e-11)


def test_a_frozen_kernel_asks_for_no_gradient():
    """Neither does it cost a product: of logits and of states there is one each."""
    states, kernel, labels, weights = drawn(2, 8, 4, 11, dtype=np.float32)

    def dots(arguments):
        grad = jax.grad(lambda s, k: token_loss.summed_loss(s, k, labels, weights, tile=4), arguments)
        return str(jax.make_jaxpr(grad)(states, kernel)).count("dot_general")

    assert dots((0,)) == 2 and dots((0, 1)) == 3


def test_large_numbers_do_not_overflow():
    states, kernel, labels, weights = drawn(1, 4, 4, 5, dtype=np.float32)
    run = jax.value_and_grad(lambda s: token_loss.summed_loss(s, kernel * 1e4, labels, weights, tile=2))
    loss, grads = jax.jit(run)(states)
    assert np.isfinite(loss) and np.isfinite(grads).all()


def test_all_logits_are_never_in_memory():
    """Of what is compiled no array is as large as they would be."""
    batch, length, vocab_size, tile = 2, 64, 512, 8
    states, kernel, labels, weights = drawn(batch, length, 16, vocab_size, dtype=np.float32)
    run = jax.jit(jax.grad(lambda s, k: token_loss.summed_loss(s, k, labels, weights, tile=tile), (0, 1)))
    memory = run.lower(states, kernel).compile().memory_analysis()
    assert memory.temp_size_in_bytes < batch * length * vocab_size * 4 / 2


@pytest.mark.parametrize("strategy", ["fsdp_tp", "sequence"])
def test_layouts_agree_with_one_device(strategy):
    with jax.enable_x64(True):
        states, kernel, labels, weights = drawn(4, 12, 32, 64)
        run = jax.value_and_grad(lambda s, k: token_loss.summed_loss(s, k, labels, weights, tile=4), (0, 1))
        expected = jax.jit(lambda *args: run(*args))(states, kernel)
        layout = make_layout(STRATEGIES[strategy], {"data": 2, "model": 2}, jax.devices()[:4])
        with use_layout(layout):
            found = jax.jit(lambda *args: run(*args))(
                jax.device_put(states, layout.sharding(states.shape, ("batch",))),
                jax.device_put(kernel, layout.param_sharding(kernel.shape, ("embed", "vocab"))),
            )
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
