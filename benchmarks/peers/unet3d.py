"""3D U-Net written once more, in PyTorch's own layers: the judge of `models.unet3d`, and its peer in speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer


def block(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.ReLU(),
    )


class Level(nn.Module):
    """With MLPerf's names, as all of these."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1, self.conv2 = block(inputs, outputs, stride), block(outputs, outputs)

    def forward(self, x):
        return self.conv2(self.conv1(x))


class Up(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.upsample_conv = nn.Sequential(nn.ConvTranspose3d(inputs, outputs, 2, 2))
        self.conv1, self.conv2 = block(2 * outputs, outputs), block(outputs, outputs)

    def forward(self, x, skip):
        return self.conv2(self.conv1(torch.cat([self.upsample_conv(x), skip], 1)))


class TorchUNet3D(nn.Module):
    """Volumes [B, C, D, H, W] to logits [B, K, D, H, W]."""

    def __init__(self, config):
        super().__init__()
        channels = config.channels
        pairs = list(zip(channels, channels[1:], strict=False))
        self.input_block = Level(config.channels_in, channels[0])
        self.downsample = nn.ModuleList(Level(a, b, 2) for a, b in pairs[:-1])
        self.bottleneck = Level(*pairs[-1], 2)
        self.upsample = nn.ModuleList(Up(b, a) for a, b in reversed(pairs))
        self.output = nn.Module()
        self.output.conv = nn.Conv3d(channels[0], config.num_classes, 1)

    def forward(self, x):
        skips = [self.input_block(x)]
        for level in self.downsample:
            skips.append(level(skips[-1]))
        x = self.bottleneck(skips[-1])
        for up in self.upsample:
            x = up(x, skips.pop())
        return self.output.conv(x)


def random_unet(config, seed=0):
    """A model in which every array has values of its own, of the norms too."""
    torch.manual_seed(seed)
    model = TorchUNet3D(config)
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm3d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return model


def levels(config):
    """Their level, and where ours has it."""
    last = len(config.channels) - 1
    yield "input_block", ("first",)
    for i in range(1, last + 1):
        yield "bottleneck" if i == last else f"downsample.{i - 1}", ("down", f"level{i}")
        yield f"upsample.{last - i}", ("up", f"level{i}", "level")


def gaussian(window):
    """The weights of a window's voxels, as MLPerf's reference has them."""
    sides = [torch.signal.windows.gaussian(n, std=0.125 * n, dtype=torch.float64) for n in window]
    product = torch.einsum("i,j,k->ijk", *sides).pow(1 / 3)
    return (product / product.max()).float()


class Peer(peer.Peer):
    # A batch that one accelerator holds.
    on_a_chip = ("--config.batch_size=2",)

    def build(self) -> nn.Module:
        self.weights = gaussian(self.workload.model_config.patch).to(self.device)
        return TorchUNet3D(self.workload.model_config)

    def take_over(self, state: Mapping[str, Any]) -> None:
        params = state["params"]
        for theirs, ours in levels(self.workload.model_config):
            level, found = self.model.get_submodule(theirs), params
            for name in ours:
                found = found[name]
            for i, block in ((1, level.conv1), (2, level.conv2)):
                peer.copy_layer(block[0], found[f"block{i}"]["conv"])
                peer.copy_layer(block[1], found[f"block{i}"]["norm"])
            if ours[0] == "up":
                peer.copy_layer(level.upsample_conv[0], params["up"][ours[1]]["grow"])
        peer.copy_layer(self.model.output.conv, params["head"])

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        if numbers.name == "adam":
            return torch_optimizers.adam(
                self.model, beta1=numbers.beta1, beta2=numbers.beta2, epsilon=numbers.epsilon, fused=self.fast
            )
        return torch_optimizers.momentum(
            self.model,
            momentum=numbers.momentum,
            weight_decay=numbers.weight_decay,
            decays=torch_optimizers.every,
            rate_inside=False,
            nesterov=numbers.nesterov,
            fused=self.fast,
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        logits = self.model(batch["image"].movedim(-1, 1)).float()
        labels = batch["label"].long()
        entropy = F.cross_entropy(logits, labels)
        true = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:]
        found = logits.softmax(1)[:, 1:]
        places = (2, 3, 4)
        both = 2 * (true * found).sum(places) + 1e-6
        return ((1 - both / (true.sum(places) + found.sum(places) + 1e-6)).mean() + entropy) / 2

    def compiled(self) -> tuple[peer.Function, peer.Function]:
        """A loop over windows is no one graph: what is compiled is the network."""
        self.network = self.wrap(self.model)
        return self.wrap(self.loss), self.answer

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        """Windows of every volume, one after the other."""
        window, stride = self.workload.model_config.patch, tuple(self.config.data.stride)
        answers = []
        for volume, size in zip(inputs["image"][..., 0], inputs["size"].tolist(), strict=True):
            total = torch.zeros((self.workload.model_config.num_classes, *volume.shape), device=volume.device)
            counts = [(n - w) // s + 1 for n, w, s in zip(size, window, stride, strict=True)]
            for place in np.ndindex(*counts):
                at = tuple(slice(p * s, p * s + w) for p, s, w in zip(place, stride, window, strict=True))
                total[(slice(None), *at)] += self.network(volume[at][None, None])[0].float() * self.weights
            answers.append(total.argmax(0).to(torch.uint8))
        return torch.stack(answers)
