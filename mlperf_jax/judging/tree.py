"""Judges a folder, whatever of training and inference it holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlperf_jax.errors import UserError
from mlperf_jax.judging import submission, training_results
from mlperf_jax.judging.findings import Finding, Report, make_report, warning
from mlperf_jax.judging.loadgen_run import LoadGenRun, compare, compare_qualities, judge_run, read_loadgen_run
from mlperf_jax.rounds import inference_rules
from mlperf_jax.rounds.inference_logs import DETAIL, run_folders


def judge_tree(root: Path, ruleset: str | None = None) -> Report:
    """All findings on what lies below `root`.

    Args:
        root: results of ours, a package, or a published round.
        ruleset: of training, e.g. "4.0.0"; None takes that of the round or the benchmark.
    """
    if submission.is_submission(root):
        found, count = submission.judge_submission(root)
        return make_report(found, 0, count)
    found, logs = training_results.judge_results([root], ruleset)
    runs: list[LoadGenRun] = []
    for folder in run_folders(root):
        try:
            runs.append(read_loadgen_run(folder))
        except UserError as error:
            found.append(
                Finding(folder / DETAIL, "unreadable", str(error), "Restore the log, or leave it out.")
            )
    for run in runs:
        seeds = inference_rules.SEEDS_OF[inference_rules.VERSION]
        found += judge_run(run, submitted=False, closed=False, official=seeds)
    found += _pairs({run.folder: run for run in runs})
    return make_report(found, logs, len(runs))


def _pairs(runs: dict[Path, LoadGenRun]) -> Iterator[Finding]:
    """Performance runs of ours beside their accuracy runs, SCENARIO/{performance/run_1,accuracy}, and these together."""
    served: dict[tuple[Path, str], list[LoadGenRun]] = {}
    for folder, run in runs.items():
        if run.own.get("kind") == "accuracy" and "model" in run.own:
            served.setdefault((folder.parents[1], str(run.own["model"])), []).append(run)
        if run.own.get("kind") != "performance" or folder.name != "run_1":
            continue
        beside = runs.get(folder.parents[1] / "accuracy")
        if beside:
            yield from compare(run, beside)
        else:
            text = "no accuracy run stands beside this performance run."
            yield warning(folder, "no-accuracy", text, "Run --mode=accuracy of the same scenario.")
    for those in served.values():
        yield from compare_qualities(those)
