"""RetinaNet once more, in PyTorch's own layers, under torchvision's names: the judge of `models.retinanet`, and its peer in speed.

Loss and selection as `mlperf_jax.detection` states them, on whole batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.ssd_resnet34 import area, iou, suppress, to_corners
from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer
from models.resnet import bottlenecks
from models.retinanet import RetinaNetConfig


class Block(nn.Module):
    """torchvision's Bottleneck, with groups."""

    def __init__(self, inputs, inner, outputs, stride, groups):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class TorchRetinaNet(nn.Module):
    """Returns codes [B, A, 4] and logits [B, A, C] of all levels, the largest first."""

    def __init__(self, config: RetinaNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        body = nn.Module()
        body.conv1 = nn.Conv2d(3, config.width, 7, 2, 3, bias=False)
        body.bn1 = nn.BatchNorm2d(config.width)
        features = config.width
        for s, count in enumerate(config.stages):
            width, blocks = config.width << s, []
            for b in range(count):
                stride = 2 if s and not b else 1
                blocks.append(Block(features, config.inner * width, 4 * width, stride, config.groups))
                features = 4 * width
            body.add_module(f"layer{s + 1}", nn.Sequential(*blocks))
        fpn, maps = nn.Module(), config.map_channels
        fpn.inner_blocks = nn.ModuleList(nn.Conv2d(n, channels, 1) for n in maps)
        fpn.layer_blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in maps)
        beyond = {f"p{6 + i}": nn.Conv2d(channels, channels, 3, 2, 1) for i in range(config.beyond)}
        fpn.extra_blocks = nn.ModuleDict(beyond)
        self.backbone = nn.Module()
        self.backbone.body, self.backbone.fpn = body, fpn
        self.head = nn.Module()
        for name, last, values in (
            ("classification_head", "cls_logits", config.num_classes),
            ("regression_head", "bbox_reg", 4),
        ):
            head, layers = nn.Module(), []
            for _ in range(config.tower):
                layers += [nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU()]
            head.conv = nn.Sequential(*layers)
            head.add_module(last, nn.Conv2d(channels, config.anchors * values, 3, 1, 1))
            self.head.add_module(name, head)

    def train(self, mode: bool = True) -> TorchRetinaNet:
        super().train(mode)
        if self.config.fixed_norms:
            self.backbone.body.eval()
        return self

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        body, fpn = self.backbone.body, self.backbone.fpn
        x = F.max_pool2d(F.relu(body.bn1(body.conv1(images))), 3, 2, 1)
        maps = []
        for s in range(len(self.config.stages)):
            x = getattr(body, f"layer{s + 1}")(x)
            maps.append(x)
        inner = None
        levels: list[torch.Tensor] = []
        for x, lateral, output in reversed(
            list(zip(maps[1:], fpn.inner_blocks, fpn.layer_blocks, strict=True))
        ):
            x = lateral(x)
            inner = x if inner is None else x + F.interpolate(inner, size=x.shape[-2:], mode="nearest")
            levels.insert(0, output(inner))
        for i, conv in enumerate(fpn.extra_blocks.values()):
            levels.append(conv(F.relu(levels[-1]) if i else levels[-1]))
        found = []
        heads = ((self.head.regression_head, "bbox_reg"), (self.head.classification_head, "cls_logits"))
        for head, last in heads:
            parts = []
            for x in levels:
                x = getattr(head, last)(head.conv(x))
                batch, channels, height, width = x.shape
                x = x.view(batch, self.config.anchors, -1, height, width).permute(0, 3, 4, 1, 2)
                parts.append(x.reshape(batch, height * width * self.config.anchors, -1))
            found.append(torch.cat(parts, 1))
        return found[0], found[1]


def layers(model: TorchRetinaNet, config: RetinaNetConfig) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Every layer that holds arrays, and where ours has them."""
    body, fpn, head = model.backbone.body, model.backbone.fpn, model.head
    yield ("backbone", "stem", "conv"), body.conv1
    yield ("backbone", "norm"), body.bn1
    blocks = [block for s in range(len(config.stages)) for block in getattr(body, f"layer{s + 1}")]
    for (name, _, _), block in zip(bottlenecks(config.trunk), blocks, strict=True):
        parts = {f"conv{i}": getattr(block, f"conv{i}") for i in (1, 2, 3)}
        parts |= {f"norm{i}": getattr(block, f"bn{i}") for i in (1, 2, 3)}
        if block.downsample is not None:
            parts |= {"conv_shortcut": block.downsample[0], "norm_shortcut": block.downsample[1]}
        for key, part in parts.items():
            yield ("backbone", "blocks", name, key), part
    for name, some in (
        ("lateral", fpn.inner_blocks),
        ("output", fpn.layer_blocks),
        ("beyond", fpn.extra_blocks.values()),
    ):
        for i, layer in enumerate(some):
            yield ("pyramid", name, str(i)), layer
    for name, part, last in (
        ("boxes", head.regression_head, "bbox_reg"),
        ("classes", head.classification_head, "cls_logits"),
    ):
        for i, layer in enumerate(part.conv[::2]):
            yield (name, "tower", str(i)), layer
        yield (name, "last"), getattr(part, last)


def random_retinanet(config: RetinaNetConfig, seed: int = 0) -> TorchRetinaNet:
    """A model in which every array has values of its own, running statistics too."""
    torch.manual_seed(seed)
    model = TorchRetinaNet(config).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.float().double()  # what a file of float32 holds


def match(
    boxes: torch.Tensor, labels: torch.Tensor, anchors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [B, M, 4] with labels [B, M] to the row and the label of each anchor's, [B, A]; -1 for neither."""
    real = (labels > 0) & (area(boxes) > 0)
    overlaps = torch.where(real[..., None], iou(boxes, to_corners(anchors)), -1)
    most, best = overlaps.max(1)
    highest = overlaps.amax(2, keepdim=True)
    wanted = ((overlaps == highest) & (highest > 0)).any(1)
    unmatched = torch.where(most >= 0.4, -1, 0)
    return best, torch.where((most >= 0.5) | wanted, labels.gather(1, best), unmatched)


