"""Trees of training results that are clean, and ways to spoil them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

SYSTEM_FIELDS = """submitter division status system_name number_of_nodes host_processors_per_node
    host_processor_model_name host_processor_core_count host_processor_vcpu_count host_processor_frequency
    host_processor_caches host_processor_interconnect host_memory_capacity host_storage_type
    host_storage_capacity host_networking host_networking_topology host_memory_configuration
    accelerators_per_node accelerator_model_name accelerator_host_interconnect accelerator_frequency
    accelerator_on-chip_memories accelerator_memory_configuration accelerator_memory_capacity
    accelerator_interconnect accelerator_interconnect_topology cooling hw_notes framework
    other_software_stack operating_system sw_notes"""

_LARS = {
    "opt_name": "lars",
    "lars_opt_base_learning_rate": 10.0,
    "lars_opt_end_learning_rate": 0.0001,
    "lars_opt_learning_rate_decay_poly_power": 2,
    "lars_opt_learning_rate_decay_steps": 13_137,
    "lars_epsilon": 0.0,
    "lars_opt_learning_rate_warmup_epochs": 5,
    "lars_opt_momentum": 0.9,
    "lars_opt_weight_decay": 0.0002,
    "model_bn_span": 32,
}
_ADAM = {
    "opt_name": "adam",
    "opt_base_learning_rate": 2.0,
    "opt_learning_rate_warmup_steps": 16_000,
    "opt_adam_beta_1": 0.9,
    "opt_adam_beta_2": 0.997,
    "opt_adam_epsilon": 1e-09,
    "max_sequence_length": 256,
}
_DLRM = {
    "opt_base_learning_rate": 24.0,
    "opt_learning_rate_warmup_steps": 2750,
    "lr_decay_start_steps": 49_315,
    "sgd_opt_base_learning_rate": 24.0,
    "sgd_opt_learning_rate_decay_poly_power": 2,
    "sgd_opt_learning_rate_decay_steps": 27_772,
}
# benchmark -> ruleset, batch size, train and eval samples, epochs evaluated, target, hyperparameters.
KINDS = {
    "resnet": ("4.0.0", 4096, 1_281_167, 50_000, [*range(2, 39, 4)], 0.759, _LARS),
    "transformer": ("0.7.0", 4096, 4_590_101, 3003, [1, 2, 3, 4], 0.25, _ADAM),
    "dlrm": (
        "2.1.0",
        55_296,
        4_195_197_692,
        89_137_319,
        [round(1 + 0.05 * i, 2) for i in range(1, 20)],
        0.8025,
        _DLRM,
    ),
}
# What is logged once for each tensor.
TENSORS = {
    "dlrm": (
        "embeddings",
        *(f"bottom_mlp_dense{i}" for i in range(1, 4)),
        *(f"top_mlp_dense{i}" for i in range(1, 6)),
    )
}
ADDED = {"max_sequence_length": {"method": "discard"}}


def clean_run(benchmark: str, seed: int, *, division: str = "closed", minutes: float = 30.0) -> list[dict]:
    """One run that converges, as a list of events."""
    _, batch, train, evaluated, epochs, target, hyperparameters = KINDS[benchmark]
    start = 1_715_000_000_000 + seed * 10_000_000
    events: list[dict] = []

    def say(key, time_ms, value=None, **metadata):
        events.append(
            {
                "namespace": "",
                "time_ms": round(time_ms),
                "event_type": "POINT_IN_TIME",
                "key": key,
                "value": value,
                "metadata": {"file": "train.py", "lineno": 1, **metadata},
            }
        )

    facts = {
        "submission_benchmark": benchmark,
        "submission_division": division,
        "submission_org": "Acme",
        "submission_platform": "acme-1",
        "submission_status": "onprem",
        "cache_clear": True,
        "seed": seed,
        "global_batch_size": batch,
        "gradient_accumulation_steps": 1,
        "train_samples": train,
        "eval_samples": evaluated,
        **hyperparameters,
    }
    say("init_start", start)
    for key, value in facts.items():
        say(key, start + 10, value, **ADDED.get(key, {}))
    for tensor in TENSORS.get(benchmark, ()):
        say("weights_initialization", start + 20, None, tensor=tensor)
    say("compile_time", start + 40_000, 35.0)
    say("init_stop", start + 60_000)
    begin = start + 60_000
    say("run_start", begin)
    done = 0
    for i, epoch in enumerate(epochs):
        at = begin + (i + 1) * minutes * 60_000 / len(epochs)
        block = {"first_epoch_num": done + 1, "epoch_count": epoch - done}
        say("block_start", at - minutes * 60_000 / len(epochs) + 1, **block)
        say("block_stop", at - 2000, **block)
        quality = target + 0.0005 if epoch == epochs[-1] else target * (0.5 + 0.45 * i / len(epochs))
        say("eval_start", at - 1990, epoch_num=epoch)
        say("eval_accuracy", at - 1000, quality, epoch_num=epoch)
        say("eval_stop", at - 990, epoch_num=epoch)
        done = epoch
    say("run_stop", begin + minutes * 60_000, status="success")
    return events


def clean_tree(
    root: Path, benchmark: str = "resnet", *, runs: int, division: str = "closed"
) -> dict[str, list[dict]]:
    """Writes a package of `runs` clean runs; returns their events by file name."""
    logs = {
        f"result_{i}.txt": clean_run(benchmark, 100 + i, division=division, minutes=30 + i)
        for i in range(runs)
    }
    write_tree(root, benchmark, logs, division=division)
    return logs


def write_tree(root: Path, benchmark: str, logs: dict[str, list[dict]], *, division: str = "closed") -> None:
    folder = root / "results" / "acme-1" / benchmark
    folder.mkdir(parents=True, exist_ok=True)
    for name, events in logs.items():
        lines = [":::MLLOG " + json.dumps(event) for event in events]
        (folder / name).write_text("\n".join(lines) + "\n")
    told = dict.fromkeys(SYSTEM_FIELDS.split(), "something")
    told |= {
        "submitter": "Acme",
        "division": division,
        "status": "Available on-premise",
        "system_name": "acme-1",
    }
    (root / "systems").mkdir(exist_ok=True)
    (root / "systems" / "acme-1.json").write_text(json.dumps(told))
    code = root / "benchmarks" / benchmark / "implementations" / "jax"
    code.mkdir(parents=True, exist_ok=True)
    (code / "train.py").write_text("seed = 1\n")


def spoiled(
    logs: dict[str, list[dict]], change: Callable[[list[dict]], None], *names: str
) -> dict[str, list[dict]]:
    """A copy in which `change` was done to the named logs (to the first, if none is named)."""
    logs = copy.deepcopy(logs)
    for name in names or ("result_0.txt",):
        change(logs[name])
    return logs


def of(events: list[dict], key: str, at: int = 0) -> dict:
    return [event for event in events if event["key"] == key][at]


def index(events: list[dict], key: str, at: int = 0) -> int:
    return [i for i, event in enumerate(events) if event["key"] == key][at]
