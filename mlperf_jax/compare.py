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

from absl import flags

from mlperf_jax import cli
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError
from mlperf_jax.plan import make_workload

FLAGS = flags.FlagValues()

# name, default, help
_STRINGS = {
    "workload": (
        None,
        "What to run: a name that mlperf_jax.main --list shows, or your own package.module:Name.",
    ),
    "sharding": ("dp,fsdp,tp", "Strategies, separated by commas."),
    "mesh": (
        None,
        "Sizes of mesh axes, as data:4,model:2, for strategies that have them; default from the devices.",
    ),
    "results_dir": (None, "Where compare.json and compare.svg go; without it they are only printed."),
    "coordinator": (
        None,
        "Several processes: host:port of process 0. TPU pods, SLURM and Kubernetes need none.",
    ),
}
_INTEGERS = {
    "steps": (50, 1, "Timed steps of each strategy."),
    "batch": (0, 0, "Global batch; 0 for the config's own."),
    "seed": (0, 0, "Of the parameters and the batch."),
    "cpu_devices": (0, 0, "Show the CPU as so many virtual devices."),
    "num_processes": (0, 0, "Several processes: how many."),
    "process_id": (-1, -1, "Several processes: which one this is, from 0."),
}


def _define_flags() -> None:
    for name, (default, text) in _STRINGS.items():
        flags.DEFINE_string(name, default, text, flag_values=FLAGS)
    for name, (default, least, text) in _INTEGERS.items():
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=FLAGS)
    presets = "mini (default on cpu) or closed (default elsewhere)."
    flags.DEFINE_enum("platform", "cpu", platforms.PLATFORMS, "Where to run.", flag_values=FLAGS)
    flags.DEFINE_enum("preset", None, configs.PRESETS, presets, flag_values=FLAGS)
    flags.DEFINE_bool("help", False, "Show this, and end.", flag_values=FLAGS)


_define_flags()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run("mlperf_jax", _command, argv)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS, config=True))
        return 0
    if FLAGS.workload is None:
        raise UserError("--workload is missing; as in --workload=resnet50.")
    platforms.configure(FLAGS.platform, cpu_devices=FLAGS.cpu_devices)
    return _compare(overrides)


def _compare(overrides: list[str]) -> int:
    """Everything from here on may import jax."""
    import jax

    from mlperf_jax.parallel import distributed, mesh
    from mlperf_jax.planning import compare, compare_report

    distributed.start(
        FLAGS.platform,
        coordinator=FLAGS.coordinator,
        num_processes=FLAGS.num_processes,
        process_id=FLAGS.process_id,
    )
    platforms.require_devices(FLAGS.platform)
    names = list(dict.fromkeys(["dp", *FLAGS.sharding.split(",")]))
    strategies = [mesh.find_strategy(name) for name in names]
    preset = FLAGS.preset or configs.default_preset(FLAGS.platform)
    workload = make_workload(FLAGS.workload, preset, FLAGS.platform, FLAGS.batch, overrides)
    check = None
    if workload.policy.compute not in compare.TOLERANCES:
        exact = [*overrides, "--config.precision=float32"]
        check = make_workload(FLAGS.workload, preset, FLAGS.platform, FLAGS.batch, exact)
    asked = mesh.asked_of(strategies, mesh.parse_mesh(FLAGS.mesh) if FLAGS.mesh else {})
    first = jax.process_index() == 0

    def say(text: str) -> None:
        if first:
            print(text, file=sys.stderr, flush=True)

    try:
        results = compare.compare(
            workload, check, strategies, steps=FLAGS.steps, seed=FLAGS.seed, asked=asked, say=say
        )
    except BaseException as error:
        distributed.leave(error)
        raise
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
