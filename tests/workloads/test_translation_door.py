"""Translation through the door: a closed run's log, and the trained toy under LoadGen's scenarios."""

import pytest

from loadgen_py import TestScenario
from mlperf_jax import prepare
from mlperf_jax.results.events import read_events
from mlperf_jax.results.folders import read_json
from tests import door

TOY = ("--workload=tests.toys_translation:WordByWord", "--platform=cpu", "--system=here")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A closed run of a model cut to a layer of width 64, and the toy trained until it translates something.

    Both at the same time; their folders, and how they ended.
    """
    closed, toy = (tmp_path_factory.mktemp(name) for name in ("closed", "toy"))
    assert prepare.main(["--workload=transformer", "--fake=24", f"--data_dir={closed}"]) == 0
    started = {
        closed: door.start(
            closed,
            "--workload=transformer",
            "--platform=cpu",
            "--preset=closed",
            f"--data_dir={closed}",
            "--seed=1",
            "--config.data.fake=24",
            "--config.model.width=64",
            "--config.model.mlp_width=64",
            "--config.model.num_layers=1",
            "--config.batch_size=2",
            "--config.eval_batch_size=4",
            "--config.decode.source_lengths=(32,)",
            "--config.max_epochs=1",
            **door.LIGHTLY,
        ),
        toy: door.start(
            door.ROOT, *TOY, f"--results_dir={toy}", "--seed=1", "--config.max_epochs=8", **door.LIGHTLY
        ),
    }
    return {folder: door.finish(process) for folder, process in started.items()}


def test_closed_on_made_up_data_lacks_nothing_but_the_target(runs):
    """MLPerf's vocabulary and rows of 256 tokens."""
    (closed, ended), _ = runs.items()
    assert ended.returncode == 1, ended.stderr
    assert (
        "Fake WMT17 en-de (random words, not MLPerf's data)" in ended.stdout and "not reached" in ended.stdout
    )
    (log,) = door.logs(closed / "results", "closed")
    complaints = door.complaints(log, "0.7.0")
    assert len(complaints) == 1 and "eval_accuracy" in complaints[0] and "0.2500" in complaints[0], complaints
    events = {event.key: event for event in read_events(log)}
    assert events["max_sequence_length"].value == 256
    assert events["max_sequence_length"].metadata["method"] == "discard"


def test_the_trained_model_serves_in_four_scenarios(runs):
    _, (results, ended) = runs.items()
    assert ended.returncode == 1, ended.stderr  # it has no target that can be reached
    trained = read_json(door.run_folder(results) / "status.json")["quality"]
    assert trained > 0
    ended = door.run(
        door.ROOT,
        *TOY,
        f"--results_dir={results}",
        "--scenario=all",
        "--qps=200",
        "--max_latency=2",
        "--time=0.3",
        **door.LIGHTLY,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    root = results / "mini/inference/here/tests.toys_translation.WordByWord"
    for scenario in TestScenario.__members__:
        performance, accuracy = (
            read_json(root / scenario / kind / "result.json") for kind in ("performance/run_1", "accuracy")
        )
        assert performance["valid"] and performance["passed"] and accuracy["passed"]
        assert accuracy["metric"] == "BLEU" and accuracy["quality"] == pytest.approx(trained, abs=1e-9)
