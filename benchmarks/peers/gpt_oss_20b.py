"""MLPerf's GPT-OSS written for PyTorch: Llama's peer with windows, norms of queries and keys, and a loop over experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import llama31_8b
from benchmarks.speed import peer


class Layer(llama31_8b.Layer):
    def __init__(self, numbers, number):
        super().__init__(numbers)
        self.window = numbers.window if number % numbers.window_every == 0 else 0
        self.q_norm, self.k_norm = (nn.RMSNorm(self.head, eps=numbers.epsilon) for _ in range(2))
        experts, width, mlp = numbers.num_experts, numbers.width, numbers.mlp_width
        self.chosen, self.router = numbers.num_chosen, nn.Linear(width, experts, bias=False)
        del self.gate, self.up, self.down
        self.gate, self.up = (nn.Parameter(torch.randn(experts, width, mlp)) for _ in range(2))
        self.down = nn.Parameter(torch.randn(experts, mlp, width))

    def attend(self, q, k, v):
        if not self.window:
            return super().attend(q, k, v)
        seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
        return F.scaled_dot_product_attention(q, k, v, seen.triu(1 - self.window), enable_gqa=True)

    def sees(self, distance):
        return (distance >= 0) & (distance < self.window) if self.window else distance >= 0

    def network(self, y):
        rows = y.flatten(0, -2)
        logits, chosen = self.router(rows).float().topk(self.chosen, -1)
        weights = logits.softmax(-1).to(rows.dtype)
        found = torch.zeros_like(rows)
        for number in range(len(self.gate)):
            row, rank = torch.where(chosen == number)
            x = rows[row]
            z = (F.silu(x @ self.gate[number]) * (x @ self.up[number])) @ self.down[number]
            found.index_add_(0, row, z * weights[row, rank, None])
        return found.view_as(y)


class TorchGptOss(llama31_8b.TorchLlama):
    def __init__(self, numbers):
        super().__init__(numbers)
        self.layers = nn.ModuleList(Layer(numbers, number) for number in range(numbers.num_layers))


class Peer(llama31_8b.Peer):
    on_a_chip = ("--config.batch_size=1", "--config.model.num_layers=4", "--config.reference_point=0")

    def build(self) -> nn.Module:
        return TorchGptOss(self.config.model)

    def take_over(self, state: Mapping[str, Any]) -> None:
        super().take_over(state)
        ours = state["params"]["layers"]["attention"]
        for n, layer in enumerate(self.model.layers):
            for norm, name in ((layer.q_norm, "query_norm"), (layer.k_norm, "key_norm")):
                peer.copy_layer(norm, {"scale": ours[name]["scale"][n]})

    def take_over_network(self, layer: nn.Module, ours: Mapping[str, Any], n: int) -> None:
        layer.router.weight.data = torch.tensor(ours["router"][n]).T.contiguous()
        for name in ("gate", "up", "down"):
            getattr(layer, name).data = torch.tensor(ours[name][n])
