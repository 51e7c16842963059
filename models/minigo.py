"""MiniGo's dual network: one trunk of residual blocks, a head for the move and one for the outcome.

Source of every choice: mlcommons/training, retired_benchmarks/minigo/tensorflow/minigo/dual_net.py
(after Silver et al., "Mastering the game of Go without human knowledge", 2017). Convolutions have no
bias; batch norm has momentum 0.95 and epsilon 1e-5, and neither gamma nor beta in the heads; kernels start
from Glorot's uniform distribution. MLPerf's network has 736,671 parameters on 19x19, and on 9x9, where
its trunk has three blocks more, 701,577.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.layers import Conv, Dense
from models.norms import BatchNorm


@dataclasses.dataclass(frozen=True)
class DualNetworkConfig:
    """Sizes of a dual network.

    Attributes:
        size: N, of the board.
        planes: C, of features.
        conv_width: channels of the trunk.
        trunk_layers: residual blocks.
        fc_width: of the hidden layer of the value head.
    """

    size: int = 19
    planes: int = 13
    conv_width: int = 64
    trunk_layers: int = 6
    fc_width: int = 64


def _conv(features_in: int, features_out: int, size: int, *, policy: Policy, rngs: nnx.Rngs) -> Conv:
    layer = Conv(features_in, features_out, size, policy=policy, rngs=rngs)
    return _glorot(layer, rngs)


def _dense(
    features_in: int,
    features_out: int,
    *,
    axes: tuple[str | None, str | None],
    policy: Policy,
    rngs: nnx.Rngs,
) -> Dense:
    layer = Dense(features_in, features_out, axes=axes, stddev=0.0, policy=policy, rngs=rngs)
    return _glorot(layer, rngs)


_Layer = TypeVar("_Layer", Conv, Dense)


def _glorot(layer: _Layer, rngs: nnx.Rngs) -> _Layer:
    kernel = layer.kernel[...]
    layer.kernel.set_value(initializers.glorot_uniform()(rngs.params(), kernel.shape, kernel.dtype))
    return layer


class Residual(nnx.Module):
    """Two 3x3 convolutions with batch norm, added to what came in."""

    def __init__(self, width: int, *, policy: Policy, rngs: nnx.Rngs) -> None:
        self.conv1 = _conv(width, width, 3, policy=policy, rngs=rngs)
        self.norm1 = BatchNorm(width, momentum=0.95, policy=policy)
        self.conv2 = _conv(width, width, 3, policy=policy, rngs=rngs)
        self.norm2 = BatchNorm(width, momentum=0.95, policy=policy)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, N, N, W] to the same shape."""
        y = nnx.relu(self.norm1(_pin(self.conv1(x)), train=train))
        return nnx.relu(x + self.norm2(_pin(self.conv2(y)), train=train))


class DualNetwork(nnx.Module):
    """Policy and value of positions."""

    def __init__(self, config: DualNetworkConfig, *, policy: Policy, rngs: nnx.Rngs) -> None:
        width, points = config.conv_width, config.size**2
        conv = functools.partial(_conv, policy=policy, rngs=rngs)
        dense = functools.partial(_dense, policy=policy, rngs=rngs)
        self.conv = conv(config.planes, width, 3)
        self.norm = BatchNorm(width, momentum=0.95, policy=policy)
        self.blocks = nnx.Dict(
            {f"block{i}": Residual(width, policy=policy, rngs=rngs) for i in range(config.trunk_layers)}
        )
        self.policy_conv = conv(width, 2, 1)
        self.policy_norm = BatchNorm(2, momentum=0.95, affine=False, policy=policy)
        self.policy_dense = dense(2 * points, points + 1, axes=("embed", "vocab"))
        self.value_conv = conv(width, 1, 1)
        self.value_norm = BatchNorm(1, momentum=0.95, affine=False, policy=policy)
        self.value_hidden = dense(points, config.fc_width, axes=("embed", "mlp"))
        self.value_dense = dense(config.fc_width, 1, axes=("mlp", None))
        self.dtype = policy.compute_dtype
        self.output_dtype = policy.output_dtype

    def __call__(self, planes: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Judges positions.

        Args:
            planes: [B, N, N, C], of any dtype.
            train: normalise by the batch, and update running statistics.

        Returns:
            Logits of moves [B, N * N + 1] and the expected outcome [B], from -1 (White wins) to 1, both in
            the policy's output dtype.
        """
        x = _pin(planes.astype(self.dtype))
        x = nnx.relu(self.norm(_pin(self.conv(x)), train=train))
        for block in self.blocks.values():
            x = block(x, train=train)
        policy = nnx.relu(self.policy_norm(self.policy_conv(x), train=train))
        logits = self.policy_dense(policy.reshape(len(x), -1))
        value = nnx.relu(self.value_norm(self.value_conv(x), train=train))
        value = self.value_dense(nnx.relu(self.value_hidden(value.reshape(len(x), -1))))[:, 0]
        return logits.astype(self.output_dtype), jnp.tanh(value.astype(self.output_dtype))


def flops_per_position(config: DualNetworkConfig, *, train: bool) -> float:
    """Model FLOPs of one position, 2 per multiply-add; training counts three times the forward pass."""
    points, width = config.size**2, config.conv_width
    trunk = points * 9 * (config.planes * width + 2 * config.trunk_layers * width**2)
    heads = points * 3 * width + 2 * points * (points + 1) + points * config.fc_width + config.fc_width
    return 2.0 * (trunk + heads) * (3 if train else 1)


def _pin(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", None, None, "channels")
