"""`models.maskrcnn2go` once more, in PyTorch: written from the papers, with torchvision's names for the trunk."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def norm(features, config):
    return nn.BatchNorm2d(features, eps=config.norm_epsilon, momentum=1 - config.norm_momentum)


def conv_norm(ins, outs, size, config, stride=1, groups=1):
    conv = nn.Conv2d(ins, outs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, norm(outs, config), nn.ReLU6())


class Residual(nn.Module):
    def __init__(self, ins, outs, expansion, stride, config):
        super().__init__()
        inner = ins * expansion
        layers = [conv_norm(ins, inner, 1, config)] if expansion != 1 else []
        layers.append(conv_norm(inner, inner, 3, config, stride, inner))
        layers += [nn.Conv2d(inner, outs, 1, bias=False), norm(outs, config)]
        self.conv = nn.Sequential(*layers)
        self.adds = stride == 1 and ins == outs

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class Trunk(nn.Module):
    """features.0 ... as torchvision's mobilenet_v2 has them."""

    def __init__(self, config):
        super().__init__()
        layers, ins = [conv_norm(3, config.stem, 3, config, 2)], config.stem
        for expansion, outs, count, stride in config.stages:
            for i in range(count):
                layers.append(Residual(ins, outs, expansion, stride if i == 0 else 1, config))
                ins = outs
        self.features = nn.Sequential(*layers)

    def forward(self, x):
        """The last of each size, from a quarter on."""
        size, kept = x.shape[-1], {}
        for layer in self.features:
            x = layer(x)
            if x.shape[-1] <= -(-size // 4):
                kept[x.shape[-1]] = x
        return [kept[side] for side in sorted(kept, reverse=True)]


def separable(channels, stride=1):
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, 1, groups=channels),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
    )


class Window(nn.Module):
    def __init__(self, maps, config):
        super().__init__()
        channels = config.channels
        self.convs = nn.Sequential(*[separable(channels) for _ in range(config.convs)])
        self.enlarged = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.maps = nn.Conv2d(channels, maps, 1)

    def forward(self, x):
        return self.maps(functional.relu(self.enlarged(self.convs(x))))


class MaskRCNN2Go(nn.Module):
    def __init__(self, config):
        super().__init__()
        channels = config.channels
        self.backbone = Trunk(config)
        self.lateral = nn.ModuleList([nn.Conv2d(n, channels, 1) for n in config.map_channels])
        self.output = nn.ModuleList([nn.Conv2d(channels, channels, 3, 1, 1) for _ in config.map_channels])
        self.proposal = separable(channels)
        self.objectness = nn.Conv2d(channels, config.anchors, 1)
        self.anchor_codes = nn.Conv2d(channels, 4 * config.anchors, 1)
        side = (config.box_window + 1) // 2
        self.box_conv = separable(channels, 2)
        self.dense = nn.Linear(side * side * channels, config.dense)
        self.classes = nn.Linear(config.dense, config.num_classes)
        self.codes = nn.Linear(config.dense, 4 * config.num_classes)
        self.masks = Window(config.num_classes, config)
        self.keypoints = Window(config.num_keypoints, config)

    def forward(self, images):
        """Levels, and of these and the pooled one logits [B, A] and codes [B, A, 4]."""
        sums = [lateral(x) for lateral, x in zip(self.lateral, self.backbone(images), strict=True)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + functional.interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        levels = [output(x) for output, x in zip(self.output, sums, strict=True)]
        seen = [self.proposal(x) for x in (*levels, functional.max_pool2d(levels[-1], 1, 2))]
        logits = [self.objectness(x).permute(0, 2, 3, 1).flatten(1) for x in seen]
        codes = [self.anchor_codes(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in seen]
        return levels, logits, codes

    def boxes(self, x):
        """What boxes hold, [R, C, window, window], to logits [R, classes] and codes [R, classes, 4]."""
        x = self.box_conv(x).permute(0, 2, 3, 1).flatten(1)
        x = functional.relu(self.dense(x))
        return self.classes(x), self.codes(x).unflatten(1, (-1, 4))


def conv_into(layer, kernel, bias=None):
    layer.weight.data = torch.tensor(kernel).permute(3, 2, 0, 1).contiguous()
    if bias is not None:
        layer.bias.data = torch.tensor(bias)


def norm_into(layer, params, stats):
    layer.weight.data, layer.bias.data = torch.tensor(params["scale"]), torch.tensor(params["bias"])
    layer.running_mean.data, layer.running_var.data = torch.tensor(stats["mean"]), torch.tensor(stats["var"])


def load(model, params, stats):
    """Our parameters and batch statistics (NumPy) into the PyTorch model."""

    def separable_into(layers, part):
        conv_into(layers[0], part["depthwise"]["kernel"], part["depthwise"]["bias"])
        conv_into(layers[1], part["pointwise"]["kernel"], part["pointwise"]["bias"])

    def dense_into(layer, part):
        layer.weight.data, layer.bias.data = torch.tensor(part["kernel"].T.copy()), torch.tensor(part["bias"])

    def plain_into(layer, part):
        conv_into(layer, part["kernel"], part["bias"])

    trunk, seen = params["backbone"], stats["backbone"]
    first, *blocks = model.backbone.features
    conv_into(first[0], trunk["stem"]["kernel"])
    norm_into(first[1], trunk["norm"], seen["norm"])
    for i, block in enumerate(blocks):
        part, norms = trunk["blocks"][i], seen["blocks"][i]
        layers = list(block.conv)
        if "expand" in part:
            conv_into(layers[0][0], part["expand"]["kernel"])
            norm_into(layers[0][1], part["norm1"], norms["norm1"])
        conv_into(layers[-3][0], part["depthwise"]["kernel"])
        norm_into(layers[-3][1], part["norm2"], norms["norm2"])
        conv_into(layers[-2], part["project"]["kernel"])
        norm_into(layers[-1], part["norm3"], norms["norm3"])
    for name in ("lateral", "output"):
        for i, layer in enumerate(getattr(model, name)):
            plain_into(layer, params["pyramid"][name][i])
    separable_into(model.proposal, params["proposals"]["conv"])
    plain_into(model.objectness, params["proposals"]["objectness"])
    plain_into(model.anchor_codes, params["proposals"]["codes"])
    separable_into(model.box_conv, params["boxes"]["conv"])
    for name in ("dense", "classes", "codes"):
        dense_into(getattr(model, name), params["boxes"][name])
    for name in ("masks", "keypoints"):
        head, part = getattr(model, name), params[name]
        for i, layers in enumerate(head.convs):
            separable_into(layers, part["convs"][i])
        kernel = part["enlarged"]["kernel"]
        head.enlarged.weight.data = torch.tensor(kernel).permute(2, 3, 0, 1).contiguous()
        head.enlarged.bias.data = torch.tensor(part["enlarged"]["bias"])
        plain_into(head.maps, part["maps"])
    return model
