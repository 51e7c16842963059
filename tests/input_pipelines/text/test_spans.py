"""Rows of questions against google-research/bert's run_squad.py, written down again, on random texts."""

import collections
import json

import numpy as np
import pytest

from input_pipelines import open_dataset, prepare, prepared
from input_pipelines.text import spans, squad, wordpiece
from input_pipelines.text.spans import Question
from mlperf_jax.errors import UserError

WORDS = [f"w{n}" for n in range(50)]
VOCABULARY = [*wordpiece.SPECIAL, *WORDS, "w", *(f"##{n}" for n in range(10))]
CUT = spans.Cut(length=32, stride=8, most_question=6)


def asked(seed, count=12, longest=60):
    """On words of which some are cut into several subwords ("w73")."""
    return squad.made_up(count, [f"w{n}" for n in range(90)], np.random.default_rng(seed), longest)


def reference(question):
    """convert_examples_to_features of one example whose words stand between single spaces."""
    cut = wordpiece.tokenizer(VOCABULARY)
    doc_tokens, answer, at = question.context.split(" "), *question.answers[0]
    orig_to_tok, all_doc_tokens, tok_to_orig = [], [], []
    for i, token in enumerate(doc_tokens):
        orig_to_tok.append(len(all_doc_tokens))
        for sub_token in cut.encode(token, add_special_tokens=False).ids:
            tok_to_orig.append(i)
            all_doc_tokens.append(sub_token)
    start_word = question.context[:at].count(" ")
    end_word = start_word + answer.count(" ")
    tok_start = orig_to_tok[start_word]
    tok_end = orig_to_tok[end_word + 1] - 1 if end_word < len(doc_tokens) - 1 else len(all_doc_tokens) - 1
    query_tokens = cut.encode(question.question, add_special_tokens=False).ids[: CUT.most_question]
    max_tokens_for_doc = CUT.length - len(query_tokens) - 3
    DocSpan = collections.namedtuple("DocSpan", ["start", "length"])
    doc_spans, start_offset = [], 0
    while start_offset < len(all_doc_tokens):
        length = min(len(all_doc_tokens) - start_offset, max_tokens_for_doc)
        doc_spans.append(DocSpan(start=start_offset, length=length))
        if start_offset + length == len(all_doc_tokens):
            break
        start_offset += min(length, CUT.stride)

    def is_max_context(cur_span_index, position):
        best_score = best_span_index = None
        for span_index, doc_span in enumerate(doc_spans):
            end = doc_span.start + doc_span.length - 1
            if position < doc_span.start or position > end:
                continue
            score = min(position - doc_span.start, end - position) + 0.01 * doc_span.length
            if best_score is None or score > best_score:
                best_score, best_span_index = score, span_index
        return cur_span_index == best_span_index

    features = []
    for index, doc_span in enumerate(doc_spans):
        tokens, segment_ids = [2, *query_tokens, 3], [0] * (len(query_tokens) + 2)
        word, max_context = {}, {}
        for i in range(doc_span.length):
            position = doc_span.start + i
            word[len(tokens)] = tok_to_orig[position]
            max_context[len(tokens)] = is_max_context(index, position)
            tokens.append(all_doc_tokens[position])
            segment_ids.append(1)
        tokens.append(3)
        segment_ids.append(1)
        span = (0, 0)
        if tok_start >= doc_span.start and tok_end <= doc_span.start + doc_span.length - 1:
            doc_offset = len(query_tokens) + 2
            span = tok_start - doc_span.start + doc_offset, tok_end - doc_span.start + doc_offset
        features.append((tokens, segment_ids, word, max_context, span))
    return doc_tokens, features


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_the_references(seed):
    questions = asked(seed)
    made, row = spans.rows(questions, VOCABULARY, CUT), 0
    for number, question in enumerate(questions):
        doc_tokens, features = reference(question)
        for tokens, segment_ids, word, max_context, span in features:
            count = len(tokens)
            assert made["question"][row] == number and made["segment"][row].tolist() == [1] * count + [0] * (
                CUT.length - count
            )
            assert made["tokens"][row, :count].tolist() == tokens and not made["tokens"][row, count:].any()
            assert made["token_type"][row, :count].tolist() == segment_ids
            assert tuple(made["span"][row].tolist()) == span
            for place in range(CUT.length):
                begin, end = made["characters"][row, place].tolist()
                assert (end > begin) == (place in word)
                assert bool(made["widest"][row, place]) == max_context.get(place, False)
                if place in word:
                    before = len(" ".join([*doc_tokens[: word[place]], ""])) if word[place] else 0
                    assert before <= begin < end <= before + len(doc_tokens[word[place]])
            row += 1
    assert row == len(made["tokens"]) > len(questions)
    assert (made["span"].sum(1) > 0).sum() >= len(questions)


