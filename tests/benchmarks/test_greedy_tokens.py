"""The engine's answers in float32 against logits of PyTorch, of a small decoder."""

import dataclasses

import numpy as np
import pytest

from benchmarks import greedy_tokens
from mlperf_jax.precision import POLICIES
from mlperf_jax.tokens.answers import answers
from mlperf_jax.tokens.programs import Programs
from tests.tokens.test_decoding import ENDS, KINDS, SIZES, drawn, parameters

torch = pytest.importorskip("torch", reason="PyTorch judges ours")
from tests.models import torch_decoder  # noqa: E402


def as_tensors(tree):
    return {
        name: as_tensors(value) if isinstance(value, dict) else torch.tensor(value.astype(np.float32))
        for name, value in tree.items()
    }


def test_every_token_is_the_likeliest_to_another_implementation():
    params, kind = parameters("llama"), KINDS["llama"]
    programs = Programs(kind, params, POLICIES["float32"], sizes=SIZES, ends=ENDS)
    programs.compile()
    requests = [dataclasses.replace(request, min_tokens=0) for request in drawn(32)]
    prompts, tensors = [request.prompt for request in requests], as_tensors(params)
    seen = []

    @torch.inference_mode()
    def logits_of(tokens):
        seen.append(len(tokens))
        return torch_decoder.logits(tensors, kind, torch.tensor(tokens.astype(np.int64))[None])[0].numpy()

    found = answers(programs, requests)
    held = greedy_tokens.held(logits_of, prompts, found)
    assert held["equal"] and held["prompts"] == 32 and held["tokens"] == sum(map(len, found)) > 80
    assert seen == [len(prompt) + len(answer) - 1 for prompt, answer in zip(prompts, found, strict=True)]
    # What is not the likeliest is seen.
    found[3] = np.append(found[3][:-1], (found[3][-1] + 1) % kind.vocab_size)
    wrong = greedy_tokens.held(logits_of, prompts, found)
    assert not wrong["equal"] and wrong["other_tokens"] == held["other_tokens"] + 1
    assert wrong["largest_gap"] > 0.01
