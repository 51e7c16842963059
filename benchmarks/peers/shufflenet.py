"""ShuffleNet v1 and v2 written once more, in PyTorch's own layers: the judge of `models.shufflenet`, and its peer in speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer
from benchmarks.speed.classification import Classification


def conv(inputs, outputs, size, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


def shuffle(x, groups):
    """Torchvision's: `groups` parts, dealt out by turns."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class UnitV2(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        half = outputs // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                conv(inputs, inputs, 3, stride, inputs), nn.BatchNorm2d(inputs),
                conv(inputs, half, 1), nn.BatchNorm2d(half), nn.ReLU(),
            )  # fmt: skip
        self.branch2 = nn.Sequential(
            conv(inputs if stride > 1 else half, half, 1), nn.BatchNorm2d(half), nn.ReLU(),
            conv(half, half, 3, stride, half), nn.BatchNorm2d(half),
            conv(half, half, 1), nn.BatchNorm2d(half), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x):
        left, right = x.chunk(2, 1) if len(self.branch1) == 0 else (self.branch1(x), x)
        return shuffle(torch.cat([left, self.branch2(right)], 1), 2)


class UnitV1(nn.Module):
    def __init__(self, inputs, outputs, stride, groups, first):
        super().__init__()
        middle, self.groups, self.stride = outputs // 4, groups, stride
        into = outputs - inputs if stride > 1 else outputs
        self.branch_main_1 = nn.Sequential(
            conv(inputs, middle, 1, 1, 1 if first else groups), nn.BatchNorm2d(middle), nn.ReLU(),
            conv(middle, middle, 3, stride, middle), nn.BatchNorm2d(middle),
        )  # fmt: skip
        self.branch_main_2 = nn.Sequential(conv(middle, into, 1, 1, groups), nn.BatchNorm2d(into))

    def forward(self, x):
        y = self.branch_main_1(x)
        # The authors' order: channel i G + j goes to place j n + i.
        batch, channels, height, width = y.shape
        y = y.reshape(batch, channels // self.groups, self.groups, height, width).permute(0, 2, 1, 3, 4)
        y = self.branch_main_2(y.reshape(batch, channels, height, width))
        if self.stride > 1:
            return torch.cat([F.avg_pool2d(x, 3, 2, 1), F.relu(y)], 1)
        return F.relu(x + y)


class ShuffleNet(nn.Module):
    """v2 with torchvision's names, v1 with the authors' (and a bias in the classifier, which theirs has not)."""

    def __init__(self, version, widths, repeats, groups, stem, last, classes, *, pool, channels_in=3):
        super().__init__()
        self.version, self.pool = version, pool

        def layer(inputs, outputs, size, stride=1):
            return nn.Sequential(conv(inputs, outputs, size, stride), nn.BatchNorm2d(outputs), nn.ReLU())

        first = layer(channels_in, stem, 3, 2)
        features = stem
        units: list[nn.Module] = []
        for stage, (width, count) in enumerate(zip(widths, repeats, strict=True), 2):
            made = []
            for unit in range(count):
                stride = 1 if unit else 2
                if version == 2:
                    made.append(UnitV2(features, width, stride))
                else:
                    made.append(UnitV1(features, width, stride, groups, first=not units and not unit))
                features = width
            units += made
            if version == 2:
                setattr(self, f"stage{stage}", nn.Sequential(*made))
        if version == 2:
            self.conv1, self.conv5, self.fc = first, layer(features, last, 1), nn.Linear(last, classes)
        else:
            self.first_conv, self.features = first, nn.Sequential(*units)
            self.classifier = nn.Sequential(nn.Linear(features, classes, bias=False))
        self.stages = [f"stage{stage}" for stage in range(2, 2 + len(widths))]

    def forward(self, x):
        x = self.conv1(x) if self.version == 2 else self.first_conv(x)
        x = F.max_pool2d(x, 3, 2, 1) if self.pool else x
        if self.version == 1:
            return self.classifier(self.features(x).mean((2, 3)))
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self.fc(self.conv5(x).mean((2, 3)))


class Peer(Classification):
    def build(self) -> nn.Module:
        config = self.workload.model_config
        return ShuffleNet(
            config.version,
            config.widths,
            config.repeats,
            config.groups,
            config.stem_width,
            config.last,
            config.num_classes,
            pool=config.stem == "imagenet",
            channels_in=config.channels_in,
        )

    def take_over(self, state: Mapping[str, Any]) -> None:
        params, stats = state["params"], state["model_state"]
        for name, layers in self.places().items():
            for part, (conv, norm) in layers.items():
                ours, seen = (tree["units"][name] if name else tree for tree in (params, stats))
                peer.copy_layer(conv, ours[part]["conv"])
                peer.copy_layer(norm, ours[part]["norm"], seen[part]["norm"])
        peer.copy_layer(self.model.fc, params["head"])

    def places(self) -> dict[str, dict[str, tuple[nn.Module, nn.Module]]]:
        """Convolutions and norms by unit, "" for those outside of units, and by their name in it; of version 2."""
        found = {"": {"stem": self.model.conv1[:2], "last": self.model.conv5[:2]}}
        for stage in self.model.stages:
            for n, unit in enumerate(getattr(self.model, stage), 1):
                side, main = list(unit.branch1), list(unit.branch2)
                layers = {"pointwise1": main[0:2], "depthwise": main[3:5], "pointwise2": main[5:7]}
                if side:
                    layers |= {"side_depthwise": side[0:2], "side_pointwise": side[2:4]}
                found[f"{stage}_unit{n}"] = layers
        return {name: {part: tuple(pair) for part, pair in parts.items()} for name, parts in found.items()}
