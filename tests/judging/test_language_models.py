"""What the official checker leaves open of closed language models: fixed hyperparameters, and where the losses lie."""

import json

import pytest

from mlperf_jax.judging import official
from mlperf_jax.judging.tree import judge_tree
from mlperf_jax.results.events import run_labels
from mlperf_jax.rounds.published_curves import find_curve

_START = 1_780_000_000_000
_DISCLOSED = {
    "lowest_numerical_precision_in_linear": "bfloat16",
    "lowest_numerical_precision_in_attn": "bfloat16",
    "lowest_numerical_precision_in_comm": "bfloat16",
    "tensor_parallelism": 1,
    "pipeline_parallelism": 1,
    "context_parallelism": 1,
    "expert_parallelism": 1,
    "micro_batch_size": 1,
    "config_filename": "config.py",
}


def _pretraining(batch, rate, warmup):
    return {
        "global_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "train_samples": 1_574_207_408,
        "eval_samples": 1024,
        "opt_name": "adamw",
        "opt_base_learning_rate": rate,
        "opt_end_learning_rate": 0.1 * rate,
        "opt_learning_rate_warmup_steps": warmup,
        "opt_learning_rate_decay_steps": 1_200_000 - warmup,
        "opt_learning_rate_decay_schedule": "cosine with linear warmup",
        "opt_adamw_beta_1": 0.9,
        "opt_adamw_beta_2": 0.95,
        "opt_adamw_epsilon": 1e-5,
        "opt_adamw_weight_decay": 0.1,
        "opt_gradient_clip_norm": 1.0,
        "max_sequence_length": 8192,
        "max_steps": 1_200_000,
        "dropout": 0.0,
    }


_LORA = {
    "global_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "train_samples": 3901,
    "eval_samples": 173,
    "opt_base_learning_rate": 5e-4,
    "opt_learning_rate_training_steps": 896,
    "opt_gradient_clip_norm": 0.3,
    "opt_adamw_weight_decay": 1e-4,
    "lora_alpha": 32,
    "lora_rank": 16,
    "lora_dropout": 0.1,
    "max_sequence_length": 8192,
}
# benchmark -> hyperparameters, and the loss at the end
KINDS = {
    "llama31_8b": (_pretraining(16, 4e-4, 16), 3.29),
    "gpt_oss_20b": (_pretraining(32, 8e-4, 128), 3.335),
    "llama2_70b_lora": (_LORA, 0.9245),
}


def log(benchmark, changed=None, losses=None, ours=False):
    """A run that goes through the medians of the published ones, and ends at its target at the next evaluation."""
    numbers, last = KINDS[benchmark]
    numbers = {**numbers, **(changed or {})}
    curve, _ = find_curve(benchmark, numbers["global_batch_size"], numbers["opt_base_learning_rate"])
    told = [(point.samples, point.median) for point in curve.points if point.median > last]
    told.append((told[-1][0] + told[1][0] - told[0][0], last))
    told = [(samples, (losses or {}).get(samples, loss)) for samples, loss in told]
    events = []

    def say(key, at, value=None, **metadata):
        events.append({"key": key, "value": value, "time_ms": _START + at, "metadata": metadata})

    names = {"submission_benchmark": benchmark, "submission_division": "closed", "submission_org": "Acme"}
    names |= {"submission_platform": "box", "cache_clear": True, "seed": 7, **_DISCLOSED}
    if ours:
        names["run_labels"] = run_labels("closed")
    say("init_start", 0)
    for key, value in {**names, **numbers}.items():
        say(key, 1, value)
    say("init_stop", 1000)
    say("run_start", 1000)
    for i, (samples, loss) in enumerate(told, 1):
        say("block_start", 1000 * i + 1, samples_count=samples)
        say("block_stop", 1000 * i + 500, samples_count=samples)
        say("eval_start", 1000 * i + 501, samples_count=samples)
        say("eval_accuracy", 1000 * i + 700, loss, samples_count=samples)
        say("eval_stop", 1000 * i + 701, samples_count=samples)
    say("run_stop", 1000 * len(told) + 1000, status="success")
    return events


def judged(root, benchmark, events, round_name="v6.1"):
    """What is found in one log of a round: by rule, of the rules that are asked here or the official checker's."""
    folder = root / f"training_results_{round_name}" / "acme" / "results" / "box" / benchmark
    folder.mkdir(parents=True)
    (folder / "result_0.txt").write_text("".join(f":::MLLOG {json.dumps(one)}\n" for one in events))
    rules = ("hyperparameter", "published-runs", "count", "evaluation-schedule", "under-target")
    findings = judge_tree(root / f"training_results_{round_name}").findings
    return [f for f in findings if f.line and (f.rule in rules or f.rule.startswith("official"))]


