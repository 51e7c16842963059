"""Trains a reference model to its quality target and measures how long that takes; then measures inference.

    python -m mlperf_jax.main --workload=resnet50 --platform=cpu            the mini benchmark, minutes
    python -m mlperf_jax.main --workload=resnet50 --platform=tpu            MLPerf's own model and data
    python -m mlperf_jax.main --workload=resnet50 --platform=cpu --runs=3   three runs, and the score
    python -m mlperf_jax.main --workload=resnet50 --platform=cpu --cpu_devices=8 --sharding=fsdp
    python -m mlperf_jax.main --workload=resnet50 --platform=cpu --scenario=all
                                        latency and throughput of the trained model, and its accuracy
    python -m mlperf_jax.main --list                                        workloads, presets, targets

The same command again continues an unfinished run; a finished one is kept and the next begins.
Exit status: 0 the target was reached (inference: VALID, and accurate enough), 1 it was not,
2 something to mend (one sentence says what), 128 + N stopped by signal N.
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
from mlperf_jax.results import folders

FLAGS = flags.FlagValues()

# name -> default, help.
_STRINGS = {
    "workload": (None, "What to run: a name that --list shows, or your own package.module:Name."),
    "data_dir": (None, "Where prepared data lies; default $MLPERF_JAX_DATA or ~/.cache/mlperf_jax."),
    "results_dir": ("results", "Where results go."),
    "system": (None, "The system's name in results; default from the machine."),
    "org": ("mlperf_jax", "Who runs it, as logs and a submission name them."),
    "sharding": (
        "dp",
        "dp, zero1, fsdp, tp, fsdp_tp, sequence, spatial, row_wise, column_wise, table_wise, or a file "
        "mine.toml.",
    ),
    "mesh": (None, "Sizes of the mesh's axes, as data:4,model:2; default from the devices."),
    "checkpoint": (None, "Inference: measure the checkpoint in this folder, not the newest trained model."),
    "weights": (None, "Inference: measure weights that mlperf_jax.import_weights wrote into this folder."),
    "coordinator": (
        None,
        "Several processes: host:port of process 0. TPU pods, SLURM and Kubernetes need none.",
    ),
}
# name -> default, least, most, help.
_INTEGERS = {
    "seed": (
        None,
        0,
        2**31 - 1,
        "Seed of the first run, later ones count on; default from the system's entropy.",
    ),
    "runs": (1, 1, None, "How many runs to make; 3 or more have a score."),
    "visualize": (0, 0, 64, "Draw what the trained model makes of so many examples, for the report."),
    "count": (0, 0, None, "Inference: use so many samples of the data set; 0 all."),
    "cpu_devices": (0, 0, None, "Show the CPU as so many virtual devices."),
    "num_processes": (0, 0, None, "Several processes: how many."),
    "process_id": (-1, -1, None, "Several processes: which one this is, from 0."),
}
_NUMBERS = {
    "time": "Inference: measure for at least so many seconds.",
    "qps": "Inference: queries/s of Server; default searched for.",
    "max_latency": "Inference: Server's bound on the 99th percentile latency, in seconds.",
}
# name -> default, choices, help
_CHOICES = {
    "scenario": (
        None,
        ("SingleStream", "MultiStream", "Server", "Offline", "all"),
        "Measure inference under this LoadGen scenario.",
    ),
    "mode": (
        None,
        ("performance", "accuracy", "submission", "find_peak", "compliance"),
        "Inference: what to run; default the first two.",
    ),
    "loadgen": (
        "ours",
        ("ours", "official"),
        "Inference: official also runs the official package and shows both results.",
    ),
}
_SWITCHES = {
    "prepare": "First fetch or check the data, where that was not done yet.",
    "synthetic_data": "Random data of the right shape: for throughput, never for quality.",
    "profile": "Trace a few steps, or a second of inference, into the run's folder, for TensorBoard or xprof.",
    "list": "Show workloads, presets and targets, and end.",
    "help": "Show this, and end.",
}


def _define_flags() -> None:
    presets = (
        "mini: laptop-sized, small real data (default on cpu); closed: MLPerf's own (default elsewhere)."
    )
    flags.DEFINE_enum("platform", "cpu", platforms.PLATFORMS, "Where to run it.", flag_values=FLAGS)
    flags.DEFINE_enum("preset", None, configs.PRESETS, presets, flag_values=FLAGS)
    for name, (default, text) in _STRINGS.items():
        flags.DEFINE_string(name, default, text, flag_values=FLAGS)
    for name, (default, least, most, text) in _INTEGERS.items():
        flags.DEFINE_integer(name, default, text, lower_bound=least, upper_bound=most, flag_values=FLAGS)
    for name, text in _NUMBERS.items():
        flags.DEFINE_float(name, None, text, lower_bound=0, flag_values=FLAGS)
    for name, (default, choices, text) in _CHOICES.items():
        flags.DEFINE_enum(name, default, choices, text, flag_values=FLAGS)
    for name, text in _SWITCHES.items():
        flags.DEFINE_bool(name, False, text, flag_values=FLAGS)


_define_flags()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    again = "the same command continues from the last checkpoint"
    return cli.run("mlperf_jax", _command, argv, interrupted=again)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS, config=True))
        return 0
    if FLAGS.list:
        print(_list())
        return 0
    if not FLAGS.workload:
        raise UserError("--workload is missing; --list shows what there is, as --workload=resnet50.")
    if not FLAGS.results_dir:
        raise UserError("--results_dir is empty; name a folder, or leave it out for ./results.")
    folders.check_name("organisation's", FLAGS.org)
    platforms.configure(FLAGS.platform, cpu_devices=FLAGS.cpu_devices)
    if FLAGS.scenario:
        return _infer(overrides, arguments)
    for name in ("mode", "checkpoint", "weights", "count", *_NUMBERS):
        if FLAGS[name].present:
            raise UserError(f"--{name} goes with --scenario, as --scenario=SingleStream.")
    return _train(overrides, arguments)


def _train(overrides: list[str], arguments: list[str]) -> int:
    """Everything from here on may import jax: platform and XLA flags are decided."""
    from mlperf_jax import workload as registry
    from mlperf_jax.parallel import distributed, mesh
    from mlperf_jax.precision import resolve_policy
    from mlperf_jax.training import run

    preset = FLAGS.preset or configs.default_preset(FLAGS.platform)
    cls = registry.find(FLAGS.workload)
    config = configs.resolve(configs.base_config(FLAGS.workload, preset), overrides)
    policy = resolve_policy(config.precision, FLAGS.platform)
    strategy = mesh.find_strategy(FLAGS.sharding)
    asked = mesh.parse_mesh(FLAGS.mesh) if FLAGS.mesh else {}

    distributed.start(
        FLAGS.platform,
        coordinator=FLAGS.coordinator,
        num_processes=FLAGS.num_processes,
        process_id=FLAGS.process_id,
    )
    platforms.require_devices(FLAGS.platform)
    if policy.needs_x64:
        import jax

        jax.config.update("jax_enable_x64", True)
    layout = mesh.make_layout(strategy, asked)
    for key in {"batch_size", "eval_batch_size"} & set(config):
        layout.rows(config[key], key)
    if FLAGS.prepare and not FLAGS.synthetic_data:
        cls.prepare(config, _data_dir())
    workload = cls(config, policy, data_dir=_data_dir(), synthetic=FLAGS.synthetic_data)
    workload.check_data()
    options = run.TrainOptions(
        preset=preset,
        results_dir=Path(FLAGS.results_dir),
        system=FLAGS.system,
        org=FLAGS.org,
        seed=FLAGS.seed,
        runs=FLAGS.runs,
        profile=FLAGS.profile,
        visualize=FLAGS.visualize,
        command=("python", "-m", "mlperf_jax.main", *arguments),
    )
    return run.train_command(workload, layout, options)


def _infer(overrides: list[str], arguments: list[str]) -> int:
    """Like `_train`, from here on jax may be imported."""
    from mlperf_jax.inference import command

    if FLAGS.coordinator or FLAGS.num_processes > 1:
        raise UserError("Inference runs in one process; leave --coordinator and --num_processes out.")
    if FLAGS.visualize:
        raise UserError("--visualize draws at the end of training; leave it or --scenario out.")
    for name in _NUMBERS:
        if FLAGS[name].value == 0:
            raise UserError(f"--{name}=0 leaves nothing to measure; give a number above 0, or leave it out.")
    options = command.InferOptions(
        workload=FLAGS.workload,
        preset=FLAGS.preset or configs.default_preset(FLAGS.platform),
        platform=FLAGS.platform,
        data_dir=_data_dir(),
        synthetic=FLAGS.synthetic_data,
        prepare=FLAGS.prepare,
        results_dir=Path(FLAGS.results_dir),
        sharding=FLAGS.sharding,
        mesh=FLAGS.mesh,
        scenario=FLAGS.scenario,
        mode=FLAGS.mode,
        asked=command.Asked(duration_s=FLAGS.time, qps=FLAGS.qps, max_latency_s=FLAGS.max_latency),
        count=FLAGS.count,
        checkpoint=Path(FLAGS.checkpoint) if FLAGS.checkpoint else None,
        weights=Path(FLAGS.weights) if FLAGS.weights else None,
        system=FLAGS.system,
        org=FLAGS.org,
        official=FLAGS.loadgen == "official",
        profile=FLAGS.profile,
        command=("python", "-m", "mlperf_jax.main", *arguments),
    )
    return command.infer_command(options, overrides)


def _data_dir() -> Path:
    import input_pipelines

    return Path(FLAGS.data_dir).expanduser() if FLAGS.data_dir else input_pipelines.default_data_dir()


def _list() -> str:
    from mlperf_jax import workload as registry

    rows = [("workload", "preset", "target", "batch", "data")]
    for name in registry.names():
        for preset in configs.PRESETS:
            config = configs.base_config(name, preset)
            rows.append((name, preset, f"{config.target}", f"{config.batch_size}", config.data.name))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
