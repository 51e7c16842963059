"""DeepSpeech2 of MLPerf's draft in PyTorch, after the reference's description: the judge of ours, and its peer in speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer


class TorchDeepSpeech2(nn.Module):
    """Spectrograms [B, T, F] to logits [B, T', V]."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        convolutions: list[nn.Module] = []
        before = 1
        for channels, window, stride in zip(config.channels, config.windows, config.strides, strict=True):
            convolutions += [
                nn.Conv2d(before, channels, window[::-1], stride[::-1]),
                nn.BatchNorm2d(channels),
                nn.Hardtanh(0, 20),
            ]
            before = channels
        self.conv = nn.Sequential(*convolutions)
        sizes = [config.features, *[config.width] * (config.num_layers - 1)]
        self.rnns = nn.ModuleList(nn.GRU(size, config.width, batch_first=True) for size in sizes)
        self.norm = nn.BatchNorm1d(config.width)
        self.fc = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x.transpose(1, 2)[:, None])  # [B, C, F, T]
        x = x.flatten(1, 2).transpose(1, 2)
        for layer in self.rnns:
            x, _ = layer(x)
        return self.fc(self.norm(x.transpose(1, 2)).transpose(1, 2))


def take(model: TorchDeepSpeech2, params: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
    """Puts our parameters and statistics (nested dicts of arrays, numbers as texts) into the model."""
    for n in range(len(params["convolutions"])):
        conv, norm = model.conv[3 * n], model.conv[3 * n + 1]
        part = dict(params["convolutions"][str(n)])
        part["kernel"] = part["kernel"].swapaxes(0, 1)  # ours are of time and frequency
        peer.copy_layer(conv, part)
        peer.copy_layer(norm, params["norms"][str(n)], stats["norms"][str(n)])
        channels = len(part["bias"])
    for n, layer in enumerate(model.rnns):
        part = dict(params["layers"][str(n)]["directions"]["0"])
        if n == 0:  # ours reads bin by bin, PyTorch's channel by channel
            kernel = part["kernel"].reshape(-1, channels, *part["kernel"].shape[1:])
            part["kernel"] = kernel.swapaxes(0, 1).reshape(part["kernel"].shape)
        names = {
            "weight_ih_l0": "kernel",
            "weight_hh_l0": "recurrent",
            "bias_ih_l0": "bias",
            "bias_hh_l0": "bias_recurrent",
        }
        for name, ours in names.items():
            array = torch.tensor(part[ours])
            array = array.permute(1, 2, 0).flatten(0, 1) if array.ndim == 3 else array.flatten()
            getattr(layer, name).data = array
    peer.copy_layer(model.norm, params["norm"], stats["norm"])
    model.fc.weight.data = torch.tensor(params["kernel"]).T.contiguous()


def heard(
    samples: torch.Tensor, num_samples: torch.Tensor, *, window: int, hop: int, scale: float, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised log magnitudes [B, T, F] of recordings [B, N], zeros after their ends, and how many of T are real [B]."""
    width, edge, last = samples.shape[1], window // 2, num_samples[:, None].long() - 1
    at = torch.arange(-edge, width + edge, device=samples.device)[None]
    mirrored = torch.where(at > last, 2 * last - at, at.abs()).clamp(0, width - 1)
    rows = torch.where(at <= last + edge, samples.float().gather(1, mirrored), 0)
    function = torch.hamming_window(window, periodic=False, device=samples.device)
    transformed = torch.stft(rows, window, hop, window=function, center=False, return_complex=True)
    found = torch.log1p(scale * transformed.abs()).transpose(1, 2)
    frames = num_samples // hop + 1
    real = (torch.arange(found.shape[1], device=samples.device) < frames[:, None])[..., None]
    count = frames[:, None, None] * found.shape[2]
    centred = torch.where(real, found - (found * real).sum((1, 2), keepdim=True) / count, 0)
    return centred / (centred.square().sum((1, 2), keepdim=True) / (count - 1)).sqrt(), frames


class Peer(peer.Peer):
    on_a_chip = ("--config.batch_size=64",)

    def build(self) -> nn.Module:
        return TorchDeepSpeech2(self.workload.model_config)

    def compiled(self) -> tuple[peer.Function, peer.Function]:
        """cuDNN's and the CPU's GRU are one call, and so are the transform and CTC."""
        return self.loss, self.answer

    def take_over(self, state: Mapping[str, Any]) -> None:
        take(self.model, state["params"], state["model_state"])

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        if numbers.name == "torch_sgd":
            return torch_optimizers.momentum(
                self.model,
                momentum=numbers.momentum,
                weight_decay=numbers.weight_decay,
                decays=torch_optimizers.every,
                rate_inside=False,
                nesterov=numbers.nesterov,
                fused=self.fast,
            )
        given = {name: numbers[name] for name in ("beta1", "beta2", "epsilon", "weight_decay")}
        return torch_optimizers.adamw(self.model, **given, fused=self.fast)

    def logits(self, batch: peer.Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T', V], and how many of T' are real [B]."""
        seen, frames = heard(batch["samples"], batch["num_samples"], **self.config.features.to_dict())
        config = self.workload.model_config
        frames = frames + sum(config.padding)
        for (window, _), (stride, _) in zip(config.windows, config.strides, strict=True):
            frames = torch.clamp((frames - window) // stride + 1, min=0)
        return self.model(F.pad(seen, (0, 0, *config.padding))).float(), frames

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        logits, frames = self.logits(batch)
        return F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),
            batch["symbols"].long() + 1,
            frames.long(),
            batch["num_symbols"].long(),
            reduction="none",
            zero_infinity=True,
        ).mean()

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        """The likeliest token of every frame, repetitions merged and blanks left out; zeros after them."""
        logits, frames = self.logits(inputs)
        path = logits.argmax(-1)
        said = (path != 0) & (path != F.pad(path, (1, 0))[:, :-1])
        said &= torch.arange(path.shape[1], device=path.device) < frames[:, None]
        order = (~said).int().argsort(dim=1, stable=True)
        return torch.where(said, path, 0).gather(1, order).int()
