"""MobileNet and ShuffleNet as workloads: every layout against one device, closed runs on made-up data."""

import functools

import pytest

from mlperf_jax.config import base_config
from mlperf_jax.results.events import read_events
from tests import door, pair, toys
from tests.agreement import Layouts, assert_close
from tests.workloads.small_mobile import SmallMobileNet, SmallShuffleNet, SmallShuffleNetV1

BATCH, EPOCH = 8, 13


@pytest.fixture(scope="module", autouse=True)
def closed_runs(tmp_path_factory):
    """Closed runs of the whole networks at 224 x 224, cut in batch and epochs: folders and processes.

    They start before the first test, beside which they have a core of their own.
    """
    cuts = ("batch_size=4", "eval_batch_size=1", "model.bn_span=2", "eval_every_epochs=1")
    started = {}
    for workload in ("mobilenet", "shufflenet"):
        folder = tmp_path_factory.mktemp(workload)
        more = (*cuts, "eval_offset_epochs=1", "max_epochs=1")
        started[workload] = folder, door.start_closed(folder, workload, 8, *more)
    yield started
    for _, process in started.values():
        process.kill()


@functools.cache
def layouts(cls):
    return Layouts(lambda strategy: toys.make(cls, "float64", batch_size=BATCH))


@pytest.mark.parametrize("strategy", ["dp", "zero1", "fsdp", "tp", "fsdp_tp", "spatial"])
@pytest.mark.parametrize("cls", [SmallMobileNet, SmallShuffleNet])
def test_ten_steps_agree_with_one_device_in_float64(cls, strategy):
    layouts(cls).agree(strategy, floor=1e-6)


def test_grouped_products_agree_too():
    layouts(SmallShuffleNetV1).agree("fsdp_tp", floor=1e-6)


def test_two_processes_agree_with_one(tmp_path):
    """An epoch, and the state at its end as the two wrote it."""
    one = layouts(SmallMobileNet)
    small = "tests.workloads.small_mobile:SmallMobileNet"
    step, found = pair.saved(tmp_path, small, one.engine("fsdp"), "--config.target=0.0")
    losses, expected = one.trained("fsdp", EPOCH)
    assert step == EPOCH == len(losses)
    assert_close(found, expected, floor=1e-6)


SCHEDULE = ("end_learning_rate", "learning_rate_decay_poly_power", "learning_rate_decay_steps")


@pytest.mark.parametrize(
    ("workload", "of_resnets_own"),
    [("mobilenet", ["weight_decay", *SCHEDULE]), ("shufflenet", ["end_learning_rate", "weight_decay"])],
)
def test_what_the_checker_says_of_closed_runs_on_made_up_data(workload, of_resnets_own, closed_runs):
    """Training never had these benchmarks, and no ruleset has their names: their runs are of the open division, judged as
    those of its `resnet`, whose data and phases they share. Closed it asks for ResNet's schedule and target besides.
    """
    folder, process = closed_runs[workload]
    ended = door.finish(process)
    assert ended.returncode == 1 and "not reached" in ended.stdout, ended.stderr
    (log,) = door.logs(folder / "results", "closed")
    events = read_events(log)
    assert door.values(events, "submission_benchmark") == [workload]
    assert door.values(events, "opt_name") == ["sgd"] and door.values(events, "global_batch_size") == [4]
    assert door.values(events, "quality_target") == [base_config(workload, "closed").target]
    assert door.values(events, "train_samples") == [8] and door.values(events, "eval_samples") == [1]

    def complaints(division):
        told = log.read_text().replace(f'"value": "{workload}"', '"value": "resnet"')
        (folder / division).write_text(told.replace('"value": "open"', f'"value": "{division}"'))
        return door.complaints(folder / division, "4.0.0")

    assert door.values(events, "submission_division") == ["open"]
    assert complaints("open") == []
    for line, key in zip(complaints("closed"), [*of_resnets_own, "eval_accuracy"], strict=True):
        assert f"opt_{key}'" in line or f"{key} : v['value'] >= 0.7590" in line, line