def retinanet_loss(
    codes: torch.Tensor,
    logits: torch.Tensor,
    boxes: torch.Tensor,
    labels: torch.Tensor,
    anchors: torch.Tensor,
) -> torch.Tensor:
    """The loss of each image, [B]; boxes and anchors in pixels."""
    rows, targets = match(boxes, labels, anchors)
    matched = targets > 0
    wanted = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
    wanted = torch.where(matched[..., None], wanted, to_corners(anchors))
    middle = ((wanted[..., :2] + wanted[..., 2:]) / 2 - anchors[:, :2]) / anchors[:, 2:]
    size = ((wanted[..., 2:] - wanted[..., :2]) / anchors[:, 2:]).log()
    located = F.l1_loss(codes, torch.cat([middle, size], -1), reduction="none").sum(-1)
    there = F.one_hot(targets.clamp(min=0), logits.shape[-1] + 1)[..., 1:].to(logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(logits, there, reduction="none")
    p = logits.sigmoid()
    missed = 1 - (p * there + (1 - p) * (1 - there))
    focal = (0.25 * there + 0.75 * (1 - there)) * missed**2 * entropy
    classified = (focal.sum(-1) * (targets >= 0)).sum(1)
    return ((located * matched).sum(1) + classified) / matched.sum(1).clamp(min=1)


class Peer(peer.Peer):
    # A batch that one accelerator holds, from random weights.
    on_a_chip = ("--config.batch_size=16", "--config.backbone_weights=")

    def build(self) -> nn.Module:
        levels = [torch.from_numpy(level) for level in self.workload.anchors]
        self.sizes = [len(level) for level in levels]
        self.anchors = torch.cat(levels).to(self.device)
        return TorchRetinaNet(self.workload.model_config)

    def take_over(self, state: Mapping[str, Any]) -> None:
        params = [state["params"], state.get("frozen", {})]
        for path, layer in layers(self.model, self.workload.model_config):
            stats = _at(state["model_state"], path) if isinstance(layer, nn.BatchNorm2d) else None
            found = {name: array for tree in params for name, array in _at(tree, path).items()}
            peer.copy_layer(layer, found, stats)
            for name, parameter in layer.named_parameters():
                ours = name if isinstance(layer, nn.BatchNorm2d) else {"weight": "kernel"}.get(name, name)
                parameter.requires_grad_(not self.workload.is_frozen((*path, ours)))

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        return torch_optimizers.adamw(
            self.model,
            beta1=numbers.beta1,
            beta2=numbers.beta2,
            epsilon=numbers.epsilon,
            weight_decay=numbers.weight_decay,
            fused=self.fast,
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        codes, logits = self.model(self.images(batch["image"]))
        boxes = batch["boxes"] * self.workload.model_config.image_size
        return retinanet_loss(
            codes.float(), logits.float(), boxes, batch["labels"].long(), self.anchors
        ).mean()

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        numbers, size = self.config.detection, self.workload.model_config.image_size
        codes, logits = (x.float() for x in self.model(self.images(inputs["image"])))
        parts = zip(*(x.split(self.sizes, -2) for x in (codes, logits, self.anchors)), strict=True)
        corners, scores, labels = (
            torch.cat(part, 1) for part in zip(*(self._candidates(*part) for part in parts), strict=True)
        )
        scores, order = scores.sort(1, descending=True)
        labels = labels.gather(1, order)
        corners = corners.gather(1, order[..., None].expand(-1, -1, 4)).clamp(0, size)
        # Apart by more than an image, boxes of different classes do not overlap.
        apart = corners + (2 * size * labels)[..., None]
        threshold = math.nextafter(numbers.iou, 1)
        scores = torch.where(suppress(apart, scores > 0, threshold), scores, 0)
        scores, best = scores.topk(min(numbers.detections, scores.shape[1]))
        labels = labels.gather(1, best)
        corners = corners.gather(1, best[..., None].expand(-1, -1, 4)) / size
        left, top, right, bottom = corners.unbind(-1)
        index = inputs["index"][:, None].expand_as(scores)
        columns = torch.stack([index, top, left, bottom, right, scores, labels], -1)
        columns[..., 1:] *= (scores > 0)[..., None]
        return F.pad(columns, (0, 0, 0, numbers.detections - scores.shape[1]))

    def _candidates(
        self, codes: torch.Tensor, logits: torch.Tensor, anchors: torch.Tensor
    ) -> Sequence[torch.Tensor]:
        """The best of a level: corners [B, k, 4] in pixels, scores [B, k], 0 where there are fewer, labels [B, k]."""
        numbers, classes = self.config.detection, logits.shape[-1]
        scores = logits.sigmoid().flatten(1)
        scores, pairs = scores.topk(min(numbers.candidates, scores.shape[1]))
        scores = torch.where(scores > numbers.score, scores, 0)
        rows = pairs // classes
        codes, anchors = codes.gather(1, rows[..., None].expand(-1, -1, 4)), anchors[rows]
        middle = codes[..., :2] * anchors[..., 2:] + anchors[..., :2]
        extent = codes[..., 2:].clamp(max=math.log(1000 / 16)).exp() * anchors[..., 2:]
        return to_corners(torch.cat([middle, extent], -1)), scores, pairs % classes + 1


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """The layer there, {} where the tree has none: what is frozen and what is not are in trees of their own."""
    for name in path:
        tree = tree.get(name, {})
    return tree
