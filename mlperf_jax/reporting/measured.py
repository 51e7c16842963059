"""What `python -m benchmarks.run` measured besides rows, as tables and drawings: for its page, and for the report.

A record is JSON that anybody may have written: what is not as that command writes it is left out, and said.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlperf_jax.reporting import measured_figures as drawings
from mlperf_jax.reporting import ratios
from mlperf_jax.reporting.markup import Markup, readable, tag
from mlperf_jax.reporting.runs import columns

Row = Mapping[str, Any]
Cells = list[str]

VARIANTS = {
    "official": "official",
    "official_fast": "official fast",
    "drop_in": "drop-in",
    "drop_in_fast": "drop-in fast",
    "native": "native",
}


@dataclasses.dataclass(frozen=True)
class Panel:
    """A part, as one system ran it.

    Attributes:
        part: its name.
        title, note: what it says, for people.
        table: rows of cells, the head first.
        draw: gives an SVG; None where there is nothing to draw.
        left_out: cases that the record does not tell properly.
        rows: the others, as the record has them.
    """

    part: str
    title: str
    note: str
    table: list[Cells]
    draw: Callable[[], Markup] | None
    left_out: list[str]
    rows: Mapping[str, Row]


def section(record: Any) -> Markup:
    """A record as a part of the report: of each system the ratios to PyTorch, and a panel for each part."""
    systems, parts = (_dict(_dict(record).get(name)) for name in ("systems", "parts"))
    found = []
    for system in sorted(systems.keys() | parts.keys()):
        figures = [_ratios_drawn(told)] if (told := _told_ratios(systems.get(system))) else []
        tables = []
        for panel in panels(parts.get(system)):
            if panel.draw:
                figures.append(tag("figure", panel.draw(), tag("figcaption", panel.title)))
            tables.append(_table(panel))
        if figures or tables:
            found += [tag("h3", system), tag("div", figures, class_="figures"), tables]
    return tag("section", tag("h2", "Benchmarks"), found, id="benchmarks") if found else Markup("")


def to_text(record: Any) -> Iterator[str]:
    """The tables of a record's parts, for a terminal."""
    for system, parts in sorted(_dict(_dict(record).get("parts")).items()):
        for panel in panels(parts):
            yield from ("", f"{panel.title}, on {readable(system)}", *columns(panel.table))


def _table(panel: Panel) -> Markup:
    head, *rows = panel.table or [[]]
    lines = [
        tag(
            "tr",
            [
                tag("td", cell.replace("**", ""), data_label=name)
                for name, cell in zip(head, cells, strict=True)
            ],
        )
        for cells in rows
    ]
    heads = tag("tr", [tag("th", name, scope="col") for name in head])
    left_out = (
        f" Left out, for the record does not tell it: {', '.join(panel.left_out)}." if panel.left_out else ""
    )
    return tag(
        "details",
        tag("summary", panel.title),
        tag("p", panel.note, left_out, class_="quiet"),
        tag("div", tag("table", tag("thead", heads), tag("tbody", lines), class_="cards"), class_="wide"),
    )


def _told_ratios(rows: Any) -> dict[str, Row]:
    """Rows of `ratios.draw`, as far as they are told, with nothing else in them."""
    told: dict[str, Row] = {}
    for name, row in _dict(rows).items():
        with contextlib.suppress(*_UNTOLD):
            told[name] = {
                "programs": {
                    program: {
                        "ratios": {
                            peer: {"cpu": {k: positive(ratio["cpu"][k]) for k in ("low", "median", "high")}}
                            for peer, ratio in found["ratios"].items()
                            if peer in ratios.PEERS
                        }
                    }
                    for program, found in row["programs"].items()
                    if program in ratios.PROGRAMS
                }
            }
    return told


def _ratios_drawn(rows: Mapping[str, Row]) -> Markup:
    """As an image, so that its style stays its own."""
    drawn = ratios.draw({readable(name): row for name, row in rows.items()}, ratios.PROGRAMS, ratios.PEERS)
    source = f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"
    title = "CPU time of PyTorch over ours, by workload"
    return tag(
        "figure",
        tag("img", src=source, alt=title),
        tag("figcaption", title),
        style="grid-column: 1 / -1",  # three panels want the width of the page
    )


