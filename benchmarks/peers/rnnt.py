"""RNN-T of MLPerf's reference in PyTorch, after its description: the judge of ours, and its peer in speed.

PyTorch has no transducer's loss: the lattice is walked diagonal by diagonal, by autograd back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed import peer, torch_optimizers
from benchmarks.speed.torch_optimizers import Optimizer
from models.sound import mel_filters


class TorchRNNT(nn.Module):
    """Features [B, T, F] of frames [B] and symbols [B, U] to all classes [B, T', U + 1, V + 1], and frames."""

    def __init__(
        self,
        features,
        classes,
        encoder_width,
        layers_before,
        stack,
        layers_after,
        prediction_width,
        prediction_layers,
        joint_width,
        encoder_dropout=0.0,
        prediction_dropout=0.0,
        joint_dropout=0.0,
        **of_ours,
    ):
        super().__init__()
        self.stack = stack

        def lstm(features, width, layers, dropout):
            return nn.LSTM(features, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

        self.before = lstm(features, encoder_width, layers_before, encoder_dropout)
        self.after = lstm(stack * encoder_width, encoder_width, layers_after, encoder_dropout)
        self.embed = nn.Embedding(classes - 1, prediction_width)
        self.prediction = lstm(prediction_width, prediction_width, prediction_layers, prediction_dropout)
        self.of_encoder = nn.Linear(encoder_width, joint_width)
        self.of_prediction = nn.Linear(prediction_width, joint_width)
        self.classes = nn.Linear(joint_width, classes)
        self.drops = [nn.Dropout(p) for p in (encoder_dropout, prediction_dropout, joint_dropout)]

    def encode(self, x, frames):
        x, _ = self.before(x)
        x = self.drops[0](x) * (torch.arange(x.shape[1], device=x.device) < frames[:, None])[..., None]
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stack))
        x, _ = self.after(x.reshape(len(x), -1, self.stack * x.shape[2]))
        return self.of_encoder(self.drops[0](x)), (frames + self.stack - 1) // self.stack

    def predict(self, symbols):
        x, _ = self.prediction(F.pad(self.embed(symbols), (0, 0, 1, 0)))
        return self.of_prediction(self.drops[1](x))

    def joint(self, encoded, predicted):
        return self.classes(self.drops[2](F.relu(encoded + predicted)))

    def forward(self, features, frames, symbols):
        encoded, frames = self.encode(features, frames)
        return self.joint(encoded[:, :, None], self.predict(symbols)[:, None]), frames


def loss_of(logits, symbols, frames, counts):
    """Minus the log probability of each transcript [B], of logits [B, T, U + 1, V + 1]."""
    logs = logits.log_softmax(-1)
    batch, length, width, _ = logs.shape
    following = F.pad(symbols, (0, 1))[:, None, :, None].expand(-1, length, -1, -1)
    blank, label = logs[..., -1], logs.gather(3, following)[..., 0]
    never = -1e30
    u, rows = torch.arange(width, device=logs.device), torch.arange(batch, device=logs.device)
    before = torch.where(u == 0, 0.0, never).to(logs.dtype).expand(batch, -1)
    diagonals = [before]
    for n in range(1, length + width - 1):
        t = n - u
        from_blank = torch.where((t >= 1) & (t <= length), blank[:, (t - 1).clamp(0, length - 1), u], never)
        said = label[:, t.clamp(0, length - 1), (u - 1).clamp(min=0)]
        said = torch.where((t >= 0) & (t < length) & (u >= 1), said, never)
        shifted = F.pad(before[:, :-1], (1, 0), value=never)
        before = torch.logaddexp(before + from_blank, shifted + said)
        diagonals.append(before)
    last = frames - 1
    return -(torch.stack(diagonals, 1)[rows, last + counts, counts] + blank[rows, last, counts])


def log_mel(samples, num_samples, *, window, hop, fft_size, filters, preemphasis, dither):
    """Normalised log-mel features [B, T, F] of recordings [B, N] from -1 to 1, zeros after their ends, and frames [B]."""
    width, edge, x = samples.shape[1], fft_size // 2, samples
    if dither:
        x = x + dither * torch.randn_like(x)
    last = num_samples[:, None].long() - 1
    x = torch.where(torch.arange(width, device=x.device) <= last, x, 0)
    x = torch.cat([x[:, :1], x[:, 1:] - preemphasis * x[:, :-1]], 1)
    at = torch.arange(-edge, width + edge, device=x.device)[None]
    mirrored = torch.where(at > last, 2 * last - at, at.abs())
    rows = torch.where(mirrored >= 0, x.gather(1, mirrored.clamp(0, width - 1)), 0)
    function = torch.hann_window(window, periodic=False, device=x.device)
    found = torch.stft(rows, fft_size, hop, window, function, center=False, return_complex=True)
    triangles = torch.tensor(mel_filters(16_000, fft_size, filters), dtype=x.dtype, device=x.device)
    logs = (triangles @ found.abs().square() + 1e-20).log().transpose(1, 2)
    frames = -(-num_samples // hop)
    real = (torch.arange(logs.shape[1], device=x.device) < frames[:, None])[..., None]
    count = frames[:, None, None]
    centred = torch.where(real, logs - (logs * real).sum(1, keepdim=True) / count, 0)
    deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + 1e-5), frames


