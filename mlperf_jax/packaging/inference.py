"""Packs inference runs in the layout of v6.1's submission checker; see `judging/submission.py`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.judging import accuracy_log, compliance
from mlperf_jax.judging.loadgen_run import LoadGenRun, read_loadgen_run
from mlperf_jax.judging.submission import judge_submission
from mlperf_jax.packaging.package import Package, tell_findings
from mlperf_jax.packaging.systems import write_system
from mlperf_jax.rounds import inference_rules as rules
from mlperf_jax.rounds.inference_logs import DETAIL, SUMMARY
from mlperf_jax.rounds.inference_rules import Model
from mlperf_jax.rounds.objects import command_in, number, read_object

_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
# Of result.json's settings, what a user.conf says: name there -> scenario, key, factor.
_USER_CONF = {
    "min_duration_ms": (None, "min_duration", 1),
    "min_query_count": (None, "min_query_count", 1),
    "server_target_qps": ("Server", "target_qps", 1),
    "server_target_latency_ns": ("Server", "target_latency", 1e-6),
    "offline_expected_qps": ("Offline", "target_qps", 1),
    "single_stream_expected_latency_ns": ("SingleStream", "target_latency", 1e-6),
    "multi_stream_expected_latency_ns": ("MultiStream", "target_latency", 1e-6),
    "multi_stream_samples_per_query": ("MultiStream", "samples_per_query", 1),
}
_PLACE = "performance/run_1"


@dataclasses.dataclass(frozen=True)
class Found:
    """The runs of one scenario of one model on one system.

    Attributes:
        folder: RESULTS[/mini]/inference/SYSTEM/WORKLOAD/SCENARIO.
        performance: the run there; None if there is none.
    """

    folder: Path
    performance: LoadGenRun | None

    @property
    def system(self) -> str:
        return self.folder.parents[1].name

    @property
    def workload(self) -> str:
        return self.folder.parent.name

    @property
    def scenario(self) -> str:
        return self.folder.name

    @property
    def own(self) -> dict[str, Any]:
        """result.json of that run; empty without one."""
        return self.performance.own if self.performance else {}


def pack_inference(package: Package, results_dir: Path, *, org: str, division: str) -> list[str]:
    """Fills a package with the inference runs of `results_dir`: of its mini preset for open, else of closed.

    Returns:
        The command by which the official checker judges the package, for its place "{out}".

    Raises:
        UserError: there are no runs.
    """
    found = _find(results_dir, division)
    if not found:
        mini = " of the closed preset" if division == "closed" else ""
        raise UserError(
            f"{results_dir} holds no inference runs{mini}; make some with --scenario=all --time=600."
        )
    base = f"{division}/{org}"
    package.copy_sources(f"{base}/src")
    for name in sorted({runs.system for runs in found}):
        source = results_dir / "systems" / f"{name}.json"
        wanted = rules.SYSTEM_FIELDS
        write_system(
            package,
            f"{base}/systems/{name}.json",
            source,
            org=org,
            division=division,
            wanted=wanted,
            inference=True,
        )
    mapping: dict[str, str] = {}
    for runs in found:
        model = _model(runs)
        if rules.find_model(runs.workload) is None and model is not None:
            mapping[runs.workload] = model.name
        if model is None:
            package.lacks(
                f"a benchmark of {rules.VERSION} for {runs.workload}", "the round has none of this model"
            )
        _pack_scenario(
            package, runs, model, f"{base}/results/{runs.system}/{runs.workload}/{runs.scenario}", division
        )
    if mapping and division == "open":
        package.write_json(f"{base}/model_mapping.json", mapping, source="the workloads' own LoadGen models")
    findings, _ = judge_submission(package.root)
    tell_findings(package, findings)
    return [
        f"python -m submission_checker.main --input {{out}} --version {rules.VERSION}   "
        "(in tools/submission of a checkout of mlcommons/inference)"
    ]


def _find(results_dir: Path, division: str) -> list[Found]:
    roots = [results_dir / "inference"] + ([results_dir / "mini" / "inference"] if division == "open" else [])
    folders = [
        folder
        for root in roots
        for folder in sorted(root.glob("*/*/*"))
        if folder.name in rules.SCENARIOS and folder.is_dir() and not folder.is_symlink()
    ]
    found = []
    for folder in folders:
        there = (folder / _PLACE / DETAIL).is_file()
        found.append(Found(folder, read_loadgen_run(folder / _PLACE) if there else None))
    return found


def _model(runs: Found) -> Model | None:
    """The official benchmark: by the folder's name, else by what the run says of its LoadGen model."""
    told = runs.own.get("loadgen_model")
    return rules.find_model(runs.workload) or (rules.find_model(told) if isinstance(told, str) else None)


