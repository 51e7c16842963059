"""MobileNet v1 written once more, in PyTorch's own layers: the judge of `models.mobilenet`, and its peer in speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.peers.resnet50 import SamePad
from benchmarks.speed import peer
from benchmarks.speed.classification import Classification


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


class Peer(Classification):
    def build(self) -> nn.Module:
        config = self.workload.model_config
        blocks = [(config.channels(channels), stride) for channels, stride in config.blocks]
        return MobileNet(config.channels(config.stem), blocks, config.num_classes, config.channels_in)

    def take_over(self, state: Mapping[str, Any]) -> None:
        params, stats = state["params"]["trunk"], state["model_state"]["trunk"]
        names = [(params, stats, "stem", "norm")]
        for i in range(1, len(params["blocks"]) + 1):
            block, seen = params["blocks"][f"block{i}"], stats["blocks"][f"block{i}"]
            names += [(block, seen, "depthwise", "norm1"), (block, seen, "pointwise", "norm2")]
        for (block, seen, conv, norm), layer in zip(names, self.model.layers, strict=True):
            peer.copy_layer(layer[1], block[conv])
            peer.copy_layer(layer[2], block[norm], seen[norm])
        peer.copy_layer(self.model.head, state["params"]["head"])
