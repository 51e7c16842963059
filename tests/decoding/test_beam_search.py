"""Beam search on the device against a plain one, on random models of few words."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.decoding import beam_search as search
from mlperf_jax.decoding.beam_search import beam_search
from mlperf_jax.planning import hlo
from mlperf_jax.precision import POLICIES
from models.transformer import Transformer, TransformerConfig

END = 1


def plain_beam_search(next_log_probs, limit, beams, alpha):
    """The search as the reference has it, for one sentence, with lists.

    Args:
        next_log_probs: tokens so far (list) -> [V].

    Returns:
        The best sentence and its score.
    """

    def penalty(length):
        return ((5 + length) / 6) ** alpha

    alive, finished = [([], 0.0)], []
    for step in range(limit):
        grown = []
        for tokens, log_prob in alive:
            grown += [([*tokens, t], log_prob + p) for t, p in enumerate(next_log_probs(tokens))]
        grown = sorted(grown, key=lambda entry: -entry[1])[: 2 * beams]
        alive = [entry for entry in grown if entry[0][-1] != END][:beams]
        finished += [(tokens, p / penalty(step + 1)) for tokens, p in grown if tokens[-1] == END]
        finished = sorted(finished, key=lambda entry: -entry[1])[:beams]
        if finished and finished[-1][1] > alive[0][1] / penalty(limit):
            break  # the reference's rule: the worst finished one beats whatever may come
    return finished[0] if finished else alive[0]


class Chain:
    """A model whose next token depends on the last two: its cache holds what each beam saw, by position."""

    def __init__(self, seed, vocab_size, sharpness):
        random = np.random.default_rng(seed)
        self.logits = sharpness * random.normal(size=(3, vocab_size, vocab_size, vocab_size))
        self.vocab_size = vocab_size

    def log_probs(self, row, tokens):
        before, last = ([0, 0, *tokens])[-2:]
        logits = self.logits[row % 3, before, last]
        return logits - np.log(np.exp(logits).sum())

    def step(self, tokens, position, ancestors, cache):
        """The token before the last is found in the cache, at the beam that wrote it."""
        rows, beams = tokens.shape
        previous = jnp.maximum(position - 1, 0)
        writer = ancestors[:, :, previous]
        before = jnp.where(position > 0, jnp.take_along_axis(cache[:, previous], writer, axis=1), 0)
        cache = jax.lax.dynamic_update_slice_in_dim(cache, tokens[:, None], position, 1)
        table = jnp.asarray(self.logits)[jnp.arange(rows) % 3]
        return table[jnp.arange(rows)[:, None], before, tokens], cache


@given(
    seed=st.integers(0, 10**6),
    sharpness=st.floats(0.3, 3.0),
    alpha=st.floats(0.0, 1.2),
    limits=st.lists(st.integers(1, 9), min_size=5, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_it_finds_what_a_plain_search_finds(seed, sharpness, alpha, limits):
    chain, beams, length = Chain(seed, 5, sharpness), 3, 9
    with jax.enable_x64(True):
        tokens, scores = _search(jnp.asarray(chain.logits), jnp.asarray(limits), jnp.asarray(alpha))
    for row, limit in enumerate(limits):
        expected, score = plain_beam_search(lambda t, row=row: chain.log_probs(row, t), limit, beams, alpha)
        np.testing.assert_array_equal(tokens[row], expected + [0] * (length - len(expected)))
        assert math.isclose(float(scores[row]), score, rel_tol=1e-9)


def test_the_example_of_growing():
    """Words 0 (none), 1 (end), 2 (a) and 3 (b): "a" and "b" live, and grow by one."""
    sums = np.array([[-9, -1.2, -3, -4], [-9, -2, -1.8, -5]])
    so_far = np.log(np.exp(sums).sum(1))  # what makes the rows log-probabilities
    empty = jnp.zeros((1, 2, 3), jnp.int32)
    beams = search._Beams(
        tokens=empty.at[0, :, 0].set(jnp.array([2, 3])),
        log_probs=jnp.asarray(so_far)[None],
        ancestors=empty,
        finished=empty,
        scores=jnp.full((1, 2), search.WORST),
    )

    def step(tokens, position, ancestors, cache):
        np.testing.assert_array_equal(tokens, [[2, 3]])
        return jnp.asarray(sums)[None], cache

    grown = search._grow(step, search._State(jnp.int32(1), beams, None), 2, 0.0, END)
    assert int(grown.position) == 2
    np.testing.assert_array_equal(grown.beams.tokens[0, :, :2], [[3, 2], [2, 2]])
    np.testing.assert_allclose(grown.beams.log_probs, [[-1.8, -3.0]], rtol=1e-5)
    np.testing.assert_array_equal(grown.beams.ancestors[0, :, :2], [[0, 1], [0, 0]])
    np.testing.assert_array_equal(grown.beams.finished[0, :, :2], [[2, END], [3, END]])
    np.testing.assert_allclose(grown.beams.scores, [[-1.2, -2.0]], rtol=1e-5)


@jax.jit
def _search(logits, limits, alpha):
    chain = Chain(0, 5, 1.0)
    chain.logits = logits
    return beam_search(chain.step, jnp.zeros((5, 9, 3), jnp.int32), limits, 9, beams=3, alpha=alpha)


@pytest.mark.parametrize("beams", [1, 4])
def test_the_transformers_cache_is_as_good_as_decoding_from_the_start(beams):
    """Sentences of different lengths in one batch, each against a plain search that decodes whole prefixes."""
    length, extra = 9, 4
    with jax.enable_x64(True):
        config = TransformerConfig(vocab_size=11, width=16, mlp_width=24, num_heads=2, num_layers=2)
        model = Transformer(config, policy=POLICIES["float64"], rngs=nnx.Rngs(7))
        model.embedding[...] = 3 * model.embedding[...]  # sharp enough that sentences end
        graph, params = nnx.split(model)
        source = np.array([[5, 6, 7, 8, 1], [9, 1, 0, 0, 0], [3, 4, 1, 0, 0]], np.int32)

        @jax.jit
        def translate(params, source):
            module = nnx.merge(graph, params)
            cache, step = module.decoder_step(source, length, beams)
            limits = (source > 0).sum(1) + extra
            return beam_search(step, cache, limits, length, beams=beams, alpha=0.6)

        @jax.jit
        def whole(params, source, target, real):
            return jax.nn.log_softmax(nnx.merge(graph, params)(source, (source > 0) * 1, target, real)[0])

        tokens, scores = translate(params, source)
        for row, sentence in enumerate(source):
            sentence = sentence[sentence > 0]

            def next_log_probs(prefix, sentence=sentence):
                target = np.zeros((1, length + 1), np.int32)
                target[0, : len(prefix)] = prefix
                padded = np.zeros((1, 5), np.int32)
                padded[0, : len(sentence)] = sentence
                return np.asarray(whole(params, padded, target, np.ones_like(target)))[len(prefix)]

            expected, score = plain_beam_search(next_log_probs, len(sentence) + extra, beams, 0.6)
            np.testing.assert_array_equal(tokens[row], expected + [0] * (length - len(expected)))
            np.testing.assert_allclose(scores[row], score, rtol=1e-9)


def test_a_step_turns_no_cache_round():
    """For 3 sentences, 6 heads of 16 and 9 tokens of 4 beams: what has as many numbers is transposed in no loop."""
    config = TransformerConfig(vocab_size=11, width=96, mlp_width=24, num_heads=6, num_layers=1)
    graph, params = nnx.split(Transformer(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))

    def translate(params, source):
        cache, step = nnx.merge(graph, params).decoder_step(source, 9, 4)
        return beam_search(step, cache, jnp.full(3, 9), 9, beams=4, alpha=0.6)

    compiled = jax.jit(translate).lower(params, jnp.ones((3, 5), jnp.int32)).compile()
    module = hlo.parse(compiled.as_text())
    (loop,) = (i for i in module.computations[module.entry].values() if i.opcode == "while")
    names = list(loop.called)
    for name in names:
        names += [called for i in module.computations[name].values() for called in i.called]
    step = [i for name in names for i in module.computations[name].values()]
    assert any(i.opcode in ("dot", "custom-call") for i in step)
    cache = 3 * 6 * 16 * 9 * 4
    assert not [i.name for i in step if i.opcode == "transpose" and i.shapes[0].size >= cache]
