"""Trees as they are: other depths, missing folders, rubbish, hostile names."""

from __future__ import annotations

import os

import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.rounds import collect
from mlperf_jax.rounds.collect import Reader
from mlperf_jax.rounds.descriptions import category_of, read_system
from tests.reporting import result_trees as trees


def read(*roots):
    results, problems = Reader().read(roots)
    return {(r.submitter, r.system, r.benchmark): r for r in results}, problems


def test_a_published_round(tmp_path):
    results, problems = read(trees.published(tmp_path))
    assert {key: r.score.minutes for key, r in results.items()} == {
        ("Acme", "acme-1", "resnet"): 30.0,
        ("Acme", "acme-2", "resnet"): pytest.approx(30.4),
        ("Acme", "acme-1", "bert"): 5.5,
    }
    one = results["Acme", "acme-1", "resnet"]
    assert (one.round, one.division, one.category, problems) == ("v2.1", "closed", "on premise", [])
    assert one.description.chips == "8 × Some Chip"


def test_v05_with_its_own_depth_and_descriptions(tmp_path):
    base = tmp_path / "v0.5.0" / "google" / "cloud_v2.8" / "resnet-tpuv2-8" / "results" / "tpu"
    nodes = '"nodes": [{"num_nodes": 1, "cpu": "Intel", "accelerator": "tpuv2-8", "num_accelerators": 8}]'
    trees.write(
        base / "entry.json", f'{{"division": "closed", "status": "cloud", "hardware": "tpuv2-8", {nodes}}}'
    )
    for i, minutes in enumerate((300.0, 301.58, 303.16, 200.0, 400.0)):
        trees.write(base / "resnet" / f"result_{i}.txt", trees.v05_run(minutes))
    results, _ = read(tmp_path)
    found = results["google", "tpu", "resnet"]
    assert found.score.minutes == pytest.approx(301.58) and found.round == "v0.5"
    assert found.description.chips == "4 × TPU v2" and found.category == "cloud"


def test_a_benchmarks_folder_may_be_missing_and_logs_have_other_names(tmp_path):
    results = tmp_path / "training_results_v0.7" / "Alibaba" / "results"
    for i in range(5):
        trees.write(results / "v100-256" / f"result_{i}.txt", trees.mllog_run(4.0 + i))
        trees.write(results / "a100-8" / "resnet" / f"20071102520_{i}.log", trees.mllog_run(40.0))
    found, _ = read(tmp_path)
    assert found["Alibaba", "v100-256", "resnet"].score.minutes == 6.0
    assert found["Alibaba", "a100-8", "resnet"].score.minutes == 40.0
    assert found["Alibaba", "a100-8", "resnet"].division == "unknown"


def test_unreadable_files_are_listed_and_nothing_is_fatal(tmp_path):
    trees.published(tmp_path)
    org = tmp_path / "training_results_v2.1" / "Acme"
    trees.write(org / "results" / "acme-1" / "resnet" / "result_5.txt", "no log")
    trees.write(org / "results" / "acme-1" / "resnet" / "scaling.json", "{")
    trees.write(org / "systems" / "acme-1.json", "org: {")
    os.symlink("/etc", org / "results" / "link")
    os.mkfifo(org / "results" / "acme-1" / "resnet" / "result_6.txt")  # must not be waited on
    results, problems = read(tmp_path)
    told = {problem.path.name: problem.reason for problem in problems}
    assert told["result_5.txt"] == "holds no MLPerf log line" and "scaling" in told["scaling.json"]
    assert "not JSON" in told["acme-1.json"] and "link" not in str(problems)
    assert results["Acme", "acme-1", "resnet"].score.minutes == pytest.approx(32.5)  # 29, 30, 31, 40


