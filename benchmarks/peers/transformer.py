"""The Transformer of MLPerf's reference, written for PyTorch from its description: the judge of ours, and its peer in speed.

Layers apart, not stacked; heads by reshaping; masks as added numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer

MASKED = -1e9
END = 1


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return F.layer_norm(x, x.shape[-1:], self.scale, self.bias, 1e-6)


class MultiHead(nn.Module):
    def __init__(self, width, heads, dropout=0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))

    def split(self, z):
        return z.reshape(*z.shape[:2], self.heads, -1).transpose(1, 2)

    def keys_values(self, y):
        return self.split(self.k(y)), self.split(self.v(y))

    def attend(self, x, keys_values, bias):
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(self.split(self.q(x)), *keys_values, bias, dropout)
        return self.o(found.transpose(1, 2).reshape(x.shape))

    def forward(self, x, y, bias):
        return self.attend(x, self.keys_values(y), bias)


class Layer(nn.Module):
    def __init__(self, width, mlp, heads, decoder, dropout=0.0, attention_dropout=0.0, relu_dropout=0.0):
        super().__init__()
        self.norms = nn.ModuleList(Norm(width) for _ in range(3 if decoder else 2))
        self.attention = MultiHead(width, heads, attention_dropout)
        self.source_attention: Any = MultiHead(width, heads, attention_dropout) if decoder else None
        self.first, self.second = nn.Linear(width, mlp), nn.Linear(mlp, width)
        self.drop, self.relu_drop = nn.Dropout(dropout), nn.Dropout(relu_dropout)

    def forward(self, x, bias, source=None, source_bias=None):
        y = self.norms[0](x)
        x = x + self.drop(self.attention(y, y, bias))
        if self.source_attention:
            x = x + self.drop(self.source_attention(self.norms[1](x), source, source_bias))
        return x + self.drop(self.mlp(self.norms[-1](x)))

    def mlp(self, x):
        return self.second(self.relu_drop(self.first(x).relu()))

    def decode(self, x, position, cache, bias, source, source_bias):
        """One more token [N, 1, D], whose keys and values take their place [1] in the cache."""
        y = self.norms[0](x)
        for entries, new in zip(cache, self.attention.keys_values(y), strict=True):
            entries.index_copy_(2, position, new)
        x = x + self.attention.attend(y, cache, bias)
        x = x + self.source_attention.attend(self.norms[1](x), source, source_bias)
        return x + self.mlp(self.norms[-1](x))


def apart(queries, keys, dtype):
    """What is added to scores [B, 1, L, M] of tokens in segments [B, L] and [B, M]."""
    return MASKED * (queries[:, None, :, None] != keys[:, None, None]).to(dtype)


def positions_of(segment):
    """Position of each token in its segment, [B, L]."""
    index = torch.arange(segment.shape[1], device=segment.device).expand_as(segment)
    starts = torch.ones_like(segment, dtype=torch.bool)
    starts[:, 1:] = segment[:, 1:] != segment[:, :-1]
    return index - torch.where(starts, index, 0).cummax(1).values


class TorchTransformer(nn.Module):
    """Tokens [B, M] and [B, L], padded with 0, to logits [B, L, V].

    Of packed rows segments say which sentence a token is of; without them a row is one sentence.
    """

    def __init__(
        self,
        vocab_size,
        width,
        mlp_width,
        num_heads,
        num_layers,
        dropout=0.0,
        attention_dropout=0.0,
        relu_dropout=0.0,
        longest=512,
    ):
        super().__init__()
        self.width = width
        self.table = nn.Parameter(torch.randn(vocab_size, width) / math.sqrt(width))

        def layers(decoder):
            rates = dropout, attention_dropout, relu_dropout
            each = (Layer(width, mlp_width, num_heads, decoder, *rates) for _ in range(num_layers))
            return nn.ModuleList(each)

        self.encoder, self.decoder = layers(False), layers(True)
        self.encoder_norm, self.decoder_norm = Norm(width), Norm(width)
        self.drop = nn.Dropout(dropout)
        self.register_buffer("encoding", self.positions(longest), persistent=False)

    def embed(self, tokens):
        return F.embedding(tokens, self.table) * math.sqrt(self.width) * (tokens > 0)[..., None]

    def positions(self, length):
        half = self.width // 2
        step = math.log(10000.0) / (half - 1)
        rates = torch.tensor([math.exp(-step * n) for n in range(half)], dtype=self.table.dtype)
        angles = torch.arange(length, dtype=self.table.dtype)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], 1)

    def encode(self, source, segment):
        bias = apart(segment, segment, self.table.dtype)
        x = self.drop(self.embed(source) + self.encoding[positions_of(segment)])
        for layer in self.encoder:
            x = layer(x, bias)
        return self.encoder_norm(x)

    def decode(self, tokens, position, cache, source, source_bias):
        """Logits [N, V] of what follows tokens [N] at a position [1]; caches [N, H, L, W] of each layer."""
        length = cache[0][0].shape[2]
        bias = MASKED * (torch.arange(length, device=tokens.device) > position).to(source_bias.dtype)
        x = self.embed(tokens)[:, None] + self.encoding[position]
        for layer, entries, of_source in zip(self.decoder, cache, source, strict=True):
            x = layer.decode(x, position, entries, bias[None, None, None], of_source, source_bias)
        return (self.decoder_norm(x) @ self.table.T)[:, 0]

    def forward(self, source, target, source_segment=None, target_segment=None):
        source_segment = (source > 0).long() if source_segment is None else source_segment
        target_segment = torch.ones_like(target) if target_segment is None else target_segment
        encoded = self.encode(source, source_segment)
        source_bias = apart(target_segment, source_segment, self.table.dtype)
        length = target.shape[1]
        later = torch.ones(length, length, dtype=self.table.dtype, device=target.device).triu(1)
        bias = apart(target_segment, target_segment, self.table.dtype) + MASKED * later
        positions = positions_of(target_segment)
        before = torch.where(positions == 0, 0, F.pad(target, (1, 0))[:, :-1])
        x = self.drop(self.embed(before) + self.encoding[positions])
        for layer in self.decoder:
            x = layer(x, bias, encoded, source_bias)
        return self.decoder_norm(x) @ self.table.T


def loss_of(logits, target, smoothing, segment=None):
    """Cross-entropy with smoothed labels, less its least value, over the tokens that are not padding.

    Padding is what has segment 0 or, without segments, token 0.

    PyTorch gives every token a share of the smoothing, the reference every token but the label.
    """
    vocab_size = logits.shape[-1]
    low = smoothing / (vocab_size - 1)
    real = (target if segment is None else segment) > 0
    target = torch.where(real, target, -100)  # what PyTorch leaves out
    losses = F.cross_entropy(
        logits.flatten(0, -2), target.flatten(), label_smoothing=low * vocab_size, reduction="sum"
    )
    least = -((1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(low))
    return losses / real.sum() - least


def take_over(model, params):
    """Puts our parameters (nested dicts of arrays, layers stacked) into the model."""

    def put(parameter, value):
        parameter.data = torch.tensor(value, dtype=parameter.dtype).reshape(parameter.shape)

    width = model.width

    def norm(module, values, layer=None):
        for name in ("scale", "bias"):
            put(getattr(module, name), values[name] if layer is None else values[name][layer])

    def attention(module, values, n):
        if "query_key_value" in values:
            parts = [values["query_key_value"][n][:, i] for i in range(3)]
        else:
            parts = [values["query"][n][:, 0], *(values["key_value"][n][:, i] for i in range(2))]
        for linear, part in zip((module.q, module.k, module.v), parts, strict=True):
            put(linear.weight, part.reshape(width, width).T)
        put(module.o.weight, values["out"][n].reshape(width, width).T)

    put(model.table, params["embedding"])
    for side in ("encoder", "decoder"):
        values = params[side]
        for n, layer in enumerate(getattr(model, side)):
            names = ["attention_norm", *(["source_norm"] if side == "decoder" else []), "mlp_norm"]
            for module, name in zip(layer.norms, names, strict=True):
                norm(module, values[name], n)
            attention(layer.attention, values["attention"], n)
            if side == "decoder":
                attention(layer.source_attention, values["source_attention"], n)
            put(layer.first.weight, values["mlp"]["kernel_in"][n].T)
            put(layer.first.bias, values["mlp"]["bias_in"][n])
            put(layer.second.weight, values["mlp"]["kernel_out"][n].T)
            put(layer.second.bias, values["mlp"]["bias_out"][n])
        norm(getattr(model, f"{side}_norm"), params[f"{side}_norm"])


class Peer(peer.Peer):
    # Rows of 256 tokens that one accelerator holds.
    on_a_chip = ("--config.batch_size=64",)

    def build(self) -> nn.Module:
        return TorchTransformer(**self.config.model.to_dict())

    def compiled(self) -> tuple[peer.Function, peer.Function]:
        """Decoding is a loop of the host's: of it the encoder and a step are worth compiling."""
        self.encode, self.decode = self.wrap(self.model.encode), self.wrap(self.model.decode)
        return self.wrap(self.loss), self.answer

    def take_over(self, state: Mapping[str, Any]) -> None:
        take_over(self.model, state["params"])

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        return torch_optimizers.adam(
            self.model, beta1=numbers.beta1, beta2=numbers.beta2, epsilon=numbers.epsilon, fused=self.fast
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        tokens = {name: x.long() for name, x in batch.items()}
        logits = self.model(**tokens).float()
        return loss_of(logits, tokens["target"], self.config.label_smoothing, tokens["target_segment"])

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        """Beam search as `mlperf_jax.decoding.beam_search` states it; the cache moves with the beams."""
        source, numbers = inputs["source"].long(), self.config.decode
        beams, length = numbers.beams, source.shape[1] + numbers.extra_length
        segment = (source > 0).long()
        limits = segment.sum(1) + numbers.extra_length
        of_source, source_bias, cache = self._caches(source, segment, beams, length)
        batch, device = len(source), source.device
        tokens = torch.zeros(batch, beams, length, dtype=torch.long, device=device)
        finished = tokens
        log_probs = torch.full((batch, beams), -math.inf, device=device)
        log_probs[:, 0] = 0
        scores = torch.full((batch, beams), _WORST, device=device)
        first = torch.arange(batch, device=device)[:, None] * beams
        for position in range(length):
            penalty = ((5 + limits) / 6) ** numbers.alpha
            active = (position < limits) & ~(scores[:, 0] > log_probs[:, 0] / penalty)
            if not active.any():
                break
            last = tokens[:, :, position - 1].flatten()  # of the first position a 0
            logits = self.decode(last, torch.tensor([position], device=device), cache, of_source, source_bias)
            grown = logits.float().log_softmax(-1).reshape(batch, beams, -1) + log_probs[..., None]
            best, chosen = grown.flatten(1).topk(2 * beams)
            parents, token = chosen // grown.shape[2], chosen % grown.shape[2]
            longer = _rows(tokens, parents)
            longer[:, :, position] = token
            ended = token == END
            living, order = torch.where(ended, -math.inf, best).topk(beams)
            ranked = torch.where(ended, best / ((6 + position) / 6) ** numbers.alpha, _WORST)
            ranked, kept = torch.cat([scores, ranked], 1).topk(beams)
            now = active[:, None]
            finished = torch.where(now[..., None], _rows(torch.cat([finished, longer], 1), kept), finished)
            tokens = torch.where(now[..., None], _rows(longer, order), tokens)
            scores, log_probs = torch.where(now, ranked, scores), torch.where(now, living, log_probs)
            moved = (first + parents.gather(1, order)).flatten()
            for entries in cache:
                for x in entries:
                    x.copy_(x.index_select(0, moved))
        none = scores[:, 0] <= _WORST
        return torch.where(none[:, None], tokens[:, 0], finished[:, 0]).int()

    def _caches(
        self, source: torch.Tensor, segment: torch.Tensor, beams: int, length: int
    ) -> tuple[list, torch.Tensor, list]:
        """Keys and values of the source and its mask, for each beam; and room for those of the target."""
        encoded = self.encode(source, segment)
        keys_values = [layer.source_attention.keys_values(encoded) for layer in self.model.decoder]
        of_source = [[x.repeat_interleave(beams, 0) for x in pair] for pair in keys_values]
        one = torch.ones(len(source), 1, dtype=torch.long, device=source.device)
        source_bias = apart(one, segment, torch.float32).repeat_interleave(beams, 0)
        rows, heads, _, width = of_source[0][0].shape
        room = [[x.new_zeros(rows, heads, length, width) for x in pair] for pair in of_source]
        return of_source, source_bias, room


_WORST = -1e7  # below every score that a sentence can have


def _rows(x: torch.Tensor, beams: torch.Tensor) -> torch.Tensor:
    """Rows [B, N] of [B, K, L]: [B, N, L]."""
    return x.gather(1, beams[..., None].expand(-1, -1, x.shape[2]))
