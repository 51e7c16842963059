"""NeuMF in PyTorch, after the paper and the v0.5 reference, with its negatives drawn as ours: the judge, and the peer in speed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer

_WORD = 0xFFFFFFFF
SIDES = ("user", "item")


class TorchNeuMF(nn.Module):
    """Four embeddings, an MLP and the layer that joins both views; names are those of the reference."""

    def __init__(
        self, users: int, items: int, factors: int, layers: Sequence[int], sparse_gradients: bool = False
    ) -> None:
        super().__init__()
        for view, width in (("mf", factors), ("mlp", layers[0] // 2)):
            for side, size in zip(SIDES, (users, items), strict=True):
                table = nn.Embedding(size, width, sparse=sparse_gradients)
                setattr(self, f"{view}_{side}_embed", table)
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in zip(layers, layers[1:], strict=False))
        self.final = nn.Linear(factors + layers[-1], 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Logits [B] of users and items [B]."""
        product = self.mf_user_embed(user) * self.mf_item_embed(item)
        x = torch.cat([self.mlp_user_embed(user), self.mlp_item_embed(item)], dim=1)
        for layer in self.mlp:
            x = F.relu(layer(x))
        return self.final(torch.cat([product, x], dim=1))[:, 0]


def mixed(x: torch.Tensor) -> torch.Tensor:
    """lowbias32 of numbers below 2**32 in int64."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D & _WORD
    x = x ^ (x >> 15)
    x = x * 0x846CA68B & _WORD
    return x ^ (x >> 16)


def shuffled(place: torch.Tensor, length: int, key: torch.Tensor) -> torch.Tensor:
    """The permutation of `mlperf_jax.workloads.negatives.shuffled`."""
    low_size = math.isqrt(length - 1) + 1
    high_size = -(-length // low_size)

    def once(x: torch.Tensor) -> torch.Tensor:
        low, high = x % low_size, x // low_size
        for number in range(4):
            low = (low + mixed(high ^ mixed(key + 2 * number & _WORD)) % low_size) % low_size
            high = (high + mixed(low ^ mixed(key + 2 * number + 1 & _WORD)) % high_size) % high_size
        return high * low_size + low

    x = once(place)
    while (x >= length).any():
        x = torch.where(x >= length, once(x), x)
    return x


class _Both:
    """Lazy Adam of the tables, as PyTorch has it for sparse gradients, and Adam of the rest."""

    def __init__(self, tables: Optimizer, rest: Optimizer) -> None:
        self.parts = (tables, rest)

    def step(self, rate: float) -> None:
        for part in self.parts:
            part.step(rate)


class Peer(peer.Peer):
    def build(self) -> nn.Module:
        data, shape = self.workload.dataset.data, self.workload.model_config
        # Neither compiler nor fused optimizers take sparse gradients.
        return TorchNeuMF(data.num_users, data.num_items, shape.factors, shape.layers, not self.fast)

    def take_over(self, state: Mapping[str, Any]) -> None:
        factors = self.workload.model_config.factors
        tables = self.workload.tables.unstacked(state["params"]["table"])
        with torch.no_grad():
            for side, table in zip(SIDES, tables, strict=True):
                rows = torch.tensor(table)
                getattr(self.model, f"mf_{side}_embed").weight.copy_(rows[:, :factors])
                getattr(self.model, f"mlp_{side}_embed").weight.copy_(rows[:, factors:])
        for name, layers in (("mlp", self.model.mlp), ("final", [self.model.final])):
            dense = state["params"]["dense"][name]
            for i, layer in enumerate(layers):
                arrays = {"kernel": dense["kernels"][str(i)], "bias": dense["biases"][str(i)]}
                peer.copy_layer(layer, arrays)
        self.seed = int(state["seed"])
        self.item, self.start = (
            torch.tensor(state["interactions"][name], dtype=torch.int64, device=self.device)
            for name in ("item", "start")
        )

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        if self.fast:
            given = {name: numbers[name] for name in ("beta1", "beta2", "epsilon")}
            return torch_optimizers.adam(self.model, **given, fused=True)
        lists: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in self.model.named_parameters():
            lists["embed" in name].append(parameter)
        betas = (numbers.beta1, numbers.beta2)

        def say(group: dict[str, Any], rate: float, _: int) -> None:
            group["lr"] = rate

        tables = Optimizer(torch.optim.SparseAdam(lists[True], betas=betas, eps=numbers.epsilon), say)
        rest = nn.ParameterList(lists[False])
        dense = torch_optimizers.adam(
            rest, beta1=numbers.beta1, beta2=numbers.beta2, epsilon=numbers.epsilon, fused=False
        )
        return _Both(tables, dense)  # type: ignore[return-value]

    def compiled(self) -> tuple[peer.Function, peer.Function]:
        # What is drawn is decided by a loop of unknown length.
        self._network = self.wrap(self.model)
        return self.loss, self.answer

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        user, item, label = self.examples(batch)
        return F.binary_cross_entropy_with_logits(self._network(user, item).float(), label)

    def examples(self, batch: peer.Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Users, items and labels [B]."""
        data, each = self.workload.dataset, 1 + self.workload.dataset.negatives
        epoch, offset = batch["epoch"].long(), batch["offset"].long()
        key = mixed(mixed(torch.tensor(self.seed, device=self.device)) + epoch * 0x9E3779B1 & _WORD)
        example = shuffled(offset, data.num_train, key)
        choice, chosen = example // each, example % each == 0
        user = torch.searchsorted(self.start, choice, right=True) - 1
        first = self.start[user]
        count = self.start[user + 1] - first
        rank = mixed(mixed(example ^ mixed(key ^ _WORD))) % (data.data.num_items - count)
        low, high = torch.zeros_like(count), count
        for _ in range(data.data.num_items.bit_length()):
            middle = (low + high) // 2
            place = (first + middle).clamp(max=len(self.item) - 1)
            below = (low < high) & (self.item[place] - middle <= rank)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        return user, torch.where(chosen, self.item[choice], rank + low), chosen.float()

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        candidates = inputs["candidates"].long()
        negatives, last = candidates[:, :-1], candidates[:, -1:]
        again = (negatives == last) | (negatives.diff(dim=1, prepend=-torch.ones_like(last)) == 0)
        user = inputs["user"].long()[:, None].expand_as(candidates)
        scores = self._network(user.flatten(), candidates.flatten()).float().view_as(candidates)
        scores[:, :-1][again] = -torch.inf
        best = scores.sort(dim=1, descending=True, stable=True).indices[:, :10]
        return candidates.gather(1, best).int()
