"""GNMT as MLPerf's references name it, into `models.gnmt`.

PyTorch's names are those of the training reference's checkpoints (mlcommons/training, rnn_translator/pytorch:
encoder.rnn_layers.0.weight_ih_l0, decoder.att_rnn.attn.linear_q.weight, ...), whose ids are ours.

TensorFlow's are those of MLPerf Inference's ende_gnmt_model_4_layer (mlcommons/inference, v0.5/translation/gnmt:
dynamic_seq2seq/encoder/bidirectional_rnn/fw/basic_lstm_cell/kernel, ...). That model feeds its attention to the first
layer of the decoder too, hands the encoder's last states over, has a table of embeddings a side and no bias in front of
the words; its gates stand as i, g, f, o, and 1 is added to f. Its words count from 3, after what is unknown, start and
end: here one later, with padding before them, which it never says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlperf_jax.weights.lazy import Tensor
from mlperf_jax.weights.source import Source, TorchSource, unwrapped
from mlperf_jax.workload import State
from models.gnmt import GNMTConfig

_NEVER = -1e9  # what stands before softmax for a word that is never said


def from_state_dict(tensors: Mapping[str, Tensor], config: GNMTConfig) -> State:
    """Parameters from PyTorch's names, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = _Torch({unwrapped(name): array for name, array in tensors.items()})
    width, vocab_size = config.width, config.vocab_size
    table = source.take("encoder.embedder.weight", (vocab_size, width))
    if source.has("decoder.embedder.weight"):
        source.take("decoder.embedder.weight", (vocab_size, width))  # the same table
    later = range(config.num_layers - 1)
    encoder = [source.lstm("encoder.rnn_layers.0", width, width, both=True)]
    for n in later:
        features_in = width if n else 2 * width
        encoder.append(source.lstm(f"encoder.rnn_layers.{n + 1}", features_in, width))
    decoder = [source.lstm("decoder.att_rnn.rnn", width, width)]
    decoder += [source.lstm(f"decoder.rnn_layers.{n}", 2 * width, width) for n in later]
    attention = {
        "query": source.take("decoder.att_rnn.attn.linear_q.weight", (width, width)).T,
        "key": source.take("decoder.att_rnn.attn.linear_k.weight", (width, width)).T,
        "vector": source.take("decoder.att_rnn.attn.linear_att", (width,)),
        "gain": source.take("decoder.att_rnn.attn.normalize_scalar", (1,)),
        "bias": source.take("decoder.att_rnn.attn.normalize_bias", (width,)),
    }
    classifier = source.dense("decoder.classifier.classifier", width, vocab_size)
    source.refuse_left_over()
    params = {
        "embedding": table,
        "encoder": _numbered(encoder),
        "attention": attention,
        "decoder": _numbered(decoder),
        **classifier,
    }
    return {"params": params, "model_state": {}}


class _Torch(TorchSource):
    def has(self, name: str) -> bool:
        return name in self._left


TENSORFLOW = {
    "model.variant": "tensorflow",
    "decode.beams": 10,
    "decode.alpha": 1.0,
    "decode.beta": 0.0,
}
"""The config that goes with TensorFlow's weights (its wmt16_gnmt_4_layer.json)."""

_ROOT = "dynamic_seq2seq"


def is_tensorflow(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are TensorFlow's names."""
    return any(name.startswith(_ROOT) for name in tensors)


def from_tensorflow(tensors: Mapping[str, Tensor], config: GNMTConfig) -> State:
    """Parameters of the "tensorflow" variant from TensorFlow's names, float32.

    Raises:
        UserError: an array is missing, has another shape, or belongs to another model.
    """
    source = _Checkpoint(tensors)
    width, vocab_size = config.width, config.vocab_size
    decoder, attention = f"{_ROOT}/decoder/multi_rnn_cell", "cell_0_attention/attention"
    bahdanau = f"{decoder}/{attention}/bahdanau_attention"
    both = [source.cell(f"{_ROOT}/encoder/bidirectional_rnn/{way}", width, width) for way in ("fw", "bw")]
    encoder = [{"directions": _numbered(both)}]
    for n in range(config.num_layers - 1):
        name = f"{_ROOT}/encoder/rnn/multi_rnn_cell/cell_{n}"
        encoder.append({"directions": {0: source.cell(name, width if n else 2 * width, width)}})
    cells = [attention, *(f"cell_{n}" for n in range(1, config.num_layers))]
    layers = [{"directions": {0: source.cell(f"{decoder}/{name}", 2 * width, width)}} for name in cells]
    words = source.take(f"{_ROOT}/decoder/output_projection/kernel", (width, vocab_size - 1))
    bias = np.zeros(vocab_size, np.float32)
    bias[0] = _NEVER
    params = {
        "embedding": source.table("encoder", vocab_size, width),
        "target_embedding": source.table("decoder", vocab_size, width),
        "encoder": _numbered(encoder),
        "attention": {
            "query": source.take(f"{bahdanau}/query_layer/kernel", (width, width)),
            "key": source.take(f"{_ROOT}/decoder/memory_layer/kernel", (width, width)),
            "vector": source.take(f"{bahdanau}/attention_v", (width,)),
            "gain": source.take(f"{bahdanau}/attention_g", ()).reshape(1),
            "bias": source.take(f"{bahdanau}/attention_b", (width,)),
        },
        "decoder": _numbered(layers),
        "kernel": np.pad(np.asarray(words), ((0, 0), (1, 0))),
        "bias": bias,
    }
    return {"params": params, "model_state": {}}


class _Checkpoint(Source):
    """The variables of a checkpoint."""

    hint = "this model's are those of MLPerf Inference's ende_gnmt_model_4_layer."

    def table(self, side: str, vocab_size: int, width: int) -> np.ndarray:
        table = self.take(f"embeddings/{side}/embedding_{side}", (vocab_size - 1, width))
        return np.pad(np.asarray(table), ((1, 0), (0, 0)))

    def cell(self, name: str, features_in: int, features: int) -> dict[str, np.ndarray]:
        """A direction of `models.lstm`; TensorFlow's kernel has the state's rows below the input's."""
        kernel = self.take(f"{name}/basic_lstm_cell/kernel", (features_in + features, 4 * features))
        bias = self.take(f"{name}/basic_lstm_cell/bias", (4 * features,))
        order = [0, 2, 1, 3]
        both = np.asarray(kernel).reshape(-1, 4, features)[:, order]
        biases = np.asarray(bias).reshape(4, features)[order]
        return {
            "kernel": both[:features_in],
            "recurrent": both[features_in:],
            "bias": biases + np.array([0, 1, 0, 0], np.float32)[:, None],
            "bias_recurrent": np.zeros((4, features), np.float32),
        }


def _numbered(items: Sequence[Any]) -> dict[int, Any]:
    return dict(enumerate(items))
