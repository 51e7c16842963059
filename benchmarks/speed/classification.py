"""What the peers of image classification share: the loss, the answer, the optimizer."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer


class Classification(peer.Peer):
    """A model of images [B, C, H, W] to logits, trained with label smoothing by SGD or LARS."""

    # A batch that one accelerator holds, normalised whole.
    on_a_chip = ("--config.batch_size=256", "--config.model.bn_span=0")

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer.to_dict()
        name = numbers.pop("name")
        del numbers["base_lr"]
        if name == "lars":
            return torch_optimizers.lars(self.model, **numbers)
        decays = torch_optimizers.is_matrix
        return torch_optimizers.momentum(
            self.model, decays=decays, rate_inside=True, fused=self.fast, **numbers
        )

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        logits = self.model(self.images(batch["image"]))
        return F.cross_entropy(logits, batch["label"].long(), label_smoothing=self.config.label_smoothing)

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        return self.model(self.images(inputs["image"])).argmax(1).int()
