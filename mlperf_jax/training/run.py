"""The train command: finds or begins a run, compiles, trains, records."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from mlperf_jax import compilation_cache
from mlperf_jax.errors import Stopped, UserError
from mlperf_jax.nested import flatten
from mlperf_jax.parallel import distributed, unsplit
from mlperf_jax.parallel.chips import find_chip
from mlperf_jax.parallel.layout import Layout
from mlperf_jax.registry import config_file
from mlperf_jax.results import events, summary, system
from mlperf_jax.results.disclosure import disclosed
from mlperf_jax.results.folders import PICTURES, Run, Runs, write_bytes
from mlperf_jax.training import room
from mlperf_jax.training.checkpoints import Checkpoints, Position
from mlperf_jax.training.engine import Engine
from mlperf_jax.training.frozen import fingerprint
from mlperf_jax.training.loop import Outcome, Session, train
from mlperf_jax.training.profile import Profile
from mlperf_jax.training.progress import Progress
from mlperf_jax.training.stop import StopSignal
from mlperf_jax.workload import Notes, State, TrainedWorkload

KEPT_CHECKPOINTS = 2

# What a continued run may change: where arrays lie does not enter the numbers it is judged by.
_MAY_DIFFER = ("layout", "steps_per_dispatch")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """What the flags say beside the config.

    Attributes:
        preset: mini or closed.
        results_dir: RESULTS.
        system: name of the system; None takes one from the machine.
        org: who runs it.
        seed: base of the seeds; None draws from the system's entropy.
        runs: how many runs to finish.
        profile: whether to trace a few steps.
        visualize: how many evaluation examples to draw at the end.
        command: what was typed, for whoever wants to repeat it.
    """

    preset: str
    results_dir: Path
    system: str | None = None
    org: str = "mlperf_jax"
    seed: int | None = None
    runs: int = 1
    profile: bool = False
    visualize: int = 0
    command: tuple[str, ...] = ()


def train_command(workload: TrainedWorkload, layout: Layout, options: TrainOptions) -> int:
    """Trains until `options.runs` runs are finished, and tells how they ended.

    A command that was stopped is taken up where it was: the same one finishes its runs, and begins no more.

    Returns:
        The exit status: 0 if every run reached the target.

    Raises:
        UserError, Stopped: see the modules that raise them.
    """
    if options.visualize and type(workload).pictures is TrainedWorkload.pictures:
        raise UserError(f"{type(workload).__name__} has nothing to draw; leave --visualize out.")
    _agree(workload, layout, options)
    name = options.system or system.default_system_name(jax.devices())
    runs = Runs(options.results_dir, options.preset, name, workload.benchmark)
    workload.look_for_start(runs.root)
    first = jax.process_index() == 0
    if first:
        description = system.describe_system(
            jax.devices(), name=name, preset=options.preset, submitter=options.org, labels=_labels(workload)
        )
        system.write_system(runs.system_path, description)
    made: list[Run] = []
    reached = True
    with StopSignal() as stop, runs:
        series: dict[str, int] = {}
        left = options.runs
        while left:
            run = _claim(runs, workload, layout, options)
            if not series:
                series = _series(run, options.runs)
                left -= _finished(runs, series)
            left -= 1
            if first:
                run.update(command=options.command, series=series)
            reached &= _one_run(workload, layout, run, options, name, stop) == "success"
            made.append(run)
    if first:
        alike = [run.log_path for run in runs.all() if run.finished and run.config == made[-1].config]
        print("\n" + summary.end_message([summary.summarize(run.log_path) for run in made], alike))
    return 0 if reached else 1


def _series(run: Run, count: int) -> dict[str, int]:
    """The runs that a command makes, as their statuses name them: those of a stopped one, or new ones."""
    stopped = run.status.get("series")
    if isinstance(stopped, dict) and stopped.get("runs") == count:
        return stopped
    return {"first": run.index, "runs": count}


def _finished(runs: Runs, series: dict[str, int]) -> int:
    """How many runs of a series ended under an earlier command: what every process finds alike."""
    return sum(run.finished and run.status.get("series") == series for run in runs.all())


def _agree(workload: TrainedWorkload, layout: Layout, options: TrainOptions) -> None:
    """Ends all processes of a run that were started with different settings."""
    flags = {"preset": options.preset, "seed": options.seed, "runs": options.runs}
    config = {f"--config.{key}": value for key, value in flatten(workload.config.to_dict()).items()}
    distributed.agree(
        config
        | {f"--{name}": value for name, value in flags.items()}
        | {f"the version of {name}": version for name, version in system.versions().items()}
        | {
            "the data": workload.data_description,
            "--sharding": layout.strategy.name,
            "--mesh": dict(layout.mesh.shape),
            "the precision": dataclasses.asdict(workload.policy),
        }
    )


def _claim(runs: Runs, workload: TrainedWorkload, layout: Layout, options: TrainOptions) -> Run:
    """The run to work on, the same in all processes; process 0 decides."""
    if jax.process_count() == 1:
        return _next(runs, workload, layout, options)
    from jax.experimental import multihost_utils

    index, failure = -1, None
    if jax.process_index() == 0:
        try:
            index = _next(runs, workload, layout, options).index
        except UserError as error:
            failure = error
    index = int(multihost_utils.broadcast_one_to_all(np.int32(index)))
    if failure:
        raise failure
    if index < 0:
        raise UserError("Process 0 could not begin a run; its own message says why.")
    return runs.open(index)


def _next(runs: Runs, workload: TrainedWorkload, layout: Layout, options: TrainOptions) -> Run:
    config = workload.config.to_dict() | {
        "precision": dataclasses.asdict(workload.policy),
        "data_description": workload.data_description,
        "layout": {"strategy": layout.strategy.name, "mesh": dict(layout.mesh.shape)},
    }
    devices = system.describe_devices(jax.devices())
    return runs.next(
        config, seed=options.seed, versions=system.versions(), devices=devices, may_differ=_MAY_DIFFER
    )


def _labels(workload: TrainedWorkload) -> list[str]:
    return [workload.data_description] if workload.made_up_data else []


def _one_run(
    workload: TrainedWorkload,
    layout: Layout,
    run: Run,
    options: TrainOptions,
    system_name: str,
    stop: StopSignal,
) -> str:
    """One run from `init_start` to its last checkpoint; one that was stopped goes on where its checkpoint stands.

    Gives its status alone: its state would lie beside the next run's.

    The keys of MLPerf's log, of a run that is killed after its first evaluation and started again:

        init_start ... compile_time init_stop run_start block_start ... eval_stop
        resumed                                         block_start ... eval_stop run_stop
    """
    first = jax.process_index() == 0
    checkpoints = Checkpoints(run.checkpoint_dir, keep=KEPT_CHECKPOINTS)
    position = checkpoints.position()
    log = events.open_log(
        run.log_path,
        position=position.log_position if position else None,
        lost_dir=run.folder,
        metadata={"step": position.step if position else 0},
        writes=first,
    )
    with contextlib.closing(checkpoints), log, _failures_recorded(run), room.explained(workload) as compiled:
        if not log.resumed:
            log.start("init_start")
            _log_facts(log, workload, layout, run, options, system_name)
        say("compiling")
        engine = _compile(workload, layout)
        compiled.append(engine)
        room.require(engine)
        whole = unsplit.stayed_whole(engine.state, layout.strategy)
        for text in (unsplit.sentence(whole, layout.strategy), unsplit.repeated(layout, engine.state)):
            if text:
                say(text)
        if position:
            state = checkpoints.restore(engine.saved(engine.state)) | engine.frozen(run.seed)
        else:
            state = workload.initial_state(engine, run.seed)
        jax.block_until_ready(state)
        frozen = _note_frozen(workload, log, state, position)
        notes = Notes(log, run.folder if first else None)
        profile = Profile(run.folder / "profile" if options.profile else None)
        outcome = _train(engine, notes, run, checkpoints, position, state, frozen, stop, profile)
        if options.visualize and (outcome.state is not None or outcome.status == "success"):
            last = outcome.state
            if last is None:
                last = checkpoints.restore(engine.saved(engine.state)) | engine.frozen(run.seed)
            _draw(run, workload.pictures(engine, last, options.visualize))
    if first:
        run.update(outcome.status, step=outcome.step, quality=outcome.quality)
    return outcome.status


def _train(
    engine: Engine,
    notes: Notes,
    run: Run,
    checkpoints: Checkpoints,
    position: Position | None,
    state: State,
    frozen: str,
    stop: StopSignal,
    profile: Profile,
) -> Outcome:
    """From `init_stop` to `run_stop`, and until the last checkpoint is on disk."""
    log, step = notes.log, position.step if position else 0
    seconds = sum(engine.compile_seconds.values())
    with _progress(engine.workload, engine.layout, run, log, step) as progress:  # its imports take a second
        if not log.resumed:
            kept = {"cached": engine.cached} if compilation_cache.is_used() else {}
            log.event("compile_time", seconds, {"seconds": engine.compile_seconds} | kept)
            log.end("init_stop")
            log.start("run_start")
        say(f"compiled in {seconds:.1f} s{_kept(engine)}; training")
        session = Session(engine, notes, progress, checkpoints, stop, profile, frozen)
        outcome = train(session, state, step, evaluated=position is None or position.evaluated)
        profile.close()
    reason = {"reason": outcome.reason} if outcome.reason else {}
    events.log_run_stop(log, outcome.status, step=outcome.step, **reason)
    if outcome.state is not None:
        session.save(outcome.state, outcome.step)
    checkpoints.wait()
    return outcome


def _kept(engine: Engine) -> str:
    """What to say of the programs that were not compiled now."""
    if not compilation_cache.is_used():
        return ""
    return f", {len(engine.cached)} of {len(engine.compile_seconds)} programs kept from before"


def _note_frozen(
    workload: TrainedWorkload, log: events.NullLog, state: State, position: Position | None
) -> str:
    """Logs what stays as it is and where it comes from; returns its fingerprint.

    Raises:
        UserError: the run began with something else.
    """
    kept = {name: state[name] for name in workload.frozen_entries}
    found = fingerprint(kept)
    if position and position.frozen != found:
        raise UserError(
            f"What this run keeps frozen ({workload.frozen_source}) is not what it began with: its fingerprint is "
            f"{found} and was {position.frozen}; give it the same again, or use another --results_dir."
        )
    if kept and not log.resumed:
        count = sum(x.size for x in jax.tree.leaves(kept))
        facts = {"source": workload.frozen_source, "fingerprint": found, "parameters": count}
        log.event("frozen_weights", facts)
    return found


@contextlib.contextmanager
def _failures_recorded(run: Run) -> Iterator[None]:
    """Leaves in the run's folder why it ended early, and tells the other processes."""
    try:
        yield
    except BaseException as error:
        if jax.process_index() == 0:
            state = "stopped" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"
            with contextlib.suppress(UserError):  # the disk that `error` found full, say
                run.update(state, reason=str(error))
        if not isinstance(error, Stopped):  # those who were asked to stop do so together
            distributed.leave(error)
        raise


