"""Published arrays, to be taken by name into a model's tree."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.weights.lazy import LazyArray, Tensor, require_finite

_EPSILON = 1e-5
_TOLD, _LONGEST = 4, 80  # names, and characters of one, that a sentence has


class Source:
    """Published arrays, each to be taken once.

    Attributes:
        hint: what may be the matter where one is missing.
    """

    hint = "are they of another model, or of another depth?"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = dict(tensors)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An array in float32.

        Raises:
            UserError: it is missing, has another shape, or holds what is no number that float32 has; of
                a lazy one the latter is told when it is read.
        """
        if name not in self._left:
            raise UserError(f"The weights have no {name}; they have {self._told(name)}; {self.hint}")
        array = self._left.pop(name)
        if array.shape != shape:
            raise UserError(f"The weights' {name} has shape {array.shape} where this model has {shape}.")
        if not any(jnp.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
            raise UserError(f"The weights' {name} is of {array.dtype}, no real numbers; {self.hint}")
        if array.dtype.itemsize <= 4:
            return array.astype(np.float32)
        if isinstance(array, LazyArray):
            return LazyArray(shape, np.float32, lambda index: _narrowed(name, array[index]))
        return _narrowed(name, array)

    def _told(self, wanted: str) -> str:
        """Some of the names that there are: those that end alike before others."""
        end = ".".join(wanted.split(".")[-2:])
        names = sorted(self._left, key=lambda name: not name.endswith(end))
        more = f" and {len(names) - _TOLD:,} more" if len(names) > _TOLD else ""
        return (", ".join(name[:_LONGEST] for name in names[:_TOLD]) or "no others") + more


def unwrapped(name: str) -> str:
    """A name in a state dict without what torch.compile, parallel and other wrappers put before it or into it."""
    return re.sub(r"^(?:_orig_mod\.|module\.|model\.)+", "", name).replace("._orig_mod.", ".")


def _narrowed(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is told
        return require_finite(name, array.astype(np.float32))


class TorchSource(Source):
    """Arrays of layers as PyTorch has them."""

    def conv(
        self,
        name: str,
        size: int | tuple[int, ...],
        features_in: int,
        features_out: int,
        *,
        bias: bool = False,
        transposed: bool = False,
    ) -> dict[str, Tensor]:
        """A convolution's arrays; `size` as `models.layers` has it, `transposed` where it is `ConvTranspose`."""
        window = (size, size) if isinstance(size, int) else size
        features = (features_in, features_out) if transposed else (features_out, features_in)
        kernel = self.take(f"{name}.weight", (*features, *window))
        biases = {"bias": self.take(f"{name}.bias", (features_out,))} if bias else {}
        places = tuple(range(2, 2 + len(window)))
        return {"kernel": kernel.transpose(*places, *((0, 1) if transposed else (1, 0)))} | biases

    def dense(
        self, name: str, features_in: int, features_out: int, *, bias: bool = True
    ) -> dict[str, Tensor]:
        """Where the published layer has no bias, ours is zero."""
        kernel = self.take(f"{name}.weight", (features_out, features_in))
        shape = (features_out,)
        biases = self.take(f"{name}.bias", shape) if bias else np.zeros(shape, np.float32)
        return {"kernel": kernel.T, "bias": biases}

    def lstm(
        self, name: str, features_in: int, features: int, *, layer: int = 0, both: bool = False
    ) -> dict[str, Any]:
        """A layer of an LSTM, as `models.lstm` has it: what PyTorch has as [G H, I] is [I, G, H]."""

        def direction(ending: str) -> dict[str, Tensor]:
            def kernel(kind: str, inputs: int) -> Tensor:
                array = self.take(f"{name}.weight_{kind}_l{layer}{ending}", (4 * features, inputs))
                return array.reshape(4, features, inputs).transpose(2, 0, 1)

            def bias(kind: str) -> Tensor:
                return self.take(f"{name}.bias_{kind}_l{layer}{ending}", (4 * features,)).reshape(4, features)

            return {
                "kernel": kernel("ih", features_in),
                "recurrent": kernel("hh", features),
                "bias": bias("ih"),
                "bias_recurrent": bias("hh"),
            }

        endings = ("", "_reverse")[: 1 + both]
        return {"directions": {n: direction(ending) for n, ending in enumerate(endings)}}

    def norm(self, name: str, conv: str, features: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(parameters, statistics)

        A convolution with a bias and without a batch norm after it (they were folded together) gets one
        that only adds the bias; one with a scale and a shift (a frozen norm in ONNX) one of those.
        """
        shape = (features,)
        one, zero = np.ones(shape, np.float32), np.zeros(shape, np.float32)
        plain: dict[str, Tensor] = {"mean": zero, "var": one - np.float32(_EPSILON)}
        if f"{name}.running_mean" not in self._left and f"{conv}.scale" in self._left:
            return {
                "scale": self.take(f"{conv}.scale", shape),
                "bias": self.take(f"{conv}.shift", shape),
            }, plain
        if f"{name}.running_mean" not in self._left and f"{conv}.bias" in self._left:
            return {"scale": one, "bias": self.take(f"{conv}.bias", shape)}, plain
        params = {"scale": self.take(f"{name}.weight", shape), "bias": self.take(f"{name}.bias", shape)}
        stats = {
            "mean": self.take(f"{name}.running_mean", shape),
            "var": self.take(f"{name}.running_var", shape),
        }
        return params, stats

    def block(
        self, name: str, convs: Sequence[tuple[int, int, int]], shortcut: tuple[int, int] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(parameters, statistics) of a residual block as torchvision names it.

        Args:
            name: of the block.
            convs: size, features in and out of its convolutions.
            shortcut: features in and out of the projection, None where there is none.
        """
        layers = [(str(i), f"conv{i}", f"bn{i}", *sizes) for i, sizes in enumerate(convs, 1)]
        if shortcut:
            layers.append(("_shortcut", "downsample.0", "downsample.1", 1, *shortcut))
        params, stats = {}, {}
        for suffix, conv, norm, size, features_in, features_out in layers:
            params[f"conv{suffix}"] = self.conv(f"{name}.{conv}", size, features_in, features_out)
            params[f"norm{suffix}"], stats[f"norm{suffix}"] = self.norm(
                f"{name}.{norm}", f"{name}.{conv}", features_out
            )
        return params, stats

    def refuse_left_over(self) -> None:
        # Anything of layers and weights; not a file's own counters and constants.
        left = [
            name
            for name in self._left
            if name.endswith((".weight", ".bias", ".running_mean", ".running_var"))
        ]
        if left:
            raise UserError(
                f"The weights have {left[0]}, which this model does not; they are of another model."
            )
