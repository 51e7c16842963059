"""Mask R-CNN once more, in PyTorch's own layers, under the reference's names: the judge of `models.maskrcnn`, and its peer in speed.

After mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/modeling. Losses and selection as
`mlperf_jax.detection.proposals` and `regions` state them, on whole batches; examples are drawn by PyTorch's numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.ssd_resnet34 import area, iou, suppress, to_corners
from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer
from mlperf_jax.detection.proposals import proposal_anchors
from models.maskrcnn import MaskRCNNConfig
from models.resnet import bottlenecks


class FixedNorm(nn.Module):
    def __init__(self, features, epsilon):
        super().__init__()
        self.epsilon = epsilon
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.epsilon).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + bias[:, None, None]


def _norm(features, config):
    if config.fixed_norms:
        return FixedNorm(features, config.norm_epsilon)
    return nn.BatchNorm2d(features, eps=config.norm_epsilon)


class Block(nn.Module):
    def __init__(self, inputs, inner, outputs, stride, config):
        super().__init__()
        first, second = (stride, 1) if config.strided == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(inputs, inner, 1, first, bias=False)
        self.bn1 = _norm(inner, config)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, 1, bias=False)
        self.bn2 = _norm(inner, config)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = _norm(outputs, config)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), _norm(outputs, config)
            )

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + shortcut)


def _named(**modules):
    holder = nn.Module()
    for name, module in modules.items():
        holder.add_module(name, module)
    return holder


class TorchMaskRCNN(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, channels, classes = config, config.channels, config.num_classes
        self.body = {
            "stem": _named(
                conv1=nn.Conv2d(3, config.width, 7, 2, 3, bias=False), bn1=_norm(config.width, config)
            )
        }
        features = config.width
        for s, count in enumerate(config.stages):
            blocks = []
            for b in range(count):
                width = config.width << s
                blocks.append(Block(features, width, 4 * width, 2 if s and not b else 1, config))
                features = 4 * width
            self.body[f"layer{s + 1}"] = nn.Sequential(*blocks)
        self.fpn = OrderedDict()
        for i, n in enumerate(config.map_channels, 1):
            self.fpn[f"fpn_inner{i}"] = nn.Conv2d(n, channels, 1)
            self.fpn[f"fpn_layer{i}"] = nn.Conv2d(channels, channels, 3, 1, 1)
        self.backbone = _named(body=_named(**self.body), fpn=_named(**self.fpn))
        self.head = {
            "conv": nn.Conv2d(channels, channels, 3, 1, 1),
            "cls_logits": nn.Conv2d(channels, config.anchors, 1),
            "bbox_pred": nn.Conv2d(channels, 4 * config.anchors, 1),
        }
        self.rpn = _named(head=_named(**self.head))
        box = _named(
            feature_extractor=_named(
                fc6=nn.Linear(channels * config.box_window**2, config.dense),
                fc7=nn.Linear(config.dense, config.dense),
            ),
            predictor=_named(
                cls_score=nn.Linear(config.dense, classes), bbox_pred=nn.Linear(config.dense, 4 * classes)
            ),
        )
        self.fcn, features = [], channels
        for n in config.mask_channels:
            self.fcn.append(nn.Conv2d(features, n, 3, 1, 1))
            features = n
        mask = _named(
            feature_extractor=_named(**{f"mask_fcn{i}": conv for i, conv in enumerate(self.fcn, 1)}),
            predictor=_named(
                conv5_mask=nn.ConvTranspose2d(features, features, 2, 2),
                mask_fcn_logits=nn.Conv2d(features, classes, 1),
            ),
        )
        self.roi_heads = _named(box=box, mask=mask)

    def forward(self, images):
        """Levels [B, C, H, W]; of these and of the pooled one logits [B, A] and codes [B, A, 4]."""
        stem = self.body["stem"]
        x = F.max_pool2d(F.relu(stem.bn1(stem.conv1(images))), 3, 2, 1)
        maps = []
        for s in range(len(self.config.stages)):
            x = self.body[f"layer{s + 1}"](x)
            maps.append(x)
        inner = None
        levels: list[torch.Tensor] = []
        for i in range(len(maps), 0, -1):
            lateral = self.fpn[f"fpn_inner{i}"](maps[i - 1])
            if inner is not None:
                lateral = lateral + F.interpolate(inner, scale_factor=2, mode="nearest")
            inner = lateral
            levels.insert(0, self.fpn[f"fpn_layer{i}"](inner))
        logits, codes = [], []
        for x in (*levels, F.max_pool2d(levels[-1], 1, 2, 0)):
            x = F.relu(self.head["conv"](x))
            logits.append(self.head["cls_logits"](x).permute(0, 2, 3, 1).flatten(1))
            found = self.head["bbox_pred"](x)
            batch, _, height, width = found.shape
            found = found.view(batch, self.config.anchors, 4, height, width).permute(0, 3, 4, 1, 2)
            codes.append(found.reshape(batch, -1, 4))
        return levels, logits, codes

    def boxes(self, x):
        """What boxes hold, [N, C, h, w], to logits [N, classes] and codes [N, classes, 4]."""
        box = self.roi_heads.box
        x = F.relu(box.feature_extractor.fc6(x.flatten(1)))
        x = F.relu(box.feature_extractor.fc7(x))
        return box.predictor.cls_score(x), box.predictor.bbox_pred(x).view(len(x), -1, 4)

    def masks(self, x):
        """What boxes hold, [N, C, h, w], to logits [N, classes, 2 h, 2 w]."""
        for conv in self.fcn:
            x = F.relu(conv(x))
        predictor = self.roi_heads.mask.predictor
        return predictor.mask_fcn_logits(F.relu(predictor.conv5_mask(x)))


def random_maskrcnn(config, seed=0):
    """A model in which every array has values of its own, running statistics too."""
    torch.manual_seed(seed)
    model = TorchMaskRCNN(config).double()
    for module in model.modules():
        if isinstance(module, FixedNorm | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.float().double()  # what a file of float32 holds


def layers(model: TorchMaskRCNN, config: MaskRCNNConfig) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
    """Every layer that holds arrays, and where ours has them."""
    yield ("backbone", "stem", "conv"), model.body["stem"].conv1
    yield ("backbone", "norm"), model.body["stem"].bn1
    blocks = [block for s in range(len(config.stages)) for block in model.body[f"layer{s + 1}"]]
    for (name, _, _), block in zip(bottlenecks(config.trunk), blocks, strict=True):
        parts = {f"conv{i}": getattr(block, f"conv{i}") for i in (1, 2, 3)}
        parts |= {f"norm{i}": getattr(block, f"bn{i}") for i in (1, 2, 3)}
        if block.downsample is not None:
            parts |= {"conv_shortcut": block.downsample[0], "norm_shortcut": block.downsample[1]}
        for key, part in parts.items():
            yield ("backbone", "blocks", name, key), part
    for i in range(len(config.stages)):
        yield ("pyramid", "lateral", str(i)), model.fpn[f"fpn_inner{i + 1}"]
        yield ("pyramid", "output", str(i)), model.fpn[f"fpn_layer{i + 1}"]
    for name, theirs in (("conv", "conv"), ("objectness", "cls_logits"), ("codes", "bbox_pred")):
        yield ("proposals", name), model.head[theirs]
    box, mask = model.roi_heads.box, model.roi_heads.mask
    yield ("boxes", "first"), box.feature_extractor.fc6
    yield ("boxes", "second"), box.feature_extractor.fc7
    yield ("boxes", "classes"), box.predictor.cls_score
    yield ("boxes", "codes"), box.predictor.bbox_pred
    for i, conv in enumerate(model.fcn):
        yield ("masks", "convs", str(i)), conv
    yield ("masks", "enlarged"), mask.predictor.conv5_mask
    yield ("masks", "masks"), mask.predictor.mask_fcn_logits


def match(
    boxes: torch.Tensor, labels: torch.Tensor, places: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes [B, M, 4] with labels [B, M] to the row and label of each place's, [B, A]; -1 for neither."""
    real = (labels > 0) & (area(boxes) > 0)
    overlaps = torch.where(real[..., None], iou(boxes, places), -1)
    most, best = overlaps.max(1)
    highest = overlaps.amax(2, keepdim=True)
    wanted = ((overlaps == highest) & (highest > 0)).any(1)
    return best, torch.where((most >= high) | wanted, labels.gather(1, best), torch.where(most >= low, -1, 0))


