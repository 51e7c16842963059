"""Our optimizers by PyTorch's own, step by step equal: what differs is said to them anew before each step.

`fused` asks for PyTorch's kernels that do all of a step at once, which it does not use by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

_NO_RATE = 1e-30  # in place of a rate of 0, by which nothing can be divided


class Optimizer:
    """One of `torch.optim`, with the numbers of its next step.

    Args:
        inner: PyTorch's.
        say: (group, rate, step from 1) puts a step's numbers into a group of parameters.
    """

    def __init__(self, inner: Any, say: Callable[[dict[str, Any], float, int], None]) -> None:
        self.inner, self._say, self._steps = inner, say, 0

    def step(self, rate: float) -> None:
        """Moves the parameters by their gradients, and forgets these."""
        self._steps += 1
        for group in self.inner.param_groups:
            self._say(group, rate, self._steps)
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)


def _rate_alone(group: dict[str, Any], rate: float, _: int) -> None:
    group["lr"] = rate


def _groups(
    model: nn.Module, weight_decay: float, decays: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[decays(name, parameter)].append(parameter)
    decay = {True: weight_decay, False: 0.0}
    return [{"params": parts[yes], "weight_decay": decay[yes]} for yes in parts if parts[yes]]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is neither a bias nor of a norm."""
    return parameter.ndim > 1


def every(name: str, parameter: nn.Parameter) -> bool:
    return True


def momentum(
    model: nn.Module,
    *,
    momentum: float,
    weight_decay: float,
    decays: Callable[[str, nn.Parameter], bool],
    rate_inside: bool,
    nesterov: bool = False,
    fused: bool,
) -> Optimizer:
    """`torch.optim.SGD`, whose momentum M holds no rate: w <- w - lr * M.

    With `rate_inside`, m <- momentum * m - lr * d, w <- w + m: the same with m = -lr * M if at each step the momentum is
    taken times the last rate over this one.
    """

    def say(group: dict[str, Any], rate: float, _: int) -> None:
        if rate_inside:
            rate = rate or _NO_RATE
            group["momentum"] = momentum * group["lr"] / rate
        group["lr"] = rate

    groups = _groups(model, weight_decay, decays)
    return Optimizer(
        torch.optim.SGD(groups, lr=_NO_RATE, momentum=momentum, nesterov=nesterov, fused=fused), say
    )


def adam(model: nn.Module, *, beta1: float, beta2: float, epsilon: float, fused: bool) -> Optimizer:
    """`torch.optim.Adam`, which adds epsilon to the corrected root where ours adds it to the root."""

    def say(group: dict[str, Any], rate: float, step: int) -> None:
        group["lr"], group["eps"] = rate, epsilon / (1 - beta2**step) ** 0.5

    return Optimizer(torch.optim.Adam(model.parameters(), betas=(beta1, beta2), fused=fused), say)


def adamw(
    model: nn.Module, *, beta1: float, beta2: float, epsilon: float, weight_decay: float = 0.0, fused: bool
) -> Optimizer:
    """`torch.optim.AdamW` as it is, of what is trained; without decay `torch.optim.Adam`."""
    groups = _groups(model, weight_decay, is_matrix)
    return Optimizer(torch.optim.AdamW(groups, betas=(beta1, beta2), eps=epsilon, fused=fused), _rate_alone)


def sgd(parameters: Iterable[nn.Parameter], *, fused: bool) -> Optimizer:
    return Optimizer(torch.optim.SGD(parameters, fused=fused), _rate_alone)


def adagrad(
    parameters: Iterable[nn.Parameter], *, epsilon: float, initial_accumulator: float, fused: bool
) -> Optimizer:
    inner = torch.optim.Adagrad(
        parameters, eps=epsilon, initial_accumulator_value=initial_accumulator, fused=fused
    )
    return Optimizer(inner, _rate_alone)


