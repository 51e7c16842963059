"""LoRA written for PyTorch from its paper: a frozen Llama, changes of low rank beside the products of its attention.

Queries, keys and values are changed through one narrow product, as MLPerf's reference has them in one `qkv_proj`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import llama31_8b
from benchmarks.peers.llama31_8b import Layer, TorchLlama, _turned
from benchmarks.speed import peer


class LowRank(nn.Module):
    def __init__(self, width_in, width_out, numbers):
        super().__init__()
        self.dropout = nn.Dropout(numbers.low_rank_dropout)
        self.down = nn.Linear(width_in, numbers.low_rank, bias=False)
        self.up = nn.Linear(numbers.low_rank, width_out, bias=False)
        self.scale = numbers.low_rank_alpha / numbers.low_rank

    def forward(self, x):
        return self.up(self.down(self.dropout(x))) * self.scale


class ChangedLayer(Layer):
    def __init__(self, numbers):
        super().__init__(numbers)
        self.requires_grad_(False)
        self.sizes = [part.out_features for part in (self.q, self.k, self.v)]
        self.change_in = LowRank(numbers.width, sum(self.sizes), numbers)
        self.change_out = LowRank(self.heads * self.head, numbers.width, numbers)

    def forward(self, x, cos, sin):
        y = self.norms[0](x)
        changes = self.change_in(y).split(self.sizes, -1)
        q, k, v = (
            (part(y) + change).unflatten(-1, (-1, self.head)).transpose(1, 2)
            for part, change in zip((self.q, self.k, self.v), changes, strict=True)
        )
        found = F.scaled_dot_product_attention(
            _turned(q, cos, sin),
            _turned(k, cos, sin),
            v,
            is_causal=True,
            enable_gqa=self.heads != self.key_heads,
        )
        found = found.transpose(1, 2).flatten(2)
        x = x + self.o(found) + self.change_out(found)
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class TorchChanged(TorchLlama):
    layer = ChangedLayer

    def __init__(self, numbers):
        super().__init__(numbers)
        for name, weights in self.named_parameters():
            weights.requires_grad_("change_" in name)


class Peer(llama31_8b.Peer):
    def build(self) -> nn.Module:
        return TorchChanged(self.config.model)

    def take_over(self, state: Mapping[str, Any]) -> None:
        super().take_over({"params": state["frozen"]})
        ours = state["params"]["layers"]["attention"]
        for n, layer in enumerate(self.model.layers):
            for change, part in ((layer.change_in, "low_rank_in"), (layer.change_out, "low_rank_out")):
                kernels = ours[part]
                rank = kernels["down"].shape[-1]
                ups = [kernels[name] for name in sorted(kernels) if name != "down"]
                change.down.weight.data = torch.tensor(kernels["down"][n]).reshape(-1, rank).T.contiguous()
                change.up.weight.data = torch.cat(
                    [torch.tensor(up[n]).reshape(rank, -1) for up in ups], 1
                ).T.contiguous()

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        told = batch["told"][:, 1:]
        return (self.losses(batch["tokens"]) * told).sum() / told.sum()

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        told = inputs["told"][:, 1:]
        return (self.losses(inputs["tokens"]) * told).sum(1) / told.sum(1)