def sample(labels: torch.Tensor, count: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Places [B, count] of examples drawn of labels [B, A], positive ones first, and which there are."""
    luck = torch.rand(labels.shape, device=labels.device)
    found = [
        torch.where(kind, luck, -1).topk(min(most, labels.shape[1]))
        for kind, most in ((labels > 0, int(count * share)), (labels == 0, count))
    ]
    places, there = (
        torch.cat(part, 1) for part in ([f.indices for f in found], [f.values >= 0 for f in found])
    )
    lacking = (0, max(0, count - places.shape[1]))
    places, there = F.pad(places, lacking), F.pad(there, lacking)
    order = (~there).long().argsort(dim=1, stable=True)[:, :count]
    return places.gather(1, order), there.gather(1, order)


def rows_of(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of [B, A, ...] those at places [B, N]."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]


def encode(boxes: torch.Tensor, at: torch.Tensor, weights: tuple[float, float] = (1, 1)) -> torch.Tensor:
    """Codes of boxes at centres."""
    middle = ((boxes[..., :2] + boxes[..., 2:]) / 2 - at[..., :2]) / at[..., 2:]
    size = ((boxes[..., 2:] - boxes[..., :2]) / at[..., 2:]).log()
    return torch.cat([middle * weights[0], size * weights[1]], -1)


def decode(codes: torch.Tensor, at: torch.Tensor, weights: tuple[float, float] = (1, 1)) -> torch.Tensor:
    """The inverse, to corners."""
    middle = codes[..., :2] / weights[0] * at[..., 2:] + at[..., :2]
    times = (codes[..., 2:] / weights[1]).clamp(max=math.log(1000 / 16))
    return to_corners(torch.cat([middle, times.exp() * at[..., 2:]], -1))


def to_centres(corners: torch.Tensor) -> torch.Tensor:
    first, last = corners[..., :2], corners[..., 2:]
    return torch.cat([(first + last) / 2, last - first], -1)


def clipped(corners: torch.Tensor, extent: torch.Tensor) -> torch.Tensor:
    limits = extent.flip(-1).to(corners.dtype)[:, None]
    first = torch.minimum(corners[..., :2].clamp(min=0), limits - 1)
    return torch.cat([first, torch.minimum(corners[..., 2:].clamp(min=1), limits)], -1)


def roi_align(
    levels: Sequence[torch.Tensor], strides: Sequence[int], corners: torch.Tensor, window: int
) -> torch.Tensor:
    """What boxes [B, R, 4] hold of levels [B, C, h, w], [B, R, C, window, window]."""
    chosen = torch.log2(area(corners).sqrt() / 224 + 1e-6).floor() + math.log2(16 / strides[0])
    chosen = chosen.clamp(0, len(strides) - 1)
    batch, count = corners.shape[:2]
    total: Any = 0
    for i, (level, stride) in enumerate(zip(levels, strides, strict=True)):
        parts = []
        for axis, cells in ((0, level.shape[3]), (1, level.shape[2])):
            start, end = corners[..., axis] / stride, (corners[..., 2 + axis] - 1) / stride
            step = (end - start).clamp(min=1)[..., None] / window
            at = (
                start[..., None] + (torch.arange(2 * window, device=level.device) / 2 + 0.25) * step
            )  # [B, R, 2 window]
            parts.append(((at >= -1) & (at <= cells), 2 * at.clamp(0, cells - 1) / max(cells - 1, 1) - 1))
        (x_in, x), (y_in, y) = parts
        grid = torch.stack(torch.broadcast_tensors(x[:, :, None], y[..., None]), -1)
        found = F.grid_sample(
            level, grid.reshape(batch, -1, 2 * window, 2), padding_mode="border", align_corners=True
        )
        found = found.view(batch, -1, count, 2 * window, 2 * window).transpose(1, 2)
        inside = (x_in[:, :, None] & y_in[..., None]) & (chosen == i)[..., None, None]
        found = F.avg_pool2d((found * inside[:, :, None]).flatten(0, 1), 2)
        total = total + found.view(batch, count, -1, window, window)
    return total


class Peer(peer.Peer):
    # A batch that one accelerator holds, from random weights.
    on_a_chip = ("--config.batch_size=4", "--config.backbone_weights=")

    def build(self) -> nn.Module:
        return TorchMaskRCNN(self.workload.model_config)

    def take_over(self, state: Mapping[str, Any]) -> None:
        config, params = self.workload.model_config, [state["params"], state.get("frozen", {})]
        for path, layer in layers(self.model, config):
            is_norm = isinstance(layer, nn.BatchNorm2d | FixedNorm)
            stats = at(state["model_state"], path) if is_norm else None
            found = {name: array for tree in params for name, array in at(tree, path).items()}
            if path == ("boxes", "first"):  # there channels come first in what the layer sees
                kernel = found["kernel"].reshape(config.box_window**2, config.channels, -1)
                found["kernel"] = kernel.swapaxes(0, 1).reshape(found["kernel"].shape)
            peer.copy_layer(layer, found, stats)
            for name, parameter in layer.named_parameters():
                ours = name if is_norm else {"weight": "kernel"}.get(name, name)
                parameter.requires_grad_(not self.workload.is_frozen((*path, ours)))

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        if numbers.name == "torch_sgd":
            return torch_optimizers.momentum(
                self.model,
                momentum=numbers.momentum,
                weight_decay=numbers.weight_decay,
                decays=torch_optimizers.is_matrix,
                rate_inside=False,
                fused=self.fast,
            )
        return torch_optimizers.adamw(
            self.model,
            beta1=numbers.beta1,
            beta2=numbers.beta2,
            epsilon=numbers.epsilon,
            weight_decay=numbers.weight_decay,
            fused=self.fast,
        )

    def shown(self, inputs: peer.Tensors) -> torch.Tensor:
        images = self.images(inputs["image"])
        height, width = (inputs["extent"][:, i, None, None, None] for i in (0, 1))
        rows, columns = (torch.arange(n, device=images.device) for n in images.shape[2:])
        return images * ((rows[:, None] < height) & (columns < width))

    def anchors(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        maps = [(x.shape[2], x.shape[3]) for x in levels]
        maps.append(((maps[-1][0] + 1) // 2, (maps[-1][1] + 1) // 2))
        found = proposal_anchors(maps, self.workload.model_config.strides, self.config.anchor_sizes)
        return [torch.from_numpy(level).to(self.device) for level in found]

    def proposals(self, logits, codes, extent, anchors, numbers):
        """Boxes [B, P, 4], best first, and which there are."""
        parts, threshold = [], math.nextafter(self.config.proposals.iou, 1)
        with torch.no_grad():
            for level, some, places in zip(logits, codes, anchors, strict=True):
                best, rows = level.topk(min(numbers.candidates, level.shape[1]))
                corners = clipped(decode(rows_of(some, rows), places[rows]), extent)
                stays = suppress(corners, torch.ones_like(best, dtype=torch.bool), threshold)
                parts.append((torch.where(stays, best, -torch.inf), corners))
            best, corners = (torch.cat(part, 1) for part in zip(*parts, strict=True))
            best, rows = best.topk(min(numbers.count, best.shape[1]))
            lacking = numbers.count - best.shape[1]
            corners = F.pad(rows_of(corners, rows), (0, 0, 0, lacking))
            return corners, F.pad(best > -torch.inf, (0, lacking))

    def held(self, levels, corners, head):
        config = self.workload.model_config
        window = {"box": config.box_window, "mask": config.mask_window}[head]
        found = roi_align(levels, config.strides[:-1], corners, window)
        judged = (self.model.boxes if head == "box" else self.model.masks)(found.flatten(0, 1))
        parts = judged if head == "box" else (judged,)
        return [part.float().unflatten(0, corners.shape[:2]) for part in parts]

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        levels, logits, codes = self.model(self.shown(batch))
        extent, labels = batch["extent"], batch["labels"].long()
        boxes = batch["boxes"] * extent.flip(-1).repeat(1, 2)[:, None]
        logits, codes = [x.float() for x in logits], [x.float() for x in codes]
        anchors = self.anchors(levels)
        total = self.proposal_loss(logits, codes, boxes, labels, extent, torch.cat(anchors))
        corners, there = self.proposals(logits, codes, extent, anchors, self.config.proposals.train)
        return total + self.region_loss(levels, corners, there, boxes, labels, batch)

    def proposal_loss(self, logits, codes, boxes, labels, extent, anchors):
        places = to_corners(anchors)
        rows, targets = match(boxes, labels, places, 0.3, 0.7)
        limits = extent.flip(-1)[:, None]
        inside = (places[:, :2] >= 0).all(-1) & (places[:, 2:] < limits + 1).all(-1)
        chosen, counted = sample(torch.where(inside, targets, -1), 256, 0.5)
        positive = counted & (targets.gather(1, chosen) > 0)
        at, true = anchors[chosen], rows_of(boxes, rows.gather(1, chosen))
        wanted = encode(torch.where(positive[..., None], true, to_corners(at)), at)
        entropy = F.binary_cross_entropy_with_logits(
            torch.cat(logits, 1).gather(1, chosen), positive.float(), reduction="none"
        )
        apart = F.smooth_l1_loss(
            rows_of(torch.cat(codes, 1), chosen), wanted, beta=1 / 9, reduction="none"
        ).sum(-1)
        return ((entropy * counted).sum() + (apart * positive).sum()) / counted.sum()

    def region_loss(self, levels, corners, there, boxes, labels, batch):
        numbers = self.config.regions
        with torch.no_grad():
            real = (labels > 0) & (area(boxes) > 0)
            corners, there = torch.cat([corners, boxes], 1), torch.cat([there, real], 1)
            most, rows = torch.where(real[..., None], iou(boxes, corners), -1).max(1)
            found = torch.where(there, torch.where(most >= 0.5, labels.gather(1, rows), 0), -1)
            places, counted = sample(found, numbers.count, numbers.share)
            corners, rows = rows_of(corners, places), rows.gather(1, places)
            found = torch.where(counted, found.gather(1, places), -1)
            targets = found.clamp(min=0)
        logits, codes = self.held(levels, corners, "box")
        positive, count = found > 0, counted.sum()
        entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        at, true = to_centres(corners), rows_of(boxes, rows)
        at = torch.where(positive[..., None], at, 1)
        wanted = encode(torch.where(positive[..., None], true, to_corners(at)), at, (10, 5))
        apart = F.smooth_l1_loss(self.of_class(codes, targets), wanted, reduction="none").sum(-1)
        total = ((entropy * counted.flatten()).sum() + (apart * positive).sum()) / count
        first = int(numbers.count * numbers.share)
        corners, rows, positive, targets = (x[:, :first] for x in (corners, rows, positive, targets))
        (found_masks,) = self.held(levels, corners, "mask")
        wanted = self.mask_targets(batch["masks"], corners, rows, boxes, found_masks.shape[-1])
        losses = F.binary_cross_entropy_with_logits(
            self.of_class(found_masks, targets), wanted, reduction="none"
        ).mean((2, 3))
        total = total + (losses * positive).sum() / positive.sum().clamp(min=1)
        return total + self.loss_in_boxes(levels, corners, rows, positive, batch)

    def loss_in_boxes(self, levels, corners, rows, positive, batch):
        """What else a family learns in boxes [B, N, 4] that hold something, of the true ones with these rows."""
        return 0

    @staticmethod
    def of_class(x, labels):
        """Of [B, N, C, ...] what labels [B, N] name."""
        chosen = labels.view(*labels.shape, *[1] * (x.ndim - 2)).expand(*labels.shape, 1, *x.shape[3:])
        return x.gather(2, chosen).squeeze(2)

    @staticmethod
    def mask_targets(masks, corners, rows, boxes, window):
        """True masks [B, M, G, G / 8] as boxes see them, [B, N, window, window]."""
        bits = rows_of(masks, rows)[..., None] >> torch.arange(7, -1, -1, device=masks.device) & 1
        grid, own = bits.flatten(-2).float(), rows_of(boxes, rows)

        def shares(axis):
            start, end = corners[..., axis], corners[..., 2 + axis] - 1
            step = (end - start).clamp(min=1)[..., None] / window
            at = start[..., None] + (torch.arange(window, device=masks.device) + 0.5) * step
            side = (own[..., 2 + axis] - own[..., axis]).clamp(min=1e-30)[..., None]
            at = (at - own[..., axis, None]) / side * grid.shape[-1] - 0.5
            return (1 - (at[..., None] - torch.arange(grid.shape[-1], device=masks.device)).abs()).clamp(
                min=0
            )

        return (shares(1) @ grid @ shares(0).transpose(-1, -2) >= 0.5).float()

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        numbers, extent = self.config.detection, inputs["extent"]
        levels, logits, codes = self.model(self.shown(inputs))
        logits, codes = [x.float() for x in logits], [x.float() for x in codes]
        corners, there = self.proposals(
            logits, codes, extent, self.anchors(levels), self.config.proposals.eval
        )
        found, found_codes = self.held(levels, corners, "box")
        scores = found.softmax(-1)[..., 1:]
        scores = torch.where((scores > numbers.score) & there[..., None], scores, 0)
        classes = scores.shape[-1]
        scores, pairs = scores.flatten(1).topk(min(numbers.candidates, scores[0].numel()))
        rows, labels = pairs // classes, pairs % classes + 1
        some = self.of_class(rows_of(found_codes, rows), labels)
        boxes = clipped(decode(some, to_centres(rows_of(corners, rows)), (10, 5)), extent)
        # Apart by more than an image, boxes of different classes do not overlap.
        apart = boxes + (2 * extent.max() * labels)[..., None]
        scores = torch.where(suppress(apart, scores > 0, math.nextafter(numbers.iou, 1)), scores, 0)
        scores, best = scores.topk(min(numbers.detections, scores.shape[1]))
        there = scores > 0
        labels = labels.gather(1, best) * there
        boxes = rows_of(boxes, best) * there[..., None]
        (masks,) = self.held(levels, boxes, "mask")
        masks = (255 * self.of_class(masks, labels).sigmoid()).round().to(torch.uint8)
        left, top, right, bottom = (boxes / extent.flip(-1).repeat(1, 2)[:, None]).unbind(-1)
        index = inputs["index"][:, None].expand_as(scores)
        columns = torch.stack([index, top, left, bottom, right, scores, labels], -1).float()
        parts = [columns.contiguous().view(torch.uint8), masks.flatten(2)]
        beyond = self.found_in_boxes(levels, boxes, extent)
        rows = torch.cat(parts if beyond is None else [*parts, beyond], -1)
        return F.pad(rows, (0, 0, 0, numbers.detections - rows.shape[1]))

    def found_in_boxes(self, levels, boxes, extent):
        """What else a family finds in boxes [B, K, 4], [B, K, n] uint8; nothing by default."""
        return None


def at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Mapping[str, Any]:
    """The layer there, {} where the tree has none: what is frozen and what is not are in trees of their own."""
    for name in path:
        tree = tree.get(name, {})
    return tree
