"""The closed Mask R-CNN2Go, cut to a block and 32 pixels, on made-up images: in every layout, in two processes, served."""

import functools

import pytest

from configs.maskrcnn2go import get_config
from mlperf_jax import prepare
from mlperf_jax.config import resolve
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.events import read_events
from mlperf_jax.training.engine import named
from mlperf_jax.workloads.pose_estimation import PoseEstimation
from tests import agreement, door, pair
from tests.workloads.small_maskrcnn import SIZE
from tests.workloads.small_maskrcnn2go import NUMBERS

pytest.importorskip("pycocotools")

BATCH, SHAPE = 4, f"{SIZE}x{SIZE}"
FAKE = agreement.STEPS * BATCH
CUTS = tuple(
    f"--config.{name}={value}"
    for name, value in {
        **NUMBERS,
        "data.fake": FAKE,
        "data.max_boxes": 30,
        "backbone_weights": "",
        "detection.score": 0.0,
        "batch_size": BATCH,
        "max_epochs": 1,
    }.items()
)
# A bias before a batch norm, and that of maps under a softmax, have no gradient but rounding.
FLOOR = 1e-6


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    assert prepare.main(["--workload=maskrcnn2go", f"--data_dir={folder}", f"--fake={FAKE}"]) == 0
    return folder


@pytest.fixture(scope="module")
def layouts(data_dir):
    @functools.cache
    def small():
        config = resolve(get_config("closed"), CUTS)
        return PoseEstimation(config, POLICIES["float64"], data_dir=data_dir)

    return agreement.Layouts(lambda strategy: small(), bucket=SHAPE)


@pytest.mark.parametrize("strategy", ["dp", "zero1", "tp", "fsdp_tp", "spatial"])
def test_every_strategy_agrees_with_one_device_in_float64(strategy, layouts):
    """But for fsdp, under which two processes train."""
    layouts.agree(strategy, floor=FLOOR)


def test_images_are_split_over_height(layouts):
    engine = layouts.engine("spatial")
    assert tuple(engine.batch["image"].sharding.spec) == ("data", "space")
    assert "collective-permute" in engine.compiled(named("train_step", SHAPE)).as_text()


# Through the door.


@pytest.fixture(scope="module")
def together(tmp_path_factory, data_dir, layouts):
    """An epoch of ten steps by two processes: their folder, and the last step and state as they wrote them."""
    folder = tmp_path_factory.mktemp("together")
    flags = (f"--data_dir={data_dir}", *CUTS, "--visualize=1")
    return folder, *pair.saved(
        folder, "maskrcnn2go", layouts.places("fsdp"), *flags, preset="closed", status=1
    )


def test_two_processes_agree_with_one(together, layouts):
    _, step, found = together
    _, expected = layouts.trained(None)
    assert step == agreement.STEPS
    agreement.assert_close(found, expected, floor=FLOOR)


def test_the_checker_has_no_complaint_of_what_they_logged(together):
    """No ruleset has the benchmark: its runs are of the open division, and are judged as those of `ssd`, a detector on COCO
    with one figure; the log has what the recipe says.
    """
    folder, _, _ = together
    (log,) = door.logs(folder / "results", "closed")
    events = read_events(log)
    assert door.values(events, "submission_division") == ["open"]
    assert door.values(events, "quality_target") == [0.3556]
    assert door.values(events, "num_image_candidates") == [12]
    assert door.values(events, "opt_learning_rate_training_steps") == [450_000]
    assert door.complaints_as(log, "ssd", "1.1.0") == []


def test_what_they_trained_is_drawn_and_served(together, data_dir):
    folder, _, _ = together
    pictures = door.run_folder(folder / "results", preset="closed") / "pictures"
    assert [p.name for p in pictures.iterdir()] == ["000.png"]
    run = ("--workload=maskrcnn2go", "--preset=closed", "--platform=cpu", f"--data_dir={data_dir}", *CUTS)
    asked = ("--config.precision=float64", "--scenario=Server", "--qps=20", "--time=0.5", "--mode=accuracy")
    served = door.run(folder, *run, *asked, **door.LIGHTLY)
    assert served.returncode in (0, 1), served.stdout + served.stderr
    assert "keypoint AP" in served.stdout, served.stdout
