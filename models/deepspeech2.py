"""DeepSpeech2 (Amodei et al., arXiv:1512.02595) as MLPerf's draft of 2018 has it: a spectrogram in, characters out.

Two convolutions over time and frequency without padding, each with batch normalisation and a rectifier that ends at 20;
GRUs that read forwards, with no norm between them; batch normalisation and a linear layer without bias. At the
reference's sizes 103,841,568 parameters with the GRUs' biases, which its params.py asks for; 103,795,488 without.

Source: mlcommons/training, retired_benchmarks/never-adopted/speech_recognition/pytorch/model.py and params.py (the
README's five bidirectional GRUs are those of an earlier version). As there, nothing but the loss knows of padding: what
follows a recording is zeros, which no frame before them sees.

jax has no GRU of cuDNN's (`jax.experimental.rnn` is LSTM alone), so on GPUs too it is `models.lstm`'s scan.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mlperf_jax.parallel.layout import constrain
from mlperf_jax.precision import Policy
from models.layers import Conv
from models.lstm import GRU, uniform
from models.norms import BatchNorm
from models.products import product

_CEILING = 20.0


@dataclasses.dataclass(frozen=True)
class DeepSpeech2Config:
    """Sizes of a DeepSpeech2.

    Attributes:
        bins: F, frequencies of the spectrogram.
        channels: of each convolution.
        windows: of each convolution, frames and bins.
        strides: the same.
        width: H, of the GRUs.
        num_layers: of them.
        vocab_size: V, characters, 0 (blank) among them.
        padding: frames of zeros before a recording and after it, which count as its own; the reference has none.
    """

    bins: int = 161
    channels: tuple[int, ...] = (32, 32)
    windows: tuple[tuple[int, int], ...] = ((11, 41), (11, 21))
    strides: tuple[tuple[int, int], ...] = ((2, 2), (1, 2))
    width: int = 2560
    num_layers: int = 3
    vocab_size: int = 29
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.windows) == len(self.strides):
            raise ValueError(
                f"{len(self.channels)} channels, {len(self.windows)} windows and {len(self.strides)} strides are not of "
                "as many convolutions"
            )
        if self.features < 1:
            raise ValueError(f"the windows {self.windows} are too large for {self.bins} bins")

    @property
    def bins_after(self) -> tuple[int, ...]:
        """Bins after each convolution."""
        bins, found = self.bins, []
        for (_, window), (_, stride) in zip(self.windows, self.strides, strict=True):
            bins = (bins - window) // stride + 1
            found.append(bins)
        return tuple(found)

    @property
    def features(self) -> int:
        """What the first GRU reads of a frame."""
        return self.bins_after[-1] * self.channels[-1]


class DeepSpeech2(nnx.Module):
    """Spectrograms to logits of characters."""

    def __init__(self, config: DeepSpeech2Config, *, policy: Policy, rngs: nnx.Rngs) -> None:
        """Builds the network, drawn as PyTorch draws it, but for biases, which start as zero.

        Args:
            config: sizes.
            policy: dtypes.
            rngs: holds the stream "params"; nothing of it is kept.
        """
        self.config = config
        self.dtype, self.output_dtype = policy.compute_dtype, policy.output_dtype
        convolutions, before = [], 1
        for channels, window, stride in zip(config.channels, config.windows, config.strides, strict=True):
            convolutions.append(
                Conv(
                    before,
                    channels,
                    window,
                    stride=stride,
                    padding="VALID",
                    bias=True,
                    kernel_init=uniform((before * math.prod(window)) ** -0.5),
                    policy=policy,
                    rngs=rngs,
                )
            )
            before = channels
        self.convolutions = nnx.List(convolutions)
        self.norms = nnx.List([BatchNorm(channels, policy=policy) for channels in config.channels])
        inputs = [config.features, *[config.width] * (config.num_layers - 1)]
        self.layers = nnx.List([GRU(size, config.width, policy=policy, rngs=rngs) for size in inputs])
        self.norm = BatchNorm(config.width, policy=policy)
        draw = uniform(config.width**-0.5)
        kernel = draw(rngs.params(), (config.width, config.vocab_size), policy.param_dtype)
        self.kernel = nnx.Param(kernel, axes=("embed", "vocab"))

    def __call__(self, spectrogram: jax.Array, *, train: bool) -> jax.Array:
        """Reads recordings.

        Args:
            spectrogram: [B, T, F], zeros after a recording's end.
            train: whether norms take the batch's statistics, of padding too, and update the running ones.

        Returns:
            Logits [B, T', V] in the output dtype; `frames_after` says how many of T' are real.
        """
        x = jnp.pad(spectrogram.astype(self.dtype), ((0, 0), self.config.padding, (0, 0)))[..., None]
        x = constrain(x, "batch", None, None, None)
        for conv, norm in zip(self.convolutions, self.norms, strict=True):
            x = jnp.clip(norm(conv(x), train=train), 0, _CEILING)
            x = constrain(x, "batch", None, None, "conv_out")
        x = constrain(x.reshape(*x.shape[:2], -1), "batch", None, "embed")
        for layer in self.layers:
            x, _ = layer(x)
            x = constrain(x, "batch", None, "embed")
        x = self.norm(x[:, :, None], train=train)[:, :, 0]
        logits = product(x, self.kernel[...].astype(self.dtype))
        return constrain(logits.astype(self.output_dtype), "batch", None, "vocab")


def frames_after(config: DeepSpeech2Config, frames: jax.Array) -> jax.Array:
    """Of recordings of so many frames [B] int32 the frames after the convolutions that see no other's padding, [B] int32.

    The reference counts the share of the batch's frames that the recording had, some of which see what fills up its row.
    """
    frames = frames + sum(config.padding)
    for (window, _), (stride, _) in zip(config.windows, config.strides, strict=True):
        frames = jnp.maximum((frames - window) // stride + 1, 0)
    return frames


def train_flops_per_recording(config: DeepSpeech2Config, frames: float) -> float:
    """Floating-point operations that the model asks for to train on a recording of so many frames.

    Products count 2 per multiply-add, three times for training. Norms, cells, the spectrogram and the optimizer count
    nothing.
    """
    total, before, frames = 0.0, 1, frames + sum(config.padding)
    for channels, window, stride, bins in zip(
        config.channels, config.windows, config.strides, config.bins_after, strict=True
    ):
        frames = max((frames - window[0]) // stride[0] + 1, 0)
        total += frames * bins * channels * before * math.prod(window)
        before = channels
    h = config.width
    layers = 3 * h * (config.features + h) + (config.num_layers - 1) * 3 * h * 2 * h
    return 3 * 2 * (total + frames * (layers + h * config.vocab_size))