def test_a_scaled_score_is_told_beside_the_one_of_the_logs(tmp_path):
    trees.published(tmp_path)
    folder = tmp_path / "training_results_v2.1" / "Acme" / "results" / "acme-1" / "resnet"
    trees.write(folder / "scaling.json", '{"scaling_factor": 1.01}')
    results, _ = read(tmp_path)
    assert results["Acme", "acme-1", "resnet"].score.minutes == 30.0
    assert results["Acme", "acme-1", "resnet"].score.normalization == 1.01


def test_runs_of_ours_are_local_labelled_and_apart(tmp_path):
    results, problems = Reader().read([trees.ours(tmp_path)])
    assert problems == []
    closed, mini = sorted(results, key=lambda r: r.mini)
    assert (closed.round, closed.division, closed.score.minutes) == ("local", "closed", 52.0)
    assert closed.labels == ("unverified, not reviewed by MLCommons",)
    assert (
        mini.mini
        and mini.score.reason == "2 of 5 runs"
        and mini.labels[0] == "mini: not MLPerf's data or model"
    )


def test_a_round_that_the_path_does_not_name_is_taken_from_format_or_dates(tmp_path):
    for name, text in (("a", trees.v05_run(1)), ("b", trees.mll_run(1)), ("c", trees.mllog_run(1))):
        trees.write(tmp_path / name / "Acme" / "results" / "s" / "resnet" / "result_0.txt", text)
    for name, round_name in (("a", "v0.5"), ("b", "v0.6"), ("c", "v2.1")):
        assert [r.round for r in Reader().read([tmp_path / name])[0]] == [round_name]


def test_any_folder_of_a_tree_may_be_named(tmp_path):
    org = trees.published(tmp_path) / "training_results_v2.1" / "Acme"
    for root in (org, org / "results", org / "results" / "acme-1", org / "results" / "acme-1" / "resnet"):
        results, _ = read(root)
        assert results["Acme", "acme-1", "resnet"].score.minutes == 30.0, root
    with pytest.raises(UserError, match="is no folder"):
        read(tmp_path / "nowhere")


def test_twice_the_same_is_once(tmp_path):
    trees.published(tmp_path)
    assert len(Reader().read([tmp_path, tmp_path / "training_results_v2.1"])[0]) == 3


def test_a_second_look_reads_only_what_has_changed(tmp_path, monkeypatch):
    trees.published(tmp_path)
    reader = Reader()
    reader.read([tmp_path])
    seen = []
    original = collect.read_run
    monkeypatch.setattr(collect, "read_run", lambda path: seen.append(path.name) or original(path))
    new = tmp_path / "training_results_v2.1" / "Acme" / "results" / "acme-2" / "resnet" / "result_5.txt"
    trees.write(new, trees.mllog_run(30.0))
    reader.read([tmp_path])
    assert seen == ["result_5.txt"]


@pytest.mark.parametrize(
    ("said", "category"),
    [("cloud", "cloud"), ("Available cloud", "cloud"), ("on-premise", "on premise"), ("onprem", "on premise")]
    + [
        ("Available on-premise", "on premise"),
        ("Preview", "preview"),
        ("research", "research"),
        ("R&D", "research"),
    ]
    + [("Research, Development, or Internal (RDI)", "research"), ("RDO", "research"), (None, "unknown")],
)
def test_categories(said, category):
    assert category_of(said) == category


def test_a_description_of_any_shape_is_taken_or_refused(tmp_path):
    odd = '{"nodes": [1, {"num_nodes": "two", "num_accelerators": []}], "status": {"a": 1}, "power": "N/A"}'
    assert read_system(trees.write(tmp_path / "a.json", odd)).accelerators == 0
    many = '{"number_of_nodes": "99999999999999999999", "accelerators_per_node": -3, "framework": ["x"]}'
    assert read_system(trees.write(tmp_path / "b.json", many)).software == ""
    for text in ("[1]", "x", "[" * 100_000, '"a"'):
        with pytest.raises(UserError, match="damaged"):
            read_system(trees.write(tmp_path / "c.json", text))
