"""The record of `benchmarks.run`, benchmarks/run.json, and what is made of it: the page, benchmarks/README.md, and its pictures."""

from __future__ import annotations

import ast
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.speed.side import TRAIN
from mlperf_jax.reporting import measured, ratios
from mlperf_jax.reporting.markup import readable
from mlperf_jax.reporting.measured_figures import alone
from mlperf_jax.results.folders import check_name, read_json, write_bytes, write_json

FOLDER = Path(__file__).parents[1]
ACCELERATORS = ("tpu", "gpu")
_PEERS = ratios.PEERS
_TITLES = ratios.PROGRAMS

Row = Mapping[str, Any]


def read(folder: Path) -> dict[str, Any]:
    """The record so far: `systems`, name -> workload -> row; `parts`, name -> part -> case -> row."""
    path = folder / "run.json"
    return {"systems": {}, "parts": {}} | (read_json(path) if path.exists() else {})


def write(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes record, page and pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {"systems": record["systems"], "parts": record["parts"]})
    written = read(folder)
    for name, svg in pictures(written).items():
        write_bytes(folder / name, svg.encode())
    write_bytes(folder / "README.md", text(written).encode())


def pictures(record: Mapping[str, Any]) -> dict[str, str]:
    """An SVG of each system's ratios, and of each part that has something to draw, by the name of its file."""
    drawn = {
        _picture_of(name): ratios.draw(rows, _TITLES, _PEERS) for name, rows in record["systems"].items()
    }
    for system, parts in record["parts"].items():
        for panel in measured.panels(parts):
            if panel.draw:
                drawn[_picture_of(system, panel.part)] = alone(panel.draw())
    return drawn


def _picture_of(system: str, part: str = "") -> str:
    return f"run_{check_name('system', system)}{'_' if part else ''}{part}.svg"


def text(record: Mapping[str, Any]) -> str:
    """The page of a record."""
    parts = [_HEAD]
    for system, rows in sorted(record["systems"].items()):
        parts += _system(system, rows)
    for system, measurements in sorted(record["parts"].items()):
        parts += _parts(system, measurements)
    parts += _missing(record["systems"])
    parts += ["## The others", "", *_others()]
    return "\n".join(parts) + "\n"


_HEAD = """# Benchmarks

Written by `python -m benchmarks.run`; nothing here is by hand. Unverified, not reviewed by MLCommons.

## Speed beside PyTorch

The same model from the same weights, the same batch, optimizer and precision on both sides (`tests/benchmarks/test_peers.py` holds
losses, steps and answers against each other); data is synthetic, *mini* is not MLPerf's data or model. Ours is the compiled train step that
the training loop calls, with its state donated, and the predict program that is served, from host to host: of models that are served by the token
the engine's, from a prompt to the last of as many tokens as its mini tells, greedily, of one text and of one in every slot. PyTorch is eager with its defaults, and
`torch.compile` with fused optimizers; texts go on there from keys and values that are kept. Each side is a process of its own;
they work in turns, as many threads as there are cores each, and a round is one turn of every side. Milliseconds are of a call: median of the
rounds (lower to upper quartile). CPU is user and system time of all threads, in the same window; PyTorch's OpenMP threads sleep while they
wait (`OMP_WAIT_POLICY=PASSIVE`), else what they spin would count. A ratio is the peer's time over ours, round by round, and the median of
those: above 1 ours is faster. The first loss is apart by so much, relative (MiniGo's boards are turned, and dropout falls, by draws of each
side's own); answers are apart in so many of their numbers (models are untrained: a detector's boxes have nearly the same scores, and may come in
another order).
"""


def _system(system: str, rows: Mapping[str, Row]) -> list[str]:
    lines = [f"### {system}", "", f"![CPU time of PyTorch over ours, by workload]({_picture_of(system)})", ""]
    for program, title in _TITLES.items():
        there = {name: row for name, row in rows.items() if program in row["programs"]}
        if there:
            lines += [f"**{title}**", "", *_times(program, there), ""]
    trained = {name: row for name, row in rows.items() if TRAIN in row["programs"]}
    lines += ["**What the train step reaches**", "", *_reached(trained), "", _REACHED, ""]
    lines += ["**How it was run**", "", *_runs(rows), ""]
    return lines


