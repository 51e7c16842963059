"""The plain loop that answers are held against, and how unlikely an engine's programs find a text: in float64."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.precision import POLICIES
from mlperf_jax.tokens.answers import answers
from mlperf_jax.tokens.plain import likeliest, told_plainly
from models.decoder import Decoder, merged
from tests.tokens.test_decoding import (
    ENDS,
    KINDS,
    SIZES,
    VOCABULARY,
    drawn,
    greedily,
    next_logits,
    parameters,
    programs,
)

MOST = SIZES.length


def decoder(kind):
    graph = nnx.split(
        nnx.eval_shape(lambda: Decoder(KINDS[kind], policy=POLICIES["float64"], rngs=nnx.Rngs(0)))
    )[0]
    return lambda params: nnx.merge(graph, params)


def test_whatever_is_guessed_answers_are_those_of_a_loop():
    requests, random, passes = drawn(20), np.random.default_rng(0), []
    with jax.enable_x64(True):
        made = decoder("llama")
        run = jax.jit(lambda params, *asked: likeliest(made(params), *asked, most=MOST, ends=ENDS))

        def following(*asked):
            passes.append(1)
            return run(parameters("llama"), *asked)

        expected = [greedily("llama", request) for request in requests]

        def told(guesses):
            passes.clear()
            found = told_plainly(following, requests, guesses, ends=ENDS, length=SIZES.length)
            return [answer.tolist() for answer in found]

        wrong = [random.integers(VOCABULARY, size=random.integers(40)) for _ in requests]
        for guesses in ([[]] * 20, wrong, [answer[:-1] for answer in expected], [a + [1] for a in expected]):
            assert told(guesses) == expected
        assert told(expected) == expected and len(passes) == 2  # of 16 texts and of 4
        assert told(answers(programs("llama", SIZES, None), requests)) == expected and len(passes) == 2


@pytest.mark.parametrize("kind", ["llama", "windows"])
def test_a_text_is_as_unlikely_to_the_engine_as_to_the_decoder(kind):
    """In parts of a prompt, behind other texts' pages."""
    random = np.random.default_rng(1)
    with jax.enable_x64(True):
        made = programs(kind, SIZES, None)
        for length in (2, 9, 32):
            text = random.integers(VOCABULARY, size=length).astype(np.int32)
            log_p = [
                jax.nn.log_softmax(jnp.asarray(next_logits(kind)(text[:n].tolist())))
                for n in range(1, length)
            ]
            expected = [-log_p[n - 1][text[n]] for n in range(1, length)]
            np.testing.assert_allclose(made.losses(text), expected, rtol=1e-10)
        request = drawn(1, seed=3)[0]
        assert answers(made, [request])[0].tolist() == greedily(kind, request)


def test_changes_in_the_kernels_tell_the_same():
    kind, tokens = "low_rank", np.arange(12)[None] % VOCABULARY
    plain = dataclasses.replace(KINDS[kind], low_rank=0)
    with jax.enable_x64(True):
        put_in = jax.jit(functools.partial(merged, KINDS[kind]))(parameters(kind))
        graph, shapes = nnx.split(
            nnx.eval_shape(lambda: Decoder(plain, policy=POLICIES["float64"], rngs=nnx.Rngs(0)))
        )
        assert jax.tree.structure(nnx.to_pure_dict(shapes)) == jax.tree.structure(put_in)
        found = jax.jit(lambda params: nnx.merge(graph, params)(tokens))(put_in)
        expected = jax.jit(lambda params: decoder(kind)(params)(tokens))(parameters(kind))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    unchanged = parameters(kind)["layers"]["attention"]["query"]["kernel"]
    assert np.abs(put_in["layers"]["attention"]["query"]["kernel"] - unchanged).max() > 0.1
