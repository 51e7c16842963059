"""BERT written for PyTorch from its paper, one sequence a row: the peer in speed of its pre-training.

Layers apart, not stacked; heads by reshaping. Packed rows of ours are read with a mask of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer


class Layer(nn.Module):
    def __init__(self, numbers):
        super().__init__()
        width, self.heads, self.rate = numbers.width, numbers.num_heads, numbers.attention_dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.first, self.second = nn.Linear(width, numbers.mlp_width), nn.Linear(numbers.mlp_width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(2))
        self.drop = nn.Dropout(numbers.dropout)
        self.gelu = "tanh" if numbers.gelu == "tanh" else "none"

    def forward(self, x, seen):
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        rate = self.rate if self.training else 0.0
        found = F.scaled_dot_product_attention(q, k, v, seen, rate).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.drop(self.o(found)))
        return self.norms[1](x + self.drop(self.second(F.gelu(self.first(x), approximate=self.gelu))))


class Encoder(nn.Module):
    """Tokens, segments and types [B, L] to [B, L, D]."""

    def __init__(self, numbers):
        super().__init__()
        width = numbers.width
        self.word = nn.Parameter(torch.randn(numbers.vocab_size, width))
        self.position = nn.Parameter(torch.randn(numbers.num_positions, width))
        self.kind = nn.Parameter(torch.randn(2, width))
        self.norm, self.drop = nn.LayerNorm(width, eps=1e-12), nn.Dropout(numbers.dropout)
        self.layers = nn.ModuleList(Layer(numbers) for _ in range(numbers.num_layers))

    def forward(self, tokens, segment, kinds):
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        begins = F.pad(segment[:, 1:] != segment[:, :-1], (1, 0), value=True)
        place = place - torch.where(begins, place, 0).cummax(1).values
        x = self.norm(F.embedding(tokens, self.word) + self.position[place] + F.embedding(kinds, self.kind))
        seen = (segment[:, None, :, None] == segment[:, None, None, :]) & (segment > 0)[:, None, None, :]
        seen = seen | torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        x = self.drop(x)
        for layer in self.layers:
            x = layer(x, seen)
        return x


class TorchBert(nn.Module):
    def __init__(self, numbers):
        super().__init__()
        width = numbers.width
        self.encoder = Encoder(numbers)
        self.pooler, self.follows, self.transform = (nn.Linear(width, out) for out in (width, 2, width))
        self.norm, self.bias = nn.LayerNorm(width, eps=1e-12), nn.Parameter(torch.zeros(numbers.vocab_size))
        self.gelu = "tanh" if numbers.gelu == "tanh" else "none"

    def words(self, x, masked):
        x = self.norm(F.gelu(self.transform(_at(x, masked)), approximate=self.gelu))
        return x @ self.encoder.word.T + self.bias

    def next_sentence(self, x, first):
        return self.follows(torch.tanh(self.pooler(_at(x, first))))


def _at(x, places):
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


def copy(layer: nn.Linear, params: Mapping[str, Any]) -> None:
    """Our kernel [*in, *out] and bias, of which heads are dimensions of their own, into a linear layer."""
    with torch.no_grad():
        kernel = torch.tensor(params["kernel"]).reshape(layer.in_features, layer.out_features)
        layer.weight.copy_(kernel.T)
        layer.bias.copy_(torch.tensor(params["bias"]).reshape(-1))


def take_over(encoder: Encoder, params: Mapping[str, Any]) -> None:
    """Puts our encoder (nested dicts of arrays) in."""
    for name, ours in (("word", "embedding"), ("position", "position_embedding"), ("kind", "type_embedding")):
        getattr(encoder, name).data = torch.tensor(params[ours])
    peer.copy_layer(encoder.norm, params["embedding_norm"])
    for n, layer in enumerate(encoder.layers):
        ours = _of_layer(params["layers"], n)
        for name, part in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
            copy(getattr(layer, name), ours["attention"][part])
        copy(layer.first, ours["mlp_in"])
        copy(layer.second, ours["mlp_out"])
        for norm, name in zip(layer.norms, ("attention_norm", "mlp_norm"), strict=True):
            peer.copy_layer(norm, ours[name])


def _of_layer(params: Any, n: int) -> Any:
    return (
        {name: _of_layer(part, n) for name, part in params.items()}
        if isinstance(params, Mapping)
        else params[n]
    )


def make_optimizer(model: nn.Module, numbers: Any, *, fused: bool) -> Optimizer:
    """AdamW in the minis; closed has LAMB."""
    shared = dict(
        beta1=numbers.beta1, beta2=numbers.beta2, epsilon=numbers.epsilon, weight_decay=numbers.weight_decay
    )
    if numbers.name == "lamb":
        return torch_optimizers.lamb(model, **shared)
    return torch_optimizers.adamw(model, **shared, fused=fused)


class Clipped(peer.Peer):
    """A step whose gradients are clipped to a global norm before."""

    def make_optimizer(self) -> Optimizer:
        return make_optimizer(self.model, self.config.optimizer, fused=self.fast)

    def train_step(self, batch: peer.Tensors, rate: float) -> torch.Tensor:
        with self._precision():
            loss = self.compiled_loss(batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step(rate)
        return loss.detach()


class Peer(Clipped):
    on_a_chip = ("--config.batch_size=32", "--config.reference_point=0")

    def build(self) -> nn.Module:
        return TorchBert(self.config.model)

    def take_over(self, state: Mapping[str, Any]) -> None:
        params = state["params"]
        take_over(self.model.encoder, params["encoder"])
        for name, ours in (("pooler", "pooler"), ("follows", "next_sentence"), ("transform", "transform")):
            copy(getattr(self.model, name), params[ours])
        peer.copy_layer(self.model.norm, params["transform_norm"])
        self.model.bias.data = torch.tensor(params["bias_vocab"])

    def encoded(self, batch: peer.Tensors) -> torch.Tensor:
        return self.model.encoder(*(batch[name].long() for name in ("tokens", "segment", "token_type")))

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        x = self.encoded(batch)
        words = self.model.words(x, batch["masked"].long()).float()
        first = batch["first"].long() if "first" in batch else torch.zeros_like(batch["is_random"].long())
        follows = self.model.next_sentence(x, first).float()
        told = batch["word_weight"]
        there = batch["weight"] if "weight" in batch else torch.ones_like(told[:, :1])
        of_words = F.cross_entropy(words.flatten(0, 1), batch["word"].long().flatten(), reduction="none")
        of_rows = F.cross_entropy(
            follows.flatten(0, 1), batch["is_random"].long().flatten(), reduction="none"
        )
        follow = (of_rows * there.flatten()).sum() / there.sum()
        return (of_words * told.flatten()).sum() / told.sum() + self.config.next_sentence_weight * follow

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        return self.model.words(self.encoded(inputs), inputs["masked"].long()).argmax(-1).int()