@pytest.mark.parametrize("benchmark", KINDS)
def test_a_log_by_the_rules_has_nothing_wrong(tmp_path, benchmark):
    events = log(benchmark)
    assert judged(tmp_path, benchmark, events) == []
    path = next(tmp_path.rglob("result_0.txt"))
    assert list(official.check_log(path, "6.1.0")) == []


ALTERED = [
    ("llama31_8b", "opt_end_learning_rate", 4e-6, "4e-05"),
    ("llama31_8b", "opt_end_learning_rate", 0.0, "4e-05"),
    ("llama31_8b", "dropout", 0.1, "0"),
    ("gpt_oss_20b", "opt_end_learning_rate", 4e-5, "8e-05"),
    ("gpt_oss_20b", "dropout", 0.1, "0"),
    ("llama2_70b_lora", "lora_alpha", 16, "32"),
    ("llama2_70b_lora", "lora_alpha", "high", "32"),
    ("llama2_70b_lora", "lora_dropout", 0.0, "0.1"),
    ("llama2_70b_lora", "opt_gradient_clip_norm", 1.0, "0.3"),
    ("llama2_70b_lora", "opt_adamw_weight_decay", 0.01, "0.0001"),
    ("llama2_70b_lora", "max_sequence_length", 4096, "8192"),
]


@pytest.mark.parametrize(("benchmark", "key", "value", "wanted"), ALTERED)
def test_one_value_that_the_rules_fix_is_found(tmp_path, benchmark, key, value, wanted):
    """The official checker lets it pass: that is why it is looked at here."""
    events = log(benchmark, {key: value})
    (found,) = judged(tmp_path, benchmark, events)
    assert (found.rule, found.severity) == ("hyperparameter", "error")
    assert found.text.startswith(f"{key} is {value}, and the rules ask for {wanted}")
    assert events[found.line - 1]["key"] == key
    assert found.mend == f"Train with {key} {wanted}."


def test_what_is_evaluated_is_the_whole_set(tmp_path):
    (found,) = judged(tmp_path, "llama2_70b_lora", log("llama2_70b_lora", {"eval_samples": 100}))
    assert (found.rule, found.severity) == ("count", "error")
    assert "eval_samples is 100" in found.text and "173" in found.text


@pytest.mark.parametrize(("round_name", "count"), [("v6.0", 0), ("v6.1", 1)])
def test_gpt_oss_might_end_at_another_rate_in_v60_only(tmp_path, round_name, count):
    events = log("gpt_oss_20b", {"opt_end_learning_rate": 4e-5})
    found = judged(tmp_path, "gpt_oss_20b", events, round_name)
    assert [f.rule for f in found] == ["hyperparameter"] * count


def test_losses_away_from_published_ones_are_told_with_where_those_were(tmp_path):
    events = log("llama31_8b", losses={24_576: 4.9, 36_864: 4.4})
    (found,) = judged(tmp_path, "llama31_8b", events)
    assert (found.rule, found.severity) == ("published-runs", "warning")
    assert events[found.line - 1]["metadata"] == {"samples_count": 24_576}
    assert found.text.startswith(
        "loss 4.900, where the 140 published runs of batch size 16 and base learning rate 0.0004 were at 4.183 to 4.364 "
        "after 24,576 sequences, median 4.256; so it is in 1 more of"
    )


def test_a_run_of_ours_that_goes_as_they_did_is_told_so(tmp_path):
    found = judged(tmp_path, "llama31_8b", log("llama31_8b", ours=True))
    (note,) = [f for f in found if f.rule == "published-runs"]
    assert note.severity == "note"
    assert note.text.startswith("loss 3.343, where the 140 published runs")
    report = judge_tree(tmp_path)
    assert report.errors + report.warnings == len(report.findings) - 1  # a note is neither


def test_made_up_data_is_held_against_nobody(tmp_path):
    events = log("llama31_8b", losses={24_576: 9.0}, ours=True)
    labels = next(event for event in events if event["key"] == "run_labels")
    labels["value"] = ["fake data", *labels["value"]]
    assert not [f for f in judged(tmp_path, "llama31_8b", events) if f.rule == "published-runs"]
