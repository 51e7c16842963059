"""SSD once more, in PyTorch's own layers, under the names of MLPerf's files: the judge of `models.ssd`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """torchvision's BasicBlock."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class TorchSSD(nn.Module):
    """Returns codes [B, A, 4] and logits [B, A, C]."""

    def __init__(self, config):
        super().__init__()
        self.classes = config.num_classes
        stages, features = [], config.width
        for s, (count, stride) in enumerate(zip(config.stages, config.strides, strict=True)):
            width = config.width << s
            blocks = [
                Block(features if b == 0 else width, width, stride if b == 0 else 1) for b in range(count)
            ]
            stages.append(nn.Sequential(*blocks))
            features = width
        stem = [nn.Conv2d(3, config.width, 7, 2, 3, bias=False), nn.BatchNorm2d(config.width), nn.ReLU()]
        self.model = nn.Module()
        self.model.layer1 = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *stages[:2])
        self.model.layer2 = nn.Sequential(*stages[2:])
        channels, blocks = [features], []
        for inner, outer, stride, padding in zip(
            config.extra_inner, config.extra_outer, config.extra_strides, config.extra_padding, strict=True
        ):
            block = [nn.Conv2d(channels[-1], inner, 1), nn.ReLU()]
            block += [nn.Conv2d(inner, outer, 3, stride, padding), nn.ReLU()]
            blocks.append(nn.Sequential(*block))
            channels.append(outer)
        self.additional_blocks = nn.ModuleList(blocks)

        def heads(values):
            return nn.ModuleList(
                nn.Conv2d(c, values * a, 3, config.head_stride, 1)
                for c, a in zip(channels, config.anchors, strict=True)
            )

        self.loc, self.conf = heads(4), heads(self.classes)

    def forward(self, images):
        x = self.model.layer2(self.model.layer1(images))
        maps = [x]
        for block in self.additional_blocks:
            maps.append(block(maps[-1]))
        found = []
        for heads, values in ((self.loc, 4), (self.conf, self.classes)):
            parts = [head(x).reshape(len(x), values, -1) for head, x in zip(heads, maps, strict=True)]
            found.append(torch.cat(parts, 2).transpose(1, 2))
        return found


def random_ssd(config, seed=0):
    """A model in which every array has values of its own, running statistics too."""
    torch.manual_seed(seed)
    model = TorchSSD(config).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.float().double()  # what a file of float32 holds
