"""The drawings of what `python -m benchmarks.run` measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mlperf_jax.reporting.figures import BLUE, GREY, INK, ORANGE, drawn_on
from mlperf_jax.reporting.markup import Markup, readable

_COLOURS = (BLUE, ORANGE, "#5b9a68", "#8a6bb0", "#c25b4e", "#d0a54a")
_ROW = 0.24  # inches
_LONGEST = 28  # letters of a name; half of a drawing holds no more
# One grey and any sans-serif, that read on light pages and on dark ones.
_ALONE = 'color="#808890" font-family="sans-serif"'


def alone(drawing: Markup) -> str:
    """A drawing as a file of its own, the same text whatever was drawn before it."""
    named = re.sub(r'(id="|#)f[0-9]+-', r"\1f-", drawing)
    return re.sub(r"^<svg ", f"<svg {_ALONE} ", named) + "\n"


def _name(text: str) -> str:
    text = readable(text).replace("\n", " ")
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _dots(
    rows: Mapping[str, Mapping[str, float | None]], names: Mapping[str, str], x: str, title: str
) -> Markup:
    """A row for each of some names, a dot for each of its figures on a logarithmic axis."""
    axes, finish = drawn_on(x, "", height=0.9 + _ROW * len(rows), top=0.4)
    for (figure, label), colour in zip(names.items(), (GREY, *_COLOURS), strict=False):
        points = [(value, i) for i, row in enumerate(rows.values()) if (value := row.get(figure))]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, "o", color=colour, markersize=5, label=label)
    axes.set_xscale("log")
    _short_numbers(axes.xaxis)
    axes.set_yticks(range(len(rows)), [_name(name) for name in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _legend(axes, len(names))
    return finish(title)


def _legend(axes: Any, columns: int) -> None:
    """Above the axes."""
    axes.legend(
        ncols=columns,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
        labelcolor=INK,
        columnspacing=1,
        handletextpad=0.3,
    )


def input_rates(cases: Mapping[str, Mapping[str, float | None]]) -> Markup:
    names = {"bare": "bare", "pipeline": "pipeline", "step": "taken by the step"}
    title = "Examples a second: of a core, bare and by the pipeline, and what the train step takes"
    return _dots(cases, names, "examples a second", title)


def loadgen_ratios(cases: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Markup:
    rows: dict[str, Mapping[str, float | None]] = {
        label: dict(ratios) for those in cases.values() for label, ratios in those.items()
    }
    names = {"official": "official = 1", "drop-in": "drop-in", "native": "native"}
    rows = {label: {"official": 1.0, **ratios} for label, ratios in rows.items()}
    title = "loadgen_py over the official package; right of 1 ours is better"
    return _dots(rows, names, "times as good as the official package", title)


def server_latencies(cases: Mapping[str, Sequence[Mapping[str, float]]]) -> Markup:
    axes, finish = drawn_on("samples a second", "latency, ms", height=3.2, top=0.4 + 0.16 * (len(cases) // 3))
    for (name, points), colour in zip(cases.items(), _cycled(len(cases)), strict=True):
        rates = [point["rate"] for point in points]
        for percentile, style in (("p50", ":"), ("p90", "--"), ("p99", "-")):
            axes.plot(
                rates,
                [1000 * point[percentile] for point in points],
                style,
                color=colour,
                linewidth=1.2,
                marker="o" if percentile == "p99" else "",
                markersize=3,
                label=_name(name) if percentile == "p99" else None,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _short_numbers(axes.xaxis, axes.yaxis)
    _legend(axes, 3)
    return finish("Server: latency against throughput; dotted p50, dashed p90, full p99")


def starts(cases: Mapping[str, Mapping[str, float]]) -> Markup:
    rows = {name: seconds for those in cases.values() for name, seconds in those.items()}
    axes, finish = drawn_on("seconds", "", height=0.7 + _ROW * len(rows))
    axes.barh(range(len(rows)), list(rows.values()), color=BLUE, height=0.6)
    axes.set_yticks(range(len(rows)), [_name(name) for name in rows])
    axes.invert_yaxis()
    return finish("Seconds from the start of a process to its first step and to its first query")


def scaling(cases: Mapping[str, tuple[Sequence[tuple[float, float]], float]]) -> Markup:
    axes, finish = drawn_on(
        "times the smallest size", "times as long", height=3.2, top=0.4 + 0.16 * (len(cases) // 2)
    )
    for (name, (points, exponent)), colour in zip(cases.items(), _cycled(len(cases)), strict=True):
        size, seconds = min(points)
        axes.plot(
            [at / size for at, _ in points],
            [taken / seconds for _, taken in points],
            color=colour,
            linewidth=1.2,
            marker="o",
            markersize=3,
            label=f"{_name(name)}: {exponent:.2f}",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _short_numbers(axes.xaxis, axes.yaxis)
    _legend(axes, 2)
    return finish(
        "A train step's time against its size, both in parts of the smallest, and the fitted exponents"
    )


def _cycled(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _short_numbers(*logarithmic: Any) -> None:
    """Labels of powers of ten alone: 0.1, 10, 10k, 10M."""
    for axis in logarithmic:
        axis.set_major_formatter(lambda value, _: _short(value))
        axis.set_minor_formatter(lambda *_: "")


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
