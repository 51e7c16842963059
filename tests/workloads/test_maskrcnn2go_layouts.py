"""Mask R-CNN2Go in every layout, in two processes, through the door, and closed on made-up data."""

import functools

import pytest

from mlperf_jax.results.events import read_events
from mlperf_jax.training.engine import named
from tests import agreement, door, pair, toys
from tests.workloads.small_maskrcnn2go import SIZE, SmallPoses

pytest.importorskip("pycocotools")

BATCH, SHAPE = 8, f"{SIZE}x{SIZE}"
# A bias before a batch norm, and that of maps under a softmax, have no gradient but rounding.
FLOOR = 1e-6


@pytest.fixture(scope="module", autouse=True)
def closed_run(tmp_path_factory):
    """A narrow model of three blocks, on made-up images of at most 64 pixels: a folder and a process.

    It starts before the first test, beside which it has a core of its own.
    """
    folder = tmp_path_factory.mktemp("closed")
    cuts = (
        *("data.shorter=64", "data.longest=64", "data.longer=(64,)", "backbone_weights="),
        *("proposals.train.candidates=50", "proposals.eval.candidates=50", "proposals.eval.count=50"),
        *("regions.count=16", "detection.candidates=50", "batch_size=2", "eval_batch_size=1"),
        *("optimizer.base_lr=0.001", "max_epochs=1", "model.stem=8", "model.convs=1", "model.channels=16"),
        *("model.dense=32", "model.stages=((1,8,1,1),(2,8,1,2),(2,8,1,2))", "anchor_sizes=(32,64,128)"),
    )
    process = door.start_closed(folder, "maskrcnn2go", 2, *cuts)
    yield folder, process
    process.kill()


SMALL = functools.cache(lambda: toys.make(SmallPoses, "float64", batch_size=BATCH))
LAYOUTS = agreement.Layouts(lambda strategy: SMALL(), bucket=SHAPE)


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp", "spatial"])
def test_every_strategy_agrees_with_one_device_in_float64(strategy):
    LAYOUTS.agree(strategy, floor=FLOOR)


def test_images_are_split_over_height():
    engine = LAYOUTS.engine("spatial")
    assert tuple(engine.batch["image"].sharding.spec) == ("data", "space")
    assert "collective-permute" in engine.compiled(named("train_step", SHAPE)).as_text()


# Through the door.


POSES = "tests.workloads.small_maskrcnn2go:SmallPoses"
FINDS = ("--config.detection.score=0.0", "--config.target=0.0", "--config.max_epochs=1")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """An epoch of ten steps by two processes: their folder, and the last step and state as they wrote them."""
    folder = tmp_path_factory.mktemp("together")
    flags = (*FINDS, f"--config.batch_size={BATCH}", "--visualize=1")
    return folder, *pair.saved(folder, POSES, LAYOUTS.engine("fsdp"), *flags)


def test_two_processes_agree_with_one(together):
    _, step, found = together
    _, expected = LAYOUTS.trained("fsdp")
    assert step == agreement.STEPS
    agreement.assert_close(found, expected, floor=FLOOR)


def test_what_they_trained_is_drawn_and_served(together):
    folder, _, _ = together
    assert [p.name for p in (door.run_folder(folder / "results") / "pictures").iterdir()] == ["000.png"]
    run = (f"--workload={POSES}", "--platform=cpu", "--config.precision=float64", *FINDS)
    served = door.run(
        folder, *run, "--scenario=Server", "--qps=20", "--time=0.5", "--mode=accuracy", **door.LIGHTLY
    )
    assert served.returncode in (0, 1), served.stdout + served.stderr
    assert "keypoint AP at OKS .5" in served.stdout, served.stdout


def test_the_checker_has_no_complaint_of_a_closed_run_on_made_up_data(closed_run):
    """No ruleset has the benchmark: its runs are of the open division, and are judged as those of `ssd`, a detector on COCO
    with one figure; the log has what the recipe says.
    """
    folder, process = closed_run
    ended = door.finish(process)
    assert ended.returncode == 1 and "not reached" in ended.stdout, ended.stderr
    (log,) = door.logs(folder / "results", "closed")
    events = read_events(log)
    assert door.values(events, "submission_division") == ["open"]
    assert door.values(events, "quality_target") == [0.3556]
    assert door.values(events, "num_image_candidates") == [1000]
    assert door.values(events, "opt_learning_rate_training_steps") == [450_000]
    assert door.complaints_as(log, "ssd", "1.1.0") == []