def _parts(system: str, measurements: Mapping[str, Any]) -> list[str]:
    lines = [f"## Around the step, on {_plain(system)}", ""]
    for panel in measured.panels(measurements):
        lines += [f"### {panel.title}", "", panel.note, ""]
        if panel.draw:
            lines += [f"![{panel.title}]({_picture_of(system, panel.part)})", ""]
        if panel.table:
            lines += [*_table(panel.table), ""]
        lines += [
            f"Left out, for the record does not tell it: {_plain(', '.join(panel.left_out))}.",
            "",
        ] * bool(panel.left_out)
        lines += ["**How it was run**", "", *_table(_how(panel.rows)), ""] if panel.rows else []
    return lines


def _times(program: str, rows: Mapping[str, Row]) -> list[str]:
    apart = "first loss apart" if program == TRAIN else "answers apart"
    head = ["workload", "examples" if program == TRAIN else "samples"]
    for side in ("ours", *_PEERS.values()):
        head += [f"{side}: wall ms", "CPU ms"]
    for side in _PEERS.values():
        head += [f"{side} / ours: CPU", "wall"]
    table = [[*head, apart]]
    for name, row in sorted(rows.items()):
        found = row["programs"][program]
        cells = [f"{name} ({row['preset']})", f"{found['size']:,}"]
        for side in ("ours", *_PEERS):
            there = found["sides"].get(side)
            cells += (
                [_spread(there["wall"]), _spread(there["cpu"])] if there else [_why(row, side, program), ""]
            )
        for side in _PEERS:
            ratio = found["ratios"].get(side)
            cells += (
                [f"**{ratio['cpu']['median']:.2f}**", f"{ratio['wall']['median']:.2f}"] if ratio else ["", ""]
            )
        distances = [r["apart"] for r in found["ratios"].values() if r["apart"] is not None]
        cells.append(_distance(max(distances), program) if distances else "")
        table.append(cells)
    return _table(table)


def _distance(apart: float, program: str) -> str:
    return f"{apart:.0e}" if program == TRAIN else f"{apart:.0%}"


def _why(row: Row, side: str, program: str) -> str:
    reasons = row["not_measured"].get(side, {})
    reason = reasons.get(program) or reasons.get("everything")
    return f"not measured{': ' + reason.replace('|', '/') if reason else ''}"


