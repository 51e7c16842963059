"""Steps of preparation tell how far they are, if they take long."""

import time

import pytest

from input_pipelines import progress


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.05)
    monkeypatch.setattr(progress, "_NEXT_SECONDS", 10.0)


def test_a_long_step_tells_its_name_its_count_and_what_is_left(capsys):
    with progress.step("drawing composites", 4, "images") as advance:
        advance(1)
        time.sleep(0.3)
    told = capsys.readouterr()
    assert told.err.startswith("mlperf_jax: drawing composites | 1 of 4 images | 0 s so far | about ")
    assert told.err.count("\n") == 1 and not told.out


def test_a_step_that_cannot_count_tells_its_name(capsys):
    with progress.step("learning subwords"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "mlperf_jax: learning subwords | 0 s so far\n"


def test_a_short_step_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 5.0)
    with progress.step("hashing", 1):
        pass
    assert capsys.readouterr().err == ""


def test_a_step_ends_with_its_error():
    with pytest.raises(ValueError, match="broken"), progress.step("hashing"):
        raise ValueError("broken")
