"""ResNet v1.5 written once more, in PyTorch's own layers: the judge of `models.resnet`."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class SamePad(nn.Module):
    """Pads an image so that windows of `size` at `stride` give ceil(n / stride) outputs."""

    def __init__(self, size, stride, value=0.0):
        super().__init__()
        self.size, self.stride, self.value = size, stride, value

    def forward(self, x):
        pads = []
        for n in (x.shape[3], x.shape[2]):
            total = max((-(-n // self.stride) - 1) * self.stride + self.size - n, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads, value=self.value)


def norm(features):
    return nn.BatchNorm2d(features, eps=1e-5, momentum=0.1)


class Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), norm(width), nn.ReLU(),
            SamePad(3, stride), nn.Conv2d(width, width, 3, stride, bias=False), norm(width), nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False), norm(4 * width),
        )  # fmt: skip
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), norm(4 * width)
            )

    def forward(self, x):
        return F.relu(self.branch(x) + self.shortcut(x))


def build(config) -> nn.Module:
    if config.stem == "imagenet":
        layers = [
            nn.Conv2d(config.channels_in, config.width, 7, 2, 3, bias=False),
            norm(config.width),
            nn.ReLU(),
        ]
        layers += [SamePad(3, 2, -np.inf), nn.MaxPool2d(3, 2)]
    else:
        layers = [SamePad(3, 2), nn.Conv2d(config.channels_in, config.width, 3, 2, bias=False)]
        layers += [norm(config.width), nn.ReLU()]
    inputs = config.width
    for stage, blocks in enumerate(config.stages):
        width = config.width * 2**stage
        for block in range(blocks):
            layers.append(Block(inputs, width, 2 if stage and not block else 1))
            inputs = 4 * width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, config.num_classes)]
    return nn.Sequential(*layers)


def randomise(model: nn.Module, seed: int) -> None:
    """Gives every array a value from which a mistake in it would show, running statistics too."""
    rng = np.random.default_rng(seed)

    def fill(tensor, values):
        tensor.data.copy_(torch.as_tensor(values))

    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            fan_in = m.weight[0].numel()
            fill(m.weight, rng.normal(0, np.sqrt(2 / fan_in), m.weight.shape))
        elif isinstance(m, nn.BatchNorm2d):
            fill(m.weight, rng.uniform(0.5, 1.0, m.weight.shape))
            fill(m.bias, rng.normal(0, 0.1, m.bias.shape))
            fill(m.running_mean, rng.normal(0, 0.1, m.bias.shape))
            fill(m.running_var, rng.uniform(0.5, 2, m.bias.shape))
        elif isinstance(m, nn.Linear):
            fill(m.weight, rng.normal(0, 0.1, m.weight.shape))
            fill(m.bias, rng.normal(0, 0.1, m.bias.shape))


def to_tree(model: nn.Module, config, of=lambda tensor: tensor) -> tuple[dict, dict]:
    """(parameters, running statistics) as our trees; `of` picks what is read, e.g. a parameter's gradient."""

    def array(tensor):
        return of(tensor).detach().numpy().copy()

    def conv(m):
        return {"kernel": array(m.weight).transpose(2, 3, 1, 0)}

    def bn(m):
        return {"scale": array(m.weight), "bias": array(m.bias)}, {
            "mean": m.running_mean.numpy().copy(),
            "var": m.running_var.numpy().copy(),
        }

    stem = next(m for m in model if isinstance(m, nn.Conv2d))
    first = next(m for m in model if isinstance(m, nn.BatchNorm2d))
    linear = model[-1]
    params = {"stem": {"conv": conv(stem)}, "blocks": {}}
    stats = {"blocks": {}}
    params["norm"], stats["norm"] = bn(first)
    params["head"] = {"kernel": array(linear.weight).T, "bias": array(linear.bias)}
    names = [f"stage{s + 1}_block{b + 1}" for s, n in enumerate(config.stages) for b in range(n)]
    for name, block in zip(names, (m for m in model if isinstance(m, Block)), strict=True):
        p, s = params["blocks"].setdefault(name, {}), stats["blocks"].setdefault(name, {})
        parts = [m for m in block.branch if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        keys = ["conv1", "norm1", "conv2", "norm2", "conv3", "norm3"]
        if isinstance(block.shortcut, nn.Sequential):
            parts += list(block.shortcut)
            keys += ["conv_shortcut", "norm_shortcut"]
        for key, part in zip(keys, parts, strict=True):
            if isinstance(part, nn.Conv2d):
                p[key] = conv(part)
            else:
                p[key], s[key] = bn(part)
    return params, stats
