"""BERT in plain PyTorch, one sequence a row, with the names of PyTorch's published checkpoints."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Holds modules by dotted paths, as published names have them."""

    def put(self, path, module):
        first, _, rest = path.partition(".")
        if not rest:
            self.add_module(first, module)
            return
        if first not in self._modules:
            self.add_module(first, Block())
        self._modules[first].put(rest, module)


class TorchBert(Block):
    """Encoder, pooler, and the heads of pre-training and of spans.

    `config` is ours; every name begins as in `BertForPreTraining` and `BertForQuestionAnswering`.
    """

    def __init__(self, config):
        super().__init__()
        self.config, width = config, config.width
        for name, rows in (
            ("word", config.vocab_size),
            ("position", config.num_positions),
            ("token_type", config.num_types),
        ):
            self.put(f"bert.embeddings.{name}_embeddings", nn.Embedding(rows, width))
        self.put("bert.embeddings.LayerNorm", nn.LayerNorm(width, eps=1e-12))
        for n in range(config.num_layers):
            layer = f"bert.encoder.layer.{n}"
            for name in ("query", "key", "value"):
                self.put(f"{layer}.attention.self.{name}", nn.Linear(width, width))
            self.put(f"{layer}.attention.output.dense", nn.Linear(width, width))
            self.put(f"{layer}.attention.output.LayerNorm", nn.LayerNorm(width, eps=1e-12))
            self.put(f"{layer}.intermediate.dense", nn.Linear(width, config.mlp_width))
            self.put(f"{layer}.output.dense", nn.Linear(config.mlp_width, width))
            self.put(f"{layer}.output.LayerNorm", nn.LayerNorm(width, eps=1e-12))
        self.put("bert.pooler.dense", nn.Linear(width, width))
        self.put("cls.predictions.transform.dense", nn.Linear(width, width))
        self.put("cls.predictions.transform.LayerNorm", nn.LayerNorm(width, eps=1e-12))
        self.cls.predictions.register_parameter("bias", nn.Parameter(torch.zeros(config.vocab_size)))
        self.put("cls.seq_relationship", nn.Linear(width, 2))
        self.put("qa_outputs", nn.Linear(width, 2))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def gelu(self, x):
        return functional.gelu(x, approximate="tanh" if self.config.gelu == "tanh" else "none")

    def encode(self, tokens, seen, token_type):
        """[B, L] tokens, which of them are there (bool), and types: [B, L, D]."""
        e, heads = self.bert.embeddings, self.config.num_heads
        positions = torch.arange(tokens.shape[1])
        x = e.word_embeddings(tokens) + e.position_embeddings(positions) + e.token_type_embeddings(token_type)
        x = e.LayerNorm(x)
        for layer in self.bert.encoder.layer.children():
            own = layer.attention.self
            q, k, v = (
                p(x).unflatten(-1, (heads, -1)).transpose(1, 2) for p in (own.query, own.key, own.value)
            )
            scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weights = scores.masked_fill(~seen[:, None, None], -1e9).softmax(-1)
            found = (weights @ v).transpose(1, 2).flatten(-2)
            output = layer.attention.output
            x = output.LayerNorm(x + output.dense(found))
            x = layer.output.LayerNorm(x + layer.output.dense(self.gelu(layer.intermediate.dense(x))))
        return x

    def pretraining(self, x, masked):
        """Logits of words [B, P, V] at positions [B, P], and of next sentences [B, 2]."""
        head = self.cls.predictions
        picked = x.gather(1, masked[..., None].expand(-1, -1, x.shape[-1]))
        words = head.transform.LayerNorm(self.gelu(head.transform.dense(picked)))
        words = words @ self.bert.embeddings.word_embeddings.weight.T + head.bias
        return words, self.cls.seq_relationship(torch.tanh(self.bert.pooler.dense(x[:, 0])))

    def spans(self, x):
        """[B, L, 2]"""
        return self.qa_outputs(x)
