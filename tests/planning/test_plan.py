"""plan: real compilations for TPUs that are not there, and what needs no compiler."""

import dataclasses
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mlperf_jax import making
from mlperf_jax import plan as command
from mlperf_jax.errors import UserError
from mlperf_jax.parallel import mesh
from mlperf_jax.parallel.layout import STRATEGIES
from mlperf_jax.planning import compilation, cost, plan, reference_epochs, topology
from mlperf_jax.precision import POLICIES
from mlperf_jax.training.engine import lower
from mlperf_jax.workload import Program, TrainedWorkload
from models.resnet import ResNetConfig, flops_per_image

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)
TINY = ["--config.model.stages=(1,)", "--config.model.width=16"]


def resnet50(preset, platform, batch, overrides=()):
    return making.choose("resnet50", preset, platform, overrides, kind=TrainedWorkload, batch=batch).make(
        synthetic=True
    )


def tiny(platform="tpu", batch=32, overrides=TINY):
    return resnet50("mini", platform, batch, overrides)


def test_topology_names():
    where = topology.parse("v5e:16x16")
    assert (where.num_chips, where.num_devices, where.platform) == (256, 256, "tpu")
    assert topology.parse("v3:4x4").num_devices == 32
    assert topology.parse("2xv5e:4x4").num_devices == 32
    assert topology.parse("h200:4x8").platform == "gpu"


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:0x4", "v9:2x2", "v5e:ax4", "h200:2x2x2", "2xh200:1x8", "v5e:2x2 x", ""]
)
def test_wrong_topologies_get_a_sentence(name):
    with pytest.raises(UserError, match="--topology="):
        topology.parse(name)


def test_command_says_what_is_missing(capsys):
    assert command.main(["--workload=resnet50"]) == 2
    assert command.main(["--workload=resnet50", "--topology=v5e:4x4", "--sharding=nope"]) == 2
    assert command.main(["--workload=resnet50", "--topology=v5e:4x4", "--bath=3"]) == 2
    whole = ["--workload=resnet50", "--preset=mini", "--topology=v5e:2x2", "--batch=4194304"]
    assert command.main(whole) == 2  # an epoch is less than a step, which the schedule cannot have
    errors = capsys.readouterr().err
    assert "or --batch" in errors
    assert "--topology is missing" in errors and "--sharding=nope" in errors and "bath" in errors
    assert "Traceback" not in errors


def test_counted_flops_agree_with_the_closed_formula():
    """ResNet-50 at 224 pixels: within 3 % of the 24.5 GFLOP an image that the layers' sizes give."""
    workload = resnet50("closed", "tpu", 64, ["--config.model.bn_span=0"])
    state = jax.eval_shape(workload.init, jax.ShapeDtypeStruct((), np.uint32))
    layout = mesh.single_device_layout()
    counted = cost.jaxpr_flops(jax.make_jaxpr(workload.train_step)(state, workload.batch_struct(layout)))
    formula = flops_per_image(ResNetConfig.resnet50(), train=True)
    assert counted.total / 64 == pytest.approx(formula, rel=0.03)
    assert formula == pytest.approx(24.5e9, rel=0.01)
    # What differs is the gradient of the image, which nobody asks for: a third of the stem's 0.7 GFLOP.
    stem = 2 * 7 * 7 * 3 * 64 * 112 * 112
    assert counted.total == 64 * (formula - stem)
    assert counted.rematerialised == 0


