"""LoRA written for PyTorch from its paper: a frozen Llama, changes of low rank beside the products of its attention.

Queries, keys and values are changed through one narrow product, as MLPerf's reference has them in one `qkv_proj`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.peers import llama31_8b
from benchmarks.peers.llama31_8b import Layer, TorchLlama
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

    def kernel(self):
        return self.up.weight @ self.down.weight * self.scale


class ChangedLayer(Layer):
    def __init__(self, numbers):
        super().__init__(numbers)
        self.requires_grad_(False)
        self.sizes = [part.out_features for part in (self.q, self.k, self.v)]
        self.change_in = LowRank(numbers.width, sum(self.sizes), numbers)
        self.change_out = LowRank(self.heads * self.head, numbers.width, numbers)

    def queries_keys_values(self, y):
        changes = self.change_in(y).split(self.sizes, -1)
        return [part + change for part, change in zip(super().queries_keys_values(y), changes, strict=True)]

    def out(self, found):
        return super().out(found) + self.change_out(found)


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

    @functools.cached_property
    def teller(self) -> TorchLlama:
        """With the changes in the kernels that they change, as weights are merged to be served."""
        plain = TorchLlama(self.config.model).to(self.device)
        plain.load_state_dict(self.model.state_dict(), strict=False)
        for layer, changed in zip(plain.layers, self.model.layers, strict=True):
            parts = changed.change_in.kernel().split(changed.sizes)
            for part, change in zip(
                (layer.q, layer.k, layer.v, layer.o), (*parts, changed.change_out.kernel()), strict=True
            ):
                part.weight.data += change
        return plain

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        told = batch["told"][:, 1:]
        return (self.losses(batch["tokens"]) * told).sum() / told.sum()
