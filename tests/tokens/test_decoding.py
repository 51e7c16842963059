"""The engine's programs with real decoders: in float64 the tokens of a plain loop that computes the whole text for each."""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.parallel.mesh import make_layout, single_device_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.tokens.engine import Engine
from mlperf_jax.tokens.programs import Programs, Sizes
from mlperf_jax.tokens.requests import Request
from models.decoder import Decoder, DecoderConfig
from tests.tokens.simulated import Collected

VOCABULARY = 19
SMALL = dict(
    vocab_size=VOCABULARY, width=8, mlp_width=12, num_heads=4, num_key_heads=2, head_width=4, num_layers=2,
    rope_theta=100.0,
)  # fmt: skip
KINDS = {
    "llama": DecoderConfig(**SMALL),
    "low_rank": DecoderConfig(**SMALL | dict(num_key_heads=1), tied=True, low_rank=2),
    "windows": DecoderConfig(
        **SMALL, window=5, window_every=2, query_key_norm=True, num_experts=4, num_chosen=2
    ),
}
SIZES = Sizes(slots=4, pages=24, page=4, length=32, chunks=(4, 8))
ENDS = (3, 11)


@functools.cache
def parameters(kind):
    """Drawn so that texts neither end at once nor say one token for ever."""
    random = np.random.default_rng(5)
    shapes = nnx.eval_shape(lambda: Decoder(KINDS[kind], policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    shapes = nnx.to_pure_dict(nnx.split(shapes)[1])
    return jax.tree.map(lambda x: random.normal(size=x.shape) * 0.6, shapes)


@contextlib.contextmanager
def counted():
    """How many programs are compiled within."""
    compiled = []

    def hear(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)


@functools.cache
def programs(kind, sizes, strategy):
    """Compiled in float64; each test has its slots idle at first, whatever another left in the cache."""
    layout = single_device_layout()
    if strategy:
        layout = make_layout(STRATEGIES[strategy], {"model": 2}, jax.devices()[:2])
    with jax.enable_x64(True):
        params = jax.device_put(parameters(kind), layout.replicated)
        made = Programs(KINDS[kind], params, POLICIES["float64"], sizes=sizes, ends=ENDS, layout=layout)
        made.compile()
    return made


def answered(kind, requests, *, order=None, sizes=SIZES, strategy=None, between_steps=0):
    """The tokens of each request."""
    heard = [Collected() for _ in requests]
    with jax.enable_x64(True):
        engine = Engine(programs(kind, sizes, strategy), between_steps=between_steps)
        for n in range(len(requests)) if order is None else order:
            engine.submit(requests[n], heard[n])
        while engine.round():
            pass
    assert all(one.finished for one in heard) and engine._scheduler.pages.free == sizes.pages - 1
    return [one.tokens for one in heard]


@functools.cache
def next_logits(kind):
    graph = nnx.split(
        nnx.eval_shape(lambda: Decoder(KINDS[kind], policy=POLICIES["float64"], rngs=nnx.Rngs(0)))
    )[0]
    # Padded behind, where causal attention does not look.
    run = jax.jit(lambda params, tokens: nnx.merge(graph, params)(tokens)[0])

    def of(text):
        padded = np.zeros((1, SIZES.length), np.int32)
        padded[0, : len(text)] = text
        return np.asarray(run(parameters(kind), padded))[len(text) - 1]

    return of


def greedily(kind, request):
    """A token after the other, each from the whole text before it."""
    text, found = request.prompt.tolist(), []
    while len(found) < request.max_tokens and not set(found) & set(ENDS):
        logits = next_logits(kind)(text).copy()
        if len(found) < request.min_tokens:
            logits[list(ENDS)] = -np.inf
        found.append(int(logits.argmax()))
        text.append(found[-1])
    return found


def drawn(count, seed=0, **wishes):
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length = int(random.integers(1, 20))
        most = int(random.integers(1, SIZES.length - length + 1))
        prompt = random.integers(VOCABULARY, size=length).astype(np.int32)
        found.append(Request(prompt, most, int(random.integers(0, most + 1)) if most > 5 else 1, **wishes))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_a_loop_over_whole_texts(kind):
    """Of 24 requests over four slots, prompts in one part and in several."""
    requests = drawn(24)
    sizes = SIZES if kind == "llama" else dataclasses.replace(SIZES, chunks=(4,))
    found = answered(kind, requests, sizes=sizes)
    with jax.enable_x64(True):
        assert found == [greedily(kind, request) for request in requests]
    assert len({tuple(tokens) for tokens in found}) > 12
    assert any(tokens[-1] in ENDS for tokens in found) and any(tokens[-1] not in ENDS for tokens in found)


@pytest.mark.parametrize("kind", ["llama", "windows"])
def test_tokens_do_not_depend_on_slots_neighbours_order_or_parts(kind):
    requests = drawn(16, seed=1)
    expected = answered(kind, requests)
    random = np.random.default_rng(2)
    assert answered(kind, requests, order=random.permutation(16)) == expected
    assert [answered(kind, [request])[0] for request in requests[:6]] == expected[:6]
    assert answered(kind, requests, between_steps=32) == expected
    assert answered(kind, requests, sizes=dataclasses.replace(SIZES, chunks=(4,))) == expected


def test_split_over_devices_the_tokens_are_the_same():
    requests = drawn(8, seed=3)
    assert answered("llama", requests, strategy="tp") == answered("llama", requests)


def test_drawn_tokens_depend_on_their_seed_alone():
    requests = [
        dataclasses.replace(one, temperature=1.5, top_p=0.9, seed=n) for n, one in enumerate(drawn(8, seed=4))
    ]
    expected = answered("llama", requests + drawn(4))
    assert answered("llama", requests[::-1])[::-1] == expected[:8]
    other = [dataclasses.replace(one, seed=100) for one in requests]
    assert answered("llama", other) != expected[:8]
    assert expected[8:] == answered("llama", drawn(4))


def test_nothing_is_compiled_after_the_programs():
    requests = [
        *drawn(6, seed=6),
        *drawn(3, seed=7, temperature=1.0),
        *drawn(3, seed=8, temperature=1.0, top_p=0.5),
    ]
    made = programs("llama", SIZES, None)
    with counted() as none:
        answered("llama", requests)
        made.stop(0)
    assert not none
    with counted() as one:
        jax.jit(lambda x: x * 3.5 + 1)(jnp.ones(3))
    assert one


def test_a_text_alone_is_told_by_the_narrowest_step():
    """A step has the first slots, which the earliest free one keeps few; more texts take the next wider one."""
    made, taken = programs("llama", SIZES, None), []
    assert list(made._steps) == [1, SIZES.slots]
    step = made.step

    def counting(slots):
        taken.append(slots)
        return step(slots)

    made.step = counting
    try:
        answered("llama", [Request(np.arange(3, dtype=np.int32), 5, 5)])
        assert taken and set(taken) == {1}
        requests = [Request(np.arange(3, dtype=np.int32), most, most) for most in (4, 12, 4)]
        answered("llama", requests)
        assert max(taken) == 3 and taken[-1] == 2
    finally:
        del made.step


def test_the_cache_is_written_where_it_is():
    """A step gives it back in the memory that it came in, and nowhere copies it or a kernel."""
    made = programs("llama", SIZES, None)
    cache = sum(array.nbytes for array in jax.tree.leaves(made._cache))
    # With the tests' flags XLA writes into what it gathers a second time, and needs the cache as it was for that.
    usual = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}
    with jax.enable_x64(True):
        alone = jax.jit(functools.partial(made._run_step, 1), donate_argnums=(1, 2))
        alone = alone.lower(made._params, made._cache, made._slots).compile(compiler_options=usual)
    for program in (alone, made._steps[SIZES.slots], made._parts[8]):
        assert program.memory_analysis().alias_size_in_bytes >= cache
        copied = re.findall(r"= \w+(\[[\d,]*\])\S* copy\(", program.as_text())
        assert copied and "[24,2,4,4]" not in copied


def test_what_breaks_one_text_touches_no_other():
    """One listener raises, one request is cancelled, and what both leave in their pages others find there."""
    requests = drawn(12, seed=9)
    expected = answered("llama", requests)
    heard = [Collected() for _ in requests]
    with jax.enable_x64(True):
        engine = Engine(programs("llama", SIZES, None))
        heard[0].token = lambda token, last: 1 / 0
        texts = [engine.submit(*both) for both in zip(requests, heard, strict=True)]
        for _ in range(4):
            engine.round()
        engine.cancel(texts[1])
        while engine.round():
            pass
    assert not heard[1].finished or len(expected[1]) < 5
    assert [one.tokens for one in heard[2:]] == expected[2:]


def test_numbers_that_are_none_fail_their_own_text():
    """A token whose embedding is none spoils the text that has it, and not the next in its pages."""
    request = Request(np.array([1, 2, 4], np.int32), 6, 6)
    with jax.enable_x64(True):
        expected = greedily("llama", request)
        spoiling = next(token for token in range(VOCABULARY) if token not in (*request.prompt, *expected))
        params = jax.tree.map(np.copy, parameters("llama"))
        params["embedding"][spoiling] = np.nan
        sizes = Sizes(slots=2, pages=9, page=4, length=16, chunks=(8,))
        made = Programs(KINDS["llama"], params, POLICIES["float64"], sizes=sizes, ends=ENDS)
        made.compile()
        bad, good, later = Collected(), Collected(), Collected()
        engine = Engine(made)
        engine.submit(Request(np.array([1, spoiling, 1, 1, 1, 1], np.int32), 9, 9), bad)
        engine.submit(request, good)
        while engine.round():
            pass
        engine.submit(request, later)
        while engine.round():
            pass
    assert "no numbers" in bad.why and not bad.tokens
    assert good.tokens == expected and later.tokens == expected
