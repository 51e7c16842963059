"""Kernels in int8: held texts are as likely as with the kernels that were rounded, and nearly so as with their own."""

import jax
import jax.numpy as jnp
import numpy as np

from mlperf_jax.precision import POLICIES
from mlperf_jax.tokens.programs import Programs
from models.held import Held
from tests.tokens.test_decoding import ENDS, KINDS, SIZES, VOCABULARY, parameters


def log_perplexity(params, weights):
    """Of eight drawn texts, each read as one part of a prompt."""
    texts = np.random.default_rng(3).integers(VOCABULARY, size=(8, SIZES.length)).astype(np.int32)
    made = Programs(KINDS["llama"], params, POLICIES["float64"], sizes=SIZES, ends=ENDS, weights=weights)
    cache, _ = jax.jit(made._nothing)()
    start, count = np.zeros(1, np.int32), np.full(1, SIZES.length, np.int32)
    table = 1 + np.arange(SIZES.table, dtype=np.int32)[None]

    @jax.jit
    def losses(params, text):
        states, _ = made._read(params, cache, text[None], start, count, table)
        chances = jax.nn.log_softmax(made._logits(params, states[0][:, None]))
        return -jnp.take_along_axis(chances[:-1], text[1:, None], 1)

    return made._params, float(np.mean([losses(made._params, text) for text in texts]))


def test_log_perplexity_is_that_of_rounded_kernels():
    with jax.enable_x64(True):
        params = parameters("llama")
        held, found = log_perplexity(params, "int8")
        _, plain = log_perplexity(params, "auto")
        _, rounded = log_perplexity(_rounded(params), "auto")
    kernels = [x for x in jax.tree.leaves(held, is_leaf=lambda x: isinstance(x, Held)) if isinstance(x, Held)]
    assert len(kernels) == 2 * 7 + 2 and all(one.turned.dtype == jnp.int8 for one in kernels)
    assert abs(found - rounded) < 1e-6 * rounded
    assert 0 < abs(found - plain) < 0.01 * plain


def _rounded(params):
    """Each kernel to 127 steps on either side of 0, as far as its output's largest, in plain numpy."""

    def outputs_last(kernel, inputs):
        flat = kernel.reshape(np.prod(kernel.shape[:inputs]), -1)
        scale = (np.abs(flat).max(0) / 127).astype(np.float32).astype(float)
        return (np.round(flat / scale) * scale).reshape(kernel.shape)

    params = jax.tree.map(np.copy, params)
    params["embedding"] = outputs_last(params["embedding"].T, 1).T
    params["head"] = outputs_last(params["head"], 1)
    for part in ("attention", "mlp"):
        for name, own in params["layers"][part].items():
            inputs = 2 if name == "out" else 1
            own["kernel"] = np.stack([outputs_last(one, inputs) for one in own["kernel"]])
    return params