def _draw(run: Run, pictures: Sequence[bytes]) -> None:
    """Writes what the report shows of a run."""
    if jax.process_index() == 0:
        for i, picture in enumerate(pictures):
            write_bytes(run.folder / PICTURES / f"{i:03d}.png", picture)


def _compile(workload: TrainedWorkload, layout: Layout) -> Engine:
    """Builds and compiles the workload.

    Raises:
        UserError: its numbers do not go together, as a model says while it is traced.
    """
    try:
        engine = Engine(workload, layout, steps_per_dispatch=workload.config.steps_per_dispatch)
        engine.compile()
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = [frame for frame in frames if "site-packages" not in frame.filename][-1]
        raise UserError(
            f"{type(workload).__name__} cannot be compiled with this config ({str(error).splitlines()[0]}; "
            f"{where.filename}, line {where.lineno}); change the --config flags that it speaks of."
        ) from error
    return engine


def _log_facts(
    log: events.NullLog,
    workload: TrainedWorkload,
    layout: Layout,
    run: Run,
    options: TrainOptions,
    system_name: str,
) -> None:
    """Everything that MLPerf's log wants to know before the clock starts."""
    accumulation = workload.config.get("gradient_accumulation_steps", 1)
    events.log_preamble(
        log,
        benchmark=workload.benchmark,
        preset=options.preset,
        system=system_name,
        seed=run.seed,
        global_batch_size=workload.batch_size,
        gradient_accumulation_steps=accumulation,
        goals=workload.goals,
        train_samples=workload.num_train,
        eval_samples=workload.num_eval,
        hyperparameters=workload.hyperparameters(),
        cache_clear=_clear_caches(options.preset),
        labels=_labels(workload),
        org=options.org,
    )
    for name in workload.initialized_tensors():
        log.event("weights_initialization", metadata={"tensor": name})
    log.event("precision", dataclasses.asdict(workload.policy))
    for key, value in workload.implementations(layout.mesh.devices.flat[0].platform).items():
        log.event(key, value)
    log.event("layout", {"strategy": layout.strategy.name, "mesh": dict(layout.mesh.shape)})
    facts = disclosed(
        workload.policy,
        layout,
        batch_size=workload.batch_size,
        accumulation=accumulation,
        config_file=config_file(type(workload)),
    )
    for key, value in facts.items():
        log.event(key, value)


def _clear_caches(preset: str) -> tuple[bool, str]:
    """Closed runs only: emptying the page cache slows down everything else on a laptop for a while."""
    return events.clear_caches() if preset == "closed" else (False, "mini: not tried")


def _progress(
    workload: TrainedWorkload, layout: Layout, run: Run, log: events.NullLog, step: int
) -> Progress:
    started = log.time_of("run_start")
    blocks = list(workload.blocks())
    chip = find_chip(layout.mesh.devices.flat[0].device_kind)
    first = jax.process_index() == 0
    return Progress(
        total_steps=blocks[-1].stop,
        batch_size=workload.batch_size,
        num_train=workload.num_train,
        goals=workload.goals,
        unit=workload.unit,
        flops_per_sample=workload.train_flops_per_example(),
        peak_flops=chip.bf16 if chip else None,
        num_devices=layout.mesh.size,
        started=started / 1e3 if started else None,
        first_step=step,
        stream=sys.stderr if first else None,
        tensorboard_dir=run.tensorboard_dir if first else None,
    )


def say(text: str) -> None:
    """A word to people, from process 0."""
    if jax.process_index() == 0:
        print(f"mlperf_jax: {text}", file=sys.stderr, flush=True)
