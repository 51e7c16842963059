"""ResNet v1.5 written once more, in PyTorch's own layers: the judge of `models.resnet`, and its peer in speed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer
from benchmarks.speed.classification import Classification
from models.resnet import ResNetConfig


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


def build(config: ResNetConfig) -> nn.Sequential:
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


def layers(model: nn.Sequential, config: ResNetConfig) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Every layer that holds arrays, and where ours has them."""
    yield ("stem", "conv"), next(m for m in model if isinstance(m, nn.Conv2d))
    yield ("norm",), next(m for m in model if isinstance(m, nn.BatchNorm2d))
    names = [f"stage{s + 1}_block{b + 1}" for s, n in enumerate(config.stages) for b in range(n)]
    for name, block in zip(names, (m for m in model if isinstance(m, Block)), strict=True):
        parts = [m for m in block.branch if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        keys = ["conv1", "norm1", "conv2", "norm2", "conv3", "norm3"]
        if isinstance(block.shortcut, nn.Sequential):
            parts += list(block.shortcut)
            keys += ["conv_shortcut", "norm_shortcut"]
        for key, part in zip(keys, parts, strict=True):
            yield ("blocks", name, key), part
    yield ("head",), model[-1]


def to_tree(model: nn.Sequential, config: ResNetConfig, of: Any = lambda tensor: tensor) -> tuple[dict, dict]:
    """(parameters, running statistics) as our trees; `of` picks what is read, e.g. a parameter's gradient."""

    def array(tensor):
        return of(tensor).detach().numpy().copy()

    params: dict = {}
    stats: dict = {}
    for path, layer in layers(model, config):
        if isinstance(layer, nn.Conv2d):
            values = {"kernel": array(layer.weight).transpose(2, 3, 1, 0)}
        elif isinstance(layer, nn.Linear):
            values = {"kernel": array(layer.weight).T, "bias": array(layer.bias)}
        else:
            values = {"scale": array(layer.weight), "bias": array(layer.bias)}
            running = {"mean": layer.running_mean, "var": layer.running_var}
            _put(stats, path, {name: x.numpy().copy() for name, x in running.items()})
        _put(params, path, values)
    return params, stats


def _put(tree: dict, path: tuple[str, ...], values: dict) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = values


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for name in path:
        tree = tree[name]
    return tree


class Peer(Classification):
    def build(self) -> nn.Module:
        return build(self.workload.model_config)

    def take_over(self, state: Mapping[str, Any]) -> None:
        for path, layer in layers(self.model, self.workload.model_config):
            stats = _at(state["model_state"], path) if isinstance(layer, nn.BatchNorm2d) else None
            peer.copy_layer(layer, _at(state["params"], path), stats)
