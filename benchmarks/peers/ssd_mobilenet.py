"""SSD-MobileNet v1 once more, in PyTorch's own layers: the judge of `models.ssd_mobilenet`, and its peer in speed.

Loss and picking as `mlperf_jax.detection.mined_sigmoid` and `greedy` state them, on whole batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.resnet50 import SamePad
from benchmarks.peers.ssd_resnet34 import area, iou, to_corners
from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer


def _layer(inputs, outputs, size, stride=1, groups=1):
    return nn.Sequential(
        SamePad(size, stride),
        nn.Conv2d(inputs, outputs, size, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3),
        nn.ReLU6(),
    )


class TorchSSDMobileNet(nn.Module):
    """Returns codes [B, A, 4] and logits [B, A, C]."""

    def __init__(self, config):
        super().__init__()
        self.classes = config.num_classes
        self.taken = [2 * block for block in config.taken_after]
        layers, features = [_layer(3, config.stem, 3, 2)], config.stem
        for outputs, stride in config.blocks:
            layers += [_layer(features, features, 3, stride, features), _layer(features, outputs, 1)]
            features = outputs
        self.trunk = nn.ModuleList(layers)
        extras = []
        for inner, outer in zip(config.extra_inner, config.extra_outer, strict=True):
            extras += [_layer(features, inner, 1), _layer(inner, outer, 3, 2)]
            features = outer
        self.extras = nn.ModuleList(extras)
        channels = [config.blocks[block - 1][0] for block in config.taken_after] + list(config.extra_outer)

        def heads(values):
            return nn.ModuleList(
                nn.Conv2d(c, values * a, 1) for c, a in zip(channels, config.anchors, strict=True)
            )

        self.boxes, self.logits = heads(4), heads(self.classes)

    def forward(self, x):
        maps = []
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            if i in self.taken:
                maps.append(x)
        for i, layer in enumerate(self.extras):
            x = layer(x)
            if i % 2:
                maps.append(x)
        found = []
        for heads, values in ((self.boxes, 4), (self.logits, self.classes)):
            parts = [
                head(x).permute(0, 2, 3, 1).reshape(len(x), -1, values)
                for head, x in zip(heads, maps, strict=True)
            ]
            found.append(torch.cat(parts, 1))
        return found


def layers(model: TorchSSDMobileNet) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Every layer that holds arrays, and where ours has them."""

    def pair(place: tuple[str, ...], conv: str, norm: str, layer: Any) -> Iterator:
        yield (*place, conv), layer[1]
        yield (*place, norm), layer[2]

    yield from pair(("backbone",), "stem", "norm", model.trunk[0])
    for i in range(1, len(model.trunk), 2):
        place = ("backbone", "blocks", f"block{(i + 1) // 2}")
        yield from pair(place, "depthwise", "norm1", model.trunk[i])
        yield from pair(place, "pointwise", "norm2", model.trunk[i + 1])
    for i in range(0, len(model.extras), 2):
        for n in (1, 2):
            yield from pair(("extras", f"stage{i // 2 + 1}"), f"conv{n}", f"norm{n}", model.extras[i + n - 1])
    for i, (boxes, classes) in enumerate(zip(model.boxes, model.logits, strict=True), 1):
        yield ("heads", f"map{i}", "boxes"), boxes
        yield ("heads", f"map{i}", "classes"), classes


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    for name in path:
        tree = tree[name]
    return tree


