"""What a peer is: a workload's model, loss, optimizer and answer in PyTorch, from our weights, on our batch."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.speed.torch_optimizers import Optimizer

Tensors = dict[str, torch.Tensor]
Function = Callable[..., Any]


class Peer(abc.ABC):
    """One workload in PyTorch, in training and in prediction.

    A subclass is named `Peer`, in `benchmarks/peers/<workload>.py`.

    Attributes:
        on_a_chip: `--config` arguments that make a closed preset one accelerator's share of it.
        workload: ours, for its numbers: config, sizes, anchors; none of its programs is called.
        fast: whether it is what PyTorch does at best, `torch.compile` and fused optimizers, and not what it does by default.
    """

    on_a_chip: tuple[str, ...] = ()

    def __init__(
        self,
        workload: Any,
        state: Mapping[str, Any],
        *,
        device: str = "cpu",
        fast: bool = False,
    ) -> None:
        """Builds the model with our weights.

        Args:
            workload: ours.
            state: our first training state, nested dicts of NumPy arrays.
            device: where PyTorch computes.
            fast: see there.
        """
        self.workload, self.config, self.device, self.fast = workload, workload.config, device, fast
        if "mean" in self.config.data:
            self.mean, self.std = (torch.tensor(self.config.data[k], device=device) for k in ("mean", "std"))
        self.model = self.build()
        self.take_over(state)
        self.model.to(device)
        self.optimizer = self.make_optimizer()
        self.trained = [weights for weights in self.model.parameters() if weights.requires_grad]
        averaged = self.trained if self.config.get("ema_decay", 0) else []
        self.averages = [weights.detach().clone() for weights in averaged]
        self.compiled_loss, self.compiled_answer = self.compiled()

    @abc.abstractmethod
    def build(self) -> nn.Module:
        """The model, with any weights, on the CPU."""

    @abc.abstractmethod
    def take_over(self, state: Mapping[str, Any]) -> None:
        """Puts our weights in."""

    @abc.abstractmethod
    def make_optimizer(self) -> Optimizer:
        """The optimizer that our config names, of the model's parameters."""

    @abc.abstractmethod
    def loss(self, batch: Tensors) -> torch.Tensor:
        """The loss [] of a training batch, with the entries and shapes that ours has."""

    @abc.abstractmethod
    def answer(self, inputs: Tensors) -> torch.Tensor:
        """What our `answer` gives for inputs [B, ...] by name."""

    def wrap(self, function: Function) -> Function:
        """Compiled for each of its shapes, where this is the fast peer."""
        return torch.compile(function, dynamic=False) if self.fast else function

    def compiled(self) -> tuple[Function, Function]:
        """`loss` and `answer`, with all of them compiled that is worth it."""
        return self.wrap(self.loss), self.wrap(self.answer)

    def train_step(self, batch: Tensors, rate: float) -> torch.Tensor:
        """One step at a learning rate; returns the loss before it."""
        with self._precision():
            loss = self.compiled_loss(batch)
        loss.backward()
        if limit := self.config.optimizer.get("clip_norm", 0):
            nn.utils.clip_grad_norm_(self.trained, limit, foreach=True)
        self.optimizer.step(rate)
        if decay := self.config.get("ema_decay", 0):
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, self.trained, 1 - decay)
        return loss.detach()

    def predict(self, inputs: Tensors) -> torch.Tensor:
        """Answers, as served: from the host to the host."""
        with torch.inference_mode(), self._precision():
            return self.compiled_answer({name: x.to(self.device) for name, x in inputs.items()}).cpu()

    def _precision(self) -> torch.autocast:
        """Our policy: fp32, or bf16 products with fp32 parameters."""
        mixed = self.workload.policy.compute == "bfloat16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=mixed)

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, H, W, C] to normalised [B, C, H, W], as channels last in memory."""
        return ((images.float() - self.mean) / self.std).permute(0, 3, 1, 2)


def copy_layer(layer: nn.Module, params: Mapping[str, Any], stats: Mapping[str, Any] | None = None) -> None:
    """Puts our arrays into a convolution, a dense layer or a norm: kernel, bias, scale, mean, var."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    with torch.no_grad():
        for name, array in {**params, **(stats or {})}.items():
            values = torch.tensor(array)
            if name == "kernel":
                ends = (-2, -1) if isinstance(layer, nn.modules.conv._ConvTransposeNd) else (-1, -2)
                values = values.permute(*ends, *range(values.ndim - 2))
            getattr(layer, names.get(name, name)).copy_(values)
