"""Mask R-CNN2Go once more, in PyTorch's own layers: the judge of `models.maskrcnn2go`, and its peer in speed.

The trunk has torchvision's names (features.0 ... of its mobilenet_v2), after Sandler et al., arXiv:1801.04381; what follows it
is written from `models.maskrcnn2go`'s words. Losses and selection are those of Mask R-CNN's peer, and keypoints' beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import maskrcnn
from benchmarks.speed import peer


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
        return self.maps(F.relu(self.enlarged(self.convs(x))))


class TorchMaskRCNN2Go(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, channels = config, config.channels
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
        """Levels [B, C, H, W]; of these and of the pooled one logits [B, A] and codes [B, A, 4]."""
        sums = [lateral(x) for lateral, x in zip(self.lateral, self.backbone(images), strict=True)]
        for i in reversed(range(len(sums) - 1)):
            sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[-2:], mode="nearest")
        levels = [output(x) for output, x in zip(self.output, sums, strict=True)]
        seen = [self.proposal(x) for x in (*levels, F.max_pool2d(levels[-1], 1, 2))]
        logits = [self.objectness(x).permute(0, 2, 3, 1).flatten(1) for x in seen]
        codes = [self.anchor_codes(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in seen]
        return levels, logits, codes

    def boxes(self, x):
        """What boxes hold, [N, C, h, w], to logits [N, classes] and codes [N, classes, 4]."""
        x = self.box_conv(x).permute(0, 2, 3, 1).flatten(1)
        x = F.relu(self.dense(x))
        return self.classes(x), self.codes(x).unflatten(1, (-1, 4))


def layers(model: TorchMaskRCNN2Go) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Every layer that holds arrays, and where ours has them."""
    first, *blocks = model.backbone.features
    yield ("backbone", "stem"), first[0]
    yield ("backbone", "norm"), first[1]
    for i, block in enumerate(blocks):
        here, parts = ("backbone", "blocks", str(i)), list(block.conv)
        if len(parts) == 4:
            yield (*here, "expand"), parts[0][0]
            yield (*here, "norm1"), parts[0][1]
        yield (*here, "depthwise"), parts[-3][0]
        yield (*here, "norm2"), parts[-3][1]
        yield (*here, "project"), parts[-2]
        yield (*here, "norm3"), parts[-1]
    for name in ("lateral", "output"):
        for i, layer in enumerate(getattr(model, name)):
            yield ("pyramid", name, str(i)), layer
    yield ("proposals", "conv", "depthwise"), model.proposal[0]
    yield ("proposals", "conv", "pointwise"), model.proposal[1]
    yield ("proposals", "objectness"), model.objectness
    yield ("proposals", "codes"), model.anchor_codes
    yield ("boxes", "conv", "depthwise"), model.box_conv[0]
    yield ("boxes", "conv", "pointwise"), model.box_conv[1]
    for name in ("dense", "classes", "codes"):
        yield ("boxes", name), getattr(model, name)
    for head in ("masks", "keypoints"):
        window = getattr(model, head)
        for i, conv in enumerate(window.convs):
            yield (head, "convs", str(i), "depthwise"), conv[0]
            yield (head, "convs", str(i), "pointwise"), conv[1]
        yield (head, "enlarged"), window.enlarged
        yield (head, "maps"), window.maps


def load(model: TorchMaskRCNN2Go, params: Mapping[str, Any], stats: Mapping[str, Any]) -> TorchMaskRCNN2Go:
    """The model with our parameters and batch statistics: nested dicts of NumPy arrays, whose keys are texts."""
    for path, layer in layers(model):
        is_norm = isinstance(layer, nn.BatchNorm2d)
        peer.copy_layer(layer, maskrcnn.at(params, path), maskrcnn.at(stats, path) if is_norm else None)
    return model


class Peer(maskrcnn.Peer):
    # A batch that one accelerator holds, from random weights.
    on_a_chip = ("--config.batch_size=32", "--config.backbone_weights=")

    def build(self) -> nn.Module:
        return TorchMaskRCNN2Go(self.workload.model_config)

    def take_over(self, state: Mapping[str, Any]) -> None:
        load(self.model, state["params"], state["model_state"])

    def maps(self, levels, corners):
        """Logits of keypoints in boxes [B, R, 4], [B, R, K, H, W]."""
        window = maskrcnn.roi_align(
            levels, self.workload.model_config.strides[:-1], corners, self.workload.model_config.mask_window
        )
        found = F.interpolate(
            self.model.keypoints(window.flatten(0, 1)).float(),
            scale_factor=2,
            mode="bilinear",
            align_corners=False,
        )
        return found.unflatten(0, corners.shape[:2])

    def loss_in_boxes(self, levels, corners, rows, positive, batch):
        maps = self.maps(levels, corners)
        side = maps.shape[-1]
        own = maskrcnn.rows_of(batch["keypoints"], rows)
        places = own[..., :2] * batch["extent"].flip(-1)[:, None, None]
        first, last = corners[..., None, :2], corners[..., None, 2:]
        at = ((places - first) / (last - first).clamp(min=1e-30) * side).floor()
        at = torch.where(places == last, side - 1, at)
        counts = ((at >= 0) & (at < side)).all(-1) & (own[..., 2] > 0) & positive[..., None]
        at = torch.where(counts[..., None], at, 0).long()
        losses = F.cross_entropy(
            maps.flatten(3).flatten(0, 2), (at[..., 1] * side + at[..., 0]).flatten(), reduction="none"
        )
        return (losses * counts.flatten()).sum() / counts.sum().clamp(min=1)

    def found_in_boxes(self, levels, boxes, extent):
        maps = self.maps(levels, boxes)
        side = maps.shape[-1]
        cell = maps.flatten(3).argmax(-1)
        share = (torch.stack([cell % side, cell // side], -1) + 0.5) / side
        first, last = boxes[..., None, :2], boxes[..., None, 2:]
        places = (first + share * (last - first)) / extent.flip(-1)[:, None, None]
        return places.float().contiguous().flatten(2).view(torch.uint8)
