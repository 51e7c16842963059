"""The limits of inference, held against the official checker's own numbers, which stand here as it has them."""

from __future__ import annotations

import importlib.util
import math
import os
from pathlib import Path

import pytest

from mlperf_jax.rounds import inference_rules
from mlperf_jax.rounds.inference_limits import ACCURACY, TOKEN_LATENCIES, Limit

REPOSITORY = os.environ.get("MLPERF_INFERENCE_REPOSITORY")
LLAMA2 = {"rouge1": 44.4312, "rouge2": 22.0352, "rougeL": 28.6162}
GPTJ = {"rouge1": 42.9865, "rouge2": 20.1235, "rougeL": 29.9881}


def least(share, **figures):
    return {name: (share * figure, math.inf) for name, figure in figures.items()}


# submission_checker/constants.py at b66003e: model -> figure -> (least, most).
OFFICIAL = {
    "resnet": least(0.99, accuracy=76.46),
    "bert-99": least(0.99, f1=90.874),
    "bert-99.9": least(0.999, f1=90.874),
    "3d-unet-99": least(0.99, mean=0.86170),
    "3d-unet-99.9": least(0.999, mean=0.86170),
    "llama3.1-8b": least(0.99, rouge1=38.7792, rouge2=15.9075, rougeL=24.4957, rougeLsum=35.793)
    | {"gen_len": (8167644 * 0.9, 8167644 * 1.1)},
    "llama3.1-8b-edge": least(0.99, rouge1=39.06, rouge2=16.1147, rougeL=24.6375, rougeLsum=36.124)
    | {"gen_len": (3051113 * 0.9, 3051113 * 1.1)},
    "llama2-70b-99": least(0.99, **LLAMA2) | {"tokens_per_sample": (294.45 * 0.9, 294.45 * 1.1)},
    "llama2-70b-99.9": least(0.999, **LLAMA2) | {"tokens_per_sample": (294.45 * 0.9, 294.45 * 1.1)},
    "llama2-70b-interactive-99": least(0.99, **LLAMA2) | {"tokens_per_sample": (294.45 * 0.9, 294.45 * 1.1)},
    "llama2-70b-interactive-99.9": least(0.999, **LLAMA2)
    | {"tokens_per_sample": (294.45 * 0.9, 294.45 * 1.1)},
    "llama3.1-405b": least(0.99, rougeL=21.6666, exact_match=90.1335)
    | {"tokens_per_sample": (684.68 * 0.9, 684.68 * 1.1)},
    "mixtral-8x7b": least(0.99, rouge1=45.5989, rouge2=23.3526, rougeL=30.4608, gsm8k=73.66, mbxp=60.16)
    | {"tokens_per_sample": (144.84 * 0.9, 145.9 * 1.1)},
    "gptj-99": least(0.99, **GPTJ) | least(0.9, gen_len=4016878),
    "gptj-99.9": least(0.999, **GPTJ) | least(0.9, gen_len=4016878),
    "deepseek-r1": least(0.99, exact_match=81.3582)
    | {"tokens_per_sample": (0.9 * 3886.2274, 1.1 * 3886.2274)},
    "gpt-oss-120b": least(0.99, exact_match=83.13) | {"tokens_per_sample": (-math.inf, 1.1 * 9999)},
    "stable-diffusion-xl": {
        "CLIP_SCORE": (31.68631873, 31.81331801),
        "FID_SCORE": (23.01085758, 23.95007626),
    },
    "rgat": least(0.99, accuracy=0.7286),
    "whisper": least(0.99, accuracy=100.0 - 2.0671),
    "wan-2.2-t2v-a14b": least(0.99, vbench_score=70.48),
    "qwen3-vl-235b-a22b": least(0.99, f1=0.7903),
    "qwen3-vl-235b-a22b-interactive": least(0.99, f1=0.7878),
    "qwen3.6-27b": least(0.99, mAP=86.23),
    "dlrm-v3": least(
        0.999,
        **{
            "lifetime_ne/rating": 0.86687,
            "lifetime_accuracy/rating": 0.69651,
            "lifetime_gauc/rating": 0.78663,
        },
    ),
    "dlrm-v2-99": least(0.99, AUC=80.31),
    "dlrm-v2-99.9": least(0.999, AUC=80.31),
    "retinanet": least(0.99, mAP=37.55),
    "pointpainting": least(0.999, mAP=0.5425),
    "yolo-95": least(0.95, mAP=53.4),
    "yolo-99": least(0.99, mAP=53.4),
    "e2e-rag-qna": least(1, accuracy=33.95),
    "e2e-rag-db": least(1, accuracy=98),
}