def test_without_the_compiler_the_analytic_part_remains(monkeypatch, tmp_path):
    monkeypatch.setattr(topology, "missing_compiler", lambda where: "install it")
    where = topology.parse("h200:1x8")
    workload = tiny("gpu", batch=64)
    whole, split = (
        plan.plan_strategy(workload, mesh.find_strategy(name), where, cache_dir=tmp_path)
        for name in ("dp", "fsdp")
    )
    assert (whole.verdict, whole.reason) == ("not compiled", "install it")
    sizes = [math.prod(p.shape) for p in jax.tree.leaves(_params(workload))]
    assert whole.hbm["parameters"] == whole.hbm["optimizer"] - 4 == 4 * sum(sizes)
    # fsdp splits every array of at least 1024 elements that has a dimension which 8 divides
    assert split.hbm["parameters"] == sum(4 * n // (8 if n >= 1024 else 1) for n in sizes)
    assert {row["name"] for row in split.replicated} >= {"params['norm']['scale']"}
    assert sum(row["bytes"] for row in split.replicated) < whole.hbm["parameters"]
    assert whole.flops["program"] == pytest.approx(whole.flops["model"], rel=0.03)


def _params(workload):
    return jax.eval_shape(workload.init, jax.ShapeDtypeStruct((), np.uint32))["params"]


def test_time_to_train_from_the_reference_points():
    """Batch 4096: the reference's ten runs took 39.875 epochs in the olympic mean."""
    point = reference_epochs.convergence("resnet", 4096)
    assert point.epochs == pytest.approx(39.875)
    between = reference_epochs.convergence("resnet", 6144).epochs
    assert between == pytest.approx((39.875 + 41.875) / 2)
    assert "nearest" in reference_epochs.convergence("resnet", 64).how
    assert reference_epochs.convergence("no such benchmark", 64) is None
    workload = resnet50("closed", "tpu", 4096)
    training = plan.time_to_train(workload, 0.1)
    assert training["steps"] == math.ceil(39.875 * 1281167 / 4096)
    assert training["minutes"] == pytest.approx(training["steps"] * 0.1 / 60)
    assert training["evaluations"] == 10  # after 4, 8, ... 40 epochs


class Refusing:
    """A lowered program whose compiler finds it too large, or fails otherwise."""

    def __init__(self, message):
        self.message, self.times = message, 0

    def as_text(self):
        return self.message

    def compile(self):
        self.times += 1
        raise jax.errors.JaxRuntimeError(self.message)


def _compile(lowered, folder):
    return compilation.compile_program(lowered, target="t", compiler="c", cache_dir=folder, label="x")


def test_out_of_memory_is_an_answer_and_is_kept(tmp_path):
    lowered = Refusing(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.1G of 15.75G hbm.\nmore"
    )
    answers = [_compile(lowered, tmp_path) for _ in range(2)]
    assert lowered.times == 1
    assert [a.cached for a in answers] == [False, True]
    assert all("20.1G of 15.75G" in a.does_not_fit and a.memory is None for a in answers)
    with pytest.raises(jax.errors.JaxRuntimeError):
        _compile(Refusing("INTERNAL: something else"), tmp_path)


def test_answers_are_kept_by_the_compilers_flags(monkeypatch, tmp_path):
    lowered = Refusing("RESOURCE_EXHAUSTED: hbm")
    cached = []
    for flags in ("", "--xla_tpu_x=1", "--xla_tpu_x=2", "--xla_tpu_x=1"):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
        cached.append(_compile(lowered, tmp_path).cached)
    assert cached == [False, False, False, True]


def test_a_damaged_cache_entry_is_made_again(tmp_path):
    lowered = Refusing("RESOURCE_EXHAUSTED: hbm")
    _compile(lowered, tmp_path)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:-9])
    assert not _compile(lowered, tmp_path).cached
    assert _compile(lowered, tmp_path).cached


