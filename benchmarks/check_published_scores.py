"""Scores published rounds a second way, and compares with `python -m mlperf_jax.report --csv`.

    python benchmarks/check_published_scores.py REPORT.csv [COMPARED.json]

Short and independent of the report: regular expressions over whole files, folders taken from the CSV's
`path`. It prints each score that differs by more than a millionth, and how many were compared; the JSON
holds both.
"""

import csv
import json
import re
import statistics
import sys
from pathlib import Path

TIME = re.compile(
    rb":::MLPv0\.5\.0 \S+ (?P<v05>[\d.]+) \(.*?\) (?P<k05>run_start|run_stop)\b(?P<r05>.*)"
    rb"|:::MLL (?P<v06>[\d.]+) (?P<k06>run_start|run_stop):(?P<r06>.*)"
    rb'|:::MLLOG (?P<r07>\{.*"key": "(?P<k07>run_start|run_stop)".*)'
)
BAD = re.compile(rb'"?success"?\'?: "?false|[\'"]status[\'"]: [\'"](?!success)', re.IGNORECASE)


def minutes(path: Path) -> float:
    """run_start to run_stop, infinite if the run did not reach its target."""
    found: dict[bytes, tuple[float, bytes]] = {}
    text = path.read_bytes()
    if b":::MLL " in text and (offline := re.search(rb"eval_result.*timestamp['\"]: ([\d.]+)", text)):
        return float(offline[1]) / 60  # MiniGo of v0.6, evaluated after the run
    for match in TIME.finditer(text):
        key = match["k05"] or match["k06"] or match["k07"]
        if key in found:
            continue
        if match["k07"] and (told := re.search(rb'"time_(m?)s": ([\d.]+)', match["r07"])):
            seconds = float(told[2]) / (1000 if told[1] else 1)
        else:
            seconds = float(match["v05"] or match["v06"])
        found[key] = seconds, next(g for g in match.group("r05", "r06", "r07") if g is not None)
    if len(found) < 2 or BAD.search(found[b"run_stop"][1]):
        return float("inf")
    return (found[b"run_stop"][0] - found[b"run_start"][0]) / 60


def score(folder: Path, benchmark: str) -> float | None:
    files = sorted(folder.glob("result_*.txt"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    times = [minutes(path) for path in files or sorted(folder.glob("*.log"))]
    if benchmark == "ncf":
        times = [t for t in times if t < float("inf")][:50]
    cut = 4 if benchmark == "unet3d" else 1
    kept = sorted(times)[cut:-cut]
    return statistics.fmean(kept) if kept and max(kept) < float("inf") else None


def main() -> int:
    with open(sys.argv[1], newline="") as file:
        rows = list(csv.DictReader(file))
    compared, differing = [], 0
    for row in rows:
        mine = score(Path(row["path"]), row["benchmark"])
        theirs = float(row["score_minutes"]) if row["score_minutes"] else None
        same = abs(mine / theirs - 1) <= 1e-6 if mine and theirs else mine == theirs
        named = {key: row[key] for key in ("round", "submitter", "system", "benchmark")}
        compared.append({**named, "report_minutes": theirs, "here_minutes": mine and round(mine, 7)})
        if not same:
            differing += 1
            print(*named.values(), "report:", theirs, "here:", mine, row["reason"])
    scored = sum(bool(row["score_minutes"]) for row in rows)
    runs = sum(int(row["runs"]) for row in rows)
    print(f"{len(rows)} results of {runs} runs, {scored} with a score: {differing} differ")
    if len(sys.argv) > 2:
        lines = ",\n  ".join(json.dumps(one) for one in compared)
        Path(sys.argv[2]).write_text(
            f'{{"schema_version": 1, "differ": {differing}, "results": [\n  {lines}\n]}}\n'
        )
    return 1 if differing else 0


sys.exit(main())
