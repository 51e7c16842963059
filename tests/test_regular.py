"""Pipes among results and data: nothing waits for who would write into them."""

import os
import threading

import pytest

from input_pipelines import prepared
from input_pipelines.image import coco_originals
from mlperf_jax import check, report
from mlperf_jax.errors import UserError
from mlperf_jax.regular import open_regular, read_regular
from mlperf_jax.rounds import descriptions, log_lines


@pytest.fixture(autouse=True)
def bounded():
    """Ends the tests' process where one of them waits for ever."""
    timer = threading.Timer(60, os._exit, (9,))
    timer.start()
    yield
    timer.cancel()


def test_a_file_is_opened_and_nothing_else(tmp_path):
    (tmp_path / "file").write_bytes(b"12")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    assert read_regular(tmp_path / "link") == b"12"
    for name in ("pipe", ".", "none", "/dev/null"):
        with pytest.raises(OSError):
            open_regular(tmp_path / name)


def test_readers_of_trees(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.gz")
    for read in (log_lines.read_events, descriptions.read_system):
        with pytest.raises(UserError, match="no plain file"):
            read(tmp_path / "pipe")
    with pytest.raises(UserError, match="no plain file"):
        log_lines.read_events(tmp_path / "pipe.gz")


def test_commands_over_a_tree_with_pipes(tmp_path, capsys):
    for folder, names in {
        "results/sys/resnet": ("result_0.txt", "scaling.json"),
        "inference/sys/resnet50/Offline/performance/run_1": (
            "mlperf_log_detail.txt", "mlperf_log_summary.txt", "mlperf_log_accuracy.json", "result.json",
        ),
        "systems": ("sys.json",),
    }.items():  # fmt: skip
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            os.mkfifo(tmp_path / folder / name)
    for main in (report.main, check.main):
        assert main([str(tmp_path)]) in (0, 1, 2)
        assert "Traceback" not in capsys.readouterr().err


def test_pictures_of_coco(tmp_path):
    for folder in ("annotations", "train2017", "val2017"):
        (tmp_path / folder).mkdir()
    os.mkfifo(tmp_path / "annotations" / "instances_train2017.json")
    with pytest.raises(UserError, match="no plain file"):
        coco_originals.find(tmp_path).images("train")


def test_a_manifest(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(UserError, match="no plain file"):
        prepared.read_manifest(tmp_path)
