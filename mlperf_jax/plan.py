"""Plans a benchmark on a topology that need not be there: memory, FLOPs, collectives, time.

    python -m mlperf_jax.plan --workload=resnet50 --topology=v5e:16x16 --sharding=dp,fsdp,fsdp_tp
    python -m mlperf_jax.plan --workload=resnet50 --topology=h200:1x8 --batch=2048
    python -m mlperf_jax.plan --workload=llama31_8b --topology=v6e:2x2 --sharding=tp --mesh=data:1,model:4 --scenario=Offline

Compiles the real train step with the real compiler (libtpu, or XLA's CUDA compiler) for each
sharding strategy; nothing runs. "Does not fit" is an answer. All figures are predictions.
Exit status: 0 answered, 2 something to mend (one sentence says what).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mlperf_jax import cli, common_flags
from mlperf_jax import config as configs
from mlperf_jax import platform as platforms
from mlperf_jax.errors import UserError
from mlperf_jax.planning import topology

FLAGS = cli.define(
    cli.text(
        "workload",
        "What to plan: a name that mlperf_jax.main --list shows, or your own package.module:Name.",
    ),
    cli.text(
        "topology", "Chips and shape: v5e:16x16, 2xv5e:16x16 for two slices, h200:1x8 for nodes x GPUs."
    ),
    cli.text("sharding", "Strategies, separated by commas.", "dp"),
    common_flags.MESH,
    cli.text("results_dir", "Where plan.json and plan.svg go; without it they are only printed."),
    cli.text("cache_dir", "Where the compiler's answers are kept; default ~/.cache/mlperf_jax/plan."),
    cli.integer(
        "batch",
        "Global batch; with it come the numbers of MLPerf's reference convergence point, if there is one.",
    ),
    cli.choice(
        "scenario",
        ("SingleStream", "MultiStream", "Server", "Interactive", "Offline"),
        "Plan the answer to a query of this LoadGen scenario, not a step; of a language model its engine's programs.",
    ),
    cli.choice("preset", configs.PRESETS, "closed: MLPerf's own; mini.", "closed"),
    cli.HELP,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return cli.run(_command, argv, interrupted="strategies that were compiled are kept")


def _command(arguments: list[str]) -> int:
    overrides = cli.parse_flags(FLAGS, arguments, doc=__doc__)
    for name in ("workload", "topology"):
        if FLAGS[name].value is None:
            raise UserError(f"--{name} is missing; as in --workload=resnet50 --topology=v5e:16x16.")
    where = topology.parse(FLAGS.topology)
    platforms.configure("cpu", compiles_for=where.platform)  # Only compilers are wanted, no devices.
    return _plan(where, overrides)


def _plan(where: topology.Topology, overrides: list[str]) -> int:
    """Everything from here on may import jax."""
    from mlperf_jax import making
    from mlperf_jax.parallel import mesh
    from mlperf_jax.planning import compilation, plan, plan_report
    from mlperf_jax.workload import ServedWorkload, TokenWorkload, TrainedWorkload, Workload

    strategies = [mesh.find_strategy(name) for name in FLAGS.sharding.split(",")]
    asked = mesh.asked_of(strategies, mesh.parse_mesh(FLAGS.mesh) if FLAGS.mesh else {})
    kind: type[Workload] = ServedWorkload if FLAGS.scenario else TrainedWorkload
    recipe = making.choose(
        FLAGS.workload, FLAGS.preset, where.platform, overrides, kind=kind, batch=FLAGS.batch
    )
    workload = recipe.make(synthetic=True)
    cache_dir = Path(FLAGS.cache_dir).expanduser() if FLAGS.cache_dir else compilation.default_cache_dir()
    what = (
        f"a query of {FLAGS.scenario}" if FLAGS.scenario else f"global batch {workload.config.batch_size:,}"
    )
    print(
        f"{FLAGS.workload} ({FLAGS.preset}), {what} on {where.name}: "
        f"{where.num_chips} chips, {where.num_devices} devices. "
        "Predicted, not measured; not reviewed by MLCommons.\n"
    )
    told = workload if FLAGS.scenario and isinstance(workload, TokenWorkload) else None
    programs = plan.token_programs(told) if told else ("",)
    plans = []
    for strategy, sizes in zip(strategies, asked, strict=True):
        for program in programs:
            done = plan.plan_strategy(
                workload,
                strategy,
                where,
                asked_mesh=sizes,
                scenario=FLAGS.scenario,
                program=program,
                cache_dir=cache_dir,
            )
            plans.append(done)
            print(plan_report.describe(done, where, "tokens" if told else workload.unit) + "\n", flush=True)
        if told:
            plans[-1].telling = plan.telling(told, plans[-len(programs) :], where)
            print(plan_report.telling(plans[-1]) + "\n", flush=True)
    print(plan_report.table(plans))
    if FLAGS.results_dir:
        folder = Path(FLAGS.results_dir).expanduser()
        facts = {
            "workload": FLAGS.workload,
            "preset": FLAGS.preset,
            "batch_size": workload.config.get("batch_size"),
            "scenario": FLAGS.scenario,
            "precision": workload.config.precision,
            "overrides": overrides,
        }
        plan_report.write_json(folder / "plan.json", plan_report.record(plans, where, facts))
        title = f"{FLAGS.workload} ({FLAGS.preset}), {what}, {where.name}: predicted"
        plan_report.write_figure(folder / "plan.svg", plans, title)
        print(f"\nwritten: {folder / 'plan.json'}, {folder / 'plan.svg'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