def sped(x, num_samples, slowest, fastest):
    """Recordings [B, N] at random speeds, by a sinc that is faded out over six of its crossings, and samples [B]."""
    width, (speeds,) = math.ceil(x.shape[1] / min(slowest, 1)), torch.rand(1, len(x), device=x.device)
    speeds = (slowest + (fastest - slowest) * speeds)[:, None]
    places = torch.arange(width, device=x.device) * speeds
    first, cutoff, total = places.floor(), (1 / speeds).clamp(max=1), torch.zeros_like(places)
    for tap in range(-5, 7):
        apart = places - first - tap
        weight = cutoff * torch.sinc(cutoff * apart) * torch.cos(math.pi / 12 * apart).square()
        at = (first + tap).long()
        inside = (at >= 0) & (at < num_samples[:, None])
        total += torch.where(inside, weight * x.gather(1, at.clamp(0, x.shape[1] - 1)), 0)
    return total, (num_samples / speeds[:, 0]).ceil().long()


def spliced(x, frames, count):
    x = F.pad(x, (0, 0, 0, -x.shape[1] % count))
    return x.reshape(len(x), -1, count * x.shape[2]), -(-frames // count)


def take_over(model, params):
    """Puts our parameters (nested dicts of arrays) into the model."""

    def put(parameter, value):
        parameter.data = torch.tensor(value, dtype=parameter.dtype).reshape(parameter.shape)

    def layers(lstm, values):
        for n in range(lstm.num_layers):
            layer = (values[n] if n in values else values[str(n)])["directions"]
            layer = layer[0] if 0 in layer else layer["0"]
            for name, key in (("weight_ih", "kernel"), ("weight_hh", "recurrent")):
                kernel = layer[key]
                put(getattr(lstm, f"{name}_l{n}"), kernel.transpose(1, 2, 0).reshape(-1, kernel.shape[0]))
            put(getattr(lstm, f"bias_ih_l{n}"), layer["bias"])
            put(getattr(lstm, f"bias_hh_l{n}"), layer["bias_recurrent"])

    for name in ("before", "after", "prediction"):
        layers(getattr(model, name), params[name])
    put(model.embed.weight, params["embedding"])
    for name in ("of_encoder", "of_prediction", "classes"):
        put(getattr(model, name).weight, params[name]["kernel"].T)
        put(getattr(model, name).bias, params[name]["bias"])


class Peer(peer.Peer):
    on_a_chip = ("--config.batch_size=64",)

    def build(self) -> nn.Module:
        return TorchRNNT(**vars(self.workload.model_config))

    def compiled(self) -> tuple[peer.Function, peer.Function]:
        """cuDNN's and the CPU's LSTM are one call; a lattice is a loop as long as its batch."""
        return self.loss, self.answer

    def take_over(self, state: Mapping[str, Any]) -> None:
        take_over(self.model, state["params"])

    def make_optimizer(self) -> Optimizer:
        numbers = self.config.optimizer
        given = {name: numbers[name] for name in ("beta1", "beta2", "epsilon", "weight_decay")}
        if numbers.name == "lamb":
            return torch_optimizers.lamb(self.model, **given)
        return torch_optimizers.adamw(self.model, **given, fused=self.fast)

    def features(self, batch: peer.Tensors, *, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        heard, num_samples = batch["samples"].float() / 2**15, batch["num_samples"]
        speeds = tuple(self.config.speeds)
        if train and speeds != (1, 1):
            heard, num_samples = sped(heard, num_samples, *speeds)
        x, frames = log_mel(heard, num_samples, **self.config.features.to_dict())
        return spliced(x, frames, self.config.splice)

    def loss(self, batch: peer.Tensors) -> torch.Tensor:
        """Without masks, which cost little beside it."""
        symbols, counts = batch["symbols"].long(), batch["num_symbols"].long()
        logits, frames = self.model(*self.features(batch, train=True), symbols)
        return loss_of(logits.float(), symbols, frames.long(), counts).mean()

    def answer(self, inputs: peer.Tensors) -> torch.Tensor:
        """Greedy decoding, a frame or a symbol of every row at a time."""
        model, numbers = self.model, self.config.decode
        encoded, frames = model.encode(*self.features(inputs, train=False))
        batch, device = len(encoded), encoded.device
        rows = torch.arange(batch, device=device)
        frame, inside, said = (torch.zeros(batch, dtype=torch.long, device=device) for _ in range(3))
        symbols = torch.zeros(batch, numbers.most, dtype=torch.int, device=device)
        width = model.embed.weight.shape[1]
        out, state = model.prediction(torch.zeros(batch, 1, width, device=device))
        predicted = model.of_prediction(out[:, 0])
        while ((frame < frames) & (said < numbers.most)).any():
            goes_on = (frame < frames) & (said < numbers.most)
            here = encoded[rows, frame.clamp(max=encoded.shape[1] - 1)]
            best = model.joint(here, predicted).argmax(-1)
            speaks = (best < model.embed.num_embeddings) & goes_on
            out, after = model.prediction(model.embed(torch.where(speaks, best, 0))[:, None], state)
            predicted = torch.where(speaks[:, None], model.of_prediction(out[:, 0]), predicted)
            state = tuple(torch.where(speaks[None, :, None], a, b) for a, b in zip(after, state, strict=True))
            symbols[rows[speaks], said[speaks]] = best[speaks].int() + 1
            said, inside = said + speaks, inside + speaks
            moves = ~speaks | (inside >= numbers.most_in_frame)
            frame, inside = frame + moves, torch.where(moves, 0, inside)
        return symbols
