"""Stacked layers under a scan: token by token, against a loop over the same layers apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.precision import POLICIES
from models.stack import scan_cached, unstacked
from models.transformer import Transformer, TransformerConfig, as_decoded

BATCH, SOURCE, BEAMS, LENGTH = 3, 7, 2, 5
SIZES = dict(vocab_size=23, width=16, mlp_width=24, num_heads=4)


@functools.cache
def model_of(num_layers):
    config = TransformerConfig(**SIZES, num_layers=num_layers)
    return nnx.jit(lambda: Transformer(config, policy=POLICIES["float64"], rngs=nnx.Rngs(3)))()


def scanned_step(model, source):
    """As `Transformer.decoder_step`, with one cache for all layers: the empty cache, and one token further."""
    layers, heads = model.config.num_layers, (model.config.num_heads, 4)
    encoded = model.encode(source, (source > 0).astype(jnp.int32))
    _, of_source = scan_cached(
        model.decoder, lambda layer, x, _: (x, layer.source_attention.keys_values(x)), encoded, None
    )
    empty = jnp.zeros((layers, BATCH, LENGTH, BEAMS, *heads))

    def step(x, position, cache):
        past_mask = jnp.broadcast_to(
            jnp.arange(LENGTH * BEAMS) < position * BEAMS, (BATCH, BEAMS, LENGTH * BEAMS)
        )

        def layer(module, x, entries):
            of_source, past = entries
            past = [e.reshape(BATCH, -1, *heads) for e in past]
            return module.decode(x, as_decoded(*of_source), source > 0, as_decoded(*past), past_mask)

        x, new = scan_cached(model.decoder, layer, x, (of_source, cache))
        return x, [
            jax.lax.dynamic_update_slice_in_dim(e, n[:, :, None], position, 2)
            for e, n in zip(cache, new, strict=True)
        ]

    return [empty, empty], step


def looped_step(model, source):
    """The same, layer after layer, each with a cache of its own."""
    encoded = model.encode(source, (source > 0).astype(jnp.int32))
    layers = [unstacked(model.decoder, n) for n in range(model.config.num_layers)]

    def step(x, position, cache):
        past_mask = jnp.ones((BATCH, BEAMS, position * BEAMS), bool)
        new_cache = []
        for layer, entries in zip(layers, cache, strict=True):
            past = [e.reshape(BATCH, position * BEAMS, *e.shape[3:]) for e in entries]
            of_source = as_decoded(*layer.source_attention.keys_values(encoded))
            x, new = layer.decode(x, of_source, source > 0, as_decoded(*past), past_mask)
            grown = zip(entries, new, strict=True)
            new_cache.append([jnp.concatenate([e, n[:, None]], 1) for e, n in grown])
        return x, new_cache

    none = jnp.zeros((BATCH, 0, BEAMS, model.config.num_heads, 4))
    return [[none, none] for _ in layers], step


@pytest.mark.parametrize("num_layers", [1, 3])
def test_decoding_under_a_scan_equals_a_loop(num_layers):
    random = np.random.default_rng(num_layers)
    source = random.integers(2, 23, (BATCH, SOURCE))
    source[0, 4:] = 0
    with jax.enable_x64(True):
        model = model_of(num_layers)
        graph, state = nnx.split(model)
        tokens = random.normal(size=(LENGTH, BATCH, BEAMS, SIZES["width"]))

        @functools.partial(jax.jit, static_argnums=0)
        def run(make, state, tokens):
            cache, step = make(nnx.merge(graph, state), jnp.asarray(source))
            outputs = []
            for position, x in enumerate(tokens):
                y, cache = step(x, position, cache)
                outputs.append(y)
            return outputs

        ours, expected = run(scanned_step, state, tokens), run(looped_step, state, tokens)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_compiler_sees_one_layer():
    source = np.ones((BATCH, SOURCE), np.int32)

    def equations(num_layers):
        with jax.enable_x64(True):
            graph, state = nnx.split(model_of(num_layers))

            def run(state, x):
                cache, step = scanned_step(nnx.merge(graph, state), jnp.asarray(source))
                return step(x, 0, cache)

            x = jnp.zeros((BATCH, BEAMS, SIZES["width"]))
            return str(jax.make_jaxpr(run)(state, x)).count("dot_general")

    assert equations(1) == equations(3)
