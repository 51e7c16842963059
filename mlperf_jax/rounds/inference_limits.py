"""How good a closed result of MLPerf Inference must be: accuracies, lengths of answers, latencies of tokens.

Source, where none is named: mlcommons/inference b66003e (2026-08-20), tools/submission/submission_checker/
constants.py: "accuracy-target", "accuracy-upper-limit", ACC_PATTERN, LLM_LATENCY_LIMITS. A model has the same
limits in every round from v5.0 to v6.1. Where inference_rules.adoc (mlcommons/inference_policies ac93e89,
2026-07-23) has others, both are kept: the checker's decide, the rules' are told beside them.
"""

from __future__ import annotations

import dataclasses
import math

CHECKER, RULES = "the submission checker", "inference_rules.adoc"
_MS = 1_000_000  # ns


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a figure must be.

    Attributes:
        name: as accuracy.txt has it, or the detail log.
        least, most: both allowed.
        source: who says so.
        other: what another official source says.
        spellings: other names of it.
        stated: whether it must be stated.
    """

    name: str
    least: float = -math.inf
    most: float = math.inf
    source: str = CHECKER
    other: Limit | None = None
    spellings: tuple[str, ...] = ()
    stated: bool = True

    def allows(self, figure: float) -> bool:
        return self.least <= figure <= self.most

    def breach(self, figure: float) -> str:
        """How a figure is outside, in words; "" where it is not."""
        if self.allows(figure):
            return ""
        return (
            f"under the target {self.least:.6g}" if figure < self.least else f"over the limit {self.most:.6g}"
        )

    @property
    def text(self) -> str:
        """The limit and its source."""
        if self.most == math.inf:
            return f"at least {self.least:.6g} ({self.source})"
        if self.least == -math.inf:
            return f"at most {self.most:.6g} ({self.source})"
        return f"{self.least:.6g} to {self.most:.6g} ({self.source})"


def _part(name: str, of: float, share: float = 0.99, rules: float | None = None) -> Limit:
    """A share of the reference's figure; `rules`: the reference's by the rules, where that is another."""
    other = None if rules is None else Limit(name, share * rules, source=RULES)
    return Limit(name, share * of, other=other)


def _rouge(*references: tuple[str, float, float | None], share: float = 0.99) -> tuple[Limit, ...]:
    return tuple(_part(name, of, share, rules) for name, of, rules in references)


def _length(name: str, reference: float, other: Limit | None = None) -> Limit:
    """Answers as long as the reference's, within a tenth."""
    return Limit(name, 0.9 * reference, 1.1 * reference, other=other)


def _llama2(share: float) -> tuple[Limit, ...]:
    rouge = _rouge(
        ("rouge1", 44.4312, None), ("rouge2", 22.0352, None), ("rougeL", 28.6162, None), share=share
    )
    return (*rouge, _length("tokens_per_sample", 294.45))


def _gptj(share: float) -> tuple[Limit, ...]:
    rouge = _rouge(
        ("rouge1", 42.9865, None), ("rouge2", 20.1235, None), ("rougeL", 29.9881, None), share=share
    )
    return (*rouge, Limit("gen_len", 0.9 * 4_016_878))


def _map(least: float) -> tuple[Limit, ...]:
    return (Limit("mAP", least, spellings=("Total",)),)


