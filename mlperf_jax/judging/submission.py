"""Judges the tree of an inference submission, in the layout of v6.1.

    {closed,open,network}/ORG/systems/SYSTEM.json
                         /src/
                         /results/SYSTEM/MODEL/SCENARIO/{measurements.json,user.conf,README.md}
                               performance/run_1/  accuracy/  TEST01/  TEST04/

What each run's logs tell is judged in `loadgen_run`; here it is what the submission owes besides.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlperf_jax.errors import UserError
from mlperf_jax.judging import accuracy_log, compliance
from mlperf_jax.judging.findings import ERROR, WARNING, Finding, listed, warning
from mlperf_jax.judging.loadgen_run import LoadGenRun, compare, judge_run, read_loadgen_run
from mlperf_jax.regular import open_regular
from mlperf_jax.rounds import inference_rules as rules
from mlperf_jax.rounds.inference_limits import KEPT_SAMPLES, TOKEN_LATENCIES, Limit
from mlperf_jax.rounds.inference_logs import DETAIL, SUMMARY
from mlperf_jax.rounds.inference_rules import Model
from mlperf_jax.rounds.objects import number, read_object

_HASH = re.compile(r"hash=([0-9a-fA-F]{64})")
_MOST_TEXT = 1 << 20
_FROM = {("SingleStream", "MultiStream"), ("MultiStream", "Offline"), ("SingleStream", "Offline")}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One scenario of one model on one system.

    Attributes:
        folder: .../results/SYSTEM/MODEL/SCENARIO.
        described: systems/SYSTEM.json, empty where there is none.
        round: "v6.1".
    """

    folder: Path
    division: str
    org: str
    described: dict[str, Any]
    round: str

    @property
    def scenario(self) -> str:
        return {name.lower(): name for name in rules.SCENARIOS}.get(
            self.folder.name.lower(), self.folder.name
        )

    @property
    def model(self) -> str:
        return self.folder.parent.name

    @property
    def system_type(self) -> str:
        return str(self.described.get("system_type", ""))

    @property
    def seeds(self) -> tuple[int, ...] | None:
        """The official ones of the round; None where they are not known."""
        return rules.SEEDS_OF.get(self.round)

    @property
    def closed(self) -> bool:
        return self.division != "open"


def is_submission(root: Path) -> bool:
    """Whether the folder is laid out as a submission of inference."""
    return any(True for division in rules.DIVISIONS for _ in (root / division).glob("*/results/*/*/*"))


def judge_submission(root: Path) -> tuple[list[Finding], int]:
    """All findings on a submission, and how many LoadGen runs it holds."""
    found: list[Finding] = []
    count = 0
    round_name = _round_of(root)
    for division in rules.DIVISIONS:
        for org in _folders(root / division):
            if not (org / "results").is_dir():
                continue
            mapping = read_object(org / "model_mapping.json") if division == "open" else {}
            if not (org / "src").is_dir():
                found.append(Finding(org, "missing-file", "there is no src/.", "Put the source code there."))
            for system in _folders(org / "results"):
                path = org / "systems" / f"{system.name}.json"
                described = read_object(path)
                found += _system(path, described, division, org.name)
                for model in _folders(system):
                    known = rules.find_model(str(mapping.get(model.name, model.name)), round_name)
                    entries = [Entry(f, division, org.name, described, round_name) for f in _folders(model)]
                    found += _model(model, known, entries)
                    for entry in entries:
                        findings, runs = _entry(entry, known and known.in_scenario(entry.scenario))
                        found += findings
                        count += runs
    return found, count


