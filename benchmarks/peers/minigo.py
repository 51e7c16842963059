"""MiniGo's network in PyTorch, transcribed from mlcommons/training's dual_net.py, channels last in its heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer
from mlperf_jax.go.features import PLANES, symmetries


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width, eps=1e-5, momentum=0.05)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width, eps=1e-5, momentum=0.05)

    def forward(self, x):
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class TorchMiniGo(nn.Module):
    def __init__(self, size, planes, width, layers, fc_width):
        super().__init__()
        points = size * size
        self.conv = nn.Conv2d(planes, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=1e-5, momentum=0.05)
        self.blocks = nn.ModuleDict({f"block{i}": Block(width) for i in range(layers)})
        self.policy_conv = nn.Conv2d(width, 2, 1, bias=False)
        self.policy_norm = nn.BatchNorm2d(2, eps=1e-5, momentum=0.05, affine=False)
        self.policy_dense = nn.Linear(2 * points, points + 1)
        self.value_conv = nn.Conv2d(width, 1, 1, bias=False)
        self.value_norm = nn.BatchNorm2d(1, eps=1e-5, momentum=0.05, affine=False)
        self.value_hidden = nn.Linear(points, fc_width)
        self.value_dense = nn.Linear(fc_width, 1)

    def forward(self, planes):
        """Planes [B, N, N, C] to logits [B, N * N + 1] and values [B]."""
        x = torch.relu(self.norm(self.conv(planes.permute(0, 3, 1, 2))))
        for block in self.blocks.values():
            x = block(x)
        policy = torch.relu(self.policy_norm(self.policy_conv(x))).permute(0, 2, 3, 1)
        value = torch.relu(self.value_norm(self.value_conv(x))).permute(0, 2, 3, 1)
        value = self.value_dense(torch.relu(self.value_hidden(value.flatten(1))))
        return self.policy_dense(policy.flatten(1)), torch.tanh(value[:, 0])


def copy_into(model: nn.Module, variables: Mapping[str, Any]) -> None:
    """Sets a torch model's parameters and statistics from ours, nested dicts of arrays."""

    def walk(module: Any, tree: Mapping[str, Any]) -> None:
        arrays = {name: np.asarray(value) for name, value in tree.items() if not isinstance(value, Mapping)}
        if arrays:
            peer.copy_layer(module, arrays)
        for name in tree.keys() - arrays.keys():
            inner = module[name] if isinstance(module, nn.ModuleDict) else getattr(module, name)
            walk(inner, tree[name])

    for tree in variables.values():
        walk(model, tree)


class Peer(peer.Peer):
    """Its batch is places in a window of games, which lies beside the model, as ours does."""

    # A window of 164,000 positions.
    on_a_chip = ("--config.self_play.rows=16",)

    def build(self) -> nn.Module:
        config = self.workload.model_config
        return TorchMiniGo(
            config.size, config.planes, config.conv_width, config.trunk_layers, config.fc_width
        )

    def take_over(self, state: Mapping[str, Any]) -> None:
        copy_into(self.model, {name: state[name] for name in ("params", "model_state")})
        window = state["played"]["window"]
        arrays = {
            name: np.asarray(window[name]).reshape(-1, *shape)
            for name, shape in (
                ("planes", window["planes"].shape[-1:]),
                ("policy", window["policy"].shape[-1:]),
                ("outcome", ()),
            )
        }
        self.window = {name: torch.from_numpy(x).to(self.device) for name, x in arrays.items()}
        self.symmetries = torch.from_numpy(symmetries(self.workload.model_config.size)).long().to(self.device)
        self.bits = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.device)

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        return torch_optimizers.momentum(
            self.model,
            momentum=numbers.momentum,
            weight_decay=numbers.l2_strength,
            decays=lambda name, _: not name.endswith("bias"),
            rate_inside=False,
            fused=self.fast,
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        """On boards that are turned as `batch["turned"]` [B] says, by default drawn now."""
        window, index = self.window, batch["index"].long()
        size = self.workload.model_config.size
        packed = window["planes"][index]
        flat = (packed[..., None] >> self.bits & 1).flatten(1)[:, : size**2 * PLANES]
        planes = flat.reshape(len(index), size**2, PLANES)
        turned = batch.get("turned")
        if turned is None:
            turned = torch.randint(8, index.shape, device=index.device)
        order = self.symmetries[turned]
        planes = planes.gather(1, order[:, : size**2, None].expand_as(planes))
        logits, value = self.model(planes.float().reshape(-1, size, size, PLANES))
        policy = window["policy"][index].gather(1, order)
        cost = F.cross_entropy(logits.float(), policy)
        apart = F.mse_loss(value.float(), window["outcome"][index].float())
        return cost + self.config.value_cost_weight * apart

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        return self.model(inputs["planes"].float())[0].argmax(1).int()
