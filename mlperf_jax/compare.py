"""Compares sharding strategies on the devices that are there: time, memory, collectives, agreement.

    python -m mlperf_jax.compare --workload=resnet50 --platform=cpu --cpu_devices=8 --sharding=dp,fsdp,tp
    python -m mlperf_jax.compare --workload=resnet50 --platform=tpu --sharding=dp,zero1,fsdp

Data is synthetic, and not in the time. Every strategy is held against dp, which is run first.
Of several processes all run the same command, and process 0 prints.
Exit status: 0 all agree with dp, 1 one does not, 2 something to mend (one sentence says what).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlperf_jax import cli, common_flags
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError

if TYPE_CHECKING:
    from mlperf_jax.workload import TrainedWorkload

FLAGS = cli.define(
    cli.text(
        "workload",
        "What to run: a name that mlperf_jax.main --list shows, or your own package.module:Name.",
    ),
    cli.text("sharding", "Strategies, separated by commas.", "dp,fsdp,tp"),
    common_flags.MESH,
    cli.text("results_dir", "Where compare.json and compare.svg go; without it they are only printed."),
    common_flags.COORDINATOR,
    cli.integer("steps", "Timed steps of each strategy.", 50, least=1),
    cli.integer("batch", "Global batch; 0 for the config's own."),
    cli.integer("seed", "Of the parameters and the batch."),
    common_flags.CPU_DEVICES,
    common_flags.NUM_PROCESSES,
    common_flags.PROCESS_ID,
    common_flags.PLATFORM,
    common_flags.PRESET,
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
    if FLAGS.workload is None:
        raise UserError("--workload is missing; as in --workload=resnet50.")
    platforms.configure(FLAGS.platform, cpu_devices=FLAGS.cpu_devices)
    return _compare(overrides)


def _compare(overrides: list[str]) -> int:
    """Everything from here on may import jax."""
    from mlperf_jax.parallel import distributed

    common_flags.start(FLAGS)
    with distributed.together():
        return _compare_together(overrides)


def _compare_together(overrides: list[str]) -> int:
    import jax

    from mlperf_jax import making
    from mlperf_jax.parallel import mesh
    from mlperf_jax.planning import compare, compare_report
    from mlperf_jax.workload import TrainedWorkload

    names = list(dict.fromkeys(["dp", *FLAGS.sharding.split(",")]))
    strategies = [mesh.find_strategy(name) for name in names]
    preset = common_flags.preset(FLAGS)

    def make(overrides: list[str]) -> TrainedWorkload:
        recipe = making.choose(
            FLAGS.workload, preset, FLAGS.platform, overrides, kind=TrainedWorkload, batch=FLAGS.batch
        )
        return recipe.make(synthetic=True)

    workload, check = make(overrides), None
    if workload.policy.compute not in compare.TOLERANCES:
        check = make([*overrides, "--config.precision=float32"])
    asked = mesh.asked_of(strategies, mesh.parse_mesh(FLAGS.mesh) if FLAGS.mesh else {})
    first = jax.process_index() == 0

    def say(text: str) -> None:
        if first:
            print(text, file=sys.stderr, flush=True)

    results = compare.compare(
        workload, check, strategies, steps=FLAGS.steps, seed=FLAGS.seed, asked=asked, say=say
    )
    wrong = [r.strategy for r in results if not r.agreement["passed"]]
    if first:
        facts = compare_report.facts(FLAGS.workload, preset, workload, FLAGS.steps, overrides)
        print(compare_report.text(results, facts))
        if FLAGS.results_dir:
            folder = Path(FLAGS.results_dir).expanduser()
            compare_report.write(folder, results, facts)
            print(f"\nwritten: {folder / 'compare.json'}, {folder / 'compare.svg'}")
    if wrong:
        say(f"mlperf_jax: {', '.join(wrong)} does not agree with dp on the first step.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
