"""Models that answer token by token under LoadGen: all scenarios over two replicas, in this process; what is refused."""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import loadgen_py as lg
from loadgen_py.official import run_official
from mlperf_jax.errors import UserError
from mlperf_jax.inference import command
from mlperf_jax.inference.options import InferOptions
from mlperf_jax.inference.settings import Asked
from mlperf_jax.inference.token_sut import TokenReplica, TokenSamples, TokenSut
from mlperf_jax.inference.trained import Trained
from mlperf_jax.judging.accuracy_log import read_token_answers
from mlperf_jax.judging.compliance import verify_tokens
from mlperf_jax.parallel.mesh import single_device_layout
from mlperf_jax.precision import POLICIES
from mlperf_jax.results.folders import read_json
from mlperf_jax.tokens.programs import Sizes
from mlperf_jax.tokens.requests import Request
from tests.tokens.simulated import END, Simulated
from tests.toys_language import SmallTelling, SmallTellingExperts, SmallTellingTuned

ENDS = (3, 5)
SCENARIOS = ("SingleStream", "Server", "Interactive", "Offline")


@functools.cache
def drawn_state(kind=SmallTelling):
    """Of a decoder as it is before training, but surer of what it says."""
    workload = kind(kind.get_config("mini"), POLICIES["float32"], data_dir=Path())
    state = workload.served_state(jax.jit(workload.init)(np.uint32(1)))
    return jax.device_get(jax.tree.map(lambda x: x * 3, state))


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Runs the command on two devices with a drawn model; the folder of its results."""

    def run(*, kind=SmallTelling, numbers=(), bound_s=None, **flags):
        config = kind.get_config("mini")
        config.inference.update(dict(numbers))
        workload = kind(config, POLICIES["float32"], data_dir=Path())

        def load(workload, layout):
            places = jax.tree.map(lambda x: x.sharding, workload.served_struct(layout))
            return jax.device_put(drawn_state(kind), places)

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
        assert set(accuracy["quality"]) == {"rouge1", "rouge2", "rougeL", "log_perplexity"}
        # In float32 texts have the same tokens by the engine and by a loop over whole texts, where none are nearly as likely.
        assert accuracy["quality"] == pytest.approx(accuracy["trained_quality"], rel=1e-5)
        assert accuracy["figures"]["tokens_per_sample"] > 2
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
        other, gaps = (key in performance for key in ("endpoints_tpot_99_ns", "endpoints_tpot_50_ns"))
        assert other == gaps == (name != "Offline")
    assert len(answers["Offline"]) == 20 and len(set(answers["Offline"].values())) > 5
    assert all(found == answers["Offline"] for found in answers.values())
    assert (
        " ms to the first token\n" in out
        and out.count("tokens/s") == 3
        and "to the first (bound 600000 ms)" in out
    )


@pytest.mark.parametrize("kind", [SmallTellingTuned, SmallTellingExperts])
def test_what_is_tuned_and_what_has_experts_tells_tokens_too(measure, capsys, kind):
    """Under every scenario the same."""
    status, folder = measure(kind=kind, scenario="all", mode="accuracy")
    out = capsys.readouterr().out
    assert status == 0 and "log perplexity" in out and "tokens each" in out, out
    told = []
    for name in SCENARIOS:
        found = read_json(folder / name / "accuracy/result.json")
        assert found["quality"] == pytest.approx(found["trained_quality"], rel=1e-5)
        logged = read_token_answers(folder / name / "accuracy/mlperf_log_accuracy.json")
        told.append({one.tokens for one in logged})
        assert len(logged) == 20
    assert len(told[0]) > 5 and all(one == told[0] for one in told)


def test_the_other_time_per_token_counts_what_is_text():
    """Of answers that end by themselves one token fewer; of those without text behind the first none."""
    replica = SimpleNamespace(programs=Simulated(Sizes(slots=1, pages=2, page=4, length=4, chunks=(4,))))
    sut = TokenSut("engine", [replica], TokenSamples("rows", 1, 1, None), first_tokens=True)
    for tokens in ([1, 2, 4], [1, 2, END], [1, END], [1, 2]):
        sut.heard(tokens, 600)
    assert sut.text_gaps_ns == [300, 600, 600]


def test_offline_begins_with_the_longest_and_steps_with_full_slots():
    """As long as any prompt waits."""
    done = []

    class Recording(Simulated):
        def prefill(self, chunk):
            done.append(chunk.request.max_tokens)
            return super().prefill(chunk)

        def step(self, slots):
            done.append(-len(self.at_work))
            return super().step(slots)

    programs = Recording(Sizes(slots=4, pages=33, page=4, length=32, chunks=(4, 8)), end_share=0.0)
    longest = np.random.default_rng(0).integers(2, 20, 24).tolist()
    samples = TokenSamples("rows", 24, 24, lambda n: Request(np.arange(8, dtype=np.int32) + n, longest[n]))
    samples.load(np.arange(24))
    sut = TokenSut("engine", [SimpleNamespace(programs=programs)], samples, first_tokens=False)
    answered = {}
    sut.start(SimpleNamespace(complete=lambda ids, answers, counts: answered.update({ids[0]: counts[0]})))
    sut.issue(range(100, 124), np.arange(24))
    with sut:
        sut.flush()
    assert answered == {100 + n: length for n, length in enumerate(longest)}
    assert [event for event in done if event > 0] == sorted(longest, reverse=True)
    last_read = max(n for n, event in enumerate(done) if event > 0)
    assert [event for event in done[:last_read] if event < 0] == [-4] * (last_read - 23)


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


def test_both_packages_log_the_same_tokens(tmp_path):
    """In accuracy mode, of every sample: answers, their lengths, and what was told first."""
    pytest.importorskip("mlperf_loadgen", reason="the official package is to drive it")
    workload = SmallTelling(SmallTelling.get_config("mini"), POLICIES["float32"], data_dir=Path())
    layout = single_device_layout()
    places = jax.tree.map(lambda x: x.sharding, workload.served_struct(layout))
    replica = TokenReplica(workload.token_programs(jax.device_put(drawn_state(), places), layout))
    replica.programs.compile()
    samples = TokenSamples("rows", 20, 20, workload.request)
    for scenario in (lg.TestScenario.Offline, lg.TestScenario.Server):
        asked = dict(scenario=scenario, mode=lg.TestMode.AccuracyOnly, server_target_qps=200.0)
        settings = lg.TestSettings(**asked, use_token_latencies=True)
        found = {}
        for name in ("ours", "official"):
            folder = tmp_path / scenario.name / name
            folder.mkdir(parents=True)
            logs = lg.LogSettings(log_output=lg.LogOutputSettings(outdir=str(folder)))
            first = scenario == lg.TestScenario.Server
            with TokenSut("engine", [replica], samples, first_tokens=first) as sut:
                if name == "ours":
                    result = lg.run(sut, samples, settings, logs)
                else:
                    result = run_official(sut, samples, settings, folder)
            assert not result.errors
            entries = json.loads((folder / "mlperf_log_accuracy.json").read_text())
            found[name] = {
                entry["qsl_idx"]: {key: entry.get(key) for key in ("data", "token_data", "token_count")}
                for entry in entries
            }
        assert found["ours"] == found["official"] and len(found["ours"]) == 20
        assert all(bool(entry["token_data"]) == first for entry in found["ours"].values())


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
