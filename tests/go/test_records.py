"""SGF: what is written is read back; what is hostile is refused in a sentence."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.go import records
from mlperf_jax.go.records import BadRecord, Record


@st.composite
def games(draw):
    size = draw(st.integers(3, 19))
    moves = draw(st.lists(st.integers(0, size**2), max_size=40))
    name = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), max_size=9)
    komi = draw(st.integers(-20, 20)) / 2
    return Record(
        size, komi, tuple(moves), draw(st.sampled_from(["", "B+R", "W+3.5"])), draw(st.tuples(name, name))
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(games(), min_size=1, max_size=3))
def test_written_games_are_read_back(tmp_path_factory, collection):
    path = tmp_path_factory.mktemp("sgf") / "games" / "a.sgf"
    records.write(path, collection)
    assert records.read(path) == collection
    assert [p.name for p in path.parent.iterdir()] == ["a.sgf"]


def test_a_game_as_others_write_it():
    text = """(;FF[4]GM[1]SZ[9]KM[6.5]PB[A \\] B]C[a comment (with; brackets\\]]
    ;B[ee];W[cc](;B[gc]C[main line];W[tt](;B[])(;B[aa]))(;B[cg];W[gg]))"""
    (game,) = records.parse(text)
    assert game == Record(9, 6.5, (40, 20, 24, 81, 81), "", ("A ] B", ""))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no game"),
        ("(;GM[2]SZ[9])", "other than Go"),
        ("(;SZ[99])", "size 99"),
        ("(;SZ[9:7])", "no number"),
        ("(;SZ[" + "9" * 5000 + "])", "no number"),
        ("(;AB[aa];W[bb])", "stones are placed"),
        ("(;SZ[9];W[aa])", "not its colour's turn"),
        ("(;SZ[9];B[zz])", "no point"),
        ("(;SZ[9];B[aa]", "ends inside"),
        ("(;SZ[9];B[aa)", "out of place"),
        ("(" * 100_000, "ends inside"),
        ("()", "without a node"),
    ],
)
def test_what_is_refused(text, said):
    with pytest.raises(BadRecord, match=said):
        list(records.parse(text))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="()[];\\BWSZKMabt19 \n", max_size=80))
def test_any_text_is_a_game_or_refused(text):
    try:
        found = list(records.parse("(" + text))
    except BadRecord:
        return
    assert all(0 <= move <= game.size**2 for game in found for move in game.moves)


def test_a_file_that_is_too_large(tmp_path):
    path = tmp_path / "large.sgf"
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(BadRecord, match="16 MiB"):
        records.read(path)
