"""What a sharding strategy costs on a topology: memory, FLOPs, collectives, time; from shapes alone.

The work behind the command `mlperf_jax.plan`. `plan_strategy` gives one `Plan`, a tree of plain numbers and texts ready for JSON. Everything is per
jax device (a TPU v2, v3 or v7x chip has two) and per step unless its name says otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from mlperf_jax.errors import UserError
from mlperf_jax.inference.settings import ladder
from mlperf_jax.parallel import mesh, unsplit
from mlperf_jax.parallel.layout import Layout, Strategy
from mlperf_jax.planning import (
    compilation,
    cost,
    cost_kernels,
    cost_network,
    cost_time,
    hlo,
    reference_epochs,
    topology,
)
from mlperf_jax.planning.compilation import Memory
from mlperf_jax.planning.topology import Topology
from mlperf_jax.training.engine import Engine, lower, named, tracing
from mlperf_jax.workload import Batch, Program, ServedWorkload, Spec, TokenWorkload, TrainedWorkload, Workload

SCHEMA_VERSION = 1
TOP_OPERATIONS = 12
SCENARIO_SAMPLES = {"SingleStream": 1, "MultiStream": 8}
"""Samples in a query (MLPerf inference rules); Server and Offline answer batches, see `_batch_size`."""


@dataclasses.dataclass
class Plan:
    """What is known of one strategy.

    Attributes:
        strategy, mesh: its name, and the size of every mesh axis.
        verdict: "fits", "does not fit", or "not compiled"; see `_judge`.
        reason: why it does not fit, in the compiler's words or ours; how to install it where it is missing.
        hbm: bytes per device: `parameters`, `optimizer`, `frozen` where there is any, `other_state` and `batch`
            from the shardings, of a model that answers token by token `cache` too, `held` in all; `activations` (temporaries of
            all kinds), `code`, `peak` (the most in use at a moment) and `total` (of all that has a place) from the compiler;
            `capacity`.
        flops: `model` and `program` (counted in the jaxpr) and `rematerialised` in it, per device;
            `executed`, counted in the compiled program with loops times their trips.
        collectives: rows of kind, axes, group, count, bytes, seconds.
        roofline: seconds of `compute`, `hbm`, `network`, the largest as `step`, and its name as `bound`.
        predicted: `step` seconds from the compiler's estimated `cycles` and the schedule, `throughput` and
            `throughput_per_chip` in examples/s, `waiting` for collectives, `mfu`, `mfu_bound` (roofline).
        operations: the dearest, with seconds and share.
        replicated: tensors that stayed whole though the strategy splits parameters, with bytes.
        repeated: work that devices repeat, in one sentence; "" for none.
        training: of the closed preset, where the benchmark has reference convergence points: `epochs`,
            `steps`, `minutes` of steps, `evaluation_minutes`, `total_minutes`, `source`.
        program: of a model that answers token by token which one; "" elsewhere.
        telling: of such a model, with the last of its programs: see `telling`.
        compiler: name, version, `seconds`, `cached`; loops whose trip count is unknown.
    """

    strategy: str
    mesh: dict[str, int]
    verdict: str = "not compiled"
    reason: str = ""
    hbm: dict[str, float] = dataclasses.field(default_factory=dict)
    flops: dict[str, float] = dataclasses.field(default_factory=dict)
    collectives: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    roofline: dict[str, Any] = dataclasses.field(default_factory=dict)
    predicted: dict[str, float] = dataclasses.field(default_factory=dict)
    operations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    replicated: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    repeated: str = ""
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    program: str = ""
    telling: dict[str, float] = dataclasses.field(default_factory=dict)
    compiler: dict[str, Any] = dataclasses.field(default_factory=dict)


def plan_strategy(
    workload: Workload,
    strategy: Strategy,
    where: Topology,
    *,
    asked_mesh: dict[str, int] | None = None,
    scenario: str | None = None,
    program: str = "",
    cache_dir: Path,
) -> Plan:
    """Plans one strategy.

    Args:
        workload: built for shapes, its data need not be there.
        strategy: the sharding strategy.
        where: the topology.
        asked_mesh: sizes of mesh axes, as `--mesh` has them.
        scenario: LoadGen's, to plan answering one query of it and not a training step.
        program: of a model that answers token by token, one of `token_programs`.
        cache_dir: where the compiler's answers are kept.

    Raises:
        UserError: the mesh does not fit the topology, the batch the mesh, or the workload is not served.
    """
    missing = topology.missing_compiler(where)
    if missing:
        layout = _abstract_layout(strategy, where, asked_mesh or {})
    else:
        layout = mesh.make_layout(strategy, asked_mesh, topology.devices(where))
    plan = Plan(strategy.name, dict(layout.mesh.shape), program=program)
    try:
        if isinstance(workload, TokenWorkload) and program:
            subject: _Subject = token_subject(workload, layout, program)
        else:
            subject = _subject(workload, layout, scenario)
        kernels = _shapes(plan, subject, workload, layout, where)
    except ValueError as error:  # what a model says while it is traced
        reason = str(error).splitlines()[0]
        raise UserError(f"{reason}; change the --config flags that this speaks of, or --batch.") from error
    if missing:
        plan.reason = missing
        with tracing(layout, workload.policy):  # a function of its own, as in `lower`
            jax.eval_shape(lambda *args: subject.program.function(*args), *subject.program.args)
        plan.repeated = unsplit.repeated(layout, subject.state)
        _roofline(plan, where, compute=plan.flops["program"], moved=0.0, network=0.0)
        _judge(plan)
        return plan
    lowered = lower(subject.program, layout, workload.policy)
    plan.repeated = unsplit.repeated(layout, subject.state)
    order = ",".join(str(device.id) for device in layout.mesh.devices.flat)
    options = "".join(f" {name}={value}" for name, value in layout.compiler_options.items())
    answer = compilation.compile_program(
        lowered,
        target=f"{where.name} {dict(layout.mesh.shape)} {order}{options}",
        compiler=topology.compiler_version(where),
        cache_dir=cache_dir,
        label=f"{strategy.name} {program or scenario or ''}".strip() + f" for {where.name}",
    )
    plan.compiler = {"name": answer.compiler, "seconds": answer.seconds, "cached": answer.cached}
    if answer.memory is None:
        plan.verdict, plan.reason = "does not fit", answer.does_not_fit or ""
        return plan
    plan.verdict = "fits"
    _compiled(plan, answer.hlo, answer.memory, subject, layout, where, kernels)
    _judge(plan)
    reference = workload.config.get("preset") == "closed" and plan.verdict == "fits"
    if reference and isinstance(workload, TrainedWorkload) and not scenario:
        plan.training = time_to_train(workload, plan.predicted["step"])
    return plan


def _abstract_layout(strategy: Strategy, where: Topology, asked: dict[str, int]) -> Layout:
    """A layout without devices: enough for shapes."""
    sizes = mesh.mesh_sizes(strategy, asked, where.num_devices)
    types = (AxisType.Auto,) * len(sizes)
    shape = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=types)
    return Layout(strategy, shape)


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is planned: a training step, or the answer to a query.

    Attributes:
        program: a function of a state and a batch.
        examples: in the batch.
        model_flops: of all of it, by the workload's formula; 0 if that is unknown.
    """

    program: Program
    examples: int
    model_flops: float

    @property
    def state(self) -> Any:
        return self.program.args[0]

    @property
    def batch(self) -> Any:
        return self.program.args[1]


