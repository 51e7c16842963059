"""Scores result folders, ours and every published MLPerf round, and shows them.

    python -m mlperf_jax.report results                                      tables in the terminal
    python -m mlperf_jax.report results --html=report.html --csv=report.csv
    python -m mlperf_jax.report results training_results_v0.7 --metric=speedup
    python -m mlperf_jax.report results_a results_b                          and these two side by side
    python -m mlperf_jax.report result_0.txt                                 one log
    python -m mlperf_jax.report --benchmarks=benchmarks/run.json --html=report.html
    python -m mlperf_jax.report results --serve                              the page, growing with the runs

Exit status: 0 done, 2 something to mend (one sentence says what).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax import cli
from mlperf_jax.errors import UserError
from mlperf_jax.reporting import measured, page, runs, side_by_side, tables
from mlperf_jax.results.folders import read_json
from mlperf_jax.rounds import training_rules
from mlperf_jax.rounds.collect import Reader
from mlperf_jax.rounds.objects import number

FLAGS = cli.define(
    cli.text("csv", "Write all results to this CSV file."),
    cli.text("html", "Write the page to this file."),
    cli.choice("metric", page.METRICS, "What the tables show first.", "minutes"),
    cli.text("reference_minutes", 'JSON file of P100 minutes beside the confirmed ones: {"ssd": 800}.'),
    cli.text("benchmarks", "Show this record of `python -m benchmarks.run` too, its run.json."),
    cli.switch("serve", "Show the page on this machine until Ctrl-C."),
    cli.integer("port", "Where --serve shows it; 0 takes a free one.", 8000, most=65535),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv, interrupted="nothing half written is left", reader_gone=0)


def _command(arguments: list[str]) -> int:
    overrides, folders = cli.parse(FLAGS, arguments)
    if overrides:
        raise UserError(f"{overrides[0]} is for runs, not for reports of them; leave it out.")
    roots = [Path(folder) for folder in folders]
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS))
        return 0
    if not roots and not FLAGS.benchmarks:
        raise UserError("Name at least one folder of results, as: python -m mlperf_jax.report results.")
    references = tables.References(_reference_minutes(FLAGS.reference_minutes))
    if FLAGS.serve and FLAGS.benchmarks:
        raise UserError("--serve shows folders that grow, and --benchmarks is none; leave one out.")
    if FLAGS.serve:
        from mlperf_jax.reporting.live import serve

        try:
            return serve(roots, references, FLAGS.metric, FLAGS.port)
        except KeyboardInterrupt:  # the way to end it
            return 0
    report = page.read_report(Reader(), roots)
    if FLAGS.benchmarks:
        report = dataclasses.replace(report, measured=read_json(FLAGS.benchmarks))
    if roots and not (report.results or report.inference or report.problems):
        raise UserError(
            f"{', '.join(folders)} {'holds' if len(folders) == 1 else 'hold'} no results of training or inference; "
            "name what does."
        )
    if FLAGS.csv:
        tables.write_text(Path(FLAGS.csv), tables.to_csv(report.results, references))
    if FLAGS.html:
        tables.write_text(Path(FLAGS.html), page.render(report, references, FLAGS.metric))
    _tell(report, references)
    return 0


def _reference_minutes(path: str | None) -> dict[str, float]:
    if path is None:
        return {}
    try:
        raw = json.loads(Path(path).read_bytes())
        minutes = {key: number(value) for key, value in raw.items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); name a JSON file of minutes.") from None
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f'{path} is no JSON object of minutes; write {{"ssd": 800}}, say.') from None
    given = {key: value for key, value in minutes.items() if value and value > 0}
    for key in minutes:
        if key not in given or key not in training_rules.BENCHMARKS:
            raise UserError(
                f"{path} gives {key!r} the reference {raw[key]!r}; "
                f"it takes minutes for {', '.join(training_rules.BENCHMARKS)}."
            )
    return given


def _tell(report: page.Report, references: tables.References) -> None:
    groups = tables.group_results(report.results)
    if groups:
        unit = "speed-up over one Pascal P100" if FLAGS.metric == "speedup" else "minutes to train"
        print(f"{tables.to_text(groups, references, FLAGS.metric)}\n\nFigures are {unit}.")
    if listed := runs.to_text(report.results):
        print(f"\n{listed}")
    if report.inference:
        print(f"\n{runs.inference_text(report.inference)}")
    if report.pairs:
        print(f"\n{side_by_side.to_text(report.pairs, report.roots)}")
    for line in measured.to_text(report.measured):
        print(line)
    labels = [found.labels for found in report.results] + [run.labels for run in report.inference]
    for label in sorted(set(itertools.chain(*labels))):
        print(f"Said of some of these: {label}.")
    for problem in report.problems:
        print(f"not readable, or only in part: {problem.path}: {problem.reason}", file=sys.stderr)
    for path in filter(None, (FLAGS.csv, FLAGS.html)):
        print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
