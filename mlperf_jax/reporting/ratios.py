"""The ratios of `benchmarks.run` as a picture: how many times as long each peer takes, a row per workload."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

Row = Mapping[str, Any]
_NAMES, _PANEL, _GAP = 120, 230, 24  # widths: of the workloads' names, of a program's panel, between panels
_TOP, _STEP, _BOTTOM = 58, 18, 22  # heights: above the rows, of a row, below
_COLOURS = {"eager": "#3b74b4", "compile": "#d0752a"}
# One grey, that reads on light pages and on dark ones.
_STYLE = "text { font: 11px sans-serif; fill: #808890 } .line { stroke: #808890; stroke-width: 1 } .thin { stroke-opacity: .3 }"


PEERS = {"eager": "PyTorch", "compile": "torch.compile"}
PROGRAMS = {
    "train": "Train step",
    "predict_one": "Prediction of one sample",
    "predict_many": "Prediction of the largest batch served",
}


def draw(rows: Mapping[str, Row], titles: Mapping[str, str], peers: Mapping[str, str]) -> str:
    """An SVG of the CPU time of each peer over ours: a mark at the median, a line from the lower to the upper quartile.

    Args:
        rows: of one system, by workload.
        titles: of the programs, a panel each.
        peers: their names.
    """
    told = [name for name, row in sorted(rows.items()) if any(_ratios(row, program) for program in titles)]
    every = [
        ratio[figure]
        for name in told
        for program in titles
        for ratio in _ratios(rows[name], program).values()
        for figure in ("low", "high")
    ]
    low, high = (math.floor(math.log2(min([1, *every]))), math.ceil(math.log2(max([1, *every]))))
    width = _NAMES + len(titles) * (_PANEL + _GAP)
    height = _TOP + _STEP * len(told) + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="CPU time of PyTorch over ours, by workload">',
        f"<style>{_STYLE}</style>",
        *_legend(peers),
    ]
    for i, name in enumerate(told):
        parts.append(_text(_NAMES - 8, _TOP + _STEP * (i + 0.7), name, "end"))
    for i, (program, title) in enumerate(titles.items()):
        left = _NAMES + i * (_PANEL + _GAP)
        found = [_ratios(rows[name], program) for name in told]
        parts += _panel(left, title, found, low, max(high, low + 1))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _ratios(row: Row, program: str) -> Mapping[str, Mapping[str, float]]:
    """CPU time over ours, by peer."""
    ratios = row["programs"].get(program, {}).get("ratios", {})
    return {peer: ratio["cpu"] for peer, ratio in ratios.items()}


def _legend(peers: Mapping[str, str]) -> Iterator[str]:
    yield _text(_NAMES, 14, "CPU time over ours; right of 1 ours takes less")
    for i, (peer, name) in enumerate(peers.items()):
        x = _NAMES + 290 + 110 * i
        yield f'<circle cx="{x}" cy="10" r="4" fill="{_COLOURS[peer]}"/>'
        yield _text(x + 8, 14, name)


def _panel(
    left: int, title: str, found: Sequence[Mapping[str, Mapping[str, float]]], low: int, high: int
) -> Iterator[str]:
    bottom = _TOP + _STEP * len(found)

    def at(ratio: float) -> float:
        return round(left + (math.log2(ratio) - low) / (high - low) * _PANEL, 1)

    yield _text(left, 36, title)
    for power in range(low, high + 1):
        x, kind = at(2.0**power), "line" if power == 0 else "line thin"
        yield f'<line class="{kind}" x1="{x}" y1="{_TOP - 8}" x2="{x}" y2="{bottom}"/>'
        yield _text(x, bottom + 14, f"{2.0**power:g}", "middle")
    for i, ratios in enumerate(found):
        for j, (peer, ratio) in enumerate(ratios.items()):
            y, colour = _TOP + _STEP * (i + 0.35) + 5 * j, _COLOURS[peer]
            spread = f'x1="{at(ratio["low"])}" y1="{y:g}" x2="{at(ratio["high"])}" y2="{y:g}"'
            yield f'<line {spread} stroke="{colour}" stroke-width="2" stroke-opacity=".5"/>'
            yield f'<circle cx="{at(ratio["median"])}" cy="{y:g}" r="3" fill="{colour}"/>'


def _text(x: float, y: float, said: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(said)}</text>'
