"""Whether the engine tells SmolLM2's likeliest tokens: each of them looked at by `transformers`, which reads the same file itself.

    pip install transformers accelerate gguf torch
    python -m benchmarks.greedy_tokens                     # greedy_tokens.json

The prompts are the 64 that `llama2_70b_lora`'s mini is evaluated on, answered by the engine in float32, untuned. Where a token
is to stand, PyTorch computes the logits behind the prompt and our tokens before it. A greedy decoder of its own would so tell the
same up to the first token whose logit is not the largest; that one's may be no more than 1e-3 below it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import input_pipelines
from benchmarks import records
from mlperf_jax import platform

HERE = Path(__file__).parent
NEAR = 1e-3  # logits that rounding may put in another order

Logits = Callable[[np.ndarray], np.ndarray]
"""Tokens [L] to the logits behind each of them, [L, V] float32."""


def gaps(logits_of: Logits, prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """How far below the largest logit that of each token of an answer lies, [T]."""
    text = np.concatenate([prompt, answer])
    logits = logits_of(text[:-1])[len(prompt) - 1 :]
    return logits.max(-1) - logits[np.arange(len(answer)), answer]


def held(logits_of: Logits, prompts: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> dict[str, Any]:
    """What a record says of answers that another implementation looked at."""
    found = [gaps(logits_of, *pair) for pair in zip(prompts, answers, strict=True)]
    together = np.concatenate(found)
    return {
        "prompts": len(prompts),
        "tokens": len(together),
        "answers_of_the_same_tokens": sum(not one.any() for one in found),
        "other_tokens": int((together > 0).sum()),
        "largest_gap": float(together.max()),
        "near": NEAR,
        "equal": bool(together.max() <= NEAR),
    }


def told(data_dir: Path) -> tuple[Path, list[np.ndarray], list[np.ndarray]]:
    """The file of weights, prompts, and the engine's answers, which may end at once."""
    import jax

    from mlperf_jax import making
    from mlperf_jax.parallel.mesh import single_device_layout
    from mlperf_jax.tokens.answers import answers
    from mlperf_jax.weights import files, lazy
    from mlperf_jax.workloads.generation import ServedLlama2LowRank

    workload = making.choose("llama2_70b_lora", "mini", "cpu", [], kind=ServedLlama2LowRank).make_with_data(
        data_dir, synthetic=False, prepare=True
    )
    assert workload.base_file is not None
    layout = single_device_layout()
    state, _ = workload.import_weights(files.read_tensors(workload.base_file))
    programs = workload.token_programs(
        jax.tree.map(lazy.place, state, workload.served_struct(layout)), layout
    )
    programs.compile()
    requests = [
        dataclasses.replace(workload.request(index), min_tokens=0) for index in range(workload.num_samples)
    ]
    return workload.base_file, [request.prompt for request in requests], answers(programs, requests)


def transformers_logits(weights: Path) -> Logits:
    """SmolLM2 as `transformers` reads and computes it."""
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(weights.parent), gguf_file=weights.name, dtype=torch.float32
    ).eval()

    @torch.inference_mode()
    def logits_of(tokens: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()

    return logits_of


def main(data_dir: Path, out: Path) -> bool:
    """Records what was found, and says whether the answers are the same."""
    platform.configure("cpu", cpu_devices=1)
    began = time.process_time()
    weights, prompts, answers = told(data_dir)
    found = held(transformers_logits(weights), prompts, answers)
    record = {
        "schema_version": 1,
        "command": records.command("greedy_tokens"),
        "machine": records.machine(),
        "versions": records.versions("jax", "torch", "transformers"),
        "weights": weights.name,
        "cpu_seconds": round(time.process_time() - began, 1),
        **found,
    }
    records.write(out, record)
    records.show(record, indent=1)
    return found["equal"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_dir", type=Path, default=input_pipelines.default_data_dir())
    parser.add_argument("--out", type=Path, default=HERE / "greedy_tokens.json")
    asked = parser.parse_args()
    raise SystemExit(not main(asked.data_dir, asked.out))
