"""Sequences to pre-train on: pieces of texts, B exchanged for half of them, and what is masked."""

import numpy as np
import pytest

from input_pipelines.text import masked_pairs, wordpiece

LENGTH, KNOWN = 32, 5000
VOCABULARY = [*wordpiece.SPECIAL, *(str(n) for n in range(KNOWN - 5))]


def made(seed=0, **options):
    """Texts whose subwords count up, each from a thousand of its own."""
    random = np.random.default_rng(seed)
    texts = [list(range(1000 * n + 5, 1000 * n + 5 + random.integers(3, 900))) for n in range(5)]
    return texts, masked_pairs.sequences(texts, VOCABULARY, LENGTH, random, **options)


def whole(batch):
    """Tokens as they were."""
    tokens = batch["tokens"].astype(int)
    told = batch["word_weight"] > 0
    rows = np.broadcast_to(np.arange(len(tokens))[:, None], told.shape)
    tokens[rows[told], batch["masked"][told]] = batch["word"][told]
    return tokens


def test_rows_are_pieces_of_one_text_or_of_two():
    _, batch = made()
    for name, (shape, dtype) in masked_pairs.spec(LENGTH, masked_pairs.most_masked(LENGTH)).items():
        assert batch[name].dtype == dtype and batch[name].shape[1:] == shape
    tokens, random = whole(batch), batch["is_random"][:, 0]
    assert 0.3 < random.mean() <= 0.5
    for row, kinds, seen, is_random in zip(
        tokens, batch["token_type"], batch["segment"], random, strict=True
    ):
        end = seen.sum()
        assert row[0] == 2 and row[end - 1] == 3 and not row[end:].any() and (row[:end] == 3).sum() == 2
        a, b = row[1:end][kinds[1:end] == 0][:-1], row[:end][kinds[:end] == 1][:-1]
        assert (np.diff(a) == 1).all() and (np.diff(b) == 1).all() and len(a) and len(b)
        assert (a[-1] + 1 == b[0]) == (not is_random) and (is_random == 0 or a[0] // 1000 != b[0] // 1000)


def test_all_of_a_text_is_there_but_short_ends_and_what_does_not_fit():
    texts, batch = made(3)
    tokens = whole(batch)
    there = set(tokens[tokens >= 5].tolist())
    short = sum(len(text) % (LENGTH - 3) for text in texts if len(text) % (LENGTH - 3) < masked_pairs.LEAST)
    lost = sum(map(len, texts)) - len(there)
    assert short <= lost < 0.2 * sum(map(len, texts))


@pytest.mark.parametrize(("options", "share", "most"), [({}, 0.15, 4), ({"share": 0.3}, 0.3, 9)])
def test_what_is_to_be_told_is_hidden_as_in_the_reference(options, share, most):
    batches = [made(seed, **options)[1] for seed in range(40)]
    shown, was = [], []
    for batch in batches:
        told = batch["word_weight"] > 0
        ends = batch["segment"].sum(1).astype(int)
        np.testing.assert_array_equal(told.sum(1), np.clip(np.round((ends - 3) * share), 1, most))
        rows = np.broadcast_to(np.arange(len(told))[:, None], told.shape)
        places = batch["masked"][told]
        assert (
            len(set(zip(rows[told], places, strict=True))) == told.sum() and (batch["word"][told] >= 5).all()
        )
        shown.append(batch["tokens"][rows[told], places])
        was.append(batch["word"][told])
    shown, was = np.concatenate(shown), np.concatenate(was)
    masked, kept = (shown == 4).mean(), (shown == was).mean()
    deviation = 5 * np.sqrt(0.8 * 0.2 / len(was))
    assert abs(masked - 0.8) < deviation and abs(kept - 0.1) < deviation and shown.min() >= 4


def test_synthetic_rows_are_of_the_sets_shapes():
    specs = [masked_pairs.spec(LENGTH, masked) for masked in (9, 4)]
    found = masked_pairs.open_synthetic("x", *specs, KNOWN, {"num_train": 10}, num_train=99, num_eval=7)
    assert (found.num_train, found.num_eval, found.fake) == (10, 7, True)
    batches = found.read_train(0, 8, seed=1), found.read_eval(np.arange(7), list(specs[1]))
    for batch, spec in zip(batches, specs, strict=True):
        assert {name: batch[name].shape[1:] for name in spec} == {
            name: shape for name, (shape, _) in spec.items()
        }
