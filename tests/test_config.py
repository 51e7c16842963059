"""From flags to one resolved config; what it refuses is tested at the door (test_main.py)."""

import pytest
from ml_collections import ConfigDict

from mlperf_jax import config as configs
from mlperf_jax import registry, workload
from mlperf_jax.errors import UserError


def small(**changes) -> ConfigDict:
    config = ConfigDict(
        dict(
            batch_size=32,
            rate=0.5,
            on=False,
            stages=(3, 4),
            name="one",
            optimizer=dict(lr=1.0, momentum=0.9),
            reference_point=0,
            reference_points={"64": dict(batch_size=64, optimizer=dict(lr=2.0)), "128": dict(batch_size=128)},
        )
        | changes
    )
    config.lock()
    return config


def test_values_take_the_type_of_their_key():
    asked = ["batch_size=64", "rate=2", "on=true", "stages=(1, 2, 3)", "name=3", "optimizer.lr=1e-3"]
    resolved = configs.resolve(small(), [f"--config.{a}" for a in asked])
    found = [
        resolved.batch_size,
        resolved.rate,
        resolved.on,
        resolved.stages,
        resolved.name,
        resolved.optimizer.lr,
    ]
    assert found == [64, 2.0, True, (1, 2, 3), "3", 1e-3]
    assert [type(v) for v in found] == [int, float, bool, tuple, str, float]


def test_the_config_as_written_stays_and_the_result_is_locked():
    written = small()
    resolved = configs.resolve(written, ["--config.optimizer.lr=3"])
    assert (written.optimizer.lr, resolved.optimizer.lr, resolved.optimizer.momentum) == (1.0, 3.0, 0.9)
    with pytest.raises(AttributeError):
        resolved.new_key = 1


def test_of_two_values_the_later_stands():
    assert configs.resolve(small(), ["--config.rate=1", "--config.rate=2"]).rate == 2


def test_a_reference_point_applies_and_what_is_asked_beside_it_stands():
    resolved = configs.resolve(small(), ["--config.optimizer.lr=7", "--config.reference_point=64"])
    assert (resolved.batch_size, resolved.optimizer.lr, resolved.optimizer.momentum) == (64, 7.0, 0.9)
    assert configs.resolve(small(reference_point=128), []).batch_size == 128
    with pytest.raises(UserError, match="no reference point at batch 65; there are 64, 128"):
        configs.resolve(small(), ["--config.reference_point=65"])


@pytest.mark.parametrize(
    "override",
    [
        "target=nan",
        "target=inf",
        "target=-inf",
        "optimizer.base_lr=nan",
        "optimizer.base_lr=1e999",
        "optimizer.base_lr=-0.1",
        "optimizer.momentum=1.5",
        "schedule.power=nan",
        "label_smoothing=-0.1",
        "label_smoothing=1.0",
        "data.num_train=-1",
        "data.num_eval=-5",
        "data.mean=(1e999,)",
        "data.mean=()",
        "data.std=(0.0,)",
        "model.stages=()",
        "model.stages=(1, 0)",
        "model.stages=(-1, 2)",
        "eval_offset_epochs=-1",
        "target=-0.5",
        "inference.batch_sizes=()",
        "inference.batch_sizes=(8, -1)",
        "inference.min_duration_s=-1",
        "inference.min_duration_s=inf",
    ],
)
def test_numbers_that_no_run_can_have_are_refused(override):
    key, _, _ = override.partition("=")
    with pytest.raises(UserError, match=rf"^--config\.{key}=\S.* cannot be; it must .*[^.]\.$"):
        configs.resolve(configs.base_config("resnet50", "mini"), [f"--config.{override}"])


@pytest.mark.parametrize(
    ("workload", "override"),
    [
        ("dlrm", "evals_per_epoch=0"),
        ("dlrm_dcnv2", "model.cross_layers=-1"),
        ("transformer", "model.num_layers=0"),
        ("transformer", "model.dropout=1.0"),
        ("minigo", "optimizer.lr_rates=(0.1, 1e999)"),
        ("minigo", "match.games=-1"),
        ("ssd_resnet34", "anchors.scales=()"),
    ],
)
def test_so_are_those_of_other_workloads(workload, override):
    with pytest.raises(UserError, match="cannot be; it must"):
        configs.resolve(configs.base_config(workload, "mini"), [f"--config.{override}"])


