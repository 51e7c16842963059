"""Plans a benchmark on a topology that need not be there: memory, FLOPs, collectives, time.

    python -m mlperf_jax.plan --workload=resnet50 --topology=v5e:16x16 --sharding=dp,fsdp,fsdp_tp
    python -m mlperf_jax.plan --workload=resnet50 --topology=h200:1x8 --batch=2048

Compiles the real train step with the real compiler (libtpu, or XLA's CUDA compiler) for each
sharding strategy; nothing runs. "Does not fit" is an answer. All figures are predictions.
Exit status: 0 answered, 2 something to mend (one sentence says what).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mlperf_jax import cli
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError

FLAGS = flags.FlagValues()

# name, default, help
_FLAGS = {
    "workload": (
        None,
        "What to plan: a name that mlperf_jax.main --list shows, or your own package.module:Name.",
    ),
    "topology": (None, "Chips and shape: v5e:16x16, 2xv5e:16x16 for two slices, h200:1x8 for nodes x GPUs."),
    "sharding": ("dp", "Strategies, separated by commas."),
    "mesh": (
        None,
        "Sizes of mesh axes, as data:64,model:4, for strategies that have them; default from the devices.",
    ),
    "results_dir": (None, "Where plan.json and plan.svg go; without it they are only printed."),
    "cache_dir": (None, "Where the compiler's answers are kept; default ~/.cache/mlperf_jax/plan."),
}


def _define_flags() -> None:
    for name, (default, text) in _FLAGS.items():
        flags.DEFINE_string(name, default, text, flag_values=FLAGS)
    text = "Global batch; with it come the numbers of MLPerf's reference convergence point, if there is one."
    flags.DEFINE_integer("batch", 0, text, lower_bound=0, flag_values=FLAGS)
    scenarios = ("SingleStream", "MultiStream", "Server", "Offline")
    text = "Plan the answer to a query of this LoadGen scenario, not a step."
    flags.DEFINE_enum("scenario", None, scenarios, text, flag_values=FLAGS)
    flags.DEFINE_enum("preset", "closed", configs.PRESETS, "closed: MLPerf's own; mini.", flag_values=FLAGS)
    flags.DEFINE_bool("help", False, "Show this, and end.", flag_values=FLAGS)


_define_flags()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run("mlperf_jax", _command, argv, interrupted="strategies that were compiled are kept")


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments)
    if FLAGS.help:
        print(cli.help_text(__doc__, FLAGS, config=True))
        return 0
    for name in ("workload", "topology"):
        if FLAGS[name].value is None:
            raise UserError(f"--{name} is missing; as in --workload=resnet50 --topology=v5e:16x16.")
    platforms.configure("cpu")  # Only compilers are wanted, no devices.
    return _plan(overrides)


def _plan(overrides: list[str]) -> int:
    """Everything from here on may import jax."""
    from mlperf_jax.parallel import mesh
    from mlperf_jax.planning import compilation, plan, plan_report, topology

    where = topology.parse(FLAGS.topology)
    strategies = [mesh.find_strategy(name) for name in FLAGS.sharding.split(",")]
    asked = mesh.asked_of(strategies, mesh.parse_mesh(FLAGS.mesh) if FLAGS.mesh else {})
    workload = make_workload(FLAGS.workload, FLAGS.preset, where.platform, FLAGS.batch, overrides)
    cache_dir = Path(FLAGS.cache_dir).expanduser() if FLAGS.cache_dir else compilation.default_cache_dir()
    what = f"a query of {FLAGS.scenario}" if FLAGS.scenario else f"global batch {workload.batch_size:,}"
    print(
        f"{FLAGS.workload} ({FLAGS.preset}), {what} on {where.name}: "
        f"{where.num_chips} chips, {where.num_devices} devices. "
        "Predicted, not measured; not reviewed by MLCommons.\n"
    )
    plans = []
    for strategy, sizes in zip(strategies, asked, strict=True):
        done = plan.plan_strategy(
            workload, strategy, where, asked_mesh=sizes, scenario=FLAGS.scenario, cache_dir=cache_dir
        )
        plans.append(done)
        print(plan_report.describe(plans[-1], where, workload.unit) + "\n", flush=True)
    print(plan_report.table(plans))
    if FLAGS.results_dir:
        folder = Path(FLAGS.results_dir).expanduser()
        facts = {
            "workload": FLAGS.workload,
            "preset": FLAGS.preset,
            "batch_size": workload.batch_size,
            "scenario": FLAGS.scenario,
            "precision": workload.config.precision,
            "overrides": overrides,
        }
        plan_report.write_json(folder / "plan.json", plan_report.record(plans, where, facts))
        title = f"{FLAGS.workload} ({FLAGS.preset}), batch {workload.batch_size:,}, {where.name}: predicted"
        plan_report.write_figure(folder / "plan.svg", plans, title)
        print(f"\nwritten: {folder / 'plan.json'}, {folder / 'plan.svg'}")
    return 0


def make_workload(name: str, preset: str, platform: str, batch: int, overrides: list[str]) -> Any:
    """A workload for shapes alone: its data set need not be there.

    Args:
        name, preset: as the flags have them.
        platform: whose precision "auto" stands for.
        batch: the global batch, 0 for the config's own.
        overrides: `--config.KEY=value` arguments.

    Raises:
        UserError: no such workload, key or value.
    """
    from mlperf_jax import workload as registry
    from mlperf_jax.precision import resolve_policy

    base = configs.base_config(name, preset)
    if batch:
        known = str(batch) in base.get("reference_points", {})
        overrides = [f"--config.{'reference_point' if known else 'batch_size'}={batch}", *overrides]
    config = configs.resolve(base, overrides)
    policy = resolve_policy(config.precision, platform)
    if policy.needs_x64:
        import jax

        jax.config.update("jax_enable_x64", True)
    return registry.find(name)(config, policy, data_dir=Path(), synthetic=True)


if __name__ == "__main__":
    sys.exit(main())