def _round_of(root: Path) -> str:
    names = (re.search(r"v\d+\.\d+", part) for part in root.parts if part.startswith("inference_results_"))
    return next((m[0] for m in names if m), rules.VERSION)


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder, links left out: a tree from elsewhere shall not lead out of itself."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _system(path: Path, described: dict[str, Any], division: str, org: str) -> Iterator[Finding]:
    rule = "system-description"
    if not described:
        yield Finding(path, rule, "there is no description of the system.", "Write systems/<system>.json.")
        return
    missing = [name for name in rules.SYSTEM_FIELDS if name not in described]
    empty = [name for name in rules.SYSTEM_MEANINGFUL if name in described and not described[name]]
    if missing:
        yield Finding(path, rule, f"fields are missing: {listed(missing, 40)}.", "Fill them in.")
    if empty:
        yield Finding(
            path, rule, f"fields are empty: {listed(empty, 40)}.", "Say what there is, or that there is none."
        )
    for name in rules.SYSTEM_COUNTS:
        if name in described and not str(described[name]).strip().isdigit():
            text = f"{name} is {described[name]!r}: no number, on which the official checker ends with an exception."
            yield Finding(path, rule, text, "Give a whole number.")
    for name, allowed in (("system_type", rules.SYSTEM_TYPES), ("status", rules.STATUSES)):
        said = str(described.get(name, ""))
        if name in described and (said.lower() if name == "status" else said) not in allowed:
            yield Finding(path, rule, f"{name} is {said!r}.", f"Give one of {', '.join(allowed)}.")
    for name, wanted in (("division", division), ("submitter", org)):
        said = str(described.get(name, ""))
        if name in described and said.lower() != wanted.lower():
            yield Finding(
                path, "naming", f"{name} is {said!r}, and the folder's is {wanted!r}.", "State one in both."
            )
    network = str(described.get("is_network", "false")).lower() == "true"
    if division != "open" and network != (division == "network"):
        yield Finding(
            path, rule, f"is_network is {network} in {division}.", "Network systems belong in network."
        )


def _model(folder: Path, known: Model | None, entries: list[Entry]) -> Iterator[Finding]:
    """Whether a closed model has the scenarios that it needs."""
    if not entries or not entries[0].closed:
        return
    if known is None:
        text = f"{folder.name} is no benchmark of {entries[0].round}."
        yield Finding(folder, "benchmark", text, "Submit it to open, with a model_mapping.json.")
        return
    kind = entries[0].system_type
    wanted = known.scenarios(kind) if kind in rules.SYSTEM_TYPES else ()
    if wanted is None:
        text = f"{known.name} is not measured on systems of type {kind}."
        yield Finding(folder, "scenarios", text, "Name the system_type that the benchmark is for.")
        return
    missing = [name for name in wanted if name not in {entry.scenario for entry in entries}]
    if missing:
        yield Finding(folder, "scenarios", f"scenarios are missing: {listed(missing)}.", "Measure these too.")


def _entry(entry: Entry, known: Model | None) -> tuple[list[Finding], int]:
    found = list(_files(entry))
    runs: dict[str, LoadGenRun] = {}
    for name, place in (("performance", Path("performance/run_1")), ("accuracy", Path("accuracy"))):
        run = _run(entry.folder / place, found)
        if run:
            runs[name] = run
            found += judge_run(run, submitted=True, closed=entry.closed, official=entry.seeds)
            found += _in_place(entry, run, name)
    if "performance" in runs:
        found += _performance(entry, runs["performance"], known)
    if len(runs) == 2:
        found += compare(runs["performance"], runs["accuracy"])
    found += _accuracy(entry, runs.get("accuracy"), known)
    tests = [f for f in _folders(entry.folder) if f.name.startswith("TEST")]
    if entry.closed and known:
        found += _tests(entry, runs.get("performance"), known)
    return found, len(runs) + sum((f / "performance" / "run_1" / DETAIL).is_file() for f in tests)


def _run(folder: Path, found: list[Finding]) -> LoadGenRun | None:
    mend = "Put the run's logs there."
    for name in (DETAIL, SUMMARY):
        if not (folder / name).is_file():
            found.append(Finding(folder / name, "missing-file", f"{name} is missing.", mend))
    if not (folder / DETAIL).is_file():
        return None
    try:
        return read_loadgen_run(folder)
    except UserError as error:
        found.append(Finding(folder / DETAIL, "unreadable", str(error), mend))
        return None


def _files(entry: Entry) -> Iterator[Finding]:
    path = entry.folder / "measurements.json"
    told = read_object(path)
    if not told:
        yield Finding(
            path, "missing-file", "there is no measurements.json.", "Say there how the model was made."
        )
    else:
        bad = [name for name in rules.MEASUREMENTS if not told.get(name)]
        if bad:
            text = f"fields are missing or empty: {listed(bad)}."
            yield Finding(path, "measurements", text, "Say how the model was made.")
    for name in ("user.conf", "README.md"):
        file = entry.folder / name
        if not file.is_file() or file.stat().st_size == 0:
            yield Finding(
                file, "missing-file", f"{name} is missing or empty.", "Write how to run this again."
            )


