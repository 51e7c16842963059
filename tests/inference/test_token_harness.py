"""Models that answer token by token under LoadGen: all scenarios over two replicas, in this process; what is refused."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.inference import command
from mlperf_jax.inference.options import InferOptions
from mlperf_jax.inference.settings import Asked
from mlperf_jax.inference.trained import Trained
from mlperf_jax.judging.accuracy_log import read_token_answers
from mlperf_jax.judging.compliance import verify_tokens
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.folders import read_json
from tests.toys_language import SmallTelling

ENDS = (3, 5)
SCENARIOS = ("SingleStream", "Server", "Interactive", "Offline")


@functools.cache
def drawn_state():
    """Of a decoder as it is before training, but surer of what it says."""
    workload = SmallTelling(SmallTelling.get_config("mini"), POLICIES["float32"], data_dir=Path())
    state = workload.served_state(jax.jit(workload.init)(np.uint32(1)))
    return jax.device_get(jax.tree.map(lambda x: x * 3, state))


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Runs the command on two devices with a drawn model; the folder of its results."""

    def run(*, numbers=(), bound_s=None, **flags):
        config = SmallTelling.get_config("mini")
        config.inference.update(dict(numbers))
        workload = SmallTelling(config, POLICIES["float32"], data_dir=Path())

        def load(workload, layout):
            places = jax.tree.map(lambda x: x.sharding, workload.served_struct(layout))
            return jax.device_put(drawn_state(), places)

        two = jax.devices()[:2]
        with monkeypatch.context() as patched:
            patched.setattr(jax, "devices", lambda *_: two)
            patched.setattr(
                command, "open_model", lambda _: (workload, Trained("a drawn one", {}, None, load))
            )
            options = InferOptions(
                "toy", "mini", "cpu", tmp_path, asked=Asked(0.2, 100.0, bound_s), system="here", **flags
            )
            status = command.infer_command(options)
        return status, tmp_path / "mini/inference/here/toy"

    return run


def test_all_scenarios_tell_the_same_tokens(measure, capsys):
    status, folder = measure(scenario="all")
    out = capsys.readouterr().out
    assert status == 0, out
    answers = {}
    for name in SCENARIOS:
        performance, accuracy = (
            read_json(folder / name / kind / "result.json") for kind in ("performance/run_1", "accuracy")
        )
        assert performance["valid"] and accuracy["passed"] and performance["replicas"] == 2
        assert set(performance["batches"]) <= ({"1"} if name == "SingleStream" else {"1", "2", "3"})
        assert not performance["errors"] and not accuracy["errors"]
        assert set(accuracy["quality"]) == {"rouge1", "rouge2", "rougeL"}
        entries = json.loads((folder / name / "accuracy/mlperf_log_accuracy.json").read_text())
        answers[name] = {entry["qsl_idx"]: entry["data"] for entry in entries}
        for entry in entries:
            tokens = np.frombuffer(bytes.fromhex(entry["data"]), "<i4").tolist()
            # As TEST06 wants it: all tokens are counted, an end is the last, the first is the one told first.
            assert 2 <= len(tokens) == entry["token_count"] <= 8
            assert not set(tokens[:-1]) & {3, 5} and (len(tokens) == 8 or tokens[-1] in (3, 5))
            if name != "Offline":
                assert np.frombuffer(bytes.fromhex(entry["token_data"]), "<i4").tolist() == tokens[:1]
        assert f"{name} performance: VALID" in out
    assert len(answers["Offline"]) == 20 and len(set(answers["Offline"].values())) > 5
    assert all(found == answers["Offline"] for found in answers.values())
    assert out.count("tokens/s") == 3 and "to the first (bound 600000 ms)" in out


def test_tokens_are_audited(measure, capsys):
    """TEST06 after a performance and an accuracy run, with first tokens and without."""
    for name in ("Server", "Offline"):
        status, folder = measure(scenario=name)
        assert status == 0, capsys.readouterr().out
        status, folder = measure(scenario=name, mode="compliance")
        out = capsys.readouterr().out
        assert status == 0 and "TEST06 verification complete" in out, out
        told = (folder / name / "TEST06/verify_accuracy.txt").read_text()
        assert f"First token check pass: {'True' if name == 'Server' else 'Skipped'}" in told
        logged = read_token_answers(folder / name / "TEST06/accuracy/mlperf_log_accuracy.json")
        assert len(logged) > 10
        # What is not so is seen.
        good = next(one for one in logged if len(one.tokens) > 2 and one.tokens[1] not in ENDS)
        for bad in (
            good._replace(tokens=(good.tokens[0], 3, *good.tokens[2:])),
            good._replace(counted=good.counted + 1),
            good._replace(first=(good.tokens[0] + 1,)),
        ):
            assert not verify_tokens([*logged, bad], ENDS, first_told=True).passed
    assert verify_tokens(logged, ENDS, first_told=False).passed
    assert not verify_tokens([], ENDS, first_told=False).passed


def test_the_official_package_drives_the_same_system(measure, capsys):
    pytest.importorskip("mlperf_loadgen", reason="the official package is to drive it")
    status, folder = measure(scenario="Server", mode="performance", loadgen="official")
    out = capsys.readouterr().out
    assert status == 0, out
    official = read_json(folder / "Server/official/performance/run_1/result.json")
    assert official["valid"] and official["metrics"]["result_completed_tokens_per_second"] > 0
    assert "result_completed_tokens_per_second" in out


def test_what_cannot_be_measured_is_refused(measure):
    with pytest.raises(UserError, match="--max_latency bounds whole answers"):
        measure(scenario="Server", bound_s=1.0)
    with pytest.raises(
        UserError, match="SingleStream and Server and Interactive and Offline only, as in MLPerf"
    ):
        measure(scenario="MultiStream")
    with pytest.raises(
        UserError, match="longer than Interactive's bound of 1e-06 ms, so no rate can meet it"
    ):
        measure(scenario="Interactive", mode="performance", numbers={"max_each_s": 1e-9})