def _pack_scenario(package: Package, runs: Found, model: Model | None, place: str, division: str) -> None:
    again = f"python -m mlperf_jax.main --workload={runs.workload} --scenario={runs.scenario} --time=600"
    if runs.performance is None:
        package.lacks(f"{place}/{_PLACE}", f"run {again}")
    else:
        for name in (DETAIL, SUMMARY):
            _copy(package, runs.folder / _PLACE / name, f"{place}/{_PLACE}/{name}", again)
        _write_measurements(package, runs, place)
        _write_user_conf(package, runs, place)
        _write_readme(package, runs, place)
    _pack_accuracy(package, runs, model, place, again)
    if division == "closed":
        for test in model.tests if model else ():
            _pack_test(package, runs, test, place, again)


def _copy(package: Package, source: Path, target: str, again: str) -> None:
    if source.is_file():
        package.copy(source, target)
    else:
        package.lacks(target, f"run {again}")


def _pack_accuracy(package: Package, runs: Found, model: Model | None, place: str, again: str) -> None:
    folder = runs.folder / "accuracy"
    again += " --mode=accuracy"
    for name in (DETAIL, SUMMARY):
        _copy(package, folder / name, f"{place}/accuracy/{name}", again)
    log, record = folder / accuracy_log.NAME, read_object(folder / "result.json")
    if not log.is_file():
        package.lacks(f"{place}/accuracy/{accuracy_log.NAME}", f"run {again}")
        return
    digest = accuracy_log.digest(log)
    quality = record.get("quality")
    if quality is None or number(quality) is None:
        package.lacks(f"{place}/accuracy/accuracy.txt", f"the accuracy run was not judged; run {again}")
        return
    if record.get("accuracy_log_sha256") != digest:
        package.lacks(f"{place}/accuracy", f"the accuracy log is not the one that was judged; run {again}")
    answers = accuracy_log.read_answers(log)
    metric = model.metric if model else "accuracy"
    if isinstance(quality, dict):
        quality = record.get("figures", quality)  # lengths among them
    said = accuracy_log.accuracy_line(metric, quality, answers.count, str(record.get("metric")))
    text = f"{said}\nhash={digest}\n"
    package.write(f"{place}/accuracy/accuracy.txt", text, source=folder / "result.json")
    cut = accuracy_log.cut(log, rules.VIEWABLE)
    package.write(f"{place}/accuracy/{accuracy_log.NAME}", cut, source=log)