def _in_place(entry: Entry, run: LoadGenRun, name: str) -> Iterator[Finding]:
    mode = "AccuracyOnly" if name == "accuracy" else "PerformanceOnly"
    if run.mode not in (mode, "SubmissionRun"):
        text = f"a run in mode {run.mode} stands where one of mode {mode} belongs."
        yield run.finding("effective_test_mode", "naming", text, "Put the right run there.")
    same = run.scenario == entry.scenario or (run.scenario, entry.scenario) == ("Server", "Interactive")
    inferred = (run.scenario, entry.scenario) in _FROM and "edge" in entry.system_type
    if not same and not inferred and run.scenario in rules.SCENARIOS:
        text = f"the run is of scenario {run.scenario}, and lies in {entry.folder.name}."
        yield run.finding("effective_scenario", "naming", text, "Put the right run there.")


def _performance(entry: Entry, run: LoadGenRun, known: Model | None) -> Iterator[Finding]:
    if known is None:
        return
    loaded = run.number("effective_performance_sample_count")
    if loaded is not None and loaded < known.loaded:
        text = f"effective_performance_sample_count is {loaded:g}; {known.name} keeps at least {known.loaded:,} in memory."
        yield run.finding(
            "effective_performance_sample_count", "performance-samples", text, "Load more samples."
        )
    bound = run.number("effective_target_latency_ns")
    if run.scenario == "Server" and known.server_ns and bound is not None and bound > known.server_ns:
        text = f"the latency bound is {bound / 1e6:g} ms; that of {known.name} is {known.server_ns / 1e6:g}."
        yield run.finding(
            "effective_target_latency_ns", "latency-bound", text, "Measure with the rules' bound."
        )
    for limit in TOKEN_LATENCIES.get((known.name, entry.scenario), ()):
        latency = run.number(limit.name)
        if latency is None:
            text = f"{limit.name} is not logged, by which {known.name} is judged."
            yield run.finding(limit.name, "latency-bound", text, "Measure with use_token_latencies.")
        else:
            line = run.fields[limit.name].line
            yield from _limited(limit, latency, run.path, line, "Measure at a lower rate.")
    count = run.number("effective_samples_per_query")
    if entry.closed and run.scenario == "Offline" and count is not None and count < known.offline_samples:
        text = f"Offline's query has {count:,.0f} samples, and closed wants {known.offline_samples:,}."
        yield run.finding("effective_samples_per_query", "offline-samples", text, "Measure longer.")


def _accuracy(entry: Entry, run: LoadGenRun | None, known: Model | None) -> Iterator[Finding]:
    folder = entry.folder / "accuracy"
    log = folder / accuracy_log.NAME
    if not log.is_file():
        yield Finding(log, "missing-file", f"{accuracy_log.NAME} is missing.", "Put the accuracy log there.")
    elif log.stat().st_size > rules.MAX_ACCURACY_LOG:
        text = f"the accuracy log has {log.stat().st_size:,} bytes; a submission keeps the ends of it only."
        yield Finding(
            log, "accuracy-log-size", text, "Cut it to its first and last 4096 bytes; keep the whole."
        )
    path = folder / "accuracy.txt"
    lines = _lines(path)
    if not lines:
        mend = "Write the accuracy and hash=<sha256> there."
        yield Finding(path, "missing-file", "there is no accuracy.txt.", mend)
        return
    hashes = [m[1] for line in lines if (m := _HASH.fullmatch(line.strip()))]
    if not hashes:
        yield Finding(path, "accuracy-hash", "no line hash=<sha256 of the whole accuracy log>.", "Add it.")
    elif log.is_file() and not accuracy_log.is_cut(log) and accuracy_log.digest(log) != hashes[-1].lower():
        yield Finding(
            path, "accuracy-hash", "the hash is not that of the accuracy log beside it.", "Take it anew."
        )
    told = read_object(folder / "result.json").get("accuracy_log_sha256")
    if hashes and isinstance(told, str) and told != hashes[-1].lower():
        yield Finding(
            path, "accuracy-hash", "the hash is not that of the log that was judged.", "Take it anew."
        )
    if known is None:
        return
    if run:
        answered = run.number("effective_accuracy_sample_count") or run.number("qsl_reported_total_count")
        if answered != known.samples:
            text = f"{answered or 0:,.0f} samples were answered, and the data set of {known.name} has {known.samples:,}."
            key = "effective_accuracy_sample_count"
            yield run.finding(key, "dataset", text, "Answer the whole data set, in open too.")
    for limit in known.limits:
        stated = stated_figures(lines, limit)
        if not stated:
            severity = ERROR if entry.closed and limit.stated else WARNING
            text, mend = f"{limit.name} is not stated.", f"Write {limit.name}=... there."
            yield Finding(path, "accuracy", text, mend, severity)
        elif entry.closed:
            for figure, line in stated:
                yield from _limited(limit, figure, path, line, "Serve a model that is good enough.")
    yield from _kept_samples(entry, known)