def _spread(values: Mapping[str, float]) -> str:
    median, low, high = (_number(1000 * values[k]) for k in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_REACHED = """Peak memory: on a CPU resident memory of the process at most while it trains (VmHWM, set back before each turn) beyond what it
held once its libraries were imported; on an accelerator what the framework's allocator counts. MFU: the model's own FLOPs over the chip's peak,
on a CPU over the matrix product measured beside. Roofline: the longer of the program's FLOPs at the rate of a matrix product and its bytes at the
rate of a triad, both measured in the same run, counted as `plan` counts; the step takes so many times as long. `plan` expects: the step by the
compiled program and the chip's published peaks."""


def _reached(rows: Mapping[str, Row]) -> list[str]:
    sides = ("ours", *_PEERS)
    names = ("ours", *_PEERS.values())
    head = ["workload", "unit", *(f"{n}: a second" for n in names), *(f"{n}: peak MiB" for n in names)]
    table = [[*head, "MFU", "roofline ms", "bound by", "step / roofline", "`plan` expects ms"]]
    for name, row in sorted(rows.items()):
        found = row["programs"][TRAIN]["sides"]
        rates = [f"{found[s]['per_second']:,.0f}" if s in found else "" for s in sides]
        peaks = [f"{found[s]['peak'] / 2**20:,.0f}" if s in found else "" for s in sides]
        table.append([f"{name} ({row['preset']})", row["unit"], *rates, *peaks, *_roofline(row)])
    return _table(table)


def _roofline(row: Row) -> list[str]:
    if "reached" not in row:
        return ["not measured"] * 5
    step = row["programs"][TRAIN]["sides"]["ours"]["wall"]["median"]
    reached = row["reached"]
    needs = {
        "products": row["flops"]["program"] / reached["flops"],
        "memory": row["moved_bytes"] / reached["bytes"],
    }
    bound = max(needs, key=needs.__getitem__)
    mfu = row["flops"]["model"] / step / (row["peak_flops"] or reached["flops"])
    expected = row["predicted_step"]
    planned = _number(1000 * expected) if expected else "no such chip in `plan`"
    return [f"{mfu:.1%}", _number(1000 * needs[bound]), bound, f"{step / needs[bound]:.2f}", planned]


def _runs(rows: Mapping[str, Row]) -> list[str]:
    waiting = max(row["waiting_cores"] for row in rows.values())
    note = f"Beside the process that works, one that waits uses at most {waiting:.1%} of a core."
    return [*_table(_how(rows)), "", note]


def _how(rows: Mapping[str, Row]) -> list[list[str]]:
    table = [["workload", "date", "commit", "machine", "software", "load before, after", "whole", "command"]]
    for name, row in sorted(rows.items()):
        software = [f"Python {row['python']}", *(f"{k} {v}" for k, v in row["versions"].items())]
        software += [row["precision"]] if "precision" in row else []
        load = f"{row['load_before'][0]:.1f}, {row['load_after'][0]:.1f}"
        machine, command = row["machine"], f"`{row['command']}`"
        if row["device"] != "cpu":
            machine = f"{row['device']}, {machine}"
        commit = row["commit"] or "none"
        table.append(
            [
                name,
                row["date"],
                commit,
                machine,
                ", ".join(software),
                load,
                f"{row['seconds']:.0f} s",
                command,
            ]
        )
    return table


def _missing(systems: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """What accelerators nobody ran it on yet, and the command for each row."""
    devices = {row["device"].lower() for rows in systems.values() for row in rows.values()}
    there = {"tpu": any("tpu" in d for d in devices), "gpu": any("nvidia" in d for d in devices)}
    lines: list[str] = []
    for platform in ACCELERATORS:
        if there[platform]:
            continue
        table = [["workload", "train step", "predictions", "`plan` beside it", "the command that would"]]
        for name in peers.names():
            command = f"`python -m benchmarks.run --platform={platform} --only={name}`"
            table.append([f"{name} (closed)", *["not measured"] * 3, command])
        lines += [f"### {platform.upper()}", "", *_table(table), ""]
    return lines


def _others() -> list[str]:
    """The other benchmarks, a line of each one's docstring, and what they left."""
    lines = []
    own = {"run.py", "records.py"}
    for path in sorted(FOLDER.glob("*.py")):
        if path.name in own:
            continue
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        left = sorted(
            p.name
            for p in FOLDER.glob(f"{path.stem}*")
            if p.suffix in (".json", ".md", ".txt") and p.is_file()
        )
        records = "".join(f", [{name}]({name})" for name in left)
        lines.append(f"- [{path.name}]({path.name}){records}: {doc.splitlines()[0]}")
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(_plain, cells)) + " |"

    return [line(rows[0]), "|---" * len(rows[0]) + "|", *map(line, rows[1:])]


def _plain(text: str) -> str:
    """In one line, so that a table stays one and nothing becomes a link or a tag of HTML."""
    text = " ".join(readable(text).split())
    return html.escape(text, quote=False).translate({ord(c): f"\\{c}" for c in "|[]"})


def in_short(workload: str, row: Row) -> list[str]:
    """A row for the terminal: CPU seconds of a call, and of each peer over ours."""
    lines = []
    for program, found in row["programs"].items():
        ours = found["sides"]["ours"]["cpu"]["median"]
        ratios = "".join(
            f", {_PEERS[side]} / ours {ratio['cpu']['median']:.2f}" for side, ratio in found["ratios"].items()
        )
        lines.append(f"{workload} {program} of {found['size']:,}: {_number(1000 * ours)} CPU ms{ratios}")
    return lines
