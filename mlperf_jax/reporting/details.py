"""What the page says of one result: its runs, figures, convergence, machine and command."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlperf_jax.goals import Goal
from mlperf_jax.judging.findings import made_up
from mlperf_jax.reporting import figures
from mlperf_jax.reporting.markup import Markup, join, tag
from mlperf_jax.reporting.runs import ending, inference_value, verdict_of
from mlperf_jax.reporting.tables import References, figure, times
from mlperf_jax.reporting.timing import PHASES, TimeSplit, split_time
from mlperf_jax.results.own_runs import OwnRun, read_own_run
from mlperf_jax.rounds import published_curves
from mlperf_jax.rounds.collect import Result
from mlperf_jax.rounds.inference_logs import InferenceRun
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.published_curves import Compared
from mlperf_jax.rounds.reference_points import Verdict, judge_result, load_points
from mlperf_jax.rounds.scoring import goals_of, reached
from mlperf_jax.rounds.training_logs import Evaluation

_NAMELESS = "not stated"


def badges(labels: Sequence[str]) -> Markup:
    return join([(" ", tag("span", label, class_="badge")) for label in labels])


def facts(pairs: Sequence[tuple[str, object]]) -> Markup:
    """A list of names and values; what is empty is left out."""
    shown = [(tag("dt", name), tag("dd", value)) for name, value in pairs if value not in ("", None)]
    return tag("dl", shown, class_="facts") if shown else Markup("")


def drawing(svg: Markup, caption: str) -> Markup:
    return tag("figure", svg, tag("figcaption", caption)) if svg else Markup("")


def result_details(result: Result, identifier: str, references: References) -> Markup:
    """Everything about one training result, folded up."""
    own = {log.path: own for log in result.logs if (own := read_own_run(log))}
    verdict = judge_result(result.logs, result.rules, result.round) if _is_judged(result) else None
    compared = _compared(result) if _is_judged(result) and not made_up(result.labels) else []
    splits = [split_time(log) for log in result.logs]
    return tag(
        "details",
        tag("summary", _heading(result), badges(result.labels)),
        facts([*_score_facts(result, references, verdict), *_published_facts(compared)]),
        tag("div", [*_figures(result, verdict, splits), *_published_figure(compared)], class_="figures"),
        _run_table(result, splits, own),
        _pictures(own),
        _command(result, own),
        _environment(result, own),
        class_="result",
        id=identifier,
        data_path=str(result.path),
    )


def _is_judged(result: Result) -> bool:
    return result.division == "closed" and not result.mini and bool(result.logs)


def _heading(result: Result) -> str:
    name = result.description.name or result.system
    score = "no score" if result.score.minutes is None else f"{figure(result.score.minutes)} min"
    return f"{result.title}, {result.submitter}, {name} ({result.round}): {score}"


def _score_facts(result: Result, references: References, verdict: Verdict | None) -> list[tuple[str, object]]:
    score, rules = result.score, result.rules
    told: list[tuple[str, object]] = []
    if score.minutes is None:
        told.append(("No score", score.reason))
        if score.mean_minutes is not None:
            told.append(
                ("Mean of the runs that converged", f"{figure(score.mean_minutes)} min, which is no score")
            )
    else:
        ends = (
            "fastest and the slowest"
            if rules.dropped == 1
            else f"{rules.dropped} fastest and {rules.dropped} slowest"
        )
        dropped = f"mean without the {ends} of {score.runs} runs"
        if rules.key == "ncf":
            dropped = "mean of the first 50 runs that converged, without the fastest and the slowest"
        told.append(("Score", f"{figure(score.minutes)} min ({dropped})"))
    speedup = references.speedup(result)
    if speedup is not None:
        told.append(
            ("Speed-up", f"{times(speedup)} over one Pascal P100 ({references.minutes(result):,.1f} min)")
        )
    if score.normalization > 1 and score.minutes is not None:
        published = figure(score.minutes * score.normalization)
        told.append(
            ("Published as", f"{published} min: scaled by {score.normalization:.4f}, for converging too fast")
        )
    if score.spread is not None:
        known = f"from one set of runs to the next about {100 * rules.variance:g} % is known"
        told.append(
            ("Spread", f"{100 * score.spread:.1f} % (standard deviation of the runs counted); {known}")
        )
    if verdict is not None:
        word = {True: "passes", False: "does not pass", None: "not judged"}[verdict.passed]
        told.append(("Convergence", f"{word}: {verdict.text}"))
    return [*told, *(("Note", remark) for remark in score.remarks)]


def _figures(result: Result, verdict: Verdict | None, splits: Sequence[TimeSplit]) -> list[Markup]:
    logs = result.logs
    converged = [reached(log, result.rules, result.round) for log in logs]
    told = (goals_of(log, result.rules, result.round) for log in logs)
    goals = next(filter(None, told), (Goal("quality", math.nan),))
    drawn = [
        drawing(
            figures.quality(logs, goal, goals, converged), "Quality against time; orange: did not converge."
        )
        for goal in goals
    ]
    ours = [(log.path.name.split(".")[0], split) for log, split in zip(logs, splits, strict=True) if log.ours]
    if ours:  # others' runs have the same figures in the table, and there are thousands of them
        drawn.append(
            drawing(figures.time_split(ours[:40]), "Where the time went; run_start comes after compilation.")
        )
        drawn.append(drawing(figures.throughput(logs), "Training throughput, evaluation not included."))
    if verdict and verdict.point and (points := load_points(result.rules.key, result.round)):
        unit = "samples" if points.points[-1].mean > 10_000 else "epochs to converge"
        caption = (
            "Convergence: the reference a line, what its test lets pass grey; runs blue, their mean a bar."
        )
        drawn.append(drawing(figures.convergence(points, verdict, unit), caption))
    return drawn


def _compared(result: Result) -> list[list[Compared]]:
    """Each run's evaluations beside published runs; nothing where there are none of the benchmark."""
    told = []
    for log in result.logs:
        rate = number(log.value("opt_base_learning_rate"))
        losses = [(one.epoch, one.quality) for one in log.evaluations]
        told.append(published_curves.compare(result.rules.key, log.batch_size, rate, losses))
    return [one for one in told if one]


