"""Objectron's detector, a small one of its form, from packages to judged answers; against boxes made in plain Python."""

import json

import jax
import numpy as np
import pytest

from benchmarks import objectron as by_hand
from mlperf_jax import import_weights, main, making
from mlperf_jax.errors import UserError
from mlperf_jax.inference import trained
from mlperf_jax.parallel import mesh
from mlperf_jax.results.folders import read_json
from mlperf_jax.workloads.objectron import Objectron
from models.ssd_mobilenet_v2 import SSDMobileNetV2Config
from tests import door
from tests.input_pipelines.image import objectron_packages as packages
from tests.weights import tflite_detector
from tests.workloads.small_objectron import SMALL

OVERRIDES = [f"--config.model.{key}={value}" for key, value in SMALL.items()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Five photographs and a detector of random weights that is sure of little."""
    folder = tmp_path_factory.mktemp("objectron")
    path = tflite_detector.write(folder / "x.tflite", SSDMobileNetV2Config(**SMALL), certainty=-4.0)
    with pytest.MonkeyPatch.context() as patch:
        packages.put(folder, path.read_bytes(), patch)
        yield folder


@pytest.fixture(scope="module")
def workload(data_dir):
    recipe = making.choose("objectron", "mini", "cpu", OVERRIDES, kind=Objectron)
    return recipe.make_with_data(data_dir, synthetic=False, prepare=True)


@pytest.fixture(scope="module")
def answers(workload):
    state = trained.with_the_data(Objectron).load(workload, mesh.single_device_layout())
    return np.asarray(jax.jit(workload.predict)(state, workload.read_samples(np.arange(5))))


@pytest.fixture(scope="module")
def expected(workload):
    """What the same graph answers in NumPy, of which boxes are made one after the other."""
    run = by_hand.in_numpy(workload.weights_file)
    images = workload.dataset.read_eval(np.arange(5), ["image"])["image"]
    return {
        name: by_hand.plain_boxes(*run(image)) for name, image in zip(packages.NAMES, images, strict=True)
    }


def test_answers_are_those_of_the_graph_in_plain_python(answers, expected):
    assert answers.dtype == np.float32 and answers.shape[0] == 5 and answers.shape[2] == 7
    assert sum(map(len, expected.values())) > 20
    for index, (name, rows) in enumerate(expected.items()):
        assert (answers[index, :, 0] == index).all()
        found = [
            (packages.objectron.CLASSES[int(label) - 1], score, [left, top, right, bottom])
            for _, top, left, bottom, right, score, label in answers[index].tolist()
            if label and score > 0.3
        ]
        assert by_hand.same(found, rows), name


def test_agreement_is_one_where_answers_are_as_recorded(data_dir, workload, answers, expected):
    packages.record(data_dir, expected)
    judged = making.choose("objectron", "mini", "cpu", OVERRIDES, kind=Objectron).make(data_dir)

    def quality(rows):
        return judged.answered_figures(np.arange(5), [row.tobytes() for row in rows])["quality"]

    assert quality(answers) == pytest.approx(1.0)
    moved = answers.copy()
    moved[..., 1:5] = np.clip(moved[..., 1:5] + 0.02, 0, 1)
    assert 0.01 < quality(moved) < 0.9
    other = answers.copy()
    other[..., 6] = np.where(other[..., 6] > 0, other[..., 6] % 23 + 1, 0)
    assert quality(other) < 0.2
    with pytest.raises(ValueError, match="other samples"):
        quality(answers[::-1])


def test_through_the_door_with_the_weights_that_lie_with_the_data(
    data_dir, workload, expected, tmp_path, capsys
):
    packages.record(data_dir, expected)
    arguments = ["--workload=objectron", "--platform=cpu", f"--data_dir={data_dir}", "--system=here"]
    arguments += [f"--results_dir={tmp_path}", "--scenario=Offline", "--mode=accuracy", *OVERRIDES]
    served = [*arguments, "--mesh=data:8", "--config.inference.batch_sizes=(8,)"]
    assert main.main(served) == 0, capsys.readouterr().err
    assert "mAP against recorded answers 1.0000, target 0.9900: reached" in capsys.readouterr().out
    result = read_json(tmp_path / "mini/inference/here/objectron/Offline/accuracy/result.json")
    assert result["passed"] and "object_detection_ssd_mobilenetv2" in result["model"]
    for more, said in (
        (["--preset=closed"], "has no preset closed, for MLPerf has no such benchmark; use --preset=mini."),
        ([f"--checkpoint={tmp_path}"], "Objectron is served, not trained; give it --weights"),
        ([f"--data_dir={tmp_path}"], "There is no prepared data set"),
    ):
        assert main.main([*arguments, *more]) == 2
        assert said in capsys.readouterr().err
    assert main.main(["--workload=objectron", "--platform=cpu"]) == 2
    assert "Objectron is served, not trained; measure it with --scenario" in capsys.readouterr().err


@pytest.mark.timing
def test_served_it_answers_as_recorded(data_dir, workload, expected, tmp_path):
    packages.record(data_dir, expected)
    ended = door.run(
        door.ROOT,
        "--workload=tests.workloads.small_objectron:SmallObjectron",
        "--platform=cpu",
        "--system=here",
        f"--data_dir={data_dir}",
        f"--results_dir={tmp_path}",
        "--scenario=all",
        "--time=0.5",
        **door.LIGHTLY,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder = tmp_path / "mini/inference/here/tests.workloads.small_objectron.SmallObjectron"
    for scenario in ("SingleStream", "Offline"):
        assert read_json(folder / scenario / "performance/run_1/result.json")["valid"]
        found = read_json(folder / scenario / "accuracy/result.json")
        assert found["quality"] == pytest.approx(1.0) and found["passed"]


def test_the_file_may_also_be_imported(workload, tmp_path, capsys):
    arguments = ["--workload=objectron", f"--from={workload.weights_file}", f"--to={tmp_path}", *OVERRIDES]
    assert import_weights.main(arguments) == 2
    assert "has no preset closed" in capsys.readouterr().err
    assert import_weights.main([*arguments, "--preset=mini"]) == 0
    layout = mesh.single_device_layout()
    imported = trained.from_weights(tmp_path, "objectron").load(workload, layout)
    jax.tree.map(
        np.testing.assert_array_equal, imported, trained.with_the_data(Objectron).load(workload, layout)
    )


def test_a_detector_that_is_gone_or_another_gets_a_sentence(data_dir, workload):
    model = trained.with_the_data(Objectron)
    path = workload.weights_file
    content = path.read_bytes()
    try:
        tflite_detector.write(path)
        with pytest.raises(UserError, match="has shape|have no|more than"):
            model.load(workload, mesh.single_device_layout())
        path.write_bytes(content[:2000])
        with pytest.raises(UserError, match="cannot be read as weights"):
            model.load(workload, mesh.single_device_layout())
        path.unlink()
        with pytest.raises(UserError, match="There is no .*detector.tflite; prepare it again"):
            model.load(workload, mesh.single_device_layout())
    finally:
        path.write_bytes(content)


def test_anchors_are_those_of_mediapipes_options(workload):
    assert workload.anchors.shape == (1917, 4)
    np.testing.assert_allclose(workload.anchors, by_hand.plain_anchors(), rtol=1e-12)


def test_what_was_found_on_the_real_photographs_is_what_was_recorded():
    found = json.loads((by_hand.HERE / "objectron.json").read_text())
    assert found["photographs answered as recorded"] == found["photographs"] == 41
    assert found["from LiteRT, relative"] < 1e-4 and found["from NumPy in float64, relative"] < 1e-4
    animals = {
        name: rows[0][0] for name, rows in found["found"].items() if name.startswith("farm_animals/") and rows
    }
    assert {name: animals[f"farm_animals/{name}"] for name in ("cat", "cow", "dog")} == {
        "cat": "Cat",
        "cow": "Cattle",
        "dog": "Dog",
    }