def _limited(limit: Limit, figure: float, path: Path, line: int, mend: str) -> Iterator[Finding]:
    """A figure outside of its limits, or one that official sources do not agree on."""
    other = limit.other
    beside = f"; {other.text}" if other else ""
    if breach := limit.breach(figure):
        rule = "under-target" if figure < limit.least else "over-limit"
        said = f" ({limit.source}{beside})" if other else ""
        yield Finding(path, rule, f"{limit.name} is {figure:.10g}, {breach}{said}.", mend, line=line)
    if other and limit.allows(figure) != other.allows(figure):
        text = f"official sources part over {limit.name} {figure:.10g}: {limit.text}{beside}."
        yield warning(path, "sources-differ", text, "Keep to both, or ask MLCommons which one holds.", line)


def _kept_samples(entry: Entry, known: Model) -> Iterator[Finding]:
    """Answers that people look at must lie beside the accuracy log."""
    kind, names = KEPT_SAMPLES.get((known.name, entry.round), ("", ""))
    folder = entry.folder / "accuracy" / kind
    there = {path.name.split(".")[0] for path in folder.glob("*")}
    missing = [name for name in names.split() if name not in there]
    if missing:
        text = f"{kind} are missing: {listed(missing, 10)}."
        yield Finding(folder, "missing-file", text, "Keep the answers to these samples.")


def _lines(path: Path) -> list[str]:
    """Lines of a small text; none where it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(_MOST_TEXT).decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def stated_figures(lines: list[str], limit: Limit) -> list[tuple[float, int]]:
    """The figures that accuracy.txt gives a metric, as `accuracy=76.0%` or `"f1": 90.1`, each with its line."""
    names = "|".join(map(re.escape, (limit.name, *limit.spellings)))
    pattern = re.compile(rf"(?:{names})['\"]?\s*[:=]\s*'?([0-9.]+)", re.IGNORECASE)
    matches = ((pattern.search(line), at) for at, line in enumerate(lines, 1))
    told = ((number(match[1]), at) for match, at in matches if match)
    return [(figure, at) for figure, at in told if figure is not None]


def _tests(entry: Entry, reference: LoadGenRun | None, known: Model) -> Iterator[Finding]:
    """The compliance tests: that they are there, passed by their own word, and by ours."""
    for test in known.tests:
        folder = entry.folder / test
        mend = f"Run {test} and verify it."
        if not folder.is_dir():
            yield Finding(folder, "compliance", f"{test} is missing.", mend)
            continue
        wanted = {"TEST01": ("accuracy", "performance"), "TEST04": ("performance",)}.get(test)
        if wanted is None:
            wanted = ("output_len",) if test == "TEST09" else ("accuracy",)
        for what in wanted:
            yield from _verdict(folder / f"verify_{what}.txt", what, test, known, mend)
        if test not in compliance.AUDIT_CONFIG:
            continue
        found: list[Finding] = []
        run = _run(folder / "performance" / "run_1", found)
        yield from found
        if run is None:
            continue
        yield from judge_run(run, submitted=True, closed=True, official=entry.seeds)
        yield from _in_place(entry, run, "performance")
        if why := compliance.audited(test, run.values):
            yield run.finding("effective_test_mode", "compliance", f"this is no run of {test}: {why}.", mend)
        if reference:
            verdict = compliance.verify_performance(test, reference.values, run.values)
            if not verdict.passed:
                text = f"{test} does not pass: {'; '.join(verdict.lines)}."
                yield Finding(folder, "compliance", text, "Find out why the test's performance is another.")


def _verdict(path: Path, what: str, test: str, known: Model, mend: str) -> Iterator[Finding]:
    folder = path.parent
    if not path.is_file():
        yield Finding(path, "compliance", f"{path.name} of {test} is missing.", mend)
        return
    if any(compliance.PASS in line for line in _lines(path)):
        return
    both = [folder / "accuracy" / name for name in compliance.OTHERWISE]
    if test == "TEST01" and what == "accuracy" and all(file.is_file() for file in both):
        stated = [stated_figures(_lines(file), known.limits[0])[:1] for file in both]
        if all(stated) and compliance.verify_quality("", *(one[0][0] for one in stated)).passed:
            return  # not the same answers, but as good ones
    yield Finding(path, "compliance", f"{path.name} of {test} does not say {compliance.PASS}.", mend)
