"""LibreOffice's help: paragraphs of pages, pairs by id, pages held out whole."""

import hashlib

import pytest

from input_pipelines import fetch, open_dataset, prepare
from input_pipelines.text import libreoffice_help
from mlperf_jax.errors import UserError

PAGE = """<html><body><h1 id="hd_id1"><a href="x">Sum &amp; product</a></h1>
<p id="par_id2" class="paragraph">Adds  <b>all</b>
numbers.</p><p id="other">No paragraph.</p><p id="par_id3"> </p><p class="x" id="par_id2">Again.</p></body></html>"""


def page(*texts):
    return "".join(f'<p id="par_id{n}">{text}</p>' for n, text in enumerate(texts))


def test_paragraphs_of_a_page():
    assert dict(libreoffice_help.paragraphs(PAGE)) == {
        "hd_id1": "Sum & product",
        "par_id2": "Adds all numbers.",
    }


def test_pairs_are_those_of_both_languages_once_and_translated():
    english = {"a.html": page("One.", "OK", "Three."), "b.html": page("One.", "Two."), "c.html": page("x")}
    german = {"a.html": page("Eins.", "OK", ""), "b.html": page("Eins.", "Zwei.")}
    assert libreoffice_help.pairs(english, german) == [
        ("a.html", "One.", "Eins."),
        ("b.html", "Two.", "Zwei."),
    ]


def test_no_sentence_of_a_held_out_page_is_trained_on():
    pairs = [(f"{n // 3}.html", f"s {n % 500}", f"t {n}") for n in range(600)]
    train, evaluation = libreoffice_help.split(pairs)
    assert train and evaluation
    assert not {p for p, *_ in train} & {p for p, *_ in evaluation}
    assert not {s for _, s, _ in train} & {s for _, s, _ in evaluation}
    assert libreoffice_help.split(pairs) == (train, evaluation)


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """A help of 60 pages in the folder for those who fetch it themselves, pinned."""
    pinned = {}
    for language, words in (("en-US", ("Insert", "Delete")), ("de", ("Einfügen", "Löschen"))):
        folder = tmp_path / "manual" / "libreoffice-help" / language / "text"
        folder.mkdir(parents=True)
        lines = []
        for n in range(120):
            content = page(*(f"{words[n % 2]} {n} {k}." for k in range(4))).encode()
            (folder / f"{n:03}.html").write_bytes(content)
            lines.append(f"{hashlib.sha256(content).hexdigest()}  text/{n:03}.html\n")
        digest = hashlib.sha256("".join(lines).encode()).hexdigest()
        pinned[language] = ("no-such-package", fetch.PinnedTree(("*.html",), 120, digest))
    monkeypatch.setattr(libreoffice_help, "_PAGES", pinned)
    monkeypatch.setattr(libreoffice_help, "VOCAB_SIZE", 100)
    return tmp_path


def test_it_is_prepared_from_the_pinned_pages(manual):
    said = prepare("libreoffice_help", manual)
    assert "LibreOffice help en-de" in said
    dataset = open_dataset("libreoffice_help", manual, {"max_length": 64})
    assert not dataset.fake and dataset.num_eval % 4 == 0 and dataset.num_eval > 0
    assert not (manual / "libreoffice_help" / "scratch").exists()
    with pytest.raises(UserError, match="leave --fake out"):
        prepare("libreoffice_help", manual, fake=3)


def test_other_pages_are_refused(manual, monkeypatch):
    monkeypatch.setattr(
        fetch, "_apt_download", lambda *_: (_ for _ in ()).throw(fetch.SourceError("no network"))
    )
    (manual / "manual/libreoffice-help/de/text/000.html").write_text("changed")
    with pytest.raises(
        UserError, match=r"help \(de\) could not be had from any source .*Put its pages of version 7.4.7"
    ):
        prepare("libreoffice_help", manual)
    assert not (manual / "libreoffice_help").exists()
