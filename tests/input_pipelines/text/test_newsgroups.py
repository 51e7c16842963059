"""BERT's mini: posts, articles and glosses, read, split and cut; from files pinned by their content."""

import bz2
import hashlib

import numpy as np
import pytest

from input_pipelines import fetch, open_dataset, prepare
from input_pipelines.text import gensim_articles, newsgroups, wordnet_questions
from mlperf_jax.errors import UserError

NOUNS = """  1 This software and database is being provided to you
00001740 03 n 01 harbor_seal 0 001 ~ 00001930 n 0000 | the spotted harbor seal of coastal waters; "they swim"
00001930 03 n 02 walrus 0 seahorse 1 000 | either of two large northern marine mammals having ivory tusks
00002000 03 n 01 seahorse 0 000 | a small fish with horse-like head
00002001 03 n 01 anchor 0 000 | a mechanical device that prevents a vessel from moving
00002002 03 n 01 tide 0 000 | the rise and fall of the sea
"""
SENTENCE = "The harbor seal and the walrus were seen near an anchor in the cold sea of the north that year . "


def article(title, text):
    return f"<page><title>{title}</title><ns>0</ns><text xml:space='preserve'>{text}</text></page>"


def dump():
    """Articles of which some are held out, and pages that are none."""
    pages = [
        article(f"Seal {n}", SENTENCE * 3 + f"It was number {n}.\n==Seen==\n* a list") for n in range(30)
    ]
    pages.append("<page><title>R</title><ns>0</ns><redirect/><text>x</text></page>")
    pages.append("<page><title>T</title><ns>10</ns><text>x</text></page>")
    return "".join(pages)


def test_wikitext_becomes_paragraphs():
    text = (
        "{{Infobox|a={{b|c}}\n|d=e}}\n'''Ants''' are [[insect|insects]] &lt;ref name=x&gt;Book&lt;/ref&gt;of the [[family]]"
        " {{cite}}''Formicidae''.&lt;ref y/&gt; See [http://x.y this page].&amp;nbsp;Yes\n\n== More ==\n* list\n{| class=x\n|-\n| y\n|}\n"
        "[[File:a.jpg|thumb|An [[ant]]]]\nThey&lt;!-- no --&gt; work."
    )
    found = gensim_articles.articles(article("Ant", text))
    assert found["Ant"][0] == "Ants are insects of the family Formicidae. See this page. Yes"
    assert found["Ant"][1:] == ["They work."]  # lines that begin with pictures are left out


def test_articles_are_those_of_the_encyclopedia():
    assert sorted(gensim_articles.articles(dump())) == sorted(f"Seal {n}" for n in range(30))


def test_glosses_are_those_of_nouns_with_one_meaning():
    assert wordnet_questions.glosses(NOUNS) == {
        "walrus": "either of two large northern marine mammals having ivory tusks",
        "anchor": "a mechanical device that prevents a vessel from moving",
    }


def test_questions_ask_for_what_stands_once_in_the_context():
    known = {"walrus": "a", "anchor": "b", "harbor seal": "c", "north": "d"}
    paragraph = (
        SENTENCE + "Then the tide came in and the anchor was lost. " + SENTENCE.replace("walrus", "dog")
    )
    found = wordnet_questions.questions("T", [paragraph.strip(), "Too short, says the walrus."], known)
    assert {q.answers[0][0].lower() for q in found} <= {"walrus", "harbor seal", "north", "anchor"}
    for question in found:
        (text, at), *_ = question.answers
        assert question.context[at : at + len(text)] == text
        assert question.context.lower().count(text.lower()) == 1 and question.context in paragraph
        assert known[text.lower()] == question.question
    assert "walrus" in {q.answers[0][0] for q in found}


def test_posts_are_the_texts_of_the_table():
    table = b"Category\tText\nd\tstring\nclass\t\nsci.med\tfirst text\nsci.med\n" + b'x\t"a ""quoted"" one"\n'
    assert newsgroups.posts(table) == ["first text", 'a "quoted" one']


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """All files as somebody has put them there by hand, small, and pinned."""
    random = np.random.default_rng(1)
    words = [f"{a}{b}{c}" for a in "bdgklmnst" for b in "aeiou" for c in ("", "n", "rt")]
    lines = ["\t".join(("group", " ".join(random.choice(words, 60)))) for _ in range(60)]
    table = "\n".join(["Category\tText", "d\tstring", "class\t", *lines]).encode()
    files = {
        ("newsgroups", "20newsgroups-train.tab"): table,
        ("newsgroups", "20newsgroups-test.tab"): table[: len(table) // 2],
        ("gensim", gensim_articles._DUMP): bz2.compress(dump().encode()),
        ("wordnet", "data.noun"): NOUNS.encode("latin-1"),
    }
    pinned = {}
    for (folder, name), content in files.items():
        (tmp_path / "manual" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "manual" / folder / name).write_bytes(content)
        pinned[name] = fetch.PinnedFile(name, len(content), hashlib.sha256(content).hexdigest(), "none")
    monkeypatch.setattr(
        newsgroups, "_FILES", {split: pinned[f"20newsgroups-{split}.tab"] for split in ("train", "test")}
    )
    monkeypatch.setattr(gensim_articles, "_FILE", pinned[gensim_articles._DUMP])
    monkeypatch.setattr(wordnet_questions, "_NOUNS", pinned["data.noun"])
    monkeypatch.setattr(newsgroups, "VOCAB_SIZE", 256)
    monkeypatch.setattr(newsgroups, "NUM_EVAL", 20)
    return tmp_path


def test_both_sets_are_prepared_from_the_pinned_files(manual):
    assert prepare("wordnet_questions", manual).startswith("WordNet's glosses as questions")
    masked = open_dataset("newsgroups", manual, {})
    assert masked.num_eval == 20 and masked.num_train > 30 and not masked.fake
    assert masked.read_train(0, 4, seed=1)["tokens"].max() < 256
    questions = open_dataset("wordnet_questions", manual, {})
    titles = {question.id.split("/")[0] for question in questions.questions}
    assert titles and all(map(gensim_articles.held_out, titles))
    for name in ("newsgroups", "wordnet_questions"):
        with pytest.raises(UserError, match="leave --fake out"):
            prepare(name, manual, fake=3)


def test_other_files_are_refused(manual, monkeypatch):
    monkeypatch.setattr(fetch, "_run", lambda *_: (_ for _ in ()).throw(fetch.SourceError("no network")))
    (manual / "manual" / "gensim" / gensim_articles._DUMP).write_bytes(b"other")
    with pytest.raises(UserError, match="gensim's Wikipedia articles could not be had from any source"):
        prepare("newsgroups", manual)
    assert not (manual / "newsgroups").exists()
