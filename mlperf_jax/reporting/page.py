"""The report as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from mlperf_jax.reporting import figures
from mlperf_jax.reporting.details import (
    badges,
    drawing,
    inference_details,
    result_details,
)
from mlperf_jax.reporting.markup import Markup, join, tag
from mlperf_jax.reporting.measured import section
from mlperf_jax.reporting.runs import inference_value, verdict_of
from mlperf_jax.reporting.side_by_side import Pair, pairs
from mlperf_jax.reporting.tables import Group, References, Row, figure, group_results, times, without_score
from mlperf_jax.rounds.collect import Problem, Reader, Result
from mlperf_jax.rounds.descriptions import UNKNOWN
from mlperf_jax.rounds.inference_logs import InferenceRun, read_inference

METRICS = ("speedup", "minutes")


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that was found. pairs: what two folders have both, side by side. roots: as they were named.

    measured: the record of `benchmarks.run`, JSON that anybody may have written.
    """

    results: Sequence[Result] = ()
    inference: Sequence[InferenceRun] = ()
    problems: Sequence[Problem] = ()
    pairs: Sequence[Pair] = ()
    roots: Sequence[str] = ()
    measured: Any = None


def read_report(reader: Reader, roots: Sequence[Path]) -> Report:
    """Reads folders and logs; what `reader` has read before, only where it has changed.

    Raises:
        UserError: a root is not there.
    """
    results, problems = reader.read(roots)
    inference, more = read_inference(roots)
    places = [Path(os.path.abspath(root)) for root in roots]
    found = pairs(places, results, inference)
    return Report(results, inference, [*problems, *more], found, [str(root) for root in roots])


def render(report: Report, references: References, metric: str, *, live: str | None = None) -> str:
    """The page. `live`: the version of what is shown, where a server can be asked for a newer one."""
    groups = group_results(report.results)
    identifiers = {
        result.path: f"result-{i}" for i, result in enumerate(r for g in groups for r in _results(g))
    }
    parts = [
        _header(report, groups, metric),
        *(_group_section(group, i, identifiers, references) for i, group in enumerate(groups)),
        _inference_section(report.inference),
        _pairs_section(report),
        section(report.measured),
        _details_section(groups, identifiers, references, report.inference),
        _problems_section(report.problems),
        _notes(),
    ]
    body = tag(
        "body",
        tag("main", parts),
        Markup(f"<script>{_asset('page.js')}</script>"),
        data_metric=metric,
        data_live=live,
    )
    return f"<!doctype html>\n{tag('html', _head(live), body, lang='en')}\n"


def _asset(name: str) -> str:
    return resources.files("mlperf_jax.reporting").joinpath(name).read_text(encoding="utf-8")


def _head(live: str | None) -> Markup:
    digest = base64.b64encode(hashlib.sha256(_asset("page.js").encode()).digest()).decode()
    # Only this page's own script may run, and nothing may be fetched: results come from strangers.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    policy += "; base-uri 'none'; form-action 'none'" + ("; connect-src 'self'" if live is not None else "")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", "MLPerf-style results"),
        Markup('<link rel="icon" href="data:,">'),
        Markup(f"<style>{_asset('page.css')}</style>"),
    )


def _header(report: Report, groups: Sequence[Group], metric: str) -> Markup:
    runs = sum(result.score.runs for result in report.results)
    found = [f"{len(report.results)} training results of {runs:,} runs"] if report.results else []
    found += [f"{len(report.inference)} inference runs"] if report.inference else []
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    buttons = [
        tag("button", word, type="button", data_metric=name, aria_pressed=str(name == metric).lower())
        for name, word in (("minutes", "Minutes"), ("speedup", "Speed-up"))
    ]
    links = [tag("a", group.title, href=f"#group-{i}") for i, group in enumerate(groups)]
    links += [tag("a", "Inference", href="#inference")] if report.inference else []
    return join(
        [
            tag(
                "header",
                tag("h1", "Time to train, time to answer"),
                tag("p", f"{', '.join(found) or 'No results yet'}. Made {when}.", class_="quiet"),
            ),
            tag(
                "nav",
                tag("span", *buttons, class_="switch", role="group", aria_label="What the tables show"),
                *(tag("span", link, class_="small") for link in links),
                class_="controls",
            ),
        ]
    )


