"""Runs of our own are judged by what their folders say too."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlperf_jax.judging import own_training
from mlperf_jax.judging.tree import judge_tree
from mlperf_jax.results.events import run_labels
from mlperf_jax.rounds.collect import Reader
from mlperf_jax.training.progress import _tensorboard
from tests.judging import planted_training as planted
from tests.judging.planted_training import index, of

BATCH, TRAIN, EVALUATED, TARGET = 100, 1000, 200, 0.9
CONFIG = {
    "batch_size": BATCH,
    "gradient_accumulation_steps": 1,
    "target": TARGET,
    "eval_every_epochs": 1,
    "eval_offset_epochs": 1,
    "data_description": "Fashion-MNIST, 1,000 train and 200 eval images",
}


def own_run(seed: int) -> list[dict]:
    """A mini run of three epochs, with what only our logs hold."""
    events = planted.clean_run("resnet", seed, division="open", minutes=1.0)
    changed = {
        "global_batch_size": BATCH,
        "train_samples": TRAIN,
        "eval_samples": EVALUATED,
    }
    for event in events:
        event["value"] = changed.get(event["key"], event["value"])
    start = next(i for i, event in enumerate(events) if event["key"] == "run_start")
    head, stop = events[: start + 1], events[-1]
    like = events[0]

    def say(key, time_ms, value=None, **metadata):
        head.append(
            {
                **like,
                "key": key,
                "time_ms": time_ms,
                "value": value,
                "metadata": {**metadata, "file": "a", "lineno": 1},
            }
        )

    at = head[-1]["time_ms"]
    for epoch in (1, 2, 3):
        block = {"first_epoch_num": float(epoch), "epoch_count": 1.0}
        say("block_start", at + 1, **block)
        told = {"throughput": 50.0, "samples": TRAIN, "seconds": 15.0, "input_wait_seconds": 0.1}
        say("tracked_stats", at + 15_000, told, step=10 * epoch)
        say("block_stop", at + 15_001, **block)
        say("eval_start", at + 15_002, epoch_num=float(epoch))
        say("eval_accuracy", at + 16_000, 0.6 + 0.11 * epoch, epoch_num=float(epoch))
        say("eval_stop", at + 16_001, epoch_num=float(epoch))
        at += 17_000
    head.append({**stop, "time_ms": at})
    for i, (key, value) in enumerate({"run_labels": run_labels("mini"), "quality_target": TARGET}.items()):
        head.insert(2 + i, {**head[1], "key": key, "value": value})
    return head


def write(
    root: Path, logs: dict[str, list[dict]], seeds: list[int], config=CONFIG, state="success", **status
) -> None:
    planted.write_tree(root / "mini", "resnet", logs, division="open")
    (root / "mini" / "systems").rename(root / "systems")
    for i, seed in enumerate(seeds):
        folder = root / "mini" / "runs" / "acme-1" / "resnet" / f"run_{i}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"schema_version": 1, "config": config, "seed": seed}))
        told = {"schema_version": 1, "state": state, "seed": seed, **status}
        (folder / "status.json").write_text(json.dumps(told))


SEEDS = [1, 2, 3, 4, 5]


def clean() -> dict[str, list[dict]]:
    return {f"result_{i}.txt": own_run(seed) for i, seed in enumerate(SEEDS)}


def judged(root: Path, logs, **kwargs):
    root.mkdir(exist_ok=True)
    write(root, logs, SEEDS, **kwargs)
    return judge_tree(root)


def test_clean_runs_of_ours_are_clean(tmp_path):
    assert judged(tmp_path, clean()).findings == ()


def draw(root: Path, logs: dict[str, list[dict]]) -> None:
    """TensorBoard's curves of the evaluations in `logs`."""
    proto, summary, writer_of = _tensorboard()
    for i, events in enumerate(logs.values()):
        folder = root / "mini" / "runs" / "acme-1" / "resnet" / f"run_{i}" / "tensorboard"
        folder.mkdir(parents=True)
        writer = writer_of(str(folder / "events"))
        for event in events:
            if event["key"] == "eval_accuracy":
                for tag, value in (("eval/loss", 0.5), ("eval/quality", event["value"])):
                    writer.write_event(
                        proto.Event(
                            step=round(10 * event["metadata"]["epoch_num"]),
                            wall_time=event["time_ms"] / 1e3,
                            summary=summary(value=[summary.Value(tag=tag, simple_value=value)]),
                        )
                    )
        writer.flush()


