"""Judges closed logs of language models by what the official checker leaves open.

The hyperparameters are those that training_rules.adoc (mlcommons/training_policies d73e20f, tables "Hyperparameters")
fixes and no ruleset up to 6.1.0 checks. Losses are held against those of published runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from mlperf_jax.judging.findings import NOTE, WARNING, Finding, made_up
from mlperf_jax.judging.training_log import Judged
from mlperf_jax.rounds import published_curves
from mlperf_jax.rounds.objects import number
from mlperf_jax.rounds.qualities import evaluations

_PRETRAINING = {"dropout": 0.0}
_FIXED = {
    "llama31_8b": _PRETRAINING,
    "gpt_oss_20b": _PRETRAINING,
    "llama2_70b_lora": {
        "lora_alpha": 32.0,
        "lora_dropout": 0.1,
        "opt_gradient_clip_norm": 0.3,
        "opt_adamw_weight_decay": 1e-4,
        # The rules say 8196; the data is packed to 8192 (mlcommons/training, llama2_70b_lora/README.md).
        "max_sequence_length": 8192.0,
    },
}
_END_RATE, _BASE_RATE = "opt_end_learning_rate", "opt_base_learning_rate"
_END_SHARE = 0.1  # of the base learning rate
# "just for v6.0 only, we will allow [...] opt_end_learning_rate = 4e-5": what the reference's own runs had by mistake.
_ALSO_ENDS_AT = {("gpt_oss_20b", "v6.0"): 4e-5}
_SAME = 1e-6  # relative


def judge(log: Judged) -> Iterator[Finding]:
    """All findings on a closed log's fixed hyperparameters, and on where its losses lie."""
    if log.closed and log.benchmark.key in _FIXED:
        yield from _fixed(log)
        yield from _end_rate(log)
        yield from _beside_published(log)


def _fixed(log: Judged) -> Iterator[Finding]:
    for key, wanted in _FIXED[log.benchmark.key].items():
        for event in log.all(key):
            if not _same(event.value, wanted):
                text = f"{key} is {event.value}, and the rules ask for {wanted:g}."
                yield log.finding(event, "hyperparameter", text, f"Train with {key} {wanted:g}.")


def _end_rate(log: Judged) -> Iterator[Finding]:
    """The rate at which the schedule ends, which the rules tie to the rate at which it begins."""
    base = log.number(_BASE_RATE)
    if base is None:
        return
    wanted = _END_SHARE * base
    also = _ALSO_ENDS_AT.get((log.benchmark.key, log.round_name))
    for event in log.all(_END_RATE):
        if not _same(event.value, wanted) and not (also and _same(event.value, also)):
            text = (
                f"{_END_RATE} is {event.value}, and the rules ask for {wanted:g}, "
                f"{_END_SHARE:g} of {_BASE_RATE} {base:g}."
            )
            yield log.finding(event, "hyperparameter", text, f"Train with {_END_RATE} {wanted:g}.")


def _same(told: Any, wanted: float) -> bool:
    found = number(told)
    return found is not None and math.isclose(found, wanted, rel_tol=_SAME)


def _beside_published(log: Judged) -> Iterator[Finding]:
    """Evaluations that are away from where published runs were; of a run of ours that goes as they did, a note."""
    labels = log.first("run_labels")
    if labels and made_up(labels.value):
        return
    batch, rate = log.number("global_batch_size"), log.number(_BASE_RATE)
    compared = [
        (one.event, pair)
        for one in evaluations(log.events)
        for pair in published_curves.compare(
            log.benchmark.key, batch, rate, [(one.epoch, next(iter(one.found.values())))]
        )
    ]
    away = [(event, beside, loss) for event, (beside, loss) in compared if beside.away(loss)]
    if away:
        event, beside, loss = away[0]
        more = f"; so it is in {len(away) - 1} more of {len(compared)} evaluations" if len(away) > 1 else ""
        text = f"loss {loss:.3f}, where {beside.words}{more}."
        mend = "Find out what is trained otherwise: data, initialization, optimizer or schedule."
        yield log.finding(event, "published-runs", text, mend, WARNING)
    elif compared and log.ours:
        text = f"{published_curves.sentence([pair for _, pair in compared])}."
        yield log.finding(compared[-1][0], "published-runs", text, "Nothing is to be mended.", NOTE)
