"""The prepare command: what it makes, what it prints, and its exit status."""

import re
import subprocess
import sys

import pytest

import input_pipelines
from mlperf_jax import prepare


def test_fake_set_is_made_and_then_found(tmp_path, capsys):
    arguments = ["--workload=resnet50", f"--data_dir={tmp_path}", "--fake=4"]
    for extra in ([], ["--verify"], ["--preset=closed"]):
        assert prepare.main(arguments + extra) == 0
        out = capsys.readouterr().out
        assert out.endswith(
            "Ready: Fake ImageNet (random images, not MLPerf's data), 4 train and 1 eval images, "
            f"in {tmp_path}/imagenet_fake_4.\n"
        )
    assert input_pipelines.open_dataset("imagenet", tmp_path, {"fake": 4}).num_train == 4


def test_preset_follows_the_platform(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(input_pipelines, "prepare", lambda name, *args, **options: asked.append(name) or name)
    for arguments in ([], ["--platform=tpu"], ["--platform=gpu", "--preset=mini"], ["--fake=2"]):
        assert prepare.main(["--workload=resnet50", f"--data_dir={tmp_path}", *arguments]) == 0
    assert asked == ["fashion_mnist", "imagenet", "fashion_mnist", "imagenet"]


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("MLPERF_JAX_DATA", str(tmp_path))
    assert input_pipelines.default_data_dir() == tmp_path
    assert prepare.main(["--workload=resnet50", "--fake=1"]) == 0
    assert (tmp_path / "imagenet_fake_1" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workload=resnet5"], "did you mean resnet50?"),
        ([], "--workload is missing"),
        (["--workload=resnet50", "--fake=-1"], "fake"),
        (["--workload=resnet50", "--fak=1"], "fak"),
        (["--workload=resnet50", "extra"], "'extra' is not a flag"),
        (["--workload=resnet50", "--preset=closed"], "ImageNet is not in"),
        (["--workload=resnet50", "--preset=mini", "--fake=1"], "leave --fake out"),
        (
            ["--workload=resnet50", "--preset=closed", "--fake=1", "--data_dir=/dev/null/data"],
            "another --data_dir",
        ),
    ],
)
def test_mistakes_get_one_sentence_and_status_2(tmp_path, capsys, arguments, message):
    assert prepare.main([f"--data_dir={tmp_path}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mlperf_jax: ") and error.count("\n") == 1 and message in error


def test_minigo_needs_nothing(tmp_path, capsys):
    for preset in ("mini", "closed"):
        assert prepare.main(["--workload=minigo", f"--preset={preset}", f"--data_dir={tmp_path}"]) == 0
        assert capsys.readouterr().out == "Nothing is to be prepared: minigo makes its own data.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "workload",
    [
        "resnet50",
        "ssd_resnet34",
        "retinanet",
        "maskrcnn",
        "maskrcnn2go",
        "transformer",
        "dlrm",
        "dlrm_dcnv2",
        "ncf",
        "sentiment",
    ],
)
def test_more_than_any_disk_holds_is_refused_before_the_first_file(tmp_path, capsys, workload):
    arguments = [f"--workload={workload}", f"--data_dir={tmp_path / 'data'}", "--fake=99999999999999"]
    assert prepare.main(arguments) == 2
    assert re.search(
        r"--fake=9+ would take at least .* GB .*; give at most --fake=\d+", capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_help_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "mlperf_jax.prepare", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "--fake=1024" in done.stdout and "--data_dir" in done.stdout
