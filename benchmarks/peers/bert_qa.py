"""BERT with its head for spans, for PyTorch: the peer in speed of what is served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import bert
from benchmarks.speed import peer


class TorchSpans(nn.Module):
    def __init__(self, numbers):
        super().__init__()
        self.encoder, self.span = bert.Encoder(numbers), nn.Linear(numbers.width, 2)

    def forward(self, tokens, segment, kinds):
        return self.span(self.encoder(tokens, segment, kinds))


class Peer(bert.Clipped):
    def build(self) -> nn.Module:
        return TorchSpans(self.config.model)

    def take_over(self, state: Mapping[str, Any]) -> None:
        bert.take_over(self.model.encoder, state["params"]["encoder"])
        bert.copy(self.model.span, state["params"]["span"])

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        logits = self.answer(batch)
        return F.cross_entropy(logits.transpose(1, 2).flatten(0, 1), batch["span"].long().flatten())

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        logits = self.model(*(inputs[name].long() for name in ("tokens", "segment", "token_type"))).float()
        return logits.masked_fill((inputs["segment"] == 0)[..., None], -1e4)
