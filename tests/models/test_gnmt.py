"""GNMT: sizes, parity with PyTorch, packed rows, and its search against a plain one over whole prefixes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mlperf_jax.decoding.coverage_search import coverage_search
from mlperf_jax.precision import POLICIES
from models.gnmt import GNMT, GNMTConfig, train_flops_per_row
from tests.models.packed_sentences import apart, packed, sentences

SIZES = dict(vocab_size=23, width=8, num_layers=3, dropout=0.0, start=2)
SMOOTHING, END = 0.1, 1


@functools.cache
def small(precision="float64"):
    """A model whose biases and gains are not at their first values, and its parameters as dicts."""
    with jax.enable_x64(precision == "float64"):
        model = nnx.jit(lambda: GNMT(GNMTConfig(**SIZES), policy=POLICIES[precision], rngs=nnx.Rngs(3)))()
        graph, state = nnx.split(model, nnx.Param)
        random = np.random.default_rng(1)
        params = jax.tree.map(
            lambda x: np.asarray(x) + 0.4 * random.normal(size=x.shape).astype(x.dtype),
            nnx.to_pure_dict(state),
        )
        return graph, params


@functools.cache
def all_of(graph):
    """Computes logits, loss and gradients of `params` on `batch`."""
    from mlperf_jax.workloads.translation import per_sentence_loss

    def loss(params, batch):
        logits = nnx.merge(graph, params)(**batch)
        summed, sentences = per_sentence_loss(logits, batch["target"], batch["target_segment"], SMOOTHING)
        return summed / sentences, logits

    def run(params, batch):
        (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return logits, value, grads

    return jax.jit(run)


def test_the_closed_model_has_the_references_parameters():
    model = nnx.eval_shape(lambda: GNMT(GNMTConfig(), policy=POLICIES["float32"], rngs=nnx.Rngs(0)))

    def lstm(features_in, directions=1):  # by hand: two kernels and PyTorch's two biases
        return directions * 4 * (1024 * features_in + 1024 * 1024 + 2 * 1024)

    encoder = lstm(1024, 2) + lstm(2048) + 2 * lstm(1024)
    decoder = lstm(1024) + 3 * lstm(2048)
    attention = 2 * 1024**2 + 2 * 1024 + 1
    expected = encoder + decoder + attention + 2 * 32317 * 1024 + 32317
    assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected == 160_665_150


def test_logits_and_gradients_are_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch judges ours")
    from benchmarks.peers.gnmt import TorchGNMT, loss_of, take_over

    graph, params = small("float32")
    judge = TorchGNMT(**SIZES)
    take_over(judge, params)
    batch = apart(sentences(5, 6, 9, SIZES["vocab_size"]), 10)
    source, target = (torch.tensor(batch[name], dtype=torch.long) for name in ("source", "target"))
    logits = judge(source, target)
    judged = loss_of(logits, target, SMOOTHING)
    judged.backward()
    real = batch["target"] > 0
    expected = logits.detach().numpy()[real]
    with jax.default_matmul_precision("highest"):
        ours, value, grads = all_of(graph)(params, batch)
    assert np.abs(np.asarray(ours)[real] - expected).max() <= 1e-4 * np.abs(expected).max()
    assert abs(float(value) - judged.item()) <= 1e-5 * abs(judged.item())
    holder = TorchGNMT(**SIZES)
    take_over(holder, jax.tree.map(np.asarray, grads))
    for ours, theirs in zip(holder.parameters(), judge.parameters(), strict=True):
        assert (ours - theirs.grad).abs().max() <= 1e-4 * theirs.grad.abs().max()


@pytest.mark.parametrize("seed", [0, 1])
def test_packed_rows_are_as_good_as_sentences_apart(seed):
    pairs = sentences(seed, 11, 8, SIZES["vocab_size"])
    with jax.enable_x64(True):
        graph, params = small()
        batch, rows = packed(pairs, 20, 8)
        assert len(rows) <= 8 < len(pairs)
        logits, value, grads = all_of(graph)(params, batch)
        one = apart(pairs, 8)
        expected, expected_value, expected_grads = all_of(graph)(params, one)
        assert math.isclose(value, expected_value, rel_tol=1e-12)
        for row, members in enumerate(rows):
            for segment, member in enumerate(members, 1):
                ours = np.asarray(logits)[row][batch["target_segment"][row] == segment]
                np.testing.assert_allclose(
                    ours, np.asarray(expected)[member][one["target"][member] > 0], rtol=1e-9, atol=1e-12
                )
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)


def plain_search(step, limit, beams, alpha, beta):
    """The search with lists and NumPy, for one sentence.

    Args:
        step: tokens so far (list) -> log-probabilities [V] and attention [M].

    Returns:
        The best sentence and its score.
    """
    alive = [([], 0.0, 0.0)]  # tokens, sum of logarithms, attention so far
    for _ in range(limit):
        if all(tokens and tokens[-1] == END for tokens, *_ in alive):
            break
        grown = []
        for tokens, log_prob, got in alive:
            if tokens and tokens[-1] == END:
                grown.append((tokens, log_prob, got))
                continue
            following, attention = step(tokens)
            grown += [([*tokens, t], log_prob + p, got + attention) for t, p in enumerate(following)]
        alive = sorted(grown, key=lambda entry: -entry[1])[:beams]

    def score(entry):
        tokens, log_prob, got = entry
        covered = sum(math.log(min(a, 1)) for a in got if a > 0)
        return log_prob / ((5 + 1 + len(tokens)) / 6) ** alpha + beta * covered

    return max(((tokens, score((tokens, p, got))) for tokens, p, got in alive), key=lambda entry: entry[1])


@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_what_a_plain_one_over_whole_prefixes_finds(beams, seed):
    """Sentences of different lengths in one batch."""
    length, extra, alpha, beta = 9, 4, 0.6, 0.1
    random = np.random.default_rng(seed)
    source = random.integers(2, SIZES["vocab_size"], (4, 5))
    for row, end in zip(source, (4, 1, 2, 3), strict=True):
        row[end] = END
        row[end + 1 :] = 0
    with jax.enable_x64(True):
        graph, params = small()
        params = jax.tree.map(lambda x: x + 0.3 * random.normal(size=x.shape), params)
        params["kernel"] = 3 * params["kernel"]  # sharp enough that sentences end
        tokens, scores = _searched(graph, beams, length, extra, alpha, beta)(params, source)
        for row, sentence in enumerate(source):
            sentence = sentence[sentence > 0]
            step = functools.partial(_stepped, graph, params, sentence)
            expected, score = plain_search(step, len(sentence) + extra, beams, alpha, beta)
            np.testing.assert_array_equal(tokens[row], expected + [0] * (length - len(expected)))
            assert math.isclose(float(scores[row]), score, rel_tol=1e-9)


@functools.cache
def _searched(graph, beams, length, extra, alpha, beta):
    def translate(params, source):
        state, step = nnx.merge(graph, params).decoder_step(source, beams)
        return coverage_search(
            step,
            state,
            (source > 0).sum(1) + extra,
            length,
            source_length=source.shape[1],
            beams=beams,
            alpha=alpha,
            beta=beta,
            start=SIZES["start"],
            end=END,
        )

    return jax.jit(translate)


def _stepped(graph, params, sentence, prefix):
    padded = np.zeros((1, 5), np.int64)
    padded[0, : len(sentence)] = sentence
    target = np.zeros((1, 10), np.int64)
    target[0, : len(prefix)] = prefix
    log_probs, attention = _forced(graph)(params, padded, target)
    return np.asarray(log_probs)[len(prefix)], np.asarray(attention)[len(prefix), : len(sentence)]


@functools.cache
def _forced(graph):
    """Log-probabilities and attention of every target position, by the model as it trains."""

    def run(params, source, target):
        model = nnx.merge(graph, params)
        segment = (source > 0) * 1
        logits = model(source, segment, target, jnp.ones_like(target))[0]
        encoded = model.encode(source, segment)
        before = jnp.pad(target, ((0, 0), (1, 0)), constant_values=SIZES["start"])[:, :-1]
        x, _ = model.decoder[0](model._embedded(before))
        _, weights = model.attention(x, model.attention.keys(encoded), encoded, segment[:, None] > 0)
        return jax.nn.log_softmax(logits), weights[0]

    return jax.jit(run)


def test_long_rows_are_computed_in_blocks_of_the_same_numbers():
    from models import gnmt

    random = np.random.default_rng(0)
    queries, keys, vector = (random.normal(size=s) for s in ((2, 37, 8), (2, 5, 8), (8,)))
    with jax.enable_x64(True):

        def blocked(*arrays):
            return jnp.square(gnmt._energies(*arrays)).sum()

        def whole(queries, keys, vector):
            return jnp.square(jnp.tanh(queries[:, :, None] + keys[:, None]) @ vector).sum()

        ours, expected = (
            jax.value_and_grad(f, (0, 1, 2))(*map(jnp.asarray, (queries, keys, vector)))
            for f in (blocked, whole)
        )
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def test_flops_are_those_of_the_products():
    from tests.models.packed_sentences import products

    config = GNMTConfig(vocab_size=64, width=32, num_layers=3)
    model = nnx.eval_shape(lambda: GNMT(config, policy=POLICIES["float32"], rngs=nnx.Rngs(0)))
    graph, params = nnx.split(model)
    names = ("source", "source_segment", "target", "target_segment")
    batch = {name: jnp.ones((1, 16), jnp.int32) for name in names}
    jaxpr = jax.make_jaxpr(lambda p: nnx.merge(graph, p)(**batch))(params)
    assert train_flops_per_row(config, 16) == 3 * products(jaxpr.jaxpr)


def test_dtypes_of_the_mixed_policy():
    batch = apart(sentences(0, 2, 5, SIZES["vocab_size"]), 6)

    def run():
        model = GNMT(GNMTConfig(**SIZES), policy=POLICIES["bfloat16"], rngs=nnx.Rngs(0))
        encoded = model.encode(batch["source"], batch["source_segment"])
        return model(**batch), encoded, nnx.state(model, nnx.Param)

    logits, encoded, params = jax.eval_shape(run)
    assert logits.dtype == np.float32 and encoded.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_configs_that_cannot_be():
    with pytest.raises(ValueError, match="lstm 'fast' is none of"):
        GNMTConfig(lstm="fast")
    with pytest.raises(ValueError, match="num_layers 1 must be at least 2"):
        GNMTConfig(num_layers=1)