def _results(group: Group) -> list[Result]:
    return [result for row in group.rows for result in row.results.values()]


def _group_section(group: Group, number: int, identifiers: dict, references: References) -> Markup:
    has = {
        name: any(getattr(row.one.description, name) for row in group.rows)
        for name in ("cloud_scale", "power")
    }
    fixed = ["Round", "Submitter", "System", "Chips", "Software"]
    fixed += [word for name, word in (("cloud_scale", "Cloud scale"), ("power", "Power")) if has[name]]
    heads = [tag("th", tag("button", word, type="button"), scope="col") for word in fixed]
    heads += [
        tag("th", tag("button", column.title, type="button"), scope="col", class_="number")
        for column in group.columns
    ]
    rows = [_row(row, group, fixed, identifiers, references) for row in group.rows]
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="cards")
    return tag("section", tag("h2", group.title), tag("div", table, class_="wide"), id=f"group-{number}")


def _row(row: Row, group: Group, fixed: Sequence[str], identifiers: dict, references: References) -> Markup:
    one, what = row.one, row.one.description
    name = what.name or one.system
    system = [tag("span", name, badges(one.labels), title=one.system if one.system != name else None)]
    values = {
        "Round": one.round,
        "Submitter": what.submitter or one.submitter,
        "System": system,
        "Chips": what.chips,
        "Software": what.software,
        "Cloud scale": what.cloud_scale,
        "Power": what.power,
    }
    sort_by = {"Chips": what.accelerators or what.processors}
    cells = [
        tag(
            "td",
            values[word],
            data_label=word,
            data_value=sort_by.get(word),
            class_="name" if word == "System" else None,
        )
        for word in fixed
    ]
    for column in group.columns:
        result = row.results.get(column)
        if result is None:
            cells.append(tag("td", class_="number", data_minutes="", data_speedup=""))
        else:
            cells.append(
                _score_cell(result, column.title, group.leading, identifiers[result.path], references)
            )
    return tag("tr", cells)


def _score_cell(result: Result, label: str, leading: dict, identifier: str, references: References) -> Markup:
    minutes, speedup = result.score.minutes, references.speedup(result)
    keys = {
        "data_minutes": "" if minutes is None else minutes,
        "data_speedup": "" if speedup is None else speedup,
    }
    if minutes is None:
        content = tag("a", without_score(result), href=f"#{identifier}", class_="none")
        return tag("td", content, class_="number none", data_label=label, **keys)
    shown = [tag("span", figure(minutes), class_="minutes")]
    shown.append(
        tag(
            "span",
            "no reference" if speedup is None else times(speedup),
            class_="speedup" + (" none" if speedup is None else ""),
        )
    )
    word = leading.get(result.path)
    why = {
        "fastest": "fastest of its round here",
        "tied": f"within {100 * result.rules.variance:g} % of the fastest, as runs are known to vary: no win",
        None: None,
    }[word]
    link = tag("a", shown, href=f"#{identifier}", title=why)
    return tag("td", tag("span", link, class_=word), class_="number", data_label=label, **keys)


