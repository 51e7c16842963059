"""The two networks of sentiment analysis in PyTorch, after the reference's layers: the judge, and the peer in speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer


class Windows(nn.Module):
    """Convolutions side by side, each feature's largest value over a text."""

    def __init__(self, embedding: int, features: int, windows: Sequence[int]) -> None:
        super().__init__()
        self.before = [(size // 2, size - 1 - size // 2) for size in windows]
        self.convolutions = nn.ModuleList(nn.Conv1d(embedding, features, size) for size in windows)

    def forward(self, x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        found = [
            F.elu(conv(F.pad(x, before))) for conv, before in zip(self.convolutions, self.before, strict=True)
        ]
        return torch.cat([largest(y.transpose(1, 2), inside) for y in found], dim=1)


class PeepholeLSTM(nn.Module):
    """Gates that are made already [B, T, 4 H], position by position."""

    def __init__(self, hidden: int, reverse: bool) -> None:
        super().__init__()
        self.reverse, self.hidden = reverse, hidden
        self.weight = nn.Parameter(torch.randn(hidden, 4, hidden) / hidden**0.5)
        self.bias = nn.Parameter(torch.randn(4, hidden) / 4)
        self.peepholes = nn.Parameter(torch.randn(3, hidden) / 4)

    def forward(self, gates: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        gates = gates.unflatten(2, (4, self.hidden))
        h = c = gates.new_zeros(len(gates), self.hidden)
        outputs: list[torch.Tensor] = []
        order = range(gates.shape[1])
        for t in reversed(order) if self.reverse else order:
            sums = gates[:, t] + torch.einsum("bh,hgk->bgk", h, self.weight) + self.bias
            i = torch.sigmoid(sums[:, 0] + self.peepholes[0] * c)
            f = torch.sigmoid(sums[:, 1] + self.peepholes[1] * c)
            new = f * c + i * torch.tanh(sums[:, 2])
            out = torch.sigmoid(sums[:, 3] + self.peepholes[2] * new) * torch.tanh(new)
            real = inside[:, t, None]
            h, c = torch.where(real, out, h), torch.where(real, new, c)
            outputs.append(h)
        return torch.stack(outputs[::-1] if self.reverse else outputs, dim=1)


class Stack(nn.Module):
    """Linear layers of one or two inputs, each before an LSTM."""

    def __init__(self, embedding: int, width: int, layers: int) -> None:
        super().__init__()
        hidden = width // 4
        sizes = [(embedding,), *[(width, hidden)] * (layers - 1)]
        self.linear = nn.ModuleList(nn.Linear(sum(size), width) for size in sizes)
        self.recurrent = nn.ModuleList(PeepholeLSTM(hidden, i % 2 == 1) for i in range(layers))

    def forward(self, x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        pair = [x]
        for linear, recurrent in zip(self.linear, self.recurrent, strict=True):
            gates = linear(torch.cat(pair, dim=2))
            pair = [gates, recurrent(gates, inside)]
        return torch.cat([largest(y, inside) for y in pair], dim=1)


class TorchTextClassifier(nn.Module):
    """Words [B, T] and lengths [B] to logits [B, classes]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary_size, config.embedding)
        if config.network == "convolutions":
            self.reader: nn.Module = Windows(config.embedding, config.features, config.windows)
            features = len(config.windows) * config.features
        else:
            self.reader = Stack(config.embedding, config.features, config.layers)
            features = config.features * 5 // 4
        self.drop = nn.Dropout(config.dropout)
        self.last = nn.Linear(features, config.classes)
        self.unknown, self.word_dropout = config.vocabulary_size - 1, config.word_dropout

    def forward(self, words: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        inside = torch.arange(words.shape[1], device=words.device) < length[:, None]
        if self.training and self.word_dropout:
            lost = torch.rand(words.shape, device=words.device) < self.word_dropout
            words = torch.where(lost, self.unknown, words)
        x = self.embedding(words) * inside[..., None]
        return self.last(self.drop(self.reader(x, inside)))


def largest(x: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    return x.masked_fill(~inside[..., None], -torch.inf).amax(dim=1)


def take(model: TorchTextClassifier, params: Mapping[str, Any]) -> None:
    """Puts our parameters (nested dicts of NumPy arrays, numbers as texts) into the model."""

    def linear(layer: nn.Linear, part: Mapping[str, Any]) -> None:
        kernels = [part["kernels"][str(i)] for i in range(len(part["kernels"]))]
        layer.weight.copy_(torch.cat([torch.tensor(kernel) for kernel in kernels]).T)
        layer.bias.copy_(torch.tensor(part["bias"]))

    with torch.no_grad():
        model.embedding.weight.copy_(torch.tensor(params["embedding"]))
        linear(model.last, params["last"])
        reader = params["reader"]
        if isinstance(model.reader, Windows):
            for i, conv in enumerate(model.reader.convolutions):
                part = reader["convolutions"][str(i)]
                conv.weight.copy_(torch.tensor(part["kernel"]).permute(2, 1, 0))
                conv.bias.copy_(torch.tensor(part["bias"]))
            return
        for i, layer in enumerate(model.reader.linear):
            linear(layer, reader["linear"][str(i)])
        for i, layer in enumerate(model.reader.recurrent):
            part = reader["recurrent"][str(i)]
            layer.weight.copy_(torch.tensor(part["kernel"]))
            layer.bias.copy_(torch.tensor(part["bias"]))
            layer.peepholes.copy_(torch.tensor(part["peepholes"]))


class Peer(peer.Peer):
    def build(self) -> nn.Module:
        return TorchTextClassifier(self.workload.model_config)

    def take_over(self, state: Mapping[str, Any]) -> None:
        take(self.model, state["params"])

    def make_optimizer(self) -> Optimizer:
        given = {name: self.config.optimizer[name] for name in ("beta1", "beta2", "epsilon")}
        return torch_optimizers.adam(self.model, **given, fused=self.fast)

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        logits = self.model(batch["words"], batch["length"])
        return F.cross_entropy(logits.float(), batch["label"].long())

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        return self.model(inputs["words"], inputs["length"]).argmax(1).int()