def _write_measurements(package: Package, runs: Found, place: str) -> None:
    """measurements.json: what the run says, then what people wrote beside the scenarios of the model."""
    own = runs.own
    told: dict[str, Any] = {}
    precision = own.get("precision")
    if isinstance(precision, dict):
        param, compute = (
            _PRECISIONS.get(str(precision.get(k)), str(precision.get(k))) for k in ("param", "compute")
        )
        told["weight_data_types"] = param
        told["weight_transformations"] = "none" if param == compute else f"cast from {param} to {compute}"
    inputs = own.get("inputs")
    if isinstance(inputs, dict) and inputs:
        kinds = {_PRECISIONS.get(str(kind), str(kind)) for kind in inputs.values()}
        told["input_data_types"] = ", ".join(sorted(kinds))
    model = own.get("model")
    if isinstance(model, str) and model:
        trained = "/runs/" in model
        told["starting_weights_filename"] = (
            model.rpartition("/runs/")[2] if trained else Path(model.split(" in ")[0]).name
        )
        told["retraining"] = "yes, trained from random weights by mlperf_jax" if trained else "no"
    beside = runs.folder.parent / "measurements.json"
    for field in rules.MEASUREMENTS:
        by_hand = read_object(beside).get(field)
        if field not in told and by_hand:
            told[field] = by_hand
    unstated = [field for field in rules.MEASUREMENTS if not told.get(field)]
    if unstated:
        package.lacks(
            f"{place}/measurements.json: {', '.join(unstated)}", f"state it in {beside} and pack again"
        )
    package.write_json(f"{place}/measurements.json", told, source="result.json of the performance run")


def _write_user_conf(package: Package, runs: Found, place: str) -> None:
    settings = runs.own.get("settings")
    if not isinstance(settings, dict):
        package.lacks(f"{place}/user.conf", "the run does not say its settings; run it again")
        return
    lines = ["# The settings that this run was asked with; everything else is official."]
    for name, (scenario, key, factor) in _USER_CONF.items():
        value = number(settings.get(name))
        if value is not None and scenario in (None, runs.scenario):
            lines.append(f"*.{runs.scenario}.{key} = {value * factor:.12g}")
    package.write(f"{place}/user.conf", "\n".join(lines) + "\n", source="settings in result.json")


def _write_readme(package: Package, runs: Found, place: str) -> None:
    command = command_in(runs.own)
    if not command:
        package.lacks(f"{place}/README.md", "the run does not say its command; run it again")
        return
    labels, versions = runs.own.get("labels"), runs.own.get("versions")
    lines = [f"# {runs.workload}, {runs.scenario}", "", "Made with:", "", f"    {command}", ""]
    if isinstance(labels, list):
        lines += ["Said of it: " + "; ".join(map(str, labels)) + ".", ""]
    if isinstance(versions, dict):
        lines += [
            "Software: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
            "",
        ]
    package.write(f"{place}/README.md", "\n".join(lines), source="result.json of the performance run")


def _pack_test(package: Package, runs: Found, test: str, place: str, again: str) -> None:
    folder, target = runs.folder / test, f"{place}/{test}"
    mend = (
        f"run {again} --mode=compliance"
        if test in (*compliance.AUDIT_CONFIG, compliance.TOKENS)
        else "this project has no such test"
    )
    if not (folder / _PLACE / DETAIL).is_file():
        package.lacks(target, mend)
        return
    for name in (DETAIL, SUMMARY):
        _copy(package, folder / _PLACE / name, f"{target}/{_PLACE}/{name}", mend)
    if test != compliance.TOKENS:
        _copy(package, folder / "verify_performance.txt", f"{target}/verify_performance.txt", mend)
    if test in ("TEST01", compliance.TOKENS):
        _copy(package, folder / "verify_accuracy.txt", f"{target}/verify_accuracy.txt", mend)
        log = folder / "accuracy" / accuracy_log.NAME
        if log.is_file():
            hashed = f"hash={accuracy_log.digest(log)}\n"
            package.write(f"{target}/accuracy/accuracy.txt", hashed, source=log)
            for name in compliance.OTHERWISE:
                if (log.parent / name).is_file():
                    package.copy(log.parent / name, f"{target}/accuracy/{name}")
            cut = accuracy_log.cut(log, rules.VIEWABLE)
            package.write(f"{target}/accuracy/{accuracy_log.NAME}", cut, source=log)
        else:
            package.lacks(f"{target}/accuracy/{accuracy_log.NAME}", mend)
