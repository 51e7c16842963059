"""The page's figures: matplotlib drawings as SVG to put into HTML.

They take colour of text and axes from the page, so that one drawing serves light, dark and print.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlperf_jax.goals import Goal
from mlperf_jax.reporting.markup import Markup
from mlperf_jax.reporting.timing import PHASES, TimeSplit
from mlperf_jax.rounds.inference_logs import InferenceRun
from mlperf_jax.rounds.published_curves import Curve
from mlperf_jax.rounds.qualities import figures as told_figures
from mlperf_jax.rounds.reference_points import ReferencePoints, Verdict
from mlperf_jax.rounds.training_logs import RunLog

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's own colour, put in at the end
BLUE, ORANGE, GREY = "#3b74b4", "#d0752a", "#9aa3ad"
_PHASE_COLOURS = ("#b8c4d0", "#7f96ad", "#3b74b4", "#d0a54a", "#c25b4e")
_SIZE = (4.6, 2.7)  # inches; the page scales them
_LETTER, _LABEL = 0.08, 0.2  # inches: the width of a letter, the height of the label beside an axis
_MOST_POINTS = 200  # of a line
_MOST_MARKS = 150  # of a drawing
_numbers = itertools.count()


def quality(logs: Sequence[RunLog], goal: Goal, goals: Sequence[Goal], converged: Sequence[bool]) -> Markup:
    """The figure of a goal against minutes since run_start, a line per run, the target dashed where there is one."""
    axes, finish = drawn_on("minutes since run_start", goal.name)
    total = sum(len(log.evaluations) for log in logs)
    if not total:
        return Markup("")
    marker = "o" if total < _MOST_MARKS else ""
    for log, good in zip(logs, converged, strict=True):
        points = [(e.minutes, told_figures(goals, e.found)[goal.name]) for e in log.evaluations]
        points = points[:: max(1, len(points) // _MOST_POINTS)]
        if points:
            minutes, qualities = zip(*points, strict=True)
            colour = BLUE if good else ORANGE
            axes.plot(
                minutes, qualities, color=colour, linewidth=1, alpha=0.75, marker=marker, markersize=2.5
            )
    if not math.isnan(goal.target):
        _dashed(axes.axhline, goal.target)
        axes.annotate(
            f"target {goal.target:g}",
            (1, goal.target),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=INK,
        )
    axes.set_xlim(left=0)
    return finish("Quality against time, a line per run; orange did not converge")


def time_split(splits: Sequence[tuple[str, TimeSplit]]) -> Markup:
    """Where each run's time went, in minutes."""
    if not any(getattr(split, phase) for _, split in splits for phase in PHASES):
        return Markup("")
    axes, finish = drawn_on("minutes", "", height=0.9 + 0.3 * len(splits), top=0.4)
    rows = range(len(splits))
    left = np.zeros(len(splits))
    for phase, colour in zip(PHASES, _PHASE_COLOURS, strict=True):
        widths = np.array([getattr(split, phase) or 0.0 for _, split in splits])
        axes.barh(rows, widths, left=left, color=colour, height=0.6, label=phase.replace("_", " "))
        left += widths
    axes.set_yticks(list(rows), [name for name, _ in splits])
    axes.invert_yaxis()
    axes.legend(
        ncols=5, loc="lower center", bbox_to_anchor=(0.42, 1), frameon=False, labelcolor=INK, columnspacing=1
    )
    return finish("Time split of each run: init, compile, train, evaluation, waiting for input")


def throughput(logs: Sequence[RunLog]) -> Markup:
    """Samples a second of training against minutes since run_start."""
    axes, finish = drawn_on("minutes since run_start", "samples/s")
    shown = False
    for log in logs:
        start = log.start_ms
        points = (
            [((t - start) / 60_000, rate) for t, rate in log.throughput.points] if start is not None else []
        )
        if len(points) > 1:
            shown = True
            axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=1, alpha=0.75)
    if not shown:
        return Markup("")
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.set_xlim(left=0)
    return finish("Training throughput over time, a line per run")


