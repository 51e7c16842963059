"""MobileNet v1 and ShuffleNet v1, v2 written once more, in PyTorch's own layers, named as published files name them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tests.models.torch_resnet import SamePad


def conv(inputs, outputs, size, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class MobileNet(nn.Module):
    """With TensorFlow's padding, and epsilon 1e-3."""

    def __init__(self, stem, blocks, classes, channels_in=3):
        super().__init__()

        def layer(inputs, outputs, size, stride=1, groups=1):
            return nn.Sequential(
                SamePad(size, stride),
                nn.Conv2d(inputs, outputs, size, stride, groups=groups, bias=False),
                nn.BatchNorm2d(outputs, eps=1e-3),
                nn.ReLU6(),
            )

        layers, features = [layer(channels_in, stem, 3, 2)], stem
        for outputs, stride in blocks:
            layers += [layer(features, features, 3, stride, features), layer(features, outputs, 1)]
            features = outputs
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(features, classes)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))

    def tensorflow_names(self):
        """The arrays as TensorFlow's checkpoint has them, with the class that is none before the others."""
        names = ["Conv2d_0"]
        for i in range(1, len(self.layers) // 2 + 1):
            names += [f"Conv2d_{i}_depthwise", f"Conv2d_{i}_pointwise"]
        found = {}
        for name, (_, kernel, norm, _) in zip(names, self.layers, strict=True):
            place = f"MobilenetV1/{name}"
            weights = kernel.weight.detach().numpy()
            if name.endswith("depthwise"):
                found[f"{place}/depthwise_weights"] = weights.transpose(2, 3, 0, 1)
            else:
                found[f"{place}/weights"] = weights.transpose(2, 3, 1, 0)
            for theirs, array in (
                ("gamma", norm.weight),
                ("beta", norm.bias),
                ("moving_mean", norm.running_mean),
                ("moving_variance", norm.running_var),
            ):
                found[f"{place}/BatchNorm/{theirs}"] = array.detach().numpy()
        place, (outputs, inputs) = "MobilenetV1/Logits/Conv2d_1c_1x1", self.head.weight.shape
        weights, biases = np.ones((1, 1, inputs, outputs + 1), np.float32), np.ones(outputs + 1, np.float32)
        weights[0, 0, :, 1:] = self.head.weight.detach().numpy().T
        biases[1:] = self.head.bias.detach().numpy()
        return found | {f"{place}/weights": weights, f"{place}/biases": biases, "global_step": np.zeros(())}


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
        features, units = stem, []
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


def randomise(model, seed):
    """Gives every array a value from which a mistake in it would show, running statistics too."""
    generator = torch.Generator().manual_seed(seed)

    def fill(tensor, mean, deviation):
        tensor.data.copy_(
            mean + deviation * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        )

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fill(module.weight, 0.0, (2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                fill(module.bias, 0.0, 0.5)
        elif isinstance(module, nn.BatchNorm2d):
            fill(module.weight, 1.0, 0.1)
            fill(module.bias, 0.0, 0.1)
            fill(module.running_mean, 0.0, 0.1)
            module.running_var.data.copy_(
                torch.rand(module.running_var.shape, generator=generator, dtype=module.running_var.dtype)
                + 0.5
            )
    return model
