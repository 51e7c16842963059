"""KiTS19 and Colin27: what is prepared, what is missing, what is refused."""

import gzip
import json

import numpy as np
import pytest

from input_pipelines import prepared
from input_pipelines.volumes import colin27, kits19, nifti, resampling
from mlperf_jax.errors import UserError
from tests.input_pipelines.volumes.test_nifti import content
from tests.input_pipelines.volumes.test_patches import OPTIONS

COUNTS = dict(NUM_CASES=4, NUM_TRAIN=2, NUM_EVAL=2, NUM_SERVED=3, EVALUATION=(0, 3), _TWICE=3)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Four small cases in KiTS19's form, of which two are for evaluation."""
    for name, value in COUNTS.items():
        monkeypatch.setattr(kits19, name, value)
    random = np.random.default_rng(0)
    for number in range(4):
        folder = tmp_path / "kits19" / "data" / f"case_{number:05d}"
        folder.mkdir(parents=True)
        shape = random.integers(5, 12, 3)
        image = random.integers(-1000, 1000, shape).astype("i2")
        (folder / "imaging.nii.gz").write_bytes(gzip.compress(content(image, (3.0, 1.0, 1.0))))
        label = random.integers(0, 3, shape).astype("u1")
        (folder / "segmentation.nii.gz").write_bytes(gzip.compress(content(label, (3.0, 1.0, 1.0))))
    return tmp_path


def test_real_volumes_are_resampled_clipped_and_normalised(raw):
    said = kits19.prepare(raw)
    assert said.startswith("KiTS19, 2 train and 2 eval volumes, in ")
    data = kits19.open_dataset(raw, OPTIONS)
    assert (data.num_train, data.num_eval, len(data.serving)) == (6, 2, 3) and not data.fake
    source = nifti.read(raw / "kits19" / "data" / "case_00001" / "imaging.nii.gz")
    folder = raw / "kits19_prepared"
    image, label = (np.load(folder / f"case_00001_{which}.npy") for which in "xy")
    shape = tuple(
        int(n * s / w) for n, s, w in zip(source.values.shape, (3, 1, 1), kits19.SPACING, strict=True)
    )
    assert image.shape == label.shape == shape and (image.dtype, label.dtype) == (np.float32, np.uint8)
    values = resampling.linear(source.values, shape)
    np.testing.assert_allclose(image, (np.clip(values, -79, 304) - 101) / 76.9, rtol=1e-6, atol=1e-6)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [one["name"] for one in manifest["served"]] == [
        f"served/case_{number:05d}" for number in (0, 3, 400)
    ]
    twice = [(folder / "served" / f"case_{number:05d}_x.npy").read_bytes() for number in (3, 400)]
    assert twice[0] == twice[1]
    outside = data.serving.label(0) == 255
    assert not outside.any()  # padding counts as background there


def test_what_is_not_whole_is_refused(raw):
    with pytest.raises(
        UserError, match="KiTS19 is not prepared in .*clone https://github.com/neheller/kits19"
    ):
        kits19.open_dataset(raw, OPTIONS)
    case = raw / "kits19" / "data" / "case_00002"
    (case / "imaging.nii.gz").unlink()
    with pytest.raises(UserError, match=r"lacks case_00002/imaging.nii.gz and 0 files more"):
        kits19.prepare(raw)
    (case / "imaging.nii.gz").write_bytes(content(np.zeros((3, 3, 3), "i2")))
    with pytest.raises(UserError, match="case_00002 has an image of .* and labels of"):
        kits19.prepare(raw)
    (case / "segmentation.nii.gz").write_bytes(content(np.full((3, 3, 3), 3, "u1")))
    with pytest.raises(UserError, match="labels other than 0 to 2"):
        kits19.prepare(raw)
    with pytest.raises(UserError, match="KiTS19 is not in"):
        kits19.prepare(raw / "elsewhere")


def test_the_split_is_the_references():
    assert len(set(kits19.EVALUATION)) == 42 and max(kits19.EVALUATION) < kits19.NUM_CASES
    assert kits19.NUM_CASES - 42 == kits19.NUM_TRAIN


def test_a_made_up_set_is_opened_and_a_damaged_one_refused(tmp_path):
    assert "Fake KiTS19" in kits19.prepare(tmp_path, fake=2)
    data = kits19.open_dataset(tmp_path, OPTIONS | {"fake": 2})
    assert data.fake and data.num_train == 6 and data.num_eval == 1
    assert set(np.unique(data.read_train(0, 6, 1)["label"])) == {0, 1, 2}
    path = tmp_path / "kits19_fake_2" / "manifest.json"
    sound = json.loads(path.read_text())
    for change in (
        {"train": 7},
        {"train": [{"name": "x"}]},
        {"train": [sound["train"][0] | {"shape": [2, 2]}]},
    ):
        path.write_text(json.dumps(sound | change))
        with pytest.raises(UserError, match="damaged|holds"):
            kits19.open_dataset(tmp_path, OPTIONS | {"fake": 2})


# Colin27.


def test_groups_are_those_of_the_atlas_and_halves_do_not_touch():
    random = np.random.default_rng(0)
    regions = random.integers(0, 117, (181, 21, 21)).astype("u1")
    brain = random.integers(0, 200, (181, 21, 21)).astype("u1")
    image, label = colin27.volume(nifti.Volume(brain, (1.0,) * 3), nifti.Volume(regions, (1.0,) * 3))
    assert image.shape == label.shape == (90, 10, 10)
    assert image.mean() == pytest.approx(0, abs=1e-5) and image.std() == pytest.approx(1, abs=1e-5)
    atlas = regions[resampled_index(181, 90)][:, resampled_index(21, 10)][:, :, resampled_index(21, 10)]
    for number, name in enumerate(colin27.CLASS_NAMES, 1):
        np.testing.assert_array_equal(label == number, np.isin(atlas, colin27.GROUPS[name]))
    left, right = colin27.LEFT, colin27.RIGHT
    assert left.stop - left.start == right.stop - right.start == 42 and right.start - left.stop == 6
    assert left.start + right.stop - 1 == 89  # as far from the middle on both sides


def test_the_box_is_chosen_by_the_left_half_alone():
    """By hand, of `aal.nii.gz`: where the left half's groups begin and end."""
    for part, (first, last), size in zip(
        colin27.PART, ((15, 41), (17, 76), (6, 48)), (42, 108, 90), strict=True
    ):
        assert 0 <= part.start <= first and last < part.stop <= size
        before, behind = first - part.start, part.stop - 1 - last
        assert abs(before - behind) <= 1 or part.stop == size or part.start == 0  # or against an edge


def resampled_index(old, new):
    return np.floor(np.arange(new) * (old - 1) / (new - 1) + 0.5).astype(int)


def test_colin27_has_no_made_up_set(tmp_path):
    with pytest.raises(UserError, match="no --fake set"):
        colin27.prepare(tmp_path, fake=3)
    with pytest.raises(UserError, match="no prepared data set"):
        colin27.open_dataset(tmp_path, OPTIONS)
    assert prepared.SCHEMA_VERSION == 1
