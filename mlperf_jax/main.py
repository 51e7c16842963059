"""Trains a reference model to its quality target and measures how long that takes; then measures inference.

    python -m mlperf_jax.main --workload=resnet50 --platform=cpu            the mini benchmark, minutes
    python -m mlperf_jax.main --workload=resnet50 --platform=tpu            MLPerf's own model and data
    python -m mlperf_jax.main --workload=resnet50 --platform=cpu --runs=3   three runs, and their mean
    python -m mlperf_jax.main --workload=resnet50 --platform=cpu --cpu_devices=8 --sharding=fsdp
    python -m mlperf_jax.main --workload=resnet50 --platform=cpu --scenario=all
                                        latency and throughput of the trained model, and its accuracy
    python -m mlperf_jax.main --list                                        workloads, presets, targets
    python -m mlperf_jax                                                    the other commands

The same command again continues an unfinished run; a finished one is kept and the next begins.
Exit status: 0 the target was reached (inference: VALID, and accurate enough), 1 it was not,
2 something to mend (one sentence says what), 128 + N stopped by signal N.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mlperf_jax import cli, common_flags, compilation_cache
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError
from mlperf_jax.results import folders

Options = TypeVar("Options")
_NUMBERS = ("time", "qps", "max_latency")
FLAGS = cli.define(
    common_flags.PLATFORM,
    cli.choice(
        "preset",
        configs.PRESETS,
        "mini: laptop-sized, small real data (default on cpu); closed: MLPerf's own (default elsewhere).",
    ),
    cli.text("workload", "What to run: a name that --list shows, or your own package.module:Name."),
    cli.text("data_dir", "Where prepared data lies; default $MLPERF_JAX_DATA or ~/.cache/mlperf_jax."),
    cli.text("results_dir", "Where results go.", "results"),
    cli.text("system", "The system's name in results; default from the machine."),
    cli.text("org", "Who runs it, as logs and a submission name them.", "mlperf_jax"),
    cli.text(
        "sharding",
        "dp, zero1, fsdp, tp, fsdp_tp, sequence, spatial, row_wise, column_wise, table_wise, or file "
        "mine.toml.",
        "dp",
    ),
    cli.text("mesh", "Sizes of the mesh's axes, as data:4,model:2; default from the devices."),
    cli.text("checkpoint", "Inference: measure the checkpoint in this folder, not the newest trained model."),
    cli.text("weights", "Inference: measure weights that mlperf_jax.import_weights wrote into this folder."),
    common_flags.COORDINATOR,
    cli.integer(
        "seed",
        "Seed of the first run, later ones count on; default from the system's entropy.",
        None,
        most=2**31 - 1,
    ),
    cli.integer(
        "runs",
        "How many runs to make; a score takes as many as MLPerf's rules say, 5 or 10 mostly.",
        1,
        least=1,
    ),
    cli.integer(
        "visualize", "Draw what the trained model makes of so many examples, for the report.", most=64
    ),
    cli.integer("count", "Inference: use so many samples of the data set; 0 all."),
    common_flags.COMPILATION_CACHE,
    common_flags.CPU_DEVICES,
    common_flags.NUM_PROCESSES,
    common_flags.PROCESS_ID,
    cli.number("time", "Inference: measure for at least so many seconds.", least=0),
    cli.number("qps", "Inference: queries/s of Server; default searched for.", least=0),
    cli.number(
        "max_latency", "Inference: Server's bound on the 99th percentile latency, in seconds.", least=0
    ),
    cli.choice(
        "scenario",
        ("SingleStream", "MultiStream", "Server", "Interactive", "Offline", "all"),
        "Measure inference under this LoadGen scenario.",
    ),
    cli.choice(
        "mode",
        ("performance", "accuracy", "submission", "find_peak", "compliance"),
        "Inference: what to run; default the first two.",
    ),
    cli.choice(
        "loadgen",
        ("ours", "official"),
        "Inference: official also runs the official package and shows both results.",
        "ours",
    ),
    cli.switch("prepare", "First fetch or check the data, where that was not done yet."),
    cli.switch("synthetic_data", "Random data of the right shape: for throughput, never for quality."),
    cli.switch(
        "profile",
        "Trace a few steps, or a second of inference, into the run's folder, for TensorBoard or xprof.",
    ),
    cli.switch("list", "Show workloads, presets and targets, and end."),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    again = "the same command continues from the last checkpoint"
    return cli.run(_command, argv, interrupted=again)


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
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
    from mlperf_jax import making
    from mlperf_jax.parallel import distributed, mesh
    from mlperf_jax.training import run
    from mlperf_jax.workload import TrainedWorkload

    options = _options(run.TrainOptions, arguments)
    recipe = making.choose(FLAGS.workload, options.preset, FLAGS.platform, overrides, kind=TrainedWorkload)
    strategy = mesh.find_strategy(FLAGS.sharding)
    asked = mesh.parse_mesh(FLAGS.mesh) if FLAGS.mesh else {}

    common_flags.start(FLAGS)
    with distributed.together():
        compilation_cache.use(FLAGS.compilation_cache)
        layout = mesh.make_layout(strategy, asked)
        for key in {"batch_size", "eval_batch_size"} & set(recipe.config):
            layout.rows(recipe.config[key], key)
        workload = recipe.make_with_data(_data_dir(), synthetic=FLAGS.synthetic_data, prepare=FLAGS.prepare)
        return run.train_command(workload, layout, options)


def _infer(overrides: list[str], arguments: list[str]) -> int:
    """Like `_train`, from here on jax may be imported."""
    from mlperf_jax.inference import command
    from mlperf_jax.inference.options import InferOptions
    from mlperf_jax.inference.settings import Asked
    from mlperf_jax.registry import served

    if FLAGS.coordinator or FLAGS.num_processes > 1:
        raise UserError("Inference runs in one process; leave --coordinator and --num_processes out.")
    if FLAGS.visualize:
        raise UserError("--visualize draws at the end of training; leave it or --scenario out.")
    for name in _NUMBERS:
        if FLAGS[name].value == 0:
            raise UserError(f"--{name}=0 leaves nothing to measure; give a number above 0, or leave it out.")
    options = _options(
        InferOptions,
        arguments,
        workload=served(FLAGS.workload),
        overrides=tuple(overrides),
        data_dir=_data_dir(),
        asked=Asked(FLAGS.time, FLAGS.qps, FLAGS.max_latency),
    )
    compilation_cache.use(FLAGS.compilation_cache)
    return command.infer_command(options)


def _options(kind: Callable[..., Options], arguments: list[str], **others: Any) -> Options:
    """What the flags say beside the config, as a record of training or of inference."""
    return cli.record(
        kind,
        FLAGS,
        preset=common_flags.preset(FLAGS),
        results_dir=Path(FLAGS.results_dir),
        command=("python", "-m", "mlperf_jax.main", *arguments),
        **others,
    )


def _data_dir() -> Path:
    import input_pipelines

    return Path(FLAGS.data_dir).expanduser() if FLAGS.data_dir else input_pipelines.default_data_dir()


def _list() -> str:
    from mlperf_jax import registry

    rows = [("workload", "preset", "target", "batch", "data")]
    for name in registry.names():
        for preset in configs.presets(name):
            config = configs.base_config(name, preset)
            batch = config.get("batch_size", "only served")
            rows.append((name, preset, _target(config.target), f"{batch}", config.data.name))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _target(target: Any) -> str:
    """One figure, or several that one state must reach."""
    if not hasattr(target, "items"):
        return f"{target}"
    return ", ".join(f"{name} {figure}" for name, figure in target.items())


if __name__ == "__main__":
    sys.exit(main())