def _inference_section(runs: Sequence[InferenceRun]) -> Markup:
    if not runs:
        return Markup("")
    names = ["Model", "System", "Scenario", "Mode", "Result", "Verdict", "Accuracy"]
    heads = [tag("th", tag("button", name, type="button"), scope="col") for name in names]
    rows = []
    for i, run in enumerate(runs):
        value = tag("a", inference_value(run), href=f"#inference-{i}")
        model = tag("span", run.model, badges(run.labels))
        cells = [model, run.system, run.scenario, run.mode, value, verdict_of(run), "; ".join(run.accuracy)]
        sort_by = ["", "", "", "", "" if run.value is None else run.value, "", ""]
        rows.append(
            tag(
                "tr",
                [
                    _inference_cell(name, cell, key)
                    for cell, name, key in zip(cells, names, sort_by, strict=True)
                ],
            )
        )
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="cards")
    curves = [drawing(figures.server_curve(those), f"Server: {name}") for name, those in _server_runs(runs)]
    parts = [tag("h2", "Inference"), tag("div", table, class_="wide"), tag("div", curves, class_="figures")]
    return tag("section", parts, id="inference")


def _inference_cell(name: str, cell: str, key: str | float) -> Markup:
    return tag(
        "td",
        tag("span", cell) if cell else "",
        data_label=name,
        data_value=key if name == "Result" else None,
        class_="name" if name == "Model" else None,
    )


def _server_runs(runs: Sequence[InferenceRun]) -> list[tuple[str, list[InferenceRun]]]:
    """Server runs of one model on one system at more than one rate."""
    found: dict[tuple[str, str], list[InferenceRun]] = {}
    for run in runs:
        if (
            run.scenario == "Server"
            and run.target_qps
            and run.server_p99 is not None
            and run.valid is not None
        ):
            found.setdefault((run.model, run.system), []).append(run)
    return [
        (f"{model} on {system or UNKNOWN}", those)
        for (model, system), those in found.items()
        if len({run.target_qps for run in those}) > 1
    ]


def _pairs_section(report: Report) -> Markup:
    if not report.pairs:
        return Markup("")
    names = ["Measured", *report.roots, "Second / first"]
    heads = [tag("th", tag("button", name, type="button"), scope="col") for name in names]
    rows = []
    for pair in report.pairs:
        cells = [pair.what, pair.first, pair.second, pair.change]
        rows.append(
            tag("tr", [tag("td", cell, data_label=name) for cell, name in zip(cells, names, strict=True)])
        )
    table = tag("table", tag("thead", tag("tr", heads)), tag("tbody", rows), class_="cards")
    return tag("section", tag("h2", "Side by side"), tag("div", table, class_="wide"), id="side-by-side")


def _details_section(
    groups: Sequence[Group], identifiers: dict, references: References, inference: Sequence[InferenceRun]
) -> Markup:
    every = [result_details(r, identifiers[r.path], references) for group in groups for r in _results(group)]
    every += [inference_details(run, f"inference-{i}") for i, run in enumerate(inference)]
    return tag("section", tag("h2", "Details"), every) if every else Markup("")


def _problems_section(problems: Sequence[Problem]) -> Markup:
    if not problems:
        return Markup("")
    lines = [tag("li", tag("code", str(problem.path)), " ", problem.reason) for problem in problems]
    told = tag(
        "details",
        tag("summary", f"{len(problems)} files"),
        tag("ul", lines, class_="problems"),
        class_="more",
    )
    return tag("section", tag("h2", "Not readable, or only in part"), told)


def _notes() -> Markup:
    variances = "vision benchmarks about 2.5 %, others about 5 %"
    return tag(
        "footer",
        tag(
            "p",
            "Scores by MLPerf's rules: the mean of the runs without the fastest and the slowest. "
            f"From one set of runs to the next they vary ({variances}): “≈” stands before scores that "
            "differ from the fastest by less, which is no win.",
        ),
        tag(
            "p",
            "Speed-ups are over the v0.5 reference on one Pascal P100, where its time is confirmed. From "
            "v0.6 ResNet-50 trains to 75.9 %, not 74.9 %: there they are rather too small than too large.",
        ),
        tag(
            "p",
            "Rounds v0.5 to v6.1 as MLCommons published them; “local” are runs of this project, "
            "unverified, not reviewed by MLCommons. The MLPerf name is a trademark of MLCommons.",
        ),
    )
