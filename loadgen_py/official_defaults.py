"""The official defaults of every benchmark (`mlperf.conf` of MLPerf Inference v6.1), as data.

Read as `DEFAULTS[model][scenario][key]`, with `"*"` for any model or scenario. Times are in
ms and percentiles in percent, as in the official file. `min_query_count` of Offline is the
smallest number of samples.
"""

from __future__ import annotations

Defaults = dict[str, dict[str, int | float]]
"""Of one model, by scenario and key."""


def _timed_tokens(
    samples: int, *, ttft_ms: int = 0, tpot_ms: int = 0, offline: bool = True, **others: int
) -> Defaults:
    """Of a model whose tokens are timed, and whose samples are all in memory and issued in whole passes.

    Args:
        samples: of its data set.
        ttft_ms, tpot_ms: Server's bounds of the first token and of each later one; 0 without Server.
        offline: whether Offline issues all samples at least.
        others: what else holds in every scenario.
    """
    every = {"performance_sample_count_override": samples, **others}
    defaults: Defaults = {"*": {**every, "sample_concatenate_permutation": 1, "use_token_latencies": 1}}
    if ttft_ms:
        defaults["Server"] = {"target_latency": 0, "ttft_latency": ttft_ms, "tpot_latency": tpot_ms}
    if offline:
        defaults["Offline"] = {"min_query_count": samples}
    return defaults


DEFAULTS: dict[str, Defaults] = {
    "resnet50": {
        "*": {"performance_sample_count_override": 1024},
        "Server": {"target_latency": 15},
        "Offline": {"min_query_count": 24576},
    },
    "ssd-mobilenet": {
        "*": {"performance_sample_count_override": 256},
    },
    "retinanet": {
        "*": {"performance_sample_count_override": 64},
        "MultiStream": {"target_latency": 528},
        "Server": {"target_latency": 100},
        "Offline": {"min_query_count": 24576},
    },
    "bert": {
        "*": {"performance_sample_count_override": 10833},
        "Server": {"target_latency": 130},
        "Offline": {"min_query_count": 10833},
    },
    "dlrm": {
        "*": {"performance_sample_count_override": 204800},
        "Server": {"target_latency": 60},
    },
    "dlrm-v2": {
        "*": {"performance_sample_count_override": 204800},
        "Server": {"target_latency": 60},
        "Offline": {"min_query_count": 24576},
    },
    "rnnt": {
        "*": {"performance_sample_count_override": 2513},
        "Server": {"target_latency": 1000},
        "Offline": {"min_query_count": 2513},
    },
    "gptj": {
        "*": {
            "performance_sample_count_override": 13368,
            "sample_concatenate_permutation": 1,
            "infer_token_latencies": 1,
            "token_latency_scaling_factor": 69,
        },
        "Server": {"target_latency": 20000},
        "Offline": {"min_query_count": 13368},
    },
    "mixtral-8x7b": _timed_tokens(15000, ttft_ms=2000, tpot_ms=200),
    "llama2-70b": _timed_tokens(24576, ttft_ms=2000, tpot_ms=200),
    "llama2-70b-interactive": _timed_tokens(24576, ttft_ms=450, tpot_ms=40, offline=False),
    "llama3_1-405b": _timed_tokens(8313, ttft_ms=6000, tpot_ms=175),
    "llama3_1-405b-interactive": _timed_tokens(8313, ttft_ms=4500, tpot_ms=80, offline=False),
    "llama3_1-8b": _timed_tokens(13368, ttft_ms=2000, tpot_ms=100),
    "llama3_1-8b-edge": _timed_tokens(5000),
    "llama3_1-8b-interactive": _timed_tokens(13368, ttft_ms=500, tpot_ms=30, offline=False),
    "stable-diffusion-xl": {
        "*": {"performance_sample_count_override": 5000},
        "Server": {"target_latency": 20000},
        "Offline": {"min_query_count": 5000},
    },
    "wan-2.2-t2v-a14b": {
        "*": {"performance_sample_count_override": 248},
        "Offline": {"min_query_count": 248},
    },
    "rgat": {
        "*": {"performance_sample_count_override": 788379, "sample_concatenate_permutation": 1},
        "Offline": {"min_query_count": 788379},
    },
    "pointpainting": {
        "*": {"performance_sample_count_override": 1024},
        "SingleStream": {"target_latency_percentile": 99.9},
    },
    "deepseek-r1": _timed_tokens(4388, ttft_ms=2000, tpot_ms=80),
    "deepseek-r1-interactive": _timed_tokens(4388, ttft_ms=1500, tpot_ms=15, offline=False),
    "whisper": _timed_tokens(1633),
    "qwen3-vl-235b-a22b": {
        "*": {
            "performance_sample_count_override": 48289,
            "sample_concatenate_permutation": 1,
            "use_token_latencies": 0,
        },
        "Server": {"target_latency": 12000},
        "Offline": {"min_query_count": 48289},
    },
    "yolo": {
        "*": {"performance_sample_count_override": 64},
    },
    "3d-unet": {
        "*": {"performance_sample_count_override": 0, "sample_concatenate_permutation": 1},
        "Offline": {"min_query_count": 43},
    },
    "gpt-oss-120b": _timed_tokens(
        6396, accuracy_sample_count_override=4395, ttft_ms=3000, tpot_ms=80, offline=False
    ),
    "gpt-oss-120b-interactive": _timed_tokens(
        6396, accuracy_sample_count_override=4395, ttft_ms=2000, tpot_ms=15, offline=False
    ),
    "*": {
        "*": {
            "qsl_rng_seed": 2085463073848966840,
            "sample_index_rng_seed": 2747215439041700203,
            "schedule_rng_seed": 16159082839903944936,
            "test05_qsl_rng_seed": 7975553102935885558,
            "test05_sample_index_rng_seed": 11403566307062068064,
            "test05_schedule_rng_seed": 15816800565822761601,
        },
        "SingleStream": {"target_latency_percentile": 90, "min_duration": 600000, "target_latency": 10},
        "MultiStream": {
            "target_latency_percentile": 99,
            "samples_per_query": 8,
            "min_duration": 600000,
            "min_query_count": 662,
            "target_latency": 80,
        },
        "Server": {
            "target_latency": 10,
            "target_latency_percentile": 99,
            "target_duration": 0,
            "min_duration": 600000,
            "target_qps": 1.0,
        },
        "Offline": {"target_latency_percentile": 90, "min_duration": 600000, "target_qps": 1.0},
    },
    "dlrm-v3": {
        "Server": {"target_latency": 80},
    },
}
