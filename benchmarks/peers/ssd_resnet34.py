"""SSD once more, in PyTorch's own layers, under the names of MLPerf's files: the judge of `models.ssd`, and its peer in speed.

Loss and selection as `mlperf_jax.detection` states them, on whole batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer
from models.ssd import SSDConfig


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


def layers(model: TorchSSD, config: SSDConfig) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Every layer that holds arrays, and where ours has them."""
    stem, norm = model.model.layer1[:2]
    yield ("backbone", "stem", "conv"), stem
    yield ("backbone", "norm"), norm
    blocks = [block for stage in (*model.model.layer1[4:], *model.model.layer2) for block in stage]
    for (name, _, _), block in zip(config.blocks, blocks, strict=True):
        parts = {"conv1": block.conv1, "norm1": block.bn1, "conv2": block.conv2, "norm2": block.bn2}
        if block.downsample is not None:
            parts |= {"conv_shortcut": block.downsample[0], "norm_shortcut": block.downsample[1]}
        for key, part in parts.items():
            yield ("backbone", "blocks", name, key), part
    for i, stage in enumerate(model.additional_blocks, 1):
        yield ("extras", f"stage{i}", "conv1"), stage[0]
        yield ("extras", f"stage{i}", "conv2"), stage[2]
    for i, (boxes, classes) in enumerate(zip(model.loc, model.conf, strict=True), 1):
        yield ("heads", f"map{i}", "boxes"), boxes
        yield ("heads", f"map{i}", "classes"), classes


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for name in path:
        tree = tree[name]
    return tree


def to_corners(centres: torch.Tensor) -> torch.Tensor:
    middle, half = centres[..., :2], centres[..., 2:] / 2
    return torch.cat([middle - half, middle + half], -1)


def area(corners: torch.Tensor) -> torch.Tensor:
    return (corners[..., 2:] - corners[..., :2]).clamp(min=0).prod(-1)


def iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[..., N, 4] and [..., M, 4] corners to [..., N, M]."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    shared = (
        (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    )
    union = area(a) + area(b) - shared
    return torch.where(union > 0, shared / torch.where(union > 0, union, 1), 0)


def match(
    boxes: torch.Tensor, labels: torch.Tensor, anchors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [B, M, 4] with labels [B, M] to the row and the label of each anchor's, [B, A] both."""
    real = (labels > 0) & (area(boxes) > 0)
    overlaps = torch.where(real[..., None], iou(boxes, to_corners(anchors)), -1)
    most, best = overlaps.max(1)
    rows = torch.where(real, torch.arange(labels.shape[1], device=labels.device), -1)
    none = torch.full_like(best, -1)
    wanted = none.scatter_reduce(1, overlaps.argmax(2), rows, "amax")
    best = torch.where(wanted >= 0, wanted, best)
    return best, torch.where((most > 0.5) | (wanted >= 0), labels.gather(1, best), 0)


def multibox_loss(
    codes: torch.Tensor,
    logits: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    anchors: torch.Tensor,
) -> torch.Tensor:
    """The loss of each image, [B]."""
    rows, targets = match(boxes, labels, anchors)
    matched = targets > 0
    count = matched.sum(1)
    wanted = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
    wanted = torch.where(matched[..., None], wanted, to_corners(anchors))
    middle = ((wanted[..., :2] + wanted[..., 2:]) / 2 - anchors[:, :2]) / anchors[:, 2:] / 0.1
    size = ((wanted[..., 2:] - wanted[..., :2]) / anchors[:, 2:]).log() / 0.2
    located = F.smooth_l1_loss(codes, torch.cat([middle, size], -1), reduction="none").sum(-1)
    located = (located * matched).sum(1)
    entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").reshape(
        targets.shape
    )
    hardest = torch.where(matched, 0, entropy).sort(1, descending=True).values
    mined = torch.arange(hardest.shape[1], device=hardest.device) < 3 * count[:, None]
    classified = (entropy * matched).sum(1) + (hardest * mined).sum(1)
    return torch.where(count > 0, (located + classified) / count.clamp(min=1), 0)


def suppress(corners: torch.Tensor, present: torch.Tensor, threshold: float) -> torch.Tensor:
    """Which boxes [..., k, 4], best first, stay: no better one of them that stays overlaps."""
    overlaps = (iou(corners, corners) >= threshold).triu(1)
    stays = present
    while True:
        now = present & ~(stays[..., :, None] & overlaps).any(-2)
        if torch.equal(now, stays):
            return now
        stays = now


class Peer(peer.Peer):
    # A batch that one accelerator holds, normalised whole, from random weights.
    on_a_chip = ("--config.batch_size=128", "--config.model.bn_span=0", "--config.backbone_weights=")

    def build(self) -> nn.Module:
        self.anchors = torch.tensor(self.workload.anchors.astype(np.float32), device=self.device)
        return TorchSSD(self.workload.model_config)

    def take_over(self, state: Mapping[str, Any]) -> None:
        for path, layer in layers(self.model, self.workload.model_config):
            stats = _at(state["model_state"], path) if isinstance(layer, nn.BatchNorm2d) else None
            peer.copy_layer(layer, _at(state["params"], path), stats)

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        return torch_optimizers.momentum(
            self.model,
            momentum=numbers.momentum,
            weight_decay=numbers.weight_decay,
            decays=torch_optimizers.every,
            rate_inside=False,
            fused=self.fast,
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        codes, logits = self.model(self.images(batch["image"]))
        return multibox_loss(
            codes.float(), logits.float(), batch["boxes"], batch["labels"].long(), self.anchors
        ).mean()

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        numbers, anchors = self.config.detection, self.anchors
        codes, logits = self.model(self.images(inputs["image"]))
        middle = codes[..., :2].float() * 0.1 * anchors[:, 2:] + anchors[:, :2]
        corners = to_corners(torch.cat([middle, (codes[..., 2:].float() * 0.2).exp() * anchors[:, 2:]], -1))
        scores = logits.float().softmax(-1)[..., 1:].transpose(1, 2)  # [B, C - 1, A]
        scores = torch.where(scores > numbers.score, scores, 0)
        scores, rows = scores.topk(min(numbers.candidates, scores.shape[-1]))
        batch, classes, candidates = scores.shape
        chosen = corners.gather(1, rows.flatten(1)[..., None].expand(-1, -1, 4))
        chosen = chosen.reshape(batch, classes, candidates, 4)
        scores = torch.where(suppress(chosen, scores > 0, numbers.iou), scores, 0).flatten(1)
        found = min(numbers.detections, scores.shape[1])
        scores, best = scores.topk(found)
        chosen = chosen.flatten(1, 2).gather(1, best[..., None].expand(-1, -1, 4))
        left, top, right, bottom = chosen.unbind(-1)
        index = inputs["index"][:, None].expand_as(scores)
        label = best // candidates + 1
        columns = torch.stack([index, top, left, bottom, right, scores, label], -1)
        columns[..., 1:] *= (scores > 0)[..., None]
        return F.pad(columns, (0, 0, 0, numbers.detections - found))