def found_in(root: Path, rule: str) -> set[str]:
    """Keys of the events of result_0.txt at whose lines errors of a rule are found; only there may they be."""
    found = [f for f in judge_tree(root).findings if f.rule == rule]
    assert {(f.path.name, f.severity) for f in found} <= {("result_0.txt", "error")}
    lines = (root / "mini" / "results" / "acme-1" / "resnet" / "result_0.txt").read_text().splitlines()
    return {json.loads(lines[f.line - 1].removeprefix(":::MLLOG "))["key"] if f.line else "" for f in found}


def test_clean_runs_with_all_that_they_leave_are_clean(tmp_path):
    write(tmp_path, clean(), SEEDS, quality=0.6 + 0.11 * 3)
    draw(tmp_path, clean())
    assert judge_tree(tmp_path).findings == ()


def _raised(events):
    for event in events:
        if event["key"] == "eval_accuracy":
            event["value"] += 0.05


def _halved(events):
    start = of(events, "run_start")["time_ms"]
    for event in events[index(events, "run_start") :]:
        event["time_ms"] = start + (event["time_ms"] - start) // 2


def _halved_with_its_seconds(events):
    _halved(events)
    for event in events:
        if event["key"] == "tracked_stats":
            event["value"]["seconds"] /= 2


def _evaluation_lost(events):
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        events.pop(index(events, key))


def test_accuracies_raised_against_the_status(tmp_path):
    write(tmp_path, planted.spoiled(clean(), _raised), SEEDS, quality=0.6 + 0.11 * 3)
    assert found_in(tmp_path, "quality") == {"eval_accuracy"}


@pytest.mark.parametrize(
    ("change", "rule", "key"),
    [
        (_raised, "quality", "eval_accuracy"),
        (_evaluation_lost, "quality", "run_stop"),
        (_halved_with_its_seconds, "time", "eval_accuracy"),
    ],
)
def test_a_log_against_its_curves(tmp_path, change, rule, key):
    write(tmp_path, planted.spoiled(clean(), change), SEEDS)
    assert found_in(tmp_path, rule) == set()
    draw(tmp_path, clean())
    assert found_in(tmp_path, rule) == {key}


def test_a_halved_log_has_no_score(tmp_path):
    write(tmp_path, planted.spoiled(clean(), _halved), SEEDS)
    (result,), _ = Reader().read([tmp_path])
    assert result.score.minutes is None and result.score.converged == 4
    assert any("result_0.txt ran under a clock" in remark for remark in result.score.remarks)


def test_a_clock_that_was_set_back_is_no_edit(tmp_path):
    def set_back(events):
        at = index(events, "tracked_stats", 1)
        for event in events[at:]:
            event["time_ms"] -= 9_000
        moved = {**events[at], "key": "clock_moved", "value": -9.0, "metadata": {"file": "a", "lineno": 1}}
        events.insert(at, moved)

    write(tmp_path, planted.spoiled(clean(), set_back), SEEDS)
    assert found_in(tmp_path, "time") == set()


def test_a_log_cut_under_its_target_with_the_target_taken_out(tmp_path):
    def cut(events):
        del events[index(events, "block_start", 2) : -1]
        events.pop(index(events, "quality_target"))
        of(events, "eval_accuracy", 1)["value"] = 0.7

    write(tmp_path, planted.spoiled(clean(), cut), SEEDS, config={})
    assert found_in(tmp_path, "missing-key") == {""}
    assert found_in(tmp_path, "under-target") == {"run_stop"}


@pytest.mark.parametrize("key", [*own_training._ALWAYS, *own_training._IN_SUCCESS])
def test_what_ours_always_log_is_missed(tmp_path, key):
    gone = [event for event in own_run(1) if event["key"] != key]
    write(tmp_path, {**clean(), "result_0.txt": gone}, SEEDS)
    told = [
        f.text for f in judge_tree(tmp_path).findings if f.rule == "missing-key" and f.severity == "error"
    ]
    assert told == [f"{key} is not logged, which every run of ours logs."]


def _value(key, value, at=0):
    return lambda events: of(events, key, at).update(value=value)


def _meta(key, at=0, **metadata):
    return lambda events: of(events, key, at)["metadata"].update(metadata)