@needs_libtpu
def test_too_large_for_the_real_compiler(tmp_path):
    devices = topology.devices(topology.parse("v5e:2x2"))
    line = jax.make_mesh((4,), ("data",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.ShapeDtypeStruct((120_000, 120_000), jnp.bfloat16, sharding=NamedSharding(line, PartitionSpec()))
    answer = _compile(jax.jit(lambda x: x * 2).lower(x), tmp_path)
    assert answer.memory is None and "15.75G" in answer.does_not_fit


@needs_libtpu
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_tp"])
def test_under_fsdp_a_kernel_is_gathered_before_its_product(strategy):
    """A product of 8,192 rows by a kernel of 16 MiB, of which each device has a part; a TPU's partitioner sends parts round."""
    layout = mesh.make_layout(STRATEGIES[strategy], None, topology.devices(topology.parse("v5e:4x4")))
    x = layout.struct((8192, 2048), jnp.bfloat16, ("batch", None))
    where = layout.param_sharding((2048, 4096), ("embed", "mlp"))
    kernel = jax.ShapeDtypeStruct((2048, 4096), jnp.bfloat16, sharding=where)
    program = Program(lambda x, kernel: x @ kernel, (x, kernel), (), None)
    text = lower(program, layout, POLICIES["bfloat16"]).compile().as_text()
    found = {kind for kind in ("all-gather", "collective-permute") if kind in text}
    assert found == {"all-gather" if strategy == "fsdp" else "collective-permute"}


@needs_libtpu
def test_an_axis_may_take_a_part_of_a_torus():
    """Eight of 4x4x4: every device is there once, and each group's are neighbours, two by two by two or two lines of four."""
    devices = topology.devices(topology.parse("v5p:4x4x4"))
    layout = mesh.make_layout(STRATEGIES["expert"], {"data": 8, "expert": 8}, devices)
    groups = np.array([device.coords for device in layout.mesh.devices.flat]).reshape(8, 8, 3)
    assert len({tuple(place) for place in groups.reshape(-1, 3).tolist()}) == 64
    extents = np.ptp(groups, axis=1) + 1
    assert (extents.prod(1) == 8).all()


VMEM = "xla_tpu_scoped_vmem_limit_kib"
EXCHANGED = {"xla_tpu_enable_async_all_to_all": "true"}
WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
GATHERED = dict.fromkeys(
    (
        "xla_tpu_prefer_async_allgather_to_allreduce",
        "xla_enable_async_all_gather",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
    ),
    "true",
)


@needs_libtpu
@pytest.mark.parametrize(
    ("where", "strategy", "expected"),
    [
        ("v5e:2x2", "dp", {}),
        ("v6e:2x2", "dp", {VMEM: "98304"}),
        ("v5p:2x2x1", "dp", {VMEM: "24576"} | EXCHANGED),
        ("v4:2x2x1", "row_wise", EXCHANGED),
        ("tpu7x:2x2x1", "row_wise", EXCHANGED),
        ("v6e:2x2", "fsdp", {VMEM: "98304"} | WHOLE),
        ("v5p:2x2x1", "fsdp", {VMEM: "24576"} | WHOLE | EXCHANGED | GATHERED),
    ],
)
def test_the_compiler_is_told_of_the_chip_and_of_what_is_split(where, strategy, expected):
    """And takes it for the chip: a program that gathers what is split, multiplies, and trades rows beside that."""
    layout = mesh.make_layout(STRATEGIES[strategy], None, topology.devices(topology.parse(where)))
    assert layout.compiler_options == expected
    n = layout.mesh.size
    x = layout.struct((n * n * 256, 512), jnp.bfloat16, ("batch", None))
    w = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=layout.param_sharding((512, 512), None))

    def program(x, w):
        rows = PartitionSpec("data")
        trade = jax.shard_map(
            lambda y: jax.lax.all_to_all(y, "data", 0, 0, tiled=True),
            mesh=layout.mesh,
            in_specs=rows,
            out_specs=rows,
        )
        return (trade(x) + jnp.sin(x @ w) @ w) @ w

    lower(Program(program, (x, w), (), None), layout, POLICIES["bfloat16"]).compile()


GIB = 2**30
# Of the closed Transformer at batch 512 on v5e:4x4, which the compiler accepts.
TRANSFORMER = compilation.Memory(
    arguments=2530248192,
    outputs=2530200064,
    aliased=2530199040,
    temporaries=18506949632,
    code=40697344,
    peak=15391720960,
)


def judged(verdict, **hbm):
    done = plan.Plan("dp", {"data": 16}, verdict, "as before", {"held": 2 * GIB, "capacity": 16 * GIB} | hbm)
    plan._judge(done)
    return done.verdict, done.reason


def test_the_verdict_is_the_worse_of_two():
    """What the compiler accepts may add up to more than there is."""
    memory = TRANSFORMER
    verdict, reason = judged(
        "fits", activations=memory.temporaries, peak=memory.peak, total=memory.total, code=memory.code
    )
    assert verdict == "does not fit"
    assert (
        "accepts it" in reason and "17.24 GiB of temporaries" in reason and "19.63 GiB of 16.00 GiB" in reason
    )
    assert "no more than 14.33 GiB is in use at any moment" in reason
    assert judged("fits", activations=GIB, peak=GIB, total=16 * GIB) == ("fits", "as before")
    assert judged("does not fit", held=99 * GIB) == ("does not fit", "as before")  # the compiler's own words
    assert judged("not compiled") == ("not compiled", "as before")
    verdict, reason = judged("not compiled", held=17 * GIB)
    assert verdict == "does not fit" and "alone take 17.00 GiB of 16.00 GiB" in reason


@needs_libtpu
def test_the_real_compiler_counts_no_gaps_between_temporaries(tmp_path):
    """Attention by six layers in a loop: accepted, as fewer than 15.75 GiB live at once, of 17.7 that have a place."""

    def loss(x):
        def layer(x, _):
            weights = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", x, x))
            return jnp.einsum("bqk,bkd->bqd", weights, x), None

        y, _ = jax.lax.scan(layer, x, None, length=6)
        return (y.astype(jnp.float32) ** 2).mean()

    devices = topology.devices(topology.parse("v5e:2x2"))
    line = jax.make_mesh((4,), ("data",), devices=devices, axis_types=(jax.sharding.AxisType.Auto,))
    place = NamedSharding(line, PartitionSpec())
    x = jax.ShapeDtypeStruct((1392, 512, 512), jnp.bfloat16, sharding=place)
    memory = _compile(jax.jit(jax.grad(loss)).lower(x), tmp_path).memory
    assert memory.peak < memory.temporaries and memory.peak <= 15.75 * GIB
    assert memory.total > 16 * GIB


@needs_libtpu
def test_plan_of_a_tiny_model(tmp_path, capsys):
    """One compilation for four v5e chips, and the same again from disk."""
    arguments = [
        "--workload=resnet50",
        "--preset=mini",
        "--topology=v5e:2x2",
        "--sharding=fsdp",
        "--batch=32",
    ]
    arguments += [f"--cache_dir={tmp_path / 'cache'}", f"--results_dir={tmp_path}", *TINY]
    assert command.main(arguments) == 0
    first = json.loads((tmp_path / "plan.json").read_text())
    assert command.main(arguments) == 0
    again = json.loads((tmp_path / "plan.json").read_text())
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")
    (one,), (two,) = first["plans"], again["plans"]
    assert (one["compiler"].pop("cached"), two["compiler"].pop("cached")) == (False, True)
    assert first == again
    assert first["schema_version"] == 1 and first["topology"]["chips"] == 4
    assert one["verdict"] == "fits" and one["repeated"] == ""
    hbm = one["hbm"]
    assert hbm["held"] == hbm["parameters"] + hbm["optimizer"] + hbm["other_state"] + hbm["batch"]
    assert hbm["held"] <= hbm["arguments"] <= hbm["total"] < hbm["capacity"]  # the compiler pads to tiles
    assert one["flops"]["executed"] == pytest.approx(one["flops"]["program"], rel=0.05)
    assert {tuple(row["axes"]) for row in one["collectives"]} == {("data",)}
    assert one["predicted"]["step"] >= one["roofline"]["step"] > 0
    assert (
        one["predicted"]["cycles"] > 0 and 0 < one["predicted"]["mfu"] <= one["predicted"]["mfu_bound"] <= 1
    )
    shown = capsys.readouterr().out
    assert "Predicted, not measured" in shown and "fits" in shown


def test_the_answer_to_a_query(monkeypatch, tmp_path):
    """One sample, a third of a training step's FLOPs for it, and no optimizer."""
    monkeypatch.setattr(topology, "missing_compiler", lambda where: "install it")
    done = plan.plan_strategy(
        tiny(),
        mesh.find_strategy("dp"),
        topology.parse("v5e:2x2"),
        scenario="SingleStream",
        cache_dir=tmp_path,
    )
    assert done.hbm["optimizer"] == 0 and done.hbm["batch"] == 28 * 28
    assert done.flops["model"] * 4 == pytest.approx(tiny().train_flops_per_example() / 3)
    assert done.flops["program"] == pytest.approx(done.flops["model"], rel=0.01)
    assert done.training == {}


def test_missing_compiler_names_one_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -e '.[tpu]'" in topology.missing_compiler(topology.parse("v5e:4x4"))
    assert "pip install -e '.[cuda]'" in topology.missing_compiler(topology.parse("h200:1x8"))
    with pytest.raises(UserError, match="pip install"):
        topology.devices(topology.parse("v5e:4x4"))


def test_dataclass_is_plain_json():
    json.dumps(dataclasses.asdict(plan.Plan("dp", {"data": 4})))