def _published_facts(compared: Sequence[Sequence[Compared]]) -> list[tuple[str, object]]:
    if not compared:
        return []
    words = published_curves.sentence(list(itertools.chain(*compared)))
    return [("Beside published runs", words), ("These are of", "; ".join(compared[0][0][0].curve.sources))]


def _published_figure(compared: Sequence[Sequence[Compared]]) -> list[Markup]:
    if not compared:
        return []
    curve = compared[0][0][0].curve
    losses = [[(beside.samples, loss) for beside, loss in run] for run in compared]
    caption = (
        f"Loss beside {curve.runs} published runs: their range grey, their median a line; these runs blue."
    )
    return [drawing(figures.beside_published(curve, losses), caption)]


def _run_table(result: Result, splits: Sequence[TimeSplit], own: Mapping[Path, OwnRun]) -> Markup:
    phases = [phase for phase in PHASES if any(getattr(split, phase) is not None for split in splits)]
    names = [
        "run",
        "minutes",
        "ended",
        "last quality",
        "epochs or samples",
        *(p.replace("_", " ") for p in phases),
    ]
    head = tag("tr", [tag("th", name, class_="number" if name != "run" else None) for name in names])
    rows = []
    for log, split in zip(result.logs, splits, strict=True):
        last = log.evaluations[-1] if log.evaluations else None
        cells = [
            "" if log.minutes is None else figure(log.minutes),
            ending(log, result, own.get(log.path)),
            "" if last is None else _figures_of(last),
            "" if last is None or last.epoch is None else f"{last.epoch:,.10g}",
            *("" if getattr(split, p) is None else f"{getattr(split, p):,.2f}" for p in phases),
        ]
        named = [tag("td", log.path.name, data_label="run")]
        named += [tag("td", c, class_="number", data_label=n) for c, n in zip(cells, names[1:], strict=True)]
        rows.append(tag("tr", named))
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="cards")
    summary = tag("summary", f"Run by run ({len(result.logs)}; phases in minutes)")
    return tag("details", summary, tag("div", table, class_="wide"), class_="more")