def test_every_model_has_its_limits():
    assert OFFICIAL.keys() == ACCURACY.keys() == inference_rules.MODELS.keys()


@pytest.mark.parametrize("model", OFFICIAL)
def test_the_limits_are_the_official_ones(model):
    ours = {limit.name: (limit.least, limit.most) for limit in ACCURACY[model]}
    assert ours.keys() == OFFICIAL[model].keys()
    for name, bounds in OFFICIAL[model].items():
        assert ours[name] == pytest.approx(bounds, rel=1e-12), name


@pytest.mark.parametrize(
    ("model", "limit"), [(m, limit) for m, limits in ACCURACY.items() for limit in limits]
)
def test_a_limit_has_its_sides(model, limit):
    for bound, outwards in ((limit.least, -1), (limit.most, 1)):
        if math.isfinite(bound):
            assert limit.allows(bound) and not limit.breach(bound)
            beyond = bound + outwards * 1e-6 * abs(bound)
            assert not limit.allows(beyond) and limit.breach(beyond)


@pytest.mark.parametrize(
    ("model", "name", "figure", "words"),
    [
        ("3d-unet-99", "mean", 0.854, "at least 0.854667 (inference_rules.adoc)"),
        ("deepseek-r1", "exact_match", 80.8, "at least 81.0941 (inference_rules.adoc)"),
        ("llama3.1-8b", "rouge1", 39.0, "at least 42.5566 (inference_rules.adoc)"),
    ],
)
def test_what_official_sources_do_not_agree_on(model, name, figure, words):
    limit = next(limit for limit in ACCURACY[model] if limit.name == name)
    assert limit.allows(figure) and not limit.other.allows(figure)
    assert limit.other.text == words and "(the submission checker)" in limit.text


def test_tokens_of_gpt_oss_have_two_official_limits():
    limit = TOKEN_LATENCIES["gpt-oss-120b", "Interactive"][1]
    assert (limit.most, limit.other.most) == (15e6, 20e6)


@pytest.mark.skipif(not REPOSITORY, reason="MLPERF_INFERENCE_REPOSITORY is not set")
def test_the_checkers_constants():
    path = Path(REPOSITORY or "") / "tools" / "submission" / "submission_checker" / "constants.py"
    spec = importlib.util.spec_from_file_location("constants", path)
    constants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(constants)
    for config in constants.MODEL_CONFIG.values():
        for model in config["models"]:
            bounds = sorted(_pairs(config["accuracy-target"][model]).values())
            limits = sorted(limit.least for limit in ACCURACY[model] if math.isfinite(limit.least))
            assert limits == pytest.approx(bounds), model
            upper = sorted(_pairs(config["accuracy-upper-limit"].get(model, ())).values())
            assert sorted(
                limit.most for limit in ACCURACY[model] if math.isfinite(limit.most)
            ) == pytest.approx(upper)
    for model, scenarios in constants.LLM_LATENCY_LIMITS.items():
        for scenario, wanted in scenarios.items():
            first, each = TOKEN_LATENCIES[model, scenario]
            assert (first.most, each.most) == (wanted["ttft"], wanted["tpot"])


def _pairs(told):
    told = told["Offline"] if isinstance(told, dict) else told
    return dict(zip(told[::2], told[1::2], strict=True))


def test_a_benchmark_belongs_to_its_rounds():
    assert inference_rules.find_model("retinanet") is None
    assert inference_rules.find_model("retinanet", "v5.1").name == "retinanet"
    assert inference_rules.find_model("gptj-99", "v5.1") is None
    qwen = inference_rules.find_model("qwen3-vl-235b-a22b")
    assert (qwen.in_scenario("Interactive").samples, qwen.in_scenario("Server").samples) == (8000, 48_289)
    assert Limit("x", 1).allows(1)
