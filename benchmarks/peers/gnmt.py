"""GNMT v2 of MLPerf's reference, written for PyTorch from its description: the judge of ours, and its peer in speed.

`torch.nn.LSTM` on sentences apart, padded to the longest: packed rows are unpacked first, as PyTorch's LSTM knows no
rows of several sentences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v, self.bias = nn.Parameter(torch.randn(width)), nn.Parameter(torch.zeros(width))
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x, encoded, real):
        sums = self.q(x)[:, :, None] + self.k(encoded)[:, None] + self.bias
        energies = sums.tanh() @ (self.gain * self.v / self.v.norm())
        weights = energies.masked_fill(~real[:, None], -65504.0).softmax(-1)
        return weights @ encoded, weights


class TorchGNMT(nn.Module):
    """Sentences [B, M] and [B, L], padded with 0, to logits [B, L, V]."""

    def __init__(self, vocab_size, width, num_layers, dropout=0.0, start=2, **of_ours):
        super().__init__()
        self.start = start
        self.table = nn.Parameter(torch.randn(vocab_size, width))

        def layer(features, both=False):
            return nn.LSTM(features, width, batch_first=True, bidirectional=both)

        self.encoder = nn.ModuleList(
            [layer(width, True), layer(2 * width), *(layer(width) for _ in range(num_layers - 2))]
        )
        self.decoder = nn.ModuleList([layer(width), *(layer(2 * width) for _ in range(num_layers - 1))])
        self.attention = Attention(width)
        self.classifier = nn.Linear(width, vocab_size)
        self.drop = nn.Dropout(dropout)

    def embed(self, tokens):
        return F.embedding(tokens, self.table) * (tokens > 0)[..., None]

    def encode(self, source):
        lengths = (source > 0).sum(1).cpu()
        x = pack_padded_sequence(
            self.drop(self.embed(source)), lengths, batch_first=True, enforce_sorted=False
        )
        x, _ = self.encoder[0](x)
        x, _ = pad_packed_sequence(x, batch_first=True, total_length=source.shape[1])
        for n, layer in enumerate(self.encoder[1:], 1):
            y, _ = layer(self.drop(x))
            x = x + y if n > 1 else y
        return x

    def decode(self, before, encoded, real, states):
        """Logits, attention and states after tokens [B, L] that follow on states."""
        x, state = self.decoder[0](self.embed(before), states[0])
        found, weights = self.attention(x, encoded, real)
        after = [state]
        for n, layer in enumerate(self.decoder[1:], 1):
            y, state = layer(torch.cat([self.drop(x), found], -1), states[n])
            x = x + y if n > 1 else y
            after.append(state)
        return self.classifier(x), weights, after

    def forward(self, source, target):
        before = F.pad(target, (1, 0), value=self.start)[:, :-1]
        none = [None] * len(self.decoder)
        return self.decode(before, self.encode(source), source > 0, none)[0]


def loss_of(logits, target, smoothing):
    """Cross-entropy with labels smoothed over all words, less its least value, summed, per sentence."""
    real = target > 0
    target = torch.where(real, target, -100)
    losses = F.cross_entropy(
        logits.flatten(0, -2), target.flatten(), label_smoothing=smoothing, reduction="sum"
    )
    vocab_size = logits.shape[-1]
    share = smoothing / vocab_size
    label = 1 - smoothing + share
    least = -(label * math.log(label) + (vocab_size - 1) * share * math.log(share + 1e-20))
    return (losses - least * real.sum()) / len(target)


def apart(tokens, segments):
    """Sentences [N, L] of packed rows [B, T], padded with 0."""
    sentences = [
        row[ids == n] for row, ids in zip(tokens, segments, strict=True) for n in range(1, int(ids.max()) + 1)
    ]
    return nn.utils.rnn.pad_sequence(sentences, batch_first=True)


def take_over(model, params):
    """Puts our parameters (nested dicts of arrays) into the model."""

    def put(parameter, value):
        parameter.data = torch.tensor(value, dtype=parameter.dtype).reshape(parameter.shape)

    def lstm(layer, directions):
        for n, ending in enumerate(("", "_reverse")[: len(directions)]):
            values = directions[n] if n in directions else directions[str(n)]
            for name, key in (("weight_ih", "kernel"), ("weight_hh", "recurrent")):
                kernel = values[key]
                put(
                    getattr(layer, f"{name}_l0{ending}"),
                    kernel.transpose(1, 2, 0).reshape(-1, kernel.shape[0]),
                )
            put(getattr(layer, f"bias_ih_l0{ending}"), values["bias"])
            put(getattr(layer, f"bias_hh_l0{ending}"), values["bias_recurrent"])

    put(model.table, params["embedding"])
    for side in ("encoder", "decoder"):
        for n, layer in enumerate(getattr(model, side)):
            values = params[side]
            lstm(layer, (values[n] if n in values else values[str(n)])["directions"])
    attention = params["attention"]
    put(model.attention.q.weight, attention["query"].T)
    put(model.attention.k.weight, attention["key"].T)
    put(model.attention.v, attention["vector"])
    put(model.attention.gain, attention["gain"])
    put(model.attention.bias, attention["bias"])
    put(model.classifier.weight, params["kernel"].T)
    put(model.classifier.bias, params["bias"])


class Peer(peer.Peer):
    on_a_chip = ("--config.batch_size=64",)

    def build(self) -> nn.Module:
        return TorchGNMT(**self.config.model.to_dict())

    def compiled(self) -> tuple[peer.Function, peer.Function]:
        """cuDNN's and the CPU's LSTM are one call; sentences unpacked have a shape of their own each time."""
        return self.loss, self.answer

    def take_over(self, state: Mapping[str, Any]) -> None:
        take_over(self.model, state["params"])

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        return torch_optimizers.adamw(
            self.model,
            beta1=numbers.beta1,
            beta2=numbers.beta2,
            epsilon=numbers.epsilon,
            fused=self.fast,
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        source, target = (
            apart(batch[side].long(), batch[f"{side}_segment"].long()) for side in ("source", "target")
        )
        return loss_of(self.model(source, target).float(), target, self.config.label_smoothing)

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        """Beam search as `mlperf_jax.decoding.coverage_search` states it."""
        source, numbers = inputs["source"].long(), self.config.decode
        beams, length = numbers.beams, source.shape[1] + numbers.extra_length
        real = (source > 0).repeat_interleave(beams, 0)
        limits = (source > 0).sum(1) + numbers.extra_length
        encoded = self.model.encode(source).repeat_interleave(beams, 0)
        batch, device = len(source), source.device
        states: list[Any] = [None] * len(self.model.decoder)
        tokens = torch.zeros(batch, beams, length, dtype=torch.long, device=device)
        log_probs = torch.full((batch, beams), -math.inf, device=device)
        log_probs[:, 0] = 0
        lengths = torch.zeros(batch, beams, device=device)
        ended = torch.zeros(batch, beams, dtype=torch.bool, device=device)
        coverage = torch.zeros(batch, beams, source.shape[1], device=device)
        last = torch.full((batch * beams, 1), self.config.model.start, device=device)
        first = torch.arange(batch, device=device)[:, None] * beams
        for position in range(length):
            active = ((position < limits) & ~ended.all(1))[:, None]
            if not active.any():
                break
            logits, weights, states = self.model.decode(last, encoded, real, states)
            grown = logits[:, 0].float().log_softmax(-1).reshape(batch, beams, -1)
            stays = torch.full_like(grown[0, 0], -math.inf)
            stays[numbers.end] = 0
            grown = torch.where(ended[..., None], stays, grown) + log_probs[..., None]
            best, chosen = grown.flatten(1).topk(beams)
            parents, token = chosen // grown.shape[2], chosen % grown.shape[2]
            were = ended.gather(1, parents)
            seen = coverage + weights[:, 0].reshape(coverage.shape) * ~ended[..., None]
            longer = _rows(tokens, parents)
            longer[:, :, position] = torch.where(were, 0, token)
            tokens = torch.where(active[..., None], longer, tokens)
            log_probs = torch.where(active, best, log_probs)
            lengths = torch.where(active, lengths.gather(1, parents) + ~were, lengths)
            coverage = torch.where(active[..., None], _rows(seen, parents), coverage)
            ended = torch.where(active, were | (token == numbers.end), ended)
            moved = (first + parents).flatten()
            states = [tuple(s[:, moved] for s in state) for state in states]
            last = torch.where(ended, numbers.end, tokens[:, :, position]).reshape(-1, 1)
        logs = torch.where(coverage > 0, coverage.clamp(max=1).log(), 0).sum(-1)
        scores = log_probs / ((6 + lengths) / 6) ** numbers.alpha + numbers.beta * logs
        return tokens[torch.arange(batch), scores.argmax(1)].int()


def _rows(x: torch.Tensor, beams: torch.Tensor) -> torch.Tensor:
    """Rows [B, N] of [B, K, L]: [B, N, L]."""
    return x.gather(1, beams[..., None].expand(-1, -1, x.shape[2]))