def convergence(points: ReferencePoints, verdict: Verdict, unit: str) -> Markup:
    """The reference's convergence by batch size, what passes, and where each run lies."""
    axes, finish = drawn_on("global batch size", unit)
    pruned = points.pruned
    sizes = [p.batch_size for p in pruned]
    axes.fill_between(
        sizes, [p.fastest for p in pruned], [p.mean for p in pruned], color=GREY, alpha=0.3, linewidth=0
    )
    axes.plot(sizes, [p.mean for p in pruned], color=INK, linewidth=1, marker="o", markersize=3)
    left_out = [p for p in points.points if p not in pruned]
    axes.plot([p.batch_size for p in left_out], [p.mean for p in left_out], "o", color=GREY, markersize=3)
    if verdict.batch_size:
        n = len(verdict.epochs)
        axes.plot([verdict.batch_size] * n, verdict.epochs, "o", color=BLUE, markersize=4, alpha=0.5)
        if verdict.mean is not None:
            colour = BLUE if verdict.passed else ORANGE
            axes.plot(
                [verdict.batch_size], [verdict.mean], "_", color=colour, markersize=16, markeredgewidth=2
            )
    every = [*sizes, *([verdict.batch_size] if verdict.batch_size else [])]
    if min(every) > 0 and max(every) / min(every) > 8:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return finish("Epochs to converge by batch size: reference, what its test lets pass, and each run")


def beside_published(curve: Curve, losses: Sequence[Sequence[tuple[float, float]]]) -> Markup:
    """Losses of runs, each [(samples, loss)], and those of published ones: their range, and their median."""
    axes, finish = drawn_on("thousand sequences trained on", "loss")
    samples = [point.samples / 1e3 for point in curve.points]
    least, median, most = zip(*((p.least, p.median, p.most) for p in curve.points), strict=True)
    axes.fill_between(samples, least, most, color=GREY, alpha=0.35, linewidth=0)
    axes.plot(samples, median, color=INK, linewidth=1)
    for run in losses:
        points = [(at / 1e3, loss) for at, loss in run]
        axes.plot(*zip(*points, strict=True), color=BLUE, linewidth=1, alpha=0.75, marker="o", markersize=2.5)
    # A published run's loss may shoot up to many times the others'.
    shown = [*least, *median, *(loss for run in losses for _, loss in run)]
    room = 0.05 * (max(shown) - min(shown))
    axes.set_ylim(min(shown) - room, max(shown) + room)
    return finish("Loss by sequences trained on: published runs, and a line per run")


def latency_histogram(run: InferenceRun) -> Markup:
    """How many samples took how long; the bound dashed."""
    if not len(run.latencies):
        return Markup("")
    axes, finish = drawn_on("latency, ms", "samples")
    milliseconds = run.latencies * 1e3
    top = float(np.quantile(milliseconds, 0.999))
    edges = np.linspace(milliseconds[0], max(top, milliseconds[0] + 1e-6), 50)
    axes.hist(milliseconds, bins=edges.tolist(), color=BLUE)
    if run.bound:
        _dashed(axes.axvline, run.bound * 1e3)
    return finish("Latency histogram up to the 99.9th percentile; dashed: the bound")


def percentile_curve(run: InferenceRun) -> Markup:
    """Latency against percentile, the tail drawn out; the bound dashed."""
    if not run.percentiles and not len(run.latencies):
        return Markup("")
    axes, finish = drawn_on("percentile", "latency, ms")
    if len(run.latencies):
        n = len(run.latencies)
        shares = np.unique(
            np.concatenate([np.linspace(0, 0.99, 100), 1 - np.geomspace(0.01, 1 / max(n, 2), 60)])
        )
        latencies = run.latencies[np.minimum((shares * n).astype(int), n - 1)] * 1e3
        axes.plot(_tail(shares), latencies, color=BLUE, linewidth=1.2)
    if run.percentiles:
        logged = np.array(run.percentiles)  # [percentiles, 2]: share, seconds
        axes.plot(_tail(logged[:, 0]), logged[:, 1] * 1e3, "o", color=BLUE, markersize=3)
    if run.bound:
        _dashed(axes.axhline, run.bound * 1e3)
    ticks = [0.5, 0.9, 0.99, 0.999]
    axes.set_xticks(list(_tail(np.array([0, *ticks]))), ["0", *(f"{100 * tick:g}" for tick in ticks)])
    axes.set_ylim(bottom=0)
    return finish("Latency by percentile; dots as logged, dashed: the bound")


