"""Llama written for PyTorch from its paper: the peer in speed of language models.

Layers apart, not stacked; PyTorch's own attention; logits of the whole batch at once. Answers are told greedily, keys and values
of what was read lie in arrays of a fixed length, as `torch.compile` wants them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.bert import Clipped
from benchmarks.speed import peer


class Layer(nn.Module):
    def __init__(self, numbers):
        super().__init__()
        width, self.head = numbers.width, numbers.head_width
        self.heads, self.key_heads = numbers.num_heads, numbers.num_key_heads
        linear = lambda rows, columns: nn.Linear(rows, columns, bias=False)  # noqa: E731
        self.q = linear(width, self.heads * self.head)
        self.k, self.v = (linear(width, self.key_heads * self.head) for _ in range(2))
        self.o = linear(self.heads * self.head, width)
        self.gate, self.up = (linear(width, numbers.mlp_width) for _ in range(2))
        self.down = linear(numbers.mlp_width, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width, eps=numbers.epsilon) for _ in range(2))
        self.q_norm = self.k_norm = nn.Identity()

    def forward(self, x, cos, sin, read=None):
        parts = self.queries_keys_values(self.norms[0](x))
        q, k, v = (part.unflatten(-1, (-1, self.head)).transpose(1, 2) for part in parts)
        q, k = _turned(self.q_norm(q), cos, sin), _turned(self.k_norm(k), cos, sin)
        found = self.attend(q, k, v) if read is None else self.attend_read(q, *read.with_these(k, v))
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.network(self.norms[1](x))

    def queries_keys_values(self, y):
        return self.q(y), self.k(y), self.v(y)

    def out(self, found):
        return self.o(found)

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.heads != self.key_heads
        )

    def attend_read(self, q, k, v, distance):
        """Queries [B, H, N, D] among all that was read: `distance` [N, T] is how far back each stands."""
        return F.scaled_dot_product_attention(
            q, k, v, self.sees(distance), enable_gqa=self.heads != self.key_heads
        )

    def sees(self, distance):
        return distance >= 0

    def network(self, y):
        return self.down(F.silu(self.gate(y)) * self.up(y))


class Read:
    """What a layer has read of some texts: keys and values [B, H, T, D], of which those before the newest tokens are there.

    Those stand at [N].
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, at: torch.Tensor):
        self.keys, self.values, self.at = keys, values, at

    def with_these(self, k, v):
        """Puts in the newest tokens' [B, H, N, D]; all of them, and their distances."""
        self.keys.index_copy_(2, self.at, k.to(self.keys.dtype))
        self.values.index_copy_(2, self.at, v.to(self.values.dtype))
        places = torch.arange(self.keys.shape[2], device=k.device)
        return self.keys, self.values, self.at[:, None] - places


def _turned(x, cos, sin):
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class TorchLlama(nn.Module):
    layer: type[Layer] = Layer

    def __init__(self, numbers):
        super().__init__()
        self.table = nn.Parameter(torch.randn(numbers.vocab_size, numbers.width))
        self.layers = nn.ModuleList(self.layer(numbers) for _ in range(numbers.num_layers))
        self.norm = nn.RMSNorm(numbers.width, eps=numbers.epsilon)
        self.last = None if numbers.tied else nn.Parameter(torch.randn(numbers.vocab_size, numbers.width))
        waves = numbers.rope_theta ** (
            -torch.arange(0, numbers.head_width, 2, dtype=torch.float64) / numbers.head_width
        )
        if numbers.rope_stretch != 1:
            length = 2 * torch.pi / waves
            kept = ((8192 / length - 1) / 3).clamp(0, 1)
            waves = (kept + (1 - kept) / numbers.rope_stretch) * waves
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, tokens):
        """[B, L] to logits [B, L, V]."""
        return self.logits(self.states(tokens, torch.arange(tokens.shape[1], device=tokens.device)))

    def states(self, tokens, at, read=None):
        """Tokens [B, N] that stand at [N] to [B, N, D]; `read` is of each layer its keys and values."""
        angles = at[:, None] * self.waves
        cos, sin = angles.cos().float(), angles.sin().float()
        x = F.embedding(tokens, self.table)
        for number, layer in enumerate(self.layers):
            keys, values = read[number] if read else (None, None)
            x = layer(x, cos, sin, Read(keys, values, at) if read else None)
        return x

    def logits(self, states):
        return F.linear(self.norm(states), self.table if self.last is None else self.last)

    def next(self, tokens, at, read):
        """The likeliest token [B] behind tokens [B, N]."""
        return self.logits(self.states(tokens, at, read)[:, -1]).argmax(-1)

    def nothing_read(self, texts, length):
        """Of each layer keys and values [B, H, T, D]."""
        return [
            [self.table.new_zeros(texts, layer.key_heads, length, layer.head) for _ in range(2)]
            for layer in self.layers
        ]


class Peer(Clipped):
    on_a_chip = ("--config.batch_size=1", "--config.model.num_layers=8", "--config.reference_point=0")

    def build(self) -> nn.Module:
        return TorchLlama(self.config.model)

    def take_over(self, state: Mapping[str, Any]) -> None:
        params = state["params"]
        self.model.table.data = torch.tensor(params["embedding"])
        if self.model.last is not None:
            self.model.last.data = torch.tensor(params["head"].T.copy())
        peer.copy_layer(self.model.norm, params["norm"])
        ours = params["layers"]
        for n, layer in enumerate(self.model.layers):
            for name, part in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
                _copy(getattr(layer, name), ours["attention"][part]["kernel"][n])
            self.take_over_network(layer, ours["mlp"], n)
            for norm, name in zip(layer.norms, ("attention_norm", "mlp_norm"), strict=True):
                norm.weight.data = torch.tensor(ours[name]["scale"][n])

    def take_over_network(self, layer: nn.Module, ours: Mapping[str, Any], n: int) -> None:
        """The feed-forward network of layer n."""
        for name in ("gate", "up", "down"):
            _copy(getattr(layer, name), ours[name]["kernel"][n])

    def losses(self, tokens: torch.Tensor) -> torch.Tensor:
        """Of each token but the first of its row, [B, L - 1]."""
        tokens = tokens.long()
        logits = self.model(tokens[:, :-1]).float()
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(
            len(tokens), -1
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        return self.losses(batch["tokens"]).mean()

    def compiled(self) -> tuple[peer.Function, peer.Function]:
        return self.wrap(self.loss), self.answer

    @functools.cached_property
    def teller(self) -> TorchLlama:
        """The model that answers."""
        return self.model

    @functools.cached_property
    def next(self) -> peer.Function:
        return self.wrap(self.teller.next)

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        """Of prompts [B, L] each one's next `count` tokens, [B, count]."""
        prompts, count = inputs["prompts"].long(), int(inputs["count"])
        texts, length = prompts.shape
        read = self.teller.nothing_read(texts, length + count)
        found = [self.next(prompts, torch.arange(length, device=self.device), read)]
        for place in range(length, length + count - 1):
            found.append(self.next(found[-1][:, None], torch.tensor([place], device=self.device), read))
        return torch.stack(found, 1)


def _copy(layer: nn.Linear, kernel: Any) -> None:
    """Our kernel [*in, *out], of which heads are dimensions of their own."""
    layer.weight.data = torch.tensor(kernel).reshape(layer.in_features, layer.out_features).T.contiguous()