_UNTOLD = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
"""What reading something else than a record's row ends in."""


def panels(parts: Any) -> Iterator[Panel]:
    """The parts of one system, part -> case -> row, as far as they are there and told."""
    for part, (title, note, tell, draw) in _PARTS.items():
        rows = _dict(_dict(parts).get(part))
        told: dict[str, _Told] = {}
        left_out = []
        for case, row in sorted(rows.items()):
            try:
                told[case] = tell(case, row)
            except _UNTOLD:
                left_out.append(case)
        if told:
            head = next(iter(told.values())).head
            left_out += [case for case, one in told.items() if one.head != head]
            kept = {case: one for case, one in told.items() if one.head == head}
            table = [head, *(cells for one in kept.values() for cells in one.cells)]
            marks = {case: one.marks for case, one in kept.items() if one.marks}
            drawn = functools.partial(draw, marks) if marks else None
            yield Panel(part, title, note, table, drawn, left_out, {case: rows[case] for case in kept})
        elif left_out:
            yield Panel(part, title, note, [], None, left_out, {})


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


@dataclasses.dataclass(frozen=True)
class _Told:
    """What a row says. `marks`: what its part's drawing takes."""

    head: Cells
    cells: list[Cells]
    marks: Any


def number(value: Any) -> float:
    """A finite number of a record.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is no number")
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise ValueError(f"{value!r} is no figure")
    return float(value)


_LARGEST = 1e15


def positive(value: Any) -> float:
    """As `number`, above 0."""
    if (found := number(value)) <= 0:
        raise ValueError(f"{value!r} is not above 0")
    return found


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(values: Mapping[str, Any], unit: float = 1.0) -> str:
    median, low, high = (shown(unit * number(values[name])) for name in ("median", "low", "high"))
    return median if low == median == high else f"{median} ({low} to {high})"


def _input(case: str, row: Row) -> _Told:
    batch = positive(row["batch"])
    programs = row["programs"]
    cores = {
        name: batch / positive(programs[name]["cpu"]["median"]) for name in ("bare", "pipeline")
    }  # a second of a core
    head = ["workload", "data", "a second of a core: bare", "of what", "pipeline", "pipeline / bare"]
    head += ["the train step takes a second", "cores that feed it"]
    cells = [case, str(row["data"]), shown(cores["bare"]), str(row["bare"]), shown(cores["pipeline"])]
    cells.append(f"{cores['pipeline'] / cores['bare']:.2f}")
    taken = batch / positive(programs["step"]["wall"]["median"]) if "step" in programs else None
    cells += [shown(taken), shown(taken / cores["pipeline"])] if taken else ["not measured", ""]
    return _Told(head, [cells], {**cores, "step": taken})


def _loadgen(case: str, row: Row) -> _Told:
    head = ["measurement", *VARIANTS.values(), "drop-in / official", "native / official"]
    table, marks = [], {}
    for figure, variants in row["figures"].items():
        medians = {name: positive(variants[name]["median"]) for name in VARIANTS if name in variants}
        less = figure.endswith(("_us", "_mb"))
        best = {
            who: (min if less else max)(medians[name] for name in names if name in medians)
            for who, names in _WHO.items()
        }
        ratios = {
            who: best["official"] / best[who] if less else best[who] / best["official"]
            for who in ("drop-in", "native")
        }
        label = f"{case} {figure}"
        spreads = [_spread(variants[name]) if name in medians else "" for name in VARIANTS]
        table.append([label, *spreads, *(f"**{ratio:,.2f}**" for ratio in ratios.values())])
        # A native Offline query says nothing, and would push all others into a corner.
        marks[label] = {who: r for who, r in ratios.items() if (who, figure) != ("native", "samples_per_s")}
    return _Told(head, table, marks)


_WHO = {
    "official": ("official", "official_fast"),
    "drop-in": ("drop_in", "drop_in_fast"),
    "native": ("native",),
}


def _server(case: str, row: Row) -> _Told:
    points = [
        {name: positive(point[name]) for name in ("share", "rate", "p50", "p90", "p99")}
        for point in row["points"]
    ]
    head = ["workload", "copies", "bound ms", "highest rate/s", "of the best batch's"]
    head += [f"ms at {point['share']:.0%}" for point in points]
    peak = positive(row["peak"])
    cells = [case, shown(positive(row["replicas"])), shown(1000 * positive(row["bound"])), shown(peak)]
    cells.append(f"{peak / positive(row['capacity']):.0%}")
    cells += [" / ".join(shown(1000 * point[name]) for name in ("p50", "p90", "p99")) for point in points]
    return _Told(head, [cells], points)


def _start(case: str, row: Row) -> _Told:
    unit = str(row["unit"])
    scale = 100.0 if unit == "share" else 1.0
    figures = {str(name): values for name, values in row["figures"].items()}
    cells = [
        [f"{case}: {name}", _spread(values, scale), "%" if unit == "share" else unit]
        for name, values in figures.items()
    ]
    return _Told(
        ["what", "median (lower to upper)", "unit"],
        cells,
        {name: number(values["median"]) for name, values in figures.items()} if unit == "s" else {},
    )


def _scaling(case: str, row: Row) -> _Told:
    points = [(positive(point["at"]), positive(point["wall"]["median"])) for point in row["points"]]
    if not points:
        raise ValueError("no sizes")
    exponents = {
        figure: {name: number(row["fits"][figure][name]) for name in ("exponent", "low", "high")}
        for figure in ("wall", "cpu")
    }
    sizes = [f"{shown(at)}: {shown(1000 * seconds)}" for at, seconds in points]
    cells = [f"{case} ({row['preset']})", str(row["variable"]), "; ".join(sizes)]
    cells += [f"{fit['exponent']:.2f} ({fit['low']:.2f} to {fit['high']:.2f})" for fit in exponents.values()]
    head = ["step of", "what grows", "size: wall ms", "exponent of wall time", "of CPU time"]
    return _Told(head, [cells], (points, exponents["wall"]["exponent"]))


_PARTS: dict[str, tuple[str, str, Callable[[str, Row], _Told], Callable[[Mapping[str, Any]], Markup]]] = {
    "input": (
        "Input pipelines",
        "Examples a second of CPU time of one core, batches made one after the other in one thread. Bare is decoding the same JPEGs "
        "and nothing else, or copying a batch's bytes where nothing is decoded. Data of closed presets is made up and read from disk, "
        "of minis it is random and lies in memory. What the step takes is by the clock, on all cores.",
        _input,
        drawings.input_rates,
    ),
    "loadgen": (
        "LoadGen beside the official package",
        "A system under test that does nothing, from Python, answering at once or from a thread of its own; medians of interleaved rounds, "
        "each in a process of its own. Ratios are to the better variant of the official package, above 1 ours is better. A native Offline "
        "query is one completion call, stamped when it begins, so its samples/s say only that LoadGen adds nothing. Of a machine that has "
        "other work, the p99 of Server is mostly its stalls.",
        _loadgen,
        drawings.loadgen_ratios,
    ),
    "server": (
        "Server: latency against throughput",
        "Random weights, a copy of the model on each device (virtual devices of a CPU share its cores). The highest rate is found by the "
        "commands' own search; then p50 / p90 / p99 of runs of two seconds at shares of it.",
        _server,
        drawings.server_latencies,
    ),
    "start": (
        "Beside computing",
        "Python of a step: placing a batch, calling the compiled step, looking at the last loss (10th to 90th percentile). Starts: from "
        "the start of the process, of resnet50's mini, compiling everything or with the programs that an earlier command kept. Outside of steps: of run_start to run_stop, random data.",
        _start,
        drawings.starts,
    ),
    "scaling": (
        "Scaling of the train step",
        "Exponents e of time = f * size^e, by least squares of logarithms through all rounds, with their 95 % confidence. Devices of a CPU "
        "are virtual: one already uses all its cores, so two of them show what dividing the batch costs, not what it gains.",
        _scaling,
        drawings.scaling,
    ),
}
TITLES = {part: title for part, (title, *_) in _PARTS.items()}
