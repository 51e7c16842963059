"""What edited manifests, annotations and archives get: a sentence that names the file."""

import io
import json
import tarfile

import numpy as np
import pytest

from input_pipelines import fetch, prepared, synthetic
from input_pipelines.image import coco_originals
from mlperf_jax.errors import UserError
from mlperf_jax.metrics.mean_average_precision import GroundTruth

HUGE = "1" * 400


@pytest.mark.parametrize(
    "facts", [{"num_train": -5}, {"num_eval": 0}, {"length": "8"}, {"num_train": 2.5}, {"num_train": True}]
)
def test_counts_in_a_manifest(facts, tmp_path):
    def build(folder):
        return {"name": "x", **facts}

    with pytest.raises(UserError, match=f"{next(iter(facts))} is no count"):
        prepared.prepare_folder(tmp_path / "x", build)


def test_what_a_manifest_lacks_is_told(tmp_path):
    manifest = prepared.prepare_folder(tmp_path / "x", lambda folder: {"name": "x", "num_train": 3})
    with pytest.raises(
        UserError, match=r"x/manifest.json lacks num_eval, so it is damaged; prepare it again"
    ):
        manifest["num_eval"]


@pytest.mark.parametrize(
    "options", [{"num_train": -5}, {"num_eval": -1}, {"num_train": 1.5}, {"num_train": "9"}]
)
def test_counts_of_synthetic_data(options):
    with pytest.raises(UserError, match="is no number of examples; give one above 0"):
        synthetic.counts(options, 10, 2)


COCO = {
    "images": [{"id": 3, "height": 48, "width": 64, "file_name": "a.jpg"}],
    "annotations": [
        {"image_id": 3, "bbox": [1.5, 2, 30, 20.25], "area": 600.5, "category_id": 18, "iscrowd": 0, "id": 1}
    ],
    "categories": [{"id": 18, "name": "dog"}],
}  # fmt: skip


@pytest.mark.parametrize("number", [HUGE, "1" * 5000, "1" * 300, "-" + HUGE, "1e400", "1e300", "NaN"])
@pytest.mark.parametrize(
    "place", ["1.5", "30", "600.5", "18", '"iscrowd": 0', '"image_id": 3', "48", '"id": 3']
)
def test_numbers_of_400_digits_in_annotations(number, place):
    *key, old = place.rpartition(": ") if ":" in place else ("", "", place)
    text = json.dumps(COCO).replace(place, "".join(key) + number, 1)
    assert number in text
    with pytest.raises(UserError) as caught, np.errstate(all="raise"):
        coco_originals.parse_annotations(text.encode(), "instances.json")
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [HUGE, "1" * 5000, '"x"', "null", "[]"])
def test_numbers_of_400_digits_in_prepared_boxes(number, tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps(COCO).replace("30", number))
    with pytest.raises(UserError, match=r"eval.json is no COCO file of true boxes \(.*\); prepare it again"):
        GroundTruth(tmp_path / "eval.json")


def test_a_sparse_member_claims_no_more_than_its_archive_holds():
    """As GNU tar writes a file of 8 TiB that is one hole."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("usr/small.txt"))
        info = tarfile.TarInfo("usr/hole.txt")
        info.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
        header[386 : 386 + 24] = b"%011o\0" % 0 + b"%011o\0" % 0
        header[483 : 483 + 12] = b"\x80" + (2**43).to_bytes(11, "big")
        header[148:156] = b"        "
        header[148:156] = b"%06o\0 " % sum(header)
        out.write(bytes(header))
    for data in (out.getvalue(), out.getvalue() + bytes(1024)):
        with pytest.raises(fetch.SourceError, match="hole.txt is larger than what holds it"):
            fetch._tar_files(data, lambda name: name)
