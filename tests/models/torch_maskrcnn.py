"""Mask R-CNN once more, in PyTorch's own layers, under the reference's names: the judge of `models.maskrcnn`.

After mlcommons/training, retired_benchmarks/maskrcnn/pytorch/maskrcnn_benchmark/modeling.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F


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
        inner, levels = None, []
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
