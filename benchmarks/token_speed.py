"""Tokens a second of the engine beside `transformers`' batched generate: SmolLM2-135M's real weights, float32, on CPU.

    python -m benchmarks.token_speed --out=benchmarks/token_speed.json
    python -m benchmarks.token_speed --out=benchmarks/token_speed.json --only=server,curve   # the rest stays as it is recorded
    python -m benchmarks.token_speed --out=benchmarks/token_speed.json --page                # only the .md, from the record

256 descriptions of Debian's packages, each with 16 to 128 new tokens, greedily, no fewer and no more. Needs `transformers` with PyTorch, which
is no part of this project's environment. Parts: `batch` finds the other side's best batch, on a quarter of the texts; `offline` runs both
sides over all texts in turns, and is recorded round by round; `alone` asks both for one text after the other, an eighth of them; `server` is LoadGen's Server at 70 % of Offline's rate, `curve` the same at others for a
shorter time, both with Offline and a step alone measured once more right before, as a shared machine is another one minutes later.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import input_pipelines
from benchmarks import records
from benchmarks.token_sides import LEAST_NEW, MOST_NEW, PROMPTS, SEED, Ours, Side, Theirs
from input_pipelines.text import debian_descriptions

SCHEMA_VERSION = 1
PARTS = ("batch", "offline", "alone", "server", "curve")
SLOTS = 64
BATCHES = (16, 32, 64)
SHARE = 0.7  # of Offline's rate
SHARES = (0.35, 0.9)
TRIED = 4  # of each so many texts one is among those that find the best batch
ALONE = 8  # and one among those that are asked for alone
QUERIES, SERVER_SECONDS, CURVE_SECONDS = 1000, 60.0, 30.0


def measure(part: str, record: dict[str, Any], ours: Side, theirs: Side) -> None:
    """Adds a part to the record; of `offline` another round."""
    if part == "batch":
        found = [theirs.ask("offline", batch, TRIED) for batch in BATCHES]
        record["batch"] = {str(one["batch"]): one["tokens_per_s"] for one in found}
        record.pop("offline", None)
        print(record[part], flush=True)
    elif part == "offline":
        best = int(max(record["batch"], key=record["batch"].__getitem__))
        rounds = record.setdefault("offline", {"batch": best, "ours": [], "theirs": []})
        one, other = ours.ask("offline") | _loaded(), theirs.ask("offline", best) | _loaded()
        rounds["ours"].append(one)
        rounds["theirs"].append(other)
        print(one, other, flush=True)
    elif part == "alone":
        rounds = record.setdefault("alone", {"ours": [], "theirs": []})
        rounds["ours"].append(ours.ask("one_by_one", ALONE) | _loaded())
        rounds["theirs"].append(theirs.ask("offline", 1, ALONE) | _loaded())
        print(rounds["ours"][-1], rounds["theirs"][-1], flush=True)
    else:
        rate, step = ours.ask("offline")["samples_per_s"], ours.ask("bare_step")
        if part == "server":
            record["server"] = ours.ask("server", SHARE * rate, SERVER_SECONDS, QUERIES, step) | _loaded()
        else:
            record["curve"] = [
                {"share": share} | ours.ask("server", share * rate, CURVE_SECONDS, 1, step) | _loaded()
                for share in SHARES
            ]
        print(record[part], flush=True)


def _loaded() -> dict[str, Any]:
    return {"load": os.getloadavg()[0]}


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


def page(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    offline = record["offline"]
    ours, theirs = (_median(offline[side], "tokens_per_s") for side in ("ours", "theirs"))
    ratios = [
        a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(offline["ours"], offline["theirs"], strict=True)
    ]
    busy = _median(offline["ours"], "in_programs")
    tried = ", ".join(f"{batch}: {rate:.0f}" for batch, rate in record["batch"].items())
    lines = [
        "# Tokens a second of the engine beside transformers",
        "",
        f"SmolLM2-135M-Instruct's weights (135 M parameters), float32, greedy: {PROMPTS} descriptions of Debian's packages as prompts, "
        f"{LEAST_NEW} to {MOST_NEW} new tokens each, by seed {SEED}. {record['cores']} cores of {record['cpu']}; "
        + ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        + f"; {record['date']}.",
        "",
        *(f"    {command}" for command in record["commands"]),
        "",
        "| round | engine, tokens/s | in programs | transformers, tokens/s | ratio |",
        "|---|---|---|---|---|",
    ]
    for n, (a, b) in enumerate(zip(offline["ours"], offline["theirs"], strict=True)):
        lines.append(
            f"| {n + 1} | {a['tokens_per_s']:.1f} | {a['in_programs']:.1%} | {b['tokens_per_s']:.1f} | {ratios[n]:.2f} |"
        )
    lines += [
        f"| median | {ours:.1f} | {busy:.1%} | {theirs:.1f} | {statistics.median(ratios):.2f} |",
        "",
        f"- The engine runs under LoadGen's Offline with {record['slots']} slots. In programs: wall time, from LoadGen's call to its return, "
        "in which a compiled program was under way.",
        f"- transformers runs in batches of {offline['batch']}, the best of those tried on a quarter of the texts (tokens/s by batch: {tried}). Texts "
        "are sorted by new tokens, then by the length of the prompt, which wastes the least: a batch runs on to its longest answer, "
        "and only the tokens that were asked for count.",
        "- Rounds are in turns, both sides in processes of their own with as many threads as there are cores.",
    ]
    if "alone" in record:
        sides = record["alone"]["ours"], record["alone"]["theirs"]
        alone = [
            statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(*sides, strict=True))
        ]
        alone += [_median(side, "tokens_per_s") for side in sides]
        lines += [
            "",
            "## One text at a time",
            "",
            f"The engine with its {record['slots']} slots told {alone[1]:.1f} tokens/s, transformers {alone[2]:.1f}: medians of {len(sides[0])} rounds in turns, each "
            f"of {len(range(0, PROMPTS, ALONE))} texts one after the other, the median of the ratios {alone[0]:.2f}.",
        ]
    if "server" in record:
        server, step = record["server"], record["server"]["bare_step_s"]
        lines += [
            "",
            "## Server",
            "",
            f"A step of all {record['slots']} slots alone takes {1000 * step:.0f} ms. At {SHARE:.0%} of Offline's rate right before, "
            f"{server['qps']:.2f} requests/s, {server['queries']} requests, bounds of 2 s on the first token and of 3 such steps on each other: "
            f"{'VALID' if server['valid'] else 'INVALID'}, TPOT p99 {server['each_ms_p99']:.0f} ms, "
            f"{server['each_ms_p99'] / 1000 / step:.2f} steps.",
        ]
    if "curve" in record:
        lines += [
            "",
            "| of Offline's rate | requests/s | tokens/s | first token p50, p99 ms | each other p50, p99 ms |",
            "|---|---|---|---|---|",
        ]
        rows = [*record["curve"], *([{"share": SHARE} | record["server"]] if "server" in record else [])]
        for row in sorted(rows, key=lambda row: row["share"]):
            lines.append(
                f"| {row['share']:.0%} | {row['qps']:.2f} | {row['tokens_per_s']:.0f} | "
                f"{row['first_ms_p50']:.0f}, {row['first_ms_p99']:.0f} | {row['each_ms_p50']:.0f}, {row['each_ms_p99']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", type=Path, default=input_pipelines.default_data_dir())
    parser.add_argument("--out", type=Path, help="JSON file for the record; the page goes beside it")
    parser.add_argument(
        "--only", default=",".join(PARTS), help="parts, by commas; what was recorded of the others stays"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of `offline` and `alone`, after those that are recorded"
    )
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--page", action="store_true", help="measure nothing, write the page from the record")
    arguments = parser.parse_args()
    record = json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    if not arguments.page:
        debian_descriptions.prepare(arguments.data_dir)
        ours = Side(Ours, arguments.data_dir, arguments.slots)
        theirs = Side(Theirs, arguments.data_dir, os.cpu_count())
        record |= {
            "schema_version": SCHEMA_VERSION,
            "date": datetime.date.today().isoformat(),
            "slots": arguments.slots,
            "cores": os.cpu_count(),
            "cpu": records.machine_in_words().split(" of ", 1)[1],
            "versions": records.versions("jax", "jaxlib", "numpy", "torch", "transformers"),
        }
        for part in arguments.only.split(","):
            for _ in range(arguments.rounds if part in ("offline", "alone") else 1):
                measure(part, record, ours, theirs)
                parts = record.setdefault("commands", {}).setdefault(records.command("token_speed"), [])
                parts.append(part)
                records.write(arguments.out, record)
    if arguments.out and "offline" in record:
        arguments.out.with_suffix(".md").write_text(page(record))


if __name__ == "__main__":
    main()