def test_the_likeliest_answer_is_the_one_that_trying_all_finds():
    random = np.random.default_rng(2)
    for question in asked(5, count=8):
        made = spans.rows([question], VOCABULARY, CUT)
        logits = random.normal(size=(len(made["tokens"]), CUT.length, 2)).astype(np.float32)
        best, expected = -np.inf, ""
        for n in range(len(logits)):
            likely = [np.argsort(-logits[n, :, side])[: spans.MOST_LIKELY].tolist() for side in (0, 1)]
            for start in likely[0]:
                for stop in likely[1]:
                    where = made["characters"][n]
                    if not (where[start, 1] and where[stop, 1] and made["widest"][n, start]):
                        continue
                    if not 1 <= stop - start + 1 <= spans.LONGEST_ANSWER:
                        continue
                    if logits[n, start, 0] + logits[n, stop, 1] > best:
                        best = logits[n, start, 0] + logits[n, stop, 1]
                        expected = question.context[where[start, 0] : where[stop, 1]]
        assert spans.answer(logits, made["characters"], made["widest"], question.context) == expected != ""


def test_certain_logits_give_the_right_answers():
    questions = asked(7)
    made = spans.rows(questions, VOCABULARY, CUT)
    dataset = spans.SpanDataset(
        {name: made[name] for name in spans.train_spec(CUT.length)},
        {name: made[name] for name in spans.eval_spec(CUT.length)},
        questions,
        fake=True,
        description="",
    )
    logits = np.zeros((len(made["tokens"]), CUT.length, 2), np.float32)
    for row, span in zip(logits, made["span"], strict=True):
        if span.any():
            row[span[0], 0] = row[span[1], 1] = 9
    wide = made["widest"][np.arange(len(logits)), made["span"][:, 0]]
    shown = {made["question"][n] for n in range(len(logits)) if made["span"][n].any() and wide[n]}
    found = dataset.best_answers(np.arange(len(logits)), logits)
    assert len(shown) >= 10
    assert all(found[n] == questions[n].answers[0][0] for n in shown)


def test_made_up_squad_is_prepared_opened_and_told_apart(tmp_path):
    said = prepare("squad", tmp_path, fake=16)
    assert said.startswith("made-up questions, not MLPerf's data, in ")
    found = open_dataset("squad", tmp_path, {"fake": 16})
    assert found.fake and len(found.questions) == 2 and found.num_train >= 16
    batch = found.read_train(0, 4, seed=1)
    assert batch["tokens"].shape == (4, 384) and batch["span"].shape == (4, 2)
    (tmp_path / "squad_fake_16" / "questions.json").write_text("[]" + " " * 100)
    with pytest.raises(UserError, match=prepared.AGAIN[:16]):
        open_dataset("squad", tmp_path, {"fake": 16})


def test_real_squad_is_counted(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="put SQuAD v1.1's train-v1.1.json and dev-v1.1.json"):
        squad.prepare(tmp_path)
    (tmp_path / "squad").mkdir()
    qas = [{"id": "1", "question": "w1 w2", "answers": [{"text": "w5", "answer_start": 3}]}]
    text = json.dumps({"data": [{"paragraphs": [{"context": "w4 w5 w6", "qas": qas}]}]})
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / "squad" / name).write_text(text)
    wordpiece.write(tmp_path / "squad" / "vocab.txt", VOCABULARY)
    with pytest.raises(
        UserError, match=r"has 1 train and 1 development questions.*where 87,599 .* in 10,833 rows"
    ):
        squad.prepare(tmp_path)
    for name, count in (
        ("NUM_TRAIN", 1),
        ("NUM_EVAL", 1),
        ("NUM_ROWS", 1),
        ("VOCABULARY_SIZE", len(VOCABULARY)),
    ):
        monkeypatch.setattr(squad, name, count)
    assert squad.prepare(tmp_path).startswith("SQuAD v1.1, in ")
    assert squad.open_dataset(tmp_path, {}).questions == [Question("1", "w4 w5 w6", "w1 w2", (("w5", 3),))]
    (tmp_path / "squad" / "dev-v1.1.json").write_text("{}")
    with pytest.raises(UserError, match="is no file of SQuAD's"):
        squad.questions(tmp_path / "squad" / "dev-v1.1.json")