def _tail(shares: np.ndarray) -> np.ndarray:
    """An axis on which 0, 0.9, 0.99 and 0.999 are equally far apart."""
    return -np.log10(np.maximum(1 - shares, 1e-6))


def server_curve(runs: Sequence[InferenceRun]) -> Markup:
    """Server's latency at the judged percentile against the qps asked for."""
    axes, finish = drawn_on("target qps", "latency, ms")
    points = sorted(
        (run.target_qps, run.server_p99 * 1e3, bool(run.valid))
        for run in runs
        if run.target_qps is not None and run.server_p99 is not None
    )
    axes.plot([p[0] for p in points], [p[1] for p in points], color=BLUE, linewidth=1)
    for valid, colour in ((True, BLUE), (False, ORANGE)):
        those = [p for p in points if p[2] == valid]
        axes.plot([p[0] for p in those], [p[1] for p in those], "o", color=colour, markersize=4)
    for bound in {run.bound for run in runs if run.bound}:
        _dashed(axes.axhline, bound * 1e3)
    if points and points[-1][1] > 20 * max(points[0][1], 1e-9):
        axes.set_yscale("log")
    return finish("Server: latency against the rate asked for; orange was INVALID, dashed: the bound")


def _dashed(line: Callable[..., object], at: float) -> None:
    """Draws a target or bound by `axes.axhline` or `axes.axvline`."""
    line(at, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))


def drawn_on(
    x: str, y: str, height: float = _SIZE[1], top: float = 0.2
) -> tuple[Axes, Callable[[str], Markup]]:
    """Axes in the page's manner, and the function that makes an SVG of them with a title to be read aloud.

    height, top: of the drawing and of the margin above the axes, in inches.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    _use_style()
    height = min(height, 12) + top - 0.2
    figure = Figure(figsize=(_SIZE[0], height))
    FigureCanvasSVG(figure)
    # Fixed margins: fitting them to the text would draw everything twice, and there are hundreds of drawings.
    axes = figure.add_axes((0.13, 0.45 / height, 0.85, 1 - (0.45 + top) / height))  # the left end moves
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.margins(x=0.03)
    axes.grid(True, linewidth=0.4, alpha=0.25, color=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)

    def finish(title: str) -> Markup:
        _make_room(axes, height, top)
        return _svg(figure, title)

    return axes, finish


def _make_room(axes: Axes, height: float, top: float) -> None:
    """Moves the axes' left end to where the longest of its labels has room; the browser's letters are wider
    than matplotlib's at most by a tenth."""
    longest = max((len(label.get_text()) for label in axes.get_yticklabels()), default=0)
    left = (_LABEL if axes.get_ylabel() else 0.0) + 0.12 + _LETTER * max(longest, 3)
    share = min(left / _SIZE[0], 0.5)
    axes.set_position((share, 0.45 / height, 0.98 - share, 1 - (0.45 + top) / height))


@functools.cache
def _use_style() -> None:
    import matplotlib as mpl

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "mlperf_jax",  # the same drawing twice is the same text
            "text.parse_math": False,  # names of files and systems are no formulas
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "font.size": 9,
            "axes.linewidth": 0.6,
            "axes.formatter.use_mathtext": False,
            "figure.facecolor": "none",
            "axes.facecolor": "none",
            "savefig.facecolor": "none",
            "path.simplify_threshold": 1.0,
        }
    )


def _svg(figure: Figure, title: str) -> Markup:
    number = next(_numbers)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    drawn = out.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", drawn, flags=re.DOTALL)
    # Names of one drawing must not be those of another on the same page; most are never asked for.
    asked = set(re.findall(r'#([\w.-]+)[")]', drawn))
    drawn = re.sub(r' id="([^"]+)"', lambda m: f' id="f{number}-{m[1]}"' if m[1] in asked else "", drawn)
    drawn = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>f{number}-", drawn)
    drawn = drawn.replace(INK, "currentColor")
    drawn = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font-size: \1px", drawn)
    drawn = re.sub(r"\n\s*", " ", drawn)
    width, height = figure.get_size_inches() * 72
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg role="img" aria-label="{title}" viewBox="0 0 {width:g} {height:g}" {names}>'
    return Markup(re.sub(r"<svg[^>]*?>", head, drawn, count=1))