def match(
    boxes: torch.Tensor, labels: torch.Tensor, anchors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [B, M, 4] with labels [B, M] to the row and the label of each anchor's, [B, A] both."""
    real = (labels > 0) & (area(boxes) > 0)
    overlaps = torch.where(real[..., None], iou(boxes, to_corners(anchors)), -1)
    most, best = overlaps.max(1)
    none = labels.shape[1]
    rows = torch.where(real, torch.arange(none, device=labels.device), none)
    wanted = torch.full_like(best, none).scatter_reduce(1, overlaps.argmax(2), rows, "amin")
    best = torch.where(wanted < none, wanted, best)
    return best, torch.where((most >= 0.5) | (wanted < none), labels.gather(1, best), 0)


def decode(codes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    middle = codes[..., :2] * 0.1 * anchors[:, 2:] + anchors[:, :2]
    return to_corners(torch.cat([middle, (codes[..., 2:] * 0.2).exp() * anchors[:, 2:]], -1))


def mined(
    losses: torch.Tensor, corners: torch.Tensor, matched: torch.Tensor, threshold: float
) -> torch.Tensor:
    """The anchors [B, A] that count."""
    order = torch.sort(losses, stable=True, dim=1, descending=True).indices
    stays = torch.ones_like(matched)
    if threshold < 1:
        sorted_boxes = corners.gather(1, order[..., None].expand(-1, -1, 4))
        dominates = (iou(sorted_boxes, sorted_boxes) > threshold).triu(1)
        while True:
            now = ~(stays[..., :, None] & dominates).any(-2)
            if torch.equal(now, stays):
                break
            stays = now
    positive = stays & matched.gather(1, order)
    negative = stays & ~matched.gather(1, order)
    counts = positive | (negative & (negative.cumsum(1) <= 3 * positive.sum(1, keepdim=True)))
    return torch.zeros_like(matched).scatter(1, order, counts)


def mined_loss(
    codes: torch.Tensor,
    logits: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    anchors: torch.Tensor,
    threshold: float,
) -> torch.Tensor:
    """The loss of a batch, []."""
    rows, targets = match(boxes, labels, anchors)
    matched = targets > 0
    wanted = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
    wanted = torch.where(matched[..., None], wanted, to_corners(anchors))
    middle = ((wanted[..., :2] + wanted[..., 2:]) / 2 - anchors[:, :2]) / anchors[:, 2:] / 0.1
    size = ((wanted[..., 2:] - wanted[..., :2]) / anchors[:, 2:]).log() / 0.2
    located = F.smooth_l1_loss(codes, torch.cat([middle, size], -1), reduction="none").sum(-1) * matched
    truth = F.one_hot(targets, logits.shape[-1]).to(logits.dtype)
    classified = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(-1)
    counts = mined(classified.detach(), decode(codes.detach(), anchors), matched, threshold)
    return ((located + classified) * counts).sum() / matched.sum().clamp(min=1)


def pick(corners: torch.Tensor, scores: torch.Tensor, numbers: Any) -> torch.Tensor:
    """Corners [B, A, 4] and scores [B, A, C] to rows [B, K, 6]: corners, score, label from 1."""
    batch, anchors, _ = scores.shape
    most, each = numbers.detections, torch.arange(batch, device=scores.device)
    left = torch.where(scores > numbers.score, scores, 0).transpose(1, 2).contiguous()
    best = left.amax(2)
    inside = area(corners.clamp(0, 1)) > 0
    rows = torch.zeros(batch, most + 1, 6, dtype=scores.dtype, device=scores.device)
    count = torch.zeros(batch, dtype=torch.long, device=scores.device)
    while ((count < most) & (best.amax(1) > 0)).any():
        label = best.argmax(1)
        row = left[each, label]
        score, anchor = row.max(1)
        here = corners[each, anchor]
        row = torch.where(iou(here[:, None], corners)[:, 0] > numbers.iou, 0, row)
        row[each, anchor] = 0
        left[each, label], best[each, label] = row, row.amax(1)
        counts = inside[each, anchor] & (score > 0) & (count < most)
        picked = torch.cat([here.clamp(0, 1), score[:, None], label[:, None] + 1.0], 1)
        rows[each, torch.where(counts, count, most)] = picked.to(rows.dtype)
        count += counts
    return rows[:, :most]


class Peer(peer.Peer):
    # A batch that one accelerator holds, normalised whole, from random weights.
    on_a_chip = ("--config.batch_size=128", "--config.model.bn_span=0", "--config.backbone_weights=")

    def build(self) -> nn.Module:
        self.anchors = torch.tensor(self.workload.anchors.astype(np.float32), device=self.device)
        self.category_ids = torch.tensor(self.workload.dataset.category_ids, device=self.device)
        model = TorchSSDMobileNet(self.workload.model_config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1 - self.config.model.bn_momentum
        return model

    def take_over(self, state: Mapping[str, Any]) -> None:
        for path, layer in layers(self.model):
            stats = _at(state["model_state"], path) if isinstance(layer, nn.BatchNorm2d) else None
            peer.copy_layer(layer, _at(state["params"], path), stats)

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        return torch_optimizers.rmsprop(
            self.model,
            decay=numbers.decay,
            momentum=numbers.momentum,
            epsilon=numbers.epsilon,
            weight_decay=numbers.weight_decay,
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        codes, logits = self.model(self.images(batch["image"]))
        labels = self.category_ids[batch["labels"].long()]
        return mined_loss(
            codes.float(), logits.float(), batch["boxes"], labels, self.anchors, self.config.mining_iou
        )

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        codes, logits = self.model(self.images(inputs["image"]))
        scores = logits.float()[..., self.category_ids[1:]].sigmoid()
        rows = pick(decode(codes.float(), self.anchors), scores, self.config.detection)
        left, top, right, bottom, score, label = rows.unbind(-1)
        index = inputs["index"][:, None].expand_as(score)
        return torch.stack([index, top, left, bottom, right, score, label], -1)