def _stats(at, **told):
    return lambda events: of(events, "tracked_stats", at)["value"].update(told)


def _evaluation_moved(events):
    for key in ("eval_start", "eval_accuracy", "eval_stop"):
        of(events, key, 1)["metadata"]["epoch_num"] = 2.5


def _stopped_early(events):
    of(events, "run_stop")["time_ms"] -= 20_000


# name -> (change, rule, key of the event at whose line it must be found)
PLANTS = {
    "a batch size that it had not": (_value("global_batch_size", 256), "count", "global_batch_size"),
    "more data than it had": (_value("train_samples", 60_000), "count", "train_samples"),
    "more evaluated than it had": (_value("eval_samples", 10_000), "count", "eval_samples"),
    "another seed than it had": (_value("seed", 77), "count", "seed"),
    "another target than it had": (_value("quality_target", 0.5), "count", "quality_target"),
    "another accumulation": (
        _value("gradient_accumulation_steps", 4),
        "count",
        "gradient_accumulation_steps",
    ),
    "every time after its start halved": (_halved, "time", "tracked_stats"),
    "stopped before its blocks ended": (_stopped_early, "time", "run_stop"),
    "another system's": (_value("submission_platform", "acme-2"), "count", "submission_platform"),
    "aborted, and logged as success": (_meta("run_stop", status="aborted"), "count", "run_stop"),
    "a block left out": (_meta("block_start", 1, first_epoch_num=2.5), "samples", "block_start"),
    "a block counted twice": (_meta("block_start", 2, first_epoch_num=2.0), "samples", "block_start"),
    "fewer samples than steps": (_stats(1, samples=900), "samples", "tracked_stats"),
    "evaluated when it was not": (_evaluation_moved, "evaluation-schedule", "eval_accuracy"),
    "a word that the official checker takes for another": (
        _value("tracked_stats", {"throughput": 1, "samples": TRAIN, "train_samples": 1}, 1),
        "official-rcp-words",
        "tracked_stats",
    ),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_defect_is_found(tmp_path, name):
    change, rule, key = PLANTS[name]
    logs = planted.spoiled(clean(), change)
    found = [f for f in judged(tmp_path, logs).findings if f.rule == rule and f.line]
    lines = (tmp_path / "mini" / "results" / "acme-1" / "resnet" / "result_0.txt").read_text().splitlines()
    assert key in {json.loads(lines[f.line - 1].removeprefix(":::MLLOG "))["key"] for f in found}
    assert {f.path.name for f in found} == {"result_0.txt"}


def test_a_resumed_mini_run_is_a_warning(tmp_path):
    def resume(events):
        at = index(events, "eval_stop", 1)
        events.insert(at + 1, {**events[at], "key": "resumed"})

    report = judged(tmp_path, planted.spoiled(clean(), resume))
    assert {(f.rule, f.severity) for f in report.findings} == {("resumed", "warning"), ("runs", "warning")}


def test_mini_in_closed_is_an_error(tmp_path):
    logs = {
        name: [{**e, "value": "closed"} if e["key"] == "submission_division" else e for e in events]
        for name, events in clean().items()
    }
    assert "made-up-data" in {f.rule for f in judged(tmp_path, logs).findings if f.severity == "error"}


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_line_can_be_taken_away_unseen(tmp_path_factory, data):
    logs = clean()
    events = logs["result_0.txt"]
    free = ("lars_", "opt_", "model_bn_span")  # hyperparameters in open
    places = [i for i, e in enumerate(events) if not e["key"].startswith(free)]
    at = data.draw(st.sampled_from(places))
    gone = copy.deepcopy(events)
    del gone[at]
    report = judged(tmp_path_factory.mktemp("gone"), {**logs, "result_0.txt": gone})
    assert [f for f in report.findings if f.path.name == "result_0.txt" or f.path.name == "resnet"], events[
        at
    ]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_time_can_run_backwards_unseen(tmp_path_factory, data):
    logs = clean()
    events = copy.deepcopy(logs["result_0.txt"])
    at = data.draw(st.integers(1, len(events) - 1))
    back = data.draw(st.integers(1_001, 10_000_000))
    events[at]["time_ms"] = max(e["time_ms"] for e in events[:at]) - back
    report = judged(tmp_path_factory.mktemp("back"), {**logs, "result_0.txt": events})
    assert ("time-backwards", at + 1) in {(f.rule, f.line) for f in report.findings}
