"""Every reader, given some thousand damaged files: each is read or refused in a sentence, in bounded time and memory."""

import random

import pytest

from benchmarks import fuzzing
from benchmarks.fuzzed_readers import readers
from mlperf_jax.errors import UserError


def test_every_reader_survives_damaged_files():
    known = readers()
    tried, failures = fuzzing.fuzz(known, 4000, seed=17, seconds=12)
    assert tried >= 10 * len(known)
    assert not failures, "\n".join(fuzzing._shown(failures))


def test_the_same_seed_makes_the_same_files():
    made = [fuzzing.damaged(b"(;SZ[9];B[aa])", random.Random(f"3 {i}")) for i in range(50)]
    assert made == [fuzzing.damaged(b"(;SZ[9];B[aa])", random.Random(f"3 {i}")) for i in range(50)]
    assert len(set(made)) > 40


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (lambda path: {}["x"], "KeyError"),
        (lambda path: _for_ever(), "longer than"),
        (lambda path: _say("two\nlines"), "no sentence"),
        (lambda path: _say(""), "no sentence"),
        (lambda path: _say("It is damaged."), ""),
        (lambda path: path.read_bytes(), ""),
    ],
)
def test_what_a_reader_should_not_do_is_seen(does, why, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "_SECONDS", 0.1)
    (tmp_path / "x").write_bytes(b"1")
    found = fuzzing._judged(fuzzing.Reader("one", lambda folder: folder, does), tmp_path / "x")
    assert found.startswith(why) if why else not found


def _say(text):
    raise UserError(text)


def _for_ever():
    while True:
        pass
