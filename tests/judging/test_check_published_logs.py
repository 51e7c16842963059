"""What published rounds do rightly is no finding; the same done wrongly is. Logs are cut from the rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlperf_jax import check
from mlperf_jax.judging import official
from mlperf_jax.judging.tree import judge_tree

_START = 1_620_000_000_000
_UNET, _SSD, _BERT, _RESNET = 0.95, 0.25, 0.73, 0.77


def event(key, value=None, ms=0, **metadata):
    return {"key": key, "value": value, "time_ms": _START + ms, "metadata": metadata}


def log(benchmark, batch, evaluated, quality, train=None, name="epoch_num", before=(), after=()):
    """A log that evaluates where `evaluated` says, each as (epochs or samples) or (those, milliseconds)."""
    told = [at if isinstance(at, tuple) else (at, 1000 * (i + 1)) for i, at in enumerate(evaluated)]
    end = 1000 * (len(told) + 2)
    return [
        event("submission_benchmark", benchmark),
        event("submission_division", "closed"),
        event("global_batch_size", batch),
        *([event("train_samples", train)] if train else []),
        event("seed", 7),
        event("run_start"),
        *before,
        *(event("eval_accuracy", quality, ms, **{name: at}) for at, ms in told),
        *after,
        event("run_stop", None, end, status="success"),
    ]


def findings(tmp_path: Path, round_name, benchmark, events, *rules):
    folder = tmp_path / f"training_results_{round_name}" / "acme" / "results" / "box" / benchmark
    folder.mkdir(parents=True)
    lines = [":::MLLOG " + json.dumps(one) for one in events]
    (folder / "result_0.txt").write_text("\n".join(lines) + "\n")
    report = judge_tree(tmp_path / f"training_results_{round_name}")
    return [f for f in report.findings if f.rule in rules]


RIGHT = {
    "unet, the last batch padded": ("v1.0", log("unet3d", 32, [875, 893, 911], _UNET, 168)),
    "unet, the last batch dropped": ("v1.0", log("unet3d", 32, [1050, 1071], _UNET, 168)),
    "unet, batches over epochs": ("v2.0", log("unet3d", 48, [1000, 1020, 1040], _UNET, 168)),
    "unet, padded in v1.0": ("v1.0", log("unet3d", 80, [700, 714, 728], _UNET, 168)),
    "unet by samples": ("v3.1", log("unet3d", 56, [168_000, 171_360], _UNET, 168, "samples_count")),
    "unet by samples under another name": ("v3.1", log("unet3d", 56, [168_000, 171_360], _UNET, 168)),
    "unet by padded samples": ("v3.1", log("unet3d", 32, [168_000, 171_456], _UNET, 168, "samples_count")),
    "ssd as the reference": ("v1.0", log("ssd", 912, range(5, 55, 5), _SSD, 117_266)),
    "ssd as the table": ("v1.0", log("ssd", 912, [40, 50, 55], _SSD, 117_266)),
    "ssd in whole steps": ("v0.7", log("ssd", 4096, [5, 10, 15, 20, 25, 31, 36, 41], _SSD, 118_287)),
    "ssd, epochs counted from one": (
        "v0.7",
        log(
            "ssd",
            912,
            [41, 51],
            _SSD,
            117_266,
            before=[
                event("block_start", None, 0, first_epoch_num=1, epoch_count=40),
                event("block_start", None, 900, first_epoch_num=41, epoch_count=10),
            ],
        ),
    ),
    "ssd evaluated beside training": (
        "v1.0",
        log(
            "ssd",
            2048,
            [(5, 1000), (15, 2000), (10, 2500), (25, 3000)],
            _SSD,
            118_287,
            before=[event("eval_start", None, 0, epoch_num=at) for at in (5, 10, 15, 20, 25, 30)],
        ),
    ),
    "bert, all called epoch 1": (
        "v1.0",
        log(
            "bert",
            448,
            [(1, 1000 * i) for i in range(1, 21)],
            _BERT,
            after=[event("train_samples", 3_000_256, 21_000)],
        ),
    ),
    "bert, all called epoch 1, trained on past the last": (
        "v1.1",
        log(
            "bert",
            6144,
            [(1, 1000 * i) for i in range(1, 13)],
            _BERT,
            after=[event("train_samples", 2_703_360, 13_000)],
        ),
    ),
    "bert before the first step": ("v1.0", log("bert", 4096, [0, 176_128, 352_256], _BERT, 2_994_176)),
    "bert in steps of its batch": ("v1.0", log("bert", 6144, [202_752, 405_504], _BERT, 4_300_800)),
    "bert more often": ("v1.0", log("bert", 256, [100_096, 200_192, 300_032], _BERT, 3_000_064)),
    "dlrm by the numbers of its evaluations": (
        "v0.7",
        log("dlrm", 65_536, range(1, 20), 0.81, 4_195_197_692),
    ),
    "resnet from nought": ("v1.0", log("resnet", 2560, [0, 1, 5, 9], _RESNET, 1_281_167)),
    "resnet once more often": ("v1.0", log("resnet", 8192, [3, 6, 10, 14], _RESNET, 1_281_167)),
}
WRONG = {
    "two evaluations change places": ("v1.0", log("resnet", 4096, [4, 12, 8, 16], _RESNET, 1_281_167)),
    "unet at another distance": ("v1.0", log("unet3d", 32, [875, 894, 912], _UNET, 168)),
    "unet too early": ("v1.0", log("unet3d", 56, [980, 1000, 1020], _UNET, 168)),
    "unet too late": ("v1.0", log("unet3d", 56, [1001, 1021], _UNET, 168)),
    "unet twice as often": ("v1.0", log("unet3d", 56, [1000, 1010, 1020], _UNET, 168)),
    "unet half as often": ("v2.1", log("unet3d", 56, [1000, 1040], _UNET, 168)),
    "unet by samples, one left out": (
        "v3.1",
        log("unet3d", 56, [168_000, 174_720], _UNET, 168, "samples_count"),
    ),
    "unet, first as if padded, then not": ("v1.0", log("unet3d", 32, [875, 896], _UNET, 168)),
    "unet of a batch above the data": ("v1.0", log("unet3d", 200, [900, 917], _UNET, 168)),
    "ssd without 50": ("v1.0", log("ssd", 912, [40, 55], _SSD, 117_266)),
    "ssd as the older table": ("v1.1", log("ssd", 912, [40, 50, 55], _SSD, 117_266)),
    "ssd beside training, one never begun": (
        "v1.0",
        log(
            "ssd",
            2048,
            [(40, 1000), (55, 2000), (45, 2500), (60, 3000)],
            _SSD,
            118_287,
            before=[event("eval_start", None, 0, epoch_num=at) for at in (40, 45, 55, 60)],
        ),
    ),
    "bert half as often": (
        "v1.0",
        log(
            "bert",
            448,
            [(1, 1000 * i) for i in range(1, 11)],
            _BERT,
            after=[event("train_samples", 3_000_256, 11_000)],
        ),
    ),
    "bert too late": ("v1.0", log("bert", 4096, [176_128, 528_384], _BERT, 2_994_176)),
    "bert more often later on": ("v1.1", log("bert", 256, [100_096, 200_192, 300_032], _BERT, 3_000_064)),
    "dlrm half as often": ("v2.0", log("dlrm", 65_536, [1.05, 1.15, 1.25], 0.81, 4_195_197_692)),
    "resnet too late": ("v1.0", log("resnet", 2560, [3, 8, 12], _RESNET, 1_281_167)),
    "resnet once more often later on": ("v2.0", log("resnet", 8192, [3, 6, 10, 14], _RESNET, 1_281_167)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_schedule_of_the_rules_is_no_finding(tmp_path, name):
    round_name, events = RIGHT[name]
    assert findings(tmp_path, round_name, events[0]["value"], events, "evaluation-schedule") == []


@pytest.mark.parametrize("name", WRONG)
def test_another_schedule_is_found(tmp_path, name):
    round_name, events = WRONG[name]
    found = findings(tmp_path, round_name, events[0]["value"], events, "evaluation-schedule")
    assert found and all(f.severity == "error" and "the rules evaluate" in f.text for f in found)


@pytest.mark.parametrize(
    ("round_name", "severity"), [("v1.0", "warning"), ("v4.0", "warning"), ("v4.1", "error")]
)
def test_seeds_are_wanted_from_v41_on(tmp_path, round_name, severity):
    events = [e for e in log("bert", 448, [150_000], _BERT) if e["key"] != "seed"]
    found = findings(tmp_path, round_name, "bert", events, "seed")
    assert [f.severity for f in found] == [severity]


def test_names_and_hyperparameters_may_be_logged_whenever_that_suits(tmp_path):
    late = [{**event("submission_org", "acme"), "time_ms": 0}, {**event("lars_epsilon", 0), "time_ms": 0}]
    events = [*log("resnet", 4096, [4, 8], _RESNET, 1_281_167), *late]
    assert findings(tmp_path, "v1.0", "resnet", events, "time-backwards") == []


@pytest.mark.parametrize(("benchmark", "wrong"), [("bert", False), ("rnnt", True)])
def test_bert_may_be_evaluated_after_the_run(tmp_path, benchmark, wrong):
    blocks = [event("block_start", None, ms, first_epoch_num=1) for ms in (0, 2000, 4000, 6000)]
    at = [(150_080 * i, 500 + 2000 * i) for i in (1, 2, 3)]
    events = log(benchmark, 448, at, _BERT, before=blocks)
    events[-1]["time_ms"] = _START + 6500
    assert bool(findings(tmp_path, "v2.1", benchmark, events, "time-backwards")) == wrong
    swapped = log(benchmark, 448, [(150_080, 7000), (300_160, 2500)], _BERT)
    assert findings(tmp_path / "swapped", "v2.1", benchmark, swapped, "time-backwards")


def test_every_process_may_begin_when_it_gets_there(tmp_path):
    begun = [event("init_start", None, ms) for ms in (5000, 0, 3000, 9000, 100)]
    events = [*begun, *log("resnet", 4096, [4, 8], _RESNET, 1_281_167)]
    for one in events[len(begun) :]:
        one["time_ms"] += 10_000
    assert findings(tmp_path, "v2.1", "resnet", events, "time-backwards") == []


@pytest.mark.parametrize("key", ["seed", "run_start", "eval_accuracy", "submission_benchmark"])
def test_one_time_that_is_far_ahead_is_one_finding(tmp_path, key):
    events = log("resnet", 4096, range(4, 84, 4), _RESNET, 1_281_167)
    at = next(i for i, e in enumerate(events) if e["key"] == key)
    events[at]["time_ms"] = 2**64 / 1e6  # milliseconds, of the largest count of nanoseconds
    (found,) = findings(tmp_path, "v1.0", "resnet", events, "time-backwards", "evaluated-after-stop")
    assert found.line == at + 1 and key in found.text


def test_mask_r_cnn_that_logs_iterations_for_samples(tmp_path):
    for train, evaluated, severity in ((40_000, 1, "warning"), (40_000, 5000, "error")):
        events = log("maskrcnn", 96, [1, 2], 0.4, train, before=[event("eval_samples", evaluated)])
        found = findings(tmp_path / str(evaluated), "v1.0", "maskrcnn", events, "count")
        assert {f.severity for f in found} == {severity}


def test_a_run_that_was_aborted_by_another_word(tmp_path):
    events = log("unet3d", 56, [1000, 1020], 0.5, 168)
    events[-1]["metadata"]["status"] = "abort"
    found = findings(tmp_path, "v1.0", "unet3d", events, "official-1.0.0")
    assert [f.severity for f in found if "eval_accuracy" in f.text] == ["warning"]


@pytest.mark.parametrize(("trained", "fast"), [(2_600_192, False), (2_300_032, True)])
def test_bert_converges_by_its_train_samples_where_all_is_epoch_1(tmp_path, trained, fast):
    """The reference point of batch 448 in v1.0 lets pass 2,410,606 samples."""
    from mlperf_logging.rcp_checker import rcp_checker

    events = log("bert", 448, [(1, 1000), (1, 2000)], _BERT, after=[event("train_samples", trained, 3000)])
    findings(tmp_path, "v1.0", "bert", events)
    folder = tmp_path / "training_results_v1.0/acme/results/box/bert"
    for i in range(1, 10):
        (folder / f"result_{i}.txt").write_bytes((folder / "result_0.txt").read_bytes())
    found = [f.text for f in judge_tree(tmp_path).findings if f.rule == "reference-convergence"]
    assert bool(found) == fast and all(f"{trained:,}" in text for text in found)
    passed, *_ = rcp_checker.check_directory(
        str(folder), "training", "1.0.0", False, True, rcp_pass="pruned_rcps"
    )
    assert passed != fast


def test_what_repeats_itself_is_told_once(tmp_path, capsys):
    events = log("unet3d", 56, range(1000, 2000, 10), _UNET, 168)
    root = tmp_path / "training_results_v1.0"
    (found,) = findings(tmp_path, "v1.0", "unet3d", events, "evaluation-schedule")
    first = next(i for i, e in enumerate(events, 1) if e["metadata"].get("epoch_num") == 1010)
    assert found.line == first and found.also == tuple(range(first + 1, first + 99))
    folder = root / "acme/results/box/unet3d"
    for i in range(1, 8):
        (folder / f"result_{i}.txt").write_bytes((folder / "result_0.txt").read_bytes())
    assert check.main([str(root)]) == 1
    told = capsys.readouterr().out.splitlines()
    at = [i for i, line in enumerate(told) if "[evaluation-schedule]" in line]
    assert len(at) == 1 and f"result_0.txt:{first}: error" in told[at[0]]
    assert told[at[0] + 1].strip() == (
        f"So it is at 791 other places: in line {first + 1}, {first + 2}, {first + 3} and 95 more; "
        f"in result_1.txt:{first}, result_2.txt:{first}, result_3.txt:{first}, result_4.txt:{first} and 3 more."
    )
    check.main([str(root), "--json"])
    kept = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["rule"] == "evaluation-schedule"]
    assert len(kept) == 8 and all(len(f["also"]) == 98 for f in kept)


@pytest.mark.parametrize("ruleset", official.rulesets())
def test_lines_are_parsed_as_the_official_parser_does(tmp_path, ruleset):
    from mlperf_logging.compliance_checker import mlp_parser

    v06 = ':::MLL 1558636062.045 run_stop: {"value": null, "metadata": {"status": "success"}}'
    v07 = ':::MLLOG {"key": "run_stop", "time_ms": 1594412166346, "value": 1, "metadata": {"status": "success"}}'
    path = tmp_path / "result_0.txt"
    path.write_text(
        "\n".join(
            [f"0: {v06}", "else", f"{v07} {v07}", v07, f"  {v07}  ", ":::MLLOG {", ":::MLL x", f"{v06}é"]
        ),
        encoding="utf-8",
    )
    lines, numbers, damaged = official.parse(path, ruleset)
    wanted, failed = mlp_parser.parse_file(str(path), ruleset=ruleset)
    assert lines == wanted and [why for _, why in damaged] == [why for _, why in failed]
    text = path.read_text(encoding="latin-1").splitlines()
    assert all(line.full_string.strip() in text[numbers[line.lineno] - 1] for line in lines)
