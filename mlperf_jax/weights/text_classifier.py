"""The reference's networks of sentiment analysis, as PaddlePaddle's fluid names their parameters, into our own.

fluid numbers parameters by layer as the program is built: embedding_0.w_0; sequence_conv_0.w_0 [size * E, F] and .b_0;
fc_0.w_0, .w_1, .b_0; lstm_0.w_0 [H, 4 H] and .b_0 [1, 7 H] with the peepholes last. Its LSTM has the gates in the
order candidate, input, forget, output (paddle/fluid/operators/lstm_op.cc).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax.errors import UserError
from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import Source
from mlperf_jax.workload import State
from models.text_classifier import TextClassifierConfig

_ORDER = [1, 2, 0, 3]  # of our gates i, f, g, o among PaddlePaddle's


class PaddleSource(Source):
    """Arrays of layers as fluid names them."""

    def refuse_left_over(self) -> None:
        # Anything of layers; not an optimizer's moments.
        if left := [name for name in self._left if re.search(r"\.[wb]_\d+$", name)]:
            raise UserError(
                f"The weights have {left[0]}, which this model does not; they are of another model."
            )


def from_paddle(tensors: Mapping[str, Tensor], config: TextClassifierConfig) -> State:
    """Parameters, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = PaddleSource(tensors)
    embedding = source.take("embedding_0.w_0", (config.vocabulary_size, config.embedding))
    if config.network == "convolutions":
        reader = {"convolutions": {i: _window(source, i, config) for i in range(len(config.windows))}}
        # One weight for each window, which are parts of our one.
        shape = (config.features, config.classes)
        parts = [source.take(f"fc_0.w_{i}", shape) for i in range(len(config.windows))]
        last = _joined(parts, source.take("fc_0.b_0", (config.classes,)))
    else:
        width, hidden = config.features, config.features // 4
        inputs = [(config.embedding,), *[(width, hidden)] * (config.layers - 1)]
        reader = {
            "linear": {i: _linear(source, i, sizes, width) for i, sizes in enumerate(inputs)},
            "recurrent": {i: _lstm(source, i, hidden) for i in range(config.layers)},
        }
        name, out = f"fc_{config.layers}", config.classes
        of_gates = _gates(np.asarray(source.take(f"{name}.w_0", (width, out))), 0)
        of_states = source.take(f"{name}.w_1", (hidden, out))
        last = _joined([of_gates, of_states], source.take(f"{name}.b_0", (out,)))
    source.refuse_left_over()
    return {"params": {"embedding": embedding, "reader": reader, "last": last}, "model_state": {}}


def _window(source: PaddleSource, number: int, config: TextClassifierConfig) -> dict[str, Any]:
    size, name = config.windows[number], f"sequence_conv_{number}"
    kernel = np.asarray(source.take(f"{name}.w_0", (size * config.embedding, config.features)))
    kernel = kernel.reshape(size, config.embedding, config.features)
    return {"kernel": kernel, "bias": source.take(f"{name}.b_0", (config.features,))}


def _joined(parts: Sequence[Tensor], bias: Tensor) -> dict[str, Any]:
    return {"kernels": {0: np.concatenate([np.asarray(part) for part in parts])}, "bias": bias}


def _linear(source: PaddleSource, number: int, inputs: tuple[int, ...], width: int) -> dict[str, Any]:
    """What makes the gates of an LSTM, and reads those of the one before."""
    name = f"fc_{number}"
    kernels = [np.asarray(source.take(f"{name}.w_{i}", (n, width))) for i, n in enumerate(inputs)]
    if number:
        kernels[0] = _gates(kernels[0], 0)
    bias = _gates(np.asarray(source.take(f"{name}.b_0", (width,))), 0)
    return {"kernels": {i: _gates(kernel, 1) for i, kernel in enumerate(kernels)}, "bias": bias}


def _gates(array: np.ndarray, axis: int) -> np.ndarray:
    """PaddlePaddle's four gates, side by side along an axis, in our order."""
    parts = np.split(array, 4, axis)
    return np.concatenate([parts[i] for i in _ORDER], axis)


def _lstm(source: PaddleSource, number: int, hidden: int) -> dict[str, Any]:
    name = f"lstm_{number}"
    kernel = np.asarray(source.take(f"{name}.w_0", (hidden, 4 * hidden))).reshape(hidden, 4, hidden)
    bias = np.asarray(source.take(f"{name}.b_0", (1, 7 * hidden))).reshape(7, hidden)
    return {"kernel": kernel[:, _ORDER], "bias": bias[:4][_ORDER], "peepholes": bias[4:]}