def _figures_of(evaluation: Evaluation) -> str:
    if isinstance(evaluation.found, dict) and len(evaluation.found) > 1:
        return ", ".join(f"{name} {figure:.4g}" for name, figure in evaluation.found.items())
    return f"{evaluation.quality:.4g}"


def _pictures(own: Mapping[Path, OwnRun]) -> Markup:
    """What `--visualize` drew, inside the page: it fetches nothing."""
    shown = [
        tag("img", src=f"data:image/png;base64,{base64.b64encode(content).decode()}", alt=f"example {i}")
        for run in own.values()
        for i, content in enumerate(run.pictures)
    ]
    if not shown:
        return Markup("")
    summary = tag("summary", f"Examples of the evaluation set ({len(shown)}; true green, predicted orange)")
    return tag("details", summary, tag("div", shown, class_="figures"), class_="more")


def _command(result: Result, own: Mapping[Path, OwnRun]) -> Markup:
    if not any(log.ours for log in result.logs):
        return Markup("")
    commands = {run.command for run in own.values() if run.command}
    if not commands:
        return tag("p", "These runs did not record their command.", class_="quiet small")
    return join([tag("h3", "To repeat it"), *(tag("pre", command) for command in sorted(commands))])


def _environment(result: Result, own: Mapping[Path, OwnRun]) -> Markup:
    parts = [facts([(_words(name), value) for name, value in result.description.fields])]
    for path, run in list(own.items())[:1]:
        parts += [
            join([tag("h3", f"{name} of {path.name}"), facts(told)])
            for name, told in run.facts.items()
            if told
        ]
    inside = parts if any(parts) else tag("p", _NAMELESS, class_="quiet")
    where = tag("p", tag("code", str(result.path)), class_="small quiet")
    return tag("details", tag("summary", "Environment"), inside, where, class_="more")


def _words(name: str) -> str:
    return name.replace("_", " ")


def inference_details(run: InferenceRun, identifier: str) -> Markup:
    """Everything about one LoadGen run, folded up."""
    drawn = [
        drawing(
            figures.latency_histogram(run),
            "Latency histogram up to the 99.9th percentile; dashed: the bound.",
        ),
        drawing(figures.percentile_curve(run), "Latency by percentile; dots as logged, dashed: the bound."),
    ]
    without = (
        "The run wrote no trace, so that only the logged percentiles are known."
        if not len(run.latencies)
        else ""
    )
    told = [
        ("Result", inference_value(run)),
        ("Verdict", verdict_of(run)),
        ("Tokens", run.tokens),
        ("Accuracy", "; ".join(run.accuracy) or ("not measured here" if run.mode != "AccuracyOnly" else "")),
        ("Errors in the log", str(run.errors) if run.errors else ""),
        ("Folder", tag("code", str(run.path))),
        ("Note", without if run.mode != "AccuracyOnly" else ""),
    ]
    fields = tag("details", tag("summary", "All settings and results"), facts(run.fields), class_="more")
    if run.facts:
        environment = facts([(_words(name), value) for name, value in run.facts])
        fields = join([fields, tag("details", tag("summary", "Environment"), environment, class_="more")])
    if run.command:
        fields = join([fields, tag("h3", "To repeat it"), tag("pre", run.command)])
    heading = f"{run.model}, {run.system or _NAMELESS}, {run.scenario} ({run.mode})"
    return tag(
        "details",
        tag("summary", heading, badges(run.labels)),
        facts(told),
        tag("div", drawn, class_="figures"),
        fields,
        class_="result",
        id=identifier,
        data_path=str(run.path),
    )
