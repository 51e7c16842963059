"""Photographs and detector out of small packages of the real ones' form."""

import numpy as np
import pytest
from PIL import Image

import input_pipelines
from input_pipelines.image import objectron
from mlperf_jax.errors import UserError
from tests.input_pipelines.image import objectron_packages as packages

ANSWERS = {
    "flat": [["Cat", 0.9, [0.5, -0.1, 1.2, 0.5]], ["Dog", 0.29, [0.0, 0.0, 1.0, 1.0]]],
    "farm_animals/cow": [["Cattle", 0.31, [0.25, 0.5, 0.75, 1.0]]],
    "of another set": [["Car", 0.9, [0.0, 0.0, 1.0, 1.0]]],
}


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    packages.put(tmp_path, b"TFL3 or so", monkeypatch, ANSWERS)
    assert input_pipelines.prepare("objectron", tmp_path).startswith("5 photographs, and the detector of")
    return tmp_path


def test_photographs_are_stretched_and_named(data_dir):
    found = input_pipelines.open_dataset("objectron", data_dir, {})
    assert found.names == packages.NAMES and found.num_eval == 5 and not found.fake
    read = found.read_eval(np.arange(5), ["image", "image_id", "size"])
    assert read["image"].shape == (5, 300, 300, 3) and read["image"].dtype == np.uint8
    assert read["size"].tolist() == [[220, 500], [400, 210], [256, 320], [256, 320], [256, 320]]
    tall = Image.fromarray(packages.picture(0, 400, 210)).resize((300, 300), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(read["image"][1], np.asarray(tall))
    assert objectron.detector_file(data_dir).read_bytes() == b"TFL3 or so"


def test_recorded_answers_stand_for_the_truth(data_dir):
    truth = input_pipelines.open_dataset("objectron", data_dir, {}).ground_truth
    boxes = [(box["image_id"], box["category_id"], box["bbox"]) for box in truth["annotations"]]
    expected = [(0, 8, [250, 0, 250, 110]), (3, 6, [80, 128, 160, 128])]  # cut at the edges, from .3 on
    assert [box[:2] for box in boxes] == [box[:2] for box in expected]
    np.testing.assert_allclose([box[2] for box in boxes], [box[2] for box in expected])
    names = {category["id"]: category["name"] for category in truth["categories"]}
    assert names[8] == "Cat" and names[6] == "Cattle" and len(names) == 23


def test_what_was_recorded_of_the_real_ones_is_sound():
    answers = objectron.recorded_answers()
    assert len(answers) == 41
    for rows in answers.values():
        assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
        for row in rows:
            left, top, right, bottom = row.corners
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert objectron.TRUE_SCORE <= row.score < 1 and 1 <= row.label <= 23


@pytest.mark.parametrize("content", ["[", "{}", "[1, 2, 3, 4, 5]", '["a"]', "7"])
def test_damaged_names_get_a_sentence(data_dir, content):
    path = data_dir / "objectron" / objectron.NAMES
    manifest = path.with_name("manifest.json")
    path.write_text(content.ljust(path.stat().st_size))  # of the size that the manifest has
    assert manifest.exists()
    with pytest.raises(UserError, match="names.json cannot be read .*prepare it again"):
        input_pipelines.open_dataset("objectron", data_dir, {})


def test_other_content_than_the_pinned_is_refused(tmp_path, monkeypatch):
    packages.put(tmp_path, b"TFL3 or so", monkeypatch)
    assets = tmp_path / "manual" / "objectron" / objectron._ASSETS.name
    assets.write_bytes(assets.read_bytes()[:-1] + b"x")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UserError, match="other content than the pinned.*npm is not on this machine.*Put objectron_sol"
    ):
        input_pipelines.prepare("objectron", tmp_path)
    assert not (tmp_path / "objectron").exists()


def test_there_is_no_made_up_set_but_random_images(tmp_path):
    with pytest.raises(UserError, match="leave --fake out"):
        input_pipelines.prepare("objectron", tmp_path, fake=8)
    found = input_pipelines.open_dataset("objectron", tmp_path, {"synthetic": True, "num_eval": 7})
    assert found.fake and found.num_eval == 7
    assert found.read_eval(np.array([6]), ["image"])["image"].shape == (1, 300, 300, 3)