def test_several_targets_are_all_looked_at():
    config = small(target=dict(error=0.1, loss=0.8))
    with pytest.raises(UserError, match=r"--config\.target\.loss=nan cannot be; it must be finite"):
        configs.resolve(config, ["--config.target.loss=nan"])
    with pytest.raises(UserError, match=r"--config\.target\.loss=inf cannot be; it must be finite"):
        configs.resolve(small(target=dict(loss=float("inf"))), [])


@pytest.mark.parametrize("value", ["(1.5, 2)", "(True,)", "('a',)", "(None,)", "((1,),)"])
def test_what_a_tuple_holds_is_of_the_written_type(value):
    with pytest.raises(UserError, match="is of the wrong type: --config.stages is of type tuple, as "):
        configs.resolve(small(), [f"--config.stages={value}"])


@pytest.mark.parametrize(
    ("key", "flag"),
    [
        ("workload", "--workload"),
        ("benchmark", "--workload"),
        ("preset", "--preset"),
        ("reference_points.8192.max_epochs", "--config.reference_point"),
    ],
)
def test_what_names_a_config_cannot_be_set(key, flag):
    with pytest.raises(
        UserError, match=rf"^--config\.{key} cannot be set; what it says is chosen by {flag}\.$"
    ):
        configs.resolve(configs.base_config("resnet50", "closed"), [f"--config.{key}=1"])


def test_what_a_run_can_have_stays():
    for workload_, override in (
        ("minigo", "game.komi=-5.5"),
        ("minigo", "self_play.min_resign=-0.9"),
        ("minigo", "match.seed=0"),
        ("ssd_resnet34", "schedule.decay_epochs=()"),
        ("ssd_resnet34", "model.extra_padding=(0, 0, 0)"),
        ("transformer", "decode.source_lengths=()"),
        ("resnet50", "target=2"),
        ("resnet50", "target=0.0"),
        ("resnet50", "data.mean=(0,)"),
        ("resnet50", "model.bn_span=0"),
        ("resnet50", "optimizer.momentum=0"),
        ("dlrm", "schedule.warmup_steps=0"),
    ):
        configs.resolve(configs.base_config(workload_, "mini"), [f"--config.{override}"])


def test_every_workload_has_every_preset_with_what_the_loop_needs():
    keys = {"benchmark", "preset", "batch_size", "target", "max_epochs", "precision"}
    for name in registry.names():
        if not issubclass(registry.find(name, workload.Workload), workload.TrainedWorkload):
            continue
        assert configs.presets(name) == configs.PRESETS
        for preset in configs.PRESETS:
            config = configs.base_config(name, preset)
            assert keys <= set(config.keys()), (name, preset)
            # Said as one or the other: DLRM's rules count evaluations an epoch, BERT's samples.
            said = {"eval_every_epochs", "evals_per_epoch", "eval_every_samples"}
            assert said & set(config.keys()), (name, preset)
            assert config.preset == preset and config.workload == name


def test_what_is_only_served_has_what_serving_needs():
    served = [
        name
        for name in registry.names()
        if not issubclass(registry.find(name, workload.Workload), workload.TrainedWorkload)
    ]
    assert served == ["objectron"]
    for name in served:
        for preset in configs.PRESETS:
            if preset not in configs.presets(name):
                with pytest.raises(UserError, match=f"has no preset {preset}.*use --preset=mini"):
                    configs.base_config(name, preset)
                continue
            config = configs.base_config(name, preset)
            assert {"benchmark", "target", "precision", "inference"} <= set(config.keys())
            assert config.preset == preset and config.workload == name


def test_every_reference_point_of_resnet50_is_whole():
    closed = configs.base_config("resnet50", "closed")
    for batch in closed.reference_points:
        resolved = configs.resolve(closed, [f"--config.reference_point={batch}"])
        assert resolved.batch_size == int(batch) and resolved.batch_size % resolved.model.bn_span == 0


def test_presets_follow_the_platform():
    assert [configs.default_preset(p) for p in ("cpu", "gpu", "tpu")] == ["mini", "closed", "closed"]
