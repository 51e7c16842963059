"""ResNet-50's mini on its real data."""

import pytest

from tests import door


@pytest.mark.convergence
def test_mini_reaches_its_target_on_real_data(tmp_path):
    ended = door.run(tmp_path, "--workload=resnet50", "--platform=cpu", "--prepare", "--seed=0")
    if ended.returncode == 2 and "could not be" in ended.stderr:
        pytest.skip(f"the data cannot be had here: {ended.stderr.splitlines()[-1]}")
    assert ended.returncode == 0, ended.stderr
    events = door.events_of(tmp_path / "results")
    assert door.values(events, "eval_accuracy")[-1] >= 0.90
    assert door.values(events, "train_samples") == [60_000] and door.values(events, "eval_samples") == [
        10_000
    ]
    assert [e.metadata["status"] for e in events if e.key == "run_stop"] == ["success"]