# The first limit of a model is of its main figure.
ACCURACY: dict[str, tuple[Limit, ...]] = {
    "resnet": (_part("accuracy", 76.46),),
    "bert-99": (_part("f1", 90.874),),
    "bert-99.9": (_part("f1", 90.874, 0.999),),
    "3d-unet-99": (_part("mean", 0.86170, rules=0.86330),),
    "3d-unet-99.9": (_part("mean", 0.86170, 0.999, rules=0.86330),),
    "llama3.1-8b": (
        *_rouge(("rouge1", 38.7792, 42.9865), ("rouge2", 15.9075, 20.1235), ("rougeL", 24.4957, 29.9881)),
        _part("rougeLsum", 35.793),
        _length("gen_len", 8_167_644),
    ),
    "llama3.1-8b-edge": (
        *_rouge(("rouge1", 39.06, 42.9865), ("rouge2", 16.1147, 20.1235), ("rougeL", 24.6375, 29.9881)),
        _part("rougeLsum", 36.124),
        _length("gen_len", 3_051_113, Limit("gen_len", 0.9 * 8_167_644, source=RULES)),
    ),
    "llama2-70b-99": _llama2(0.99),
    "llama2-70b-99.9": _llama2(0.999),
    "llama2-70b-interactive-99": _llama2(0.99),
    "llama2-70b-interactive-99.9": _llama2(0.999),
    "llama3.1-405b": (
        _part("rougeL", 21.6666),
        _part("exact_match", 90.1335),
        _length("tokens_per_sample", 684.68),
    ),
    "mixtral-8x7b": (
        *_rouge(("rouge1", 45.5989, None), ("rouge2", 23.3526, None), ("rougeL", 30.4608, None)),
        Limit(
            "tokens_per_sample",
            0.9 * 144.84,
            1.1 * 145.9,
            other=Limit("tokens_per_sample", 0.9 * 144.84, 1.1 * 144.84, source=RULES),
        ),
        _part("gsm8k", 73.66),
        _part("mbxp", 60.16),
    ),
    "gptj-99": _gptj(0.99),
    "gptj-99.9": _gptj(0.999),
    "deepseek-r1": (_part("exact_match", 81.3582, rules=81.9132), _length("tokens_per_sample", 3886.2274)),
    # The checker has no lower limit of the length, and lets pass a result that does not state it.
    "gpt-oss-120b": (
        _part("exact_match", 83.13),
        Limit("tokens_per_sample", most=1.1 * 9999, stated=False),
    ),
    "stable-diffusion-xl": (
        Limit("CLIP_SCORE", 31.68631873, 31.81331801),
        Limit("FID_SCORE", 23.01085758, 23.95007626),
    ),
    "rgat": (_part("accuracy", 0.7286),),
    "whisper": (_part("accuracy", 100.0 - 2.0671),),
    "wan-2.2-t2v-a14b": (_part("vbench_score", 70.48),),
    "qwen3-vl-235b-a22b": (_part("f1", 0.7903),),
    "qwen3-vl-235b-a22b-interactive": (_part("f1", 0.7878),),  # 8,000 of the samples
    "qwen3.6-27b": _map(0.99 * 86.23),
    # NE is an entropy, which falls; the checker nevertheless asks for at least so much.
    "dlrm-v3": (
        _part("lifetime_gauc/rating", 0.78663, 0.999),
        _part("lifetime_ne/rating", 0.86687, 0.999),
        _part("lifetime_accuracy/rating", 0.69651, 0.999),
    ),
    "dlrm-v2-99": (_part("AUC", 80.31),),
    "dlrm-v2-99.9": (_part("AUC", 80.31, 0.999),),
    "retinanet": _map(0.99 * 37.55),
    "pointpainting": _map(0.999 * 0.5425),
    "yolo-95": _map(0.95 * 53.4),
    "yolo-99": _map(0.99 * 53.4),
    "e2e-rag-qna": (Limit("accuracy", 33.95),),
    "e2e-rag-db": (Limit("accuracy", 98.0),),
}

TTFT = "result_first_token_99.00_percentile_latency_ns"
TPOT = "result_time_per_output_token_99.00_percentile_ns"


def _tokens(first_ms: float, each_ms: float, rules_each_ms: float | None = None) -> tuple[Limit, ...]:
    """Milliseconds to the first token and for each other, 99th percentiles."""
    other = None if rules_each_ms is None else Limit(TPOT, most=rules_each_ms * _MS, source=RULES)
    return Limit(TTFT, most=first_ms * _MS), Limit(TPOT, most=each_ms * _MS, other=other)


_LLAMA2_SERVER, _LLAMA2_INTERACTIVE = _tokens(2000, 200), _tokens(450, 40)
# (model, scenario) -> limits of the performance run.
TOKEN_LATENCIES: dict[tuple[str, str], tuple[Limit, ...]] = {
    **{(f"llama2-70b-{share}", "Server"): _LLAMA2_SERVER for share in ("99", "99.9")},
    **{(f"llama2-70b-{share}", "Interactive"): _LLAMA2_INTERACTIVE for share in ("99", "99.9")},
    **{(f"llama2-70b-interactive-{share}", "Server"): _LLAMA2_INTERACTIVE for share in ("99", "99.9")},
    ("mixtral-8x7b", "Server"): _tokens(2000, 200),
    ("llama3.1-405b", "Server"): _tokens(6000, 175),
    ("llama3.1-405b", "Interactive"): _tokens(4500, 80),
    ("llama3.1-8b", "Server"): _tokens(2000, 100),
    ("llama3.1-8b", "Interactive"): _tokens(500, 30),
    ("deepseek-r1", "Server"): _tokens(2000, 80),
    ("deepseek-r1", "Interactive"): _tokens(1500, 15),
    ("gpt-oss-120b", "Server"): _tokens(3000, 80),
    ("gpt-oss-120b", "Interactive"): _tokens(2000, 15, rules_each_ms=20),
}

# (model, round) -> what must lie beside the accuracy log: a folder, and names of files in it without their ending.
# Source: REQUIRED_ACC_BENCHMARK of the same file.
KEPT_SAMPLES: dict[tuple[str, str], tuple[str, str]] = {
    ("stable-diffusion-xl", "v5.0"): ("images", "4459 4015 2705 1682 4048 4683 3757 1578 3319 95"),
    ("stable-diffusion-xl", "v5.1"): ("images", "2747 2235 2165 1515 1538 1367 2419 4629 3657 4532"),
    ("stable-diffusion-xl", "v6.0"): ("images", "1311 2476 3644 2188 4114 52 388 1195 3427 2289"),
    ("wan-2.2-t2v-a14b", "v6.0"): ("videos", "130 106 84 59 12 31 86 122 233 96"),
    ("wan-2.2-t2v-a14b", "v6.1"): ("videos", "130 106 84 59 12 123 43 22 238 32"),
}
