"""MiniGo's network in PyTorch, transcribed from mlcommons/training's dual_net.py, channels last in its heads."""

import torch
from torch import nn


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


def copy_into(model, variables):
    """Sets a torch model's parameters and statistics from ours, nested dicts of arrays."""

    def walk(module, tree):
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(module[name] if isinstance(module, nn.ModuleDict) else getattr(module, name), value)
                continue
            array = torch.tensor(value.tolist(), dtype=torch.float64)
            if name == "kernel":
                array = array.permute(3, 2, 0, 1) if array.ndim == 4 else array.T
            names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
            getattr(module, names.get(name, name)).data.copy_(array)

    for tree in variables.values():
        walk(model, tree)
