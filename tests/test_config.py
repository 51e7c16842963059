"""From flags to one resolved config; what it refuses is tested at the door (test_main.py)."""

import pytest
from ml_collections import ConfigDict

from mlperf_jax import config as configs
from mlperf_jax import workload
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


def test_every_workload_has_every_preset_with_what_the_loop_needs():
    keys = {"benchmark", "preset", "batch_size", "target", "max_epochs", "precision"}
    for name in workload.names():
        for preset in configs.PRESETS:
            config = configs.base_config(name, preset)
            assert keys <= set(config.keys()), (name, preset)
            # Said as one or the other: DLRM's rules count evaluations an epoch.
            assert {"eval_every_epochs", "evals_per_epoch"} & set(config.keys()), (name, preset)
            assert config.preset == preset and config.workload == name


def test_every_reference_point_of_resnet50_is_whole():
    closed = configs.base_config("resnet50", "closed")
    for batch in closed.reference_points:
        resolved = configs.resolve(closed, [f"--config.reference_point={batch}"])
        assert resolved.batch_size == int(batch) and resolved.batch_size % resolved.model.bn_span == 0


def test_presets_follow_the_platform():
    assert [configs.default_preset(p) for p in ("cpu", "gpu", "tpu")] == ["mini", "closed", "closed"]