class _TokenSubject(_Subject):
    """A program of parameters, cache and slots, and of a part of a prompt or nothing."""

    @property
    def state(self) -> Any:
        return dict(zip(("params", "cache", "slots"), self.program.args, strict=False))

    @property
    def batch(self) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.program.args[3:])


def token_programs(workload: TokenWorkload) -> tuple[str, ...]:
    """The programs of a model that answers token by token: one step of all slots, and parts of prompts by their tokens."""
    return ("step", *map(str, workload.config.inference.chunks))


def token_subject(workload: TokenWorkload, layout: Layout, program: str) -> _TokenSubject:
    """One of `token_programs`; its examples are tokens, of a part of a prompt or one for each slot."""
    made = workload.token_programs(workload.served_struct(layout), layout)
    function, *args = made.planned()["step" if program == "step" else int(program)]
    examples = made.sizes.slots if program == "step" else int(program)
    return _TokenSubject(Program(function, tuple(args), donate=(1, 2)), examples, 0.0)


def telling(workload: TokenWorkload, plans: Sequence[Plan], where: Topology) -> dict[str, float]:
    """What an engine with all slots at work tells, of the plans of its programs; nothing where one does not fit.

    Returns:
        `prompt` and `answer` tokens of a text, `step` seconds, `reading` seconds of a prompt in the parts that the
        engine makes of it, `tokens_per_s` and `tokens_per_s_per_chip` of answers with one program at a time, and `most_slots`,
        for whose cache there is room beside all else that a step has.
    """
    step, *parts = plans
    if not all(one.predicted for one in plans):
        return {}
    numbers, gone = workload.config.inference, 0.0
    sizes, left = [int(part.program) for part in parts], numbers.prompt
    while left > 0:
        fits = next((n for n, size in enumerate(sizes) if size >= left), len(sizes) - 1)
        gone += parts[fits].predicted["step"]
        left -= sizes[fits]
    seconds = gone + numbers.max_tokens * step.predicted["step"] / numbers.slots
    rate = numbers.max_tokens / seconds
    room = step.hbm["capacity"] - step.hbm["total"] + step.hbm["cache"]
    return {
        "prompt": numbers.prompt,
        "answer": numbers.max_tokens,
        "slots": numbers.slots,
        "step": step.predicted["step"],
        "reading": gone,
        "tokens_per_s": rate,
        "tokens_per_s_per_chip": rate / where.num_chips,
        "most_slots": int(room // (step.hbm["cache"] / numbers.slots)),
    }


def _subject(workload: Workload, layout: Layout, scenario: str | None) -> _Subject:
    """The training step, or the answer to a query of a scenario; of several buckets the one with the most in it."""
    per_example = workload.train_flops_per_example()
    if scenario:
        assert isinstance(workload, ServedWorkload)
        queries = [
            (size, _inputs(spec, size, layout))
            for bucket, spec in workload.sample_specs().items()
            for size in [_batch_size(workload, bucket, scenario)]
        ]
        size, inputs = max(queries, key=lambda query: _bytes(query[1]))
        predict = Program(workload.predict, (workload.served_struct(layout), inputs))
        return _Subject(predict, size, per_example * size / 3)  # forward alone
    assert isinstance(workload, TrainedWorkload)
    engine = Engine(workload, layout)
    bucket = max(engine.buckets, key=lambda name: _bytes(engine.buckets[name]))
    step = engine.programs[named("train_step", bucket)]
    return _Subject(step, workload.batch_size, per_example * workload.batch_size)


def _batch_size(workload: ServedWorkload, bucket: str, scenario: str) -> int:
    """Rows of a scenario's query, else of the global batch or, of a model that is only served, the largest that it is served in."""
    if samples := SCENARIO_SAMPLES.get(scenario):
        return samples * workload.most_rows
    return workload.config.get("batch_size") or max(ladder(workload.config.inference, bucket))


def _inputs(spec: Spec, size: int, layout: Layout) -> Batch:
    """So many samples of a bucket, as structs."""
    return {
        name: layout.struct((size, *shape), dtype, ("batch", *[None] * len(shape)))
        for name, (shape, dtype) in spec.items()
    }


def _shapes(
    plan: Plan, subject: _Subject, workload: Workload, layout: Layout, where: Topology
) -> dict[cost_kernels.Key, cost_kernels.Kernel]:
    """What follows from shapes and shardings: no compiler. Returns what Pallas kernels the program has."""
    held = {name: _bytes(part) for name, part in subject.state.items()}
    plan.hbm = {"parameters": held.pop("params", 0), "optimizer": held.pop("opt_state", 0)}
    if workload.frozen_entries:
        plan.hbm["frozen"] = sum(held.pop(name, 0) for name in workload.frozen_entries)
    if "cache" in held:
        plan.hbm["cache"] = held.pop("cache")
    plan.hbm |= {"other_state": sum(held.values()), "batch": _bytes(subject.batch)}
    plan.hbm |= {"held": sum(plan.hbm.values()), "capacity": where.chip.hbm_bytes}
    with tracing(layout, workload.policy):  # a function of its own, as in `lower`
        jaxpr = jax.make_jaxpr(lambda *args: subject.program.function(*args))(*subject.program.args)
    counted = cost.jaxpr_flops(jaxpr)
    devices = where.num_devices
    model = subject.model_flops or counted.total - counted.rematerialised
    plan.flops = {
        "model": model / devices,
        "program": counted.total / devices,
        "rematerialised": counted.rematerialised / devices,
    }
    plan.replicated = unsplit.stayed_whole(subject.state, layout.strategy)
    return cost_kernels.kernels(jaxpr, tile=cost_kernels.TILES[where.platform])


def _bytes(tree: Any) -> int:
    """Bytes per device of a tree of structs with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape) if x.sharding else x.shape) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def _compiled(
    plan: Plan,
    text: str,
    memory: Memory,
    subject: _Subject,
    layout: Layout,
    where: Topology,
    kernels: dict[cost_kernels.Key, cost_kernels.Kernel],
) -> None:
    """What the compiled program says."""
    unread = max(plan.hbm["held"] - memory.arguments, 0)  # the compiler drops arguments that nothing reads
    plan.hbm |= {
        "arguments": memory.arguments,
        "outputs": memory.outputs - memory.aliased,
        "activations": memory.temporaries,
        "code": memory.code,
        "peak": memory.peak,
        "total": memory.total + unread,
    }
    module = hlo.parse(text)
    collectives = cost_network.collectives(module, cost_network.Network(where, layout.mesh))
    played = cost_time.timeline(module, where.chip, collectives, kernels)
    plan.flops["executed"] = cost.hlo_flops(module) + cost_kernels.unstated_flops(module, kernels)
    plan.collectives = cost_network.by_kind_and_axis(collectives)
    plan.compiler["unknown_loops"] = list(module.unknown_loops)
    plan.compiler["usual_loops"] = module.usual_loops
    network = sum(row["seconds"] for row in plan.collectives)
    _roofline(plan, where, compute=plan.flops["executed"], moved=cost.hlo_bytes(module), network=network)
    throughput = subject.examples / played.seconds
    peak = where.chip.bf16
    plan.predicted = {
        "step": played.seconds,
        "throughput": throughput,
        "throughput_per_chip": throughput / where.num_chips,
        "cycles": played.cycles,
        "operations": played.compute,
        "waiting": played.waiting,
        "mfu": plan.flops["model"] / peak / played.seconds,
        "mfu_bound": min(plan.flops["model"] / peak / plan.roofline["step"], 1.0),
    }
    plan.operations = [
        dataclasses.asdict(o) | {"share": o.seconds / played.seconds}
        for o in played.operations[:TOP_OPERATIONS]
    ]


def _judge(plan: Plan) -> None:
    """Makes the verdict the worse of the compiler's and the sum's, and says where they part.

    The TPU compiler refuses a program of which, at some moment, more is in use than the chip leaves it (a v5e 15.75
    of its 16 GiB): arguments, outputs and the temporaries that live then, `peak`. That is not all that has a
    place. Temporaries lie in one range of memory, and where their lifetimes do not nest, parts of it are idle even
    at the fullest moment: the closed Transformer at 32 rows a chip has 17.24 GiB of them, of which, with 2.36 GiB of
    arguments, never more than 14.33 GiB are in use. The sum counts the range whole, donated arguments
    once, as their outputs take their place, tiles with their padding, and state that the step does not read.
    """
    hbm, gib = plan.hbm, 2**30
    need = hbm.get("total", hbm["held"])
    if plan.verdict == "does not fit" or need <= hbm["capacity"]:
        return
    of = f"{need / gib:.2f} GiB of {hbm['capacity'] / gib:.2f} GiB"
    if plan.verdict == "fits":
        plan.reason = (
            f"The compiler accepts it, as no more than {hbm['peak'] / gib:.2f} GiB is in use at any moment, but what "
            f"it gives a place, {hbm['activations'] / gib:.2f} GiB of temporaries with the gaps between them among "
            f"it, adds up to {of}."
        )
    else:
        plan.reason = f"State and batch alone take {of}, whatever the compiler makes of the rest."
    plan.verdict = "does not fit"


def _roofline(plan: Plan, where: Topology, *, compute: float, moved: float, network: float) -> None:
    """The time that each of three resources needs at its peak; the step takes at least the longest."""
    seconds = {
        "compute": compute / where.chip.bf16,
        "hbm": moved / where.chip.hbm_bandwidth,
        "network": network,
    }
    bound = max(seconds, key=seconds.__getitem__)
    plan.roofline = seconds | {"hbm_bytes": moved, "step": seconds[bound], "bound": bound}


def time_to_train(workload: TrainedWorkload, step_seconds: float) -> dict[str, Any]:
    """From the reference's epochs to minutes.

    Evaluations are taken to cost a third of training on as many examples (a forward pass without its
    two gradients); start-up, input and checkpoints are not in it.
    """
    reference = reference_epochs.convergence(workload.benchmark, workload.batch_size)
    if reference is None:
        return {}
    epochs, source = reference.epochs, reference.how
    if epochs > 1000:  # these benchmarks count samples
        epochs /= workload.num_train
    epochs -= workload.eval_epoch(0)
    steps = math.ceil(epochs * workload.num_train / workload.batch_size)
    minutes = steps * step_seconds / 60
    blocks = [block for block in workload.blocks() if block.start < steps]
    evaluation = len(blocks) * workload.num_eval / workload.batch_size * step_seconds / 3 / 60
    return {
        "epochs": epochs,
        "steps": steps,
        "minutes": minutes,
        "evaluations": len(blocks),
        "evaluation_minutes": evaluation,
        "total_minutes": minutes + evaluation,
        "source": source,
    }