class _Lars(torch.optim.Optimizer):
    """LARS as `mlperf_jax.training.momentum.lars` states it, all parameters of a group at once."""

    def __init__(self, groups: list[dict[str, Any]], **numbers: float) -> None:
        super().__init__(groups, {"lr": _NO_RATE, **numbers})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights = group["params"]
            grads = [w.grad for w in weights]
            moments = [self.state[w].setdefault("m", torch.zeros_like(w)) for w in weights]
            decay = group["weight_decay"]
            torch._foreach_mul_(moments, group["momentum"])
            if decay:
                directions = torch._foreach_add(grads, weights, alpha=decay)
                w_norms, g_norms = torch._foreach_norm(weights), torch._foreach_norm(grads)
                trust = [
                    torch.where((w > 0) & (g > 0), group["trust"] * w / (g + decay * w + group["eps"]), 1.0)
                    for w, g in zip(w_norms, g_norms, strict=True)
                ]
                grads = torch._foreach_mul(directions, trust)
            torch._foreach_add_(moments, grads, alpha=-group["lr"])
            torch._foreach_add_(weights, moments)


def lars(
    model: nn.Module, *, momentum: float, weight_decay: float, trust_coefficient: float, epsilon: float
) -> Optimizer:
    groups = _groups(model, weight_decay, is_matrix)
    return Optimizer(_Lars(groups, momentum=momentum, trust=trust_coefficient, eps=epsilon), _rate_alone)


class _RmsProp(torch.optim.Optimizer):
    """RMSProp as `mlperf_jax.training.rmsprop` states it, all parameters of a group at once; both means start as 0."""

    def __init__(self, groups: list[dict[str, Any]], **numbers: float) -> None:
        super().__init__(groups, {"lr": _NO_RATE, **numbers})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights = group["params"]
            slots = [self.state[w] for w in weights]
            squares, moments = (
                [s.setdefault(name, torch.zeros_like(w)) for s, w in zip(slots, weights, strict=True)]
                for name in ("v", "m")
            )
            grads = torch._foreach_add([w.grad for w in weights], weights, alpha=group["weight_decay"])
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, grads, grads, value=1 - group["decay"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_mul_(moments, group["momentum"])
            torch._foreach_addcdiv_(moments, grads, roots, value=group["lr"])
            torch._foreach_sub_(weights, moments)


def rmsprop(
    model: nn.Module, *, decay: float, momentum: float, epsilon: float, weight_decay: float
) -> Optimizer:
    groups = _groups(model, weight_decay, is_matrix)
    return Optimizer(_RmsProp(groups, decay=decay, momentum=momentum, eps=epsilon), _rate_alone)


class _Lamb(torch.optim.Optimizer):
    """LAMB as `mlperf_jax.training.adam` states it, all parameters of a group at once; layers are parameters of their own."""

    def __init__(self, groups: list[dict[str, Any]], **numbers: float) -> None:
        super().__init__(groups, {"lr": _NO_RATE, "step": 0, **numbers})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights, decay = group["params"], group["weight_decay"]
            grads = [w.grad for w in weights]
            slots = [self.state[w] for w in weights]
            means, squares = (
                [s.setdefault(name, torch.zeros_like(w)) for s, w in zip(slots, weights, strict=True)]
                for name in ("m", "v")
            )
            torch._foreach_lerp_(means, grads, 1 - group["beta1"])
            torch._foreach_mul_(squares, group["beta2"])
            torch._foreach_addcmul_(squares, grads, grads, value=1 - group["beta2"])
            roots = torch._foreach_div(squares, 1 - group["beta2"] ** group["step"])
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, group["eps"])
            steps = torch._foreach_div(means, roots)
            torch._foreach_div_(steps, 1 - group["beta1"] ** group["step"])
            if decay:
                torch._foreach_add_(steps, weights, alpha=decay)
                norms = zip(torch._foreach_norm(weights), torch._foreach_norm(steps), strict=True)
                trust = [torch.where((w > 0) & (d > 0), w / d, 1.0) for w, d in norms]
                steps = torch._foreach_mul(steps, trust)
            torch._foreach_add_(weights, steps, alpha=-group["lr"])


def lamb(model: nn.Module, *, beta1: float, beta2: float, epsilon: float, weight_decay: float) -> Optimizer:
    def say(group: dict[str, Any], rate: float, step: int) -> None:
        group["lr"], group["step"] = rate, step

    groups = _groups(model, weight_decay, is_matrix)
    return Optimizer(_Lamb(groups, beta1=beta1, beta2=beta2, eps=epsilon), say)
